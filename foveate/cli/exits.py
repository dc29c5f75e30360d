"""exits: what the classifiers of a plan with early exits know, who leaves where, and which threshold to take."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, bar, sheets, waiting
from foveate.cli.options import BatchSize, Data, DataDir, Device, Json, Limit, ModelOrRun, PlanText, Split, Strict
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.adaptive import AdaptiveModel
    from foveate.exit_stats import ExitOutcomes

Thresholds = Annotated[
    list[float] | None,
    typer.Option(
        "--threshold", metavar="T...", show_default=False, help="Thresholds to compare. Default: 0.6, 0.65, ... 1 for confidence, a like scale for other gates."
    ),
]
Accuracy = Annotated[
    float | None, typer.Option(metavar="PERCENT", show_default=False, help="Find the cheapest threshold with this accuracy on the validation images.")
]
Budget = Annotated[
    float | None,
    typer.Option("--gmacs", metavar="N", show_default=False, help="Find the most accurate threshold within this cost of the mean validation image."),
]


def exits(
    ctx: typer.Context,
    model_or_run: ModelOrRun,
    plan: PlanText = None,
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = "test",
    limit: Limit = None,
    threshold: Thresholds = None,
    accuracy: Accuracy = None,
    gmacs: Budget = None,
    batch_size: BatchSize = 250,
    device: Device = "auto",
    strict: Strict = False,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Write results.json and report.html with figures there.")] = None,
    json: Json = False,
) -> None:
    """Show what early exits know, and what each threshold gives.

    Accuracy of each exit by itself; for every threshold the mean cost and who leaves where, rightly or wrongly. Images that not even the
    last exit is sure of are unclassified: they get its answer, which counts in the accuracy. --accuracy or --gmacs finds a threshold on the
    validation images, never on the test set.
    """
    from foveate.cli.targets import open_model, single_plan_of, target_of

    with answering(json) as answer:
        target = target_of(model_or_run)
        chosen = single_plan_of(target, plan)
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        if accuracy is not None and gmacs is not None:
            raise FoveateError("--accuracy and --gmacs", "one of the two", "leave one out")
        with waiting("loading the model"):
            from foveate.cli.exit_tables import exit_results
            from foveate.cli.images import images_for
            from foveate.cli.judge import chosen_device
            from foveate.exit_calibration import exits_of
            from foveate.machine import machine
            from foveate.report import Made

            model = open_model(target, chosen).to(chosen_device(device))
            exits_of(model)
            images = images_for(target, model, data, data_dir, split, strict, limit)
        outcomes = _observed(model, images, batch_size, "asking all exits")
        calibration = None
        if accuracy is not None or gmacs is not None:
            validation = images_for(target, model, data, data_dir, "validation", strict)
            seen = _observed(model, validation, batch_size, "calibrating")
            calibration = seen.calibrated(accuracy, None if gmacs is None else gmacs * 1e9)
        points = outcomes.sweep(threshold or None)
        found = machine()
        made = Made(ctx.obj, time.perf_counter() - clock, started, versions=found["versions"])
        own = outcomes.point(calibration.threshold if calibration else None)
        results = exit_results(f"{model.card.name}, {chosen}", outcomes, points, own, f"{images.name}, {split}", found, made)
        answer.data = {"model": model.card.name, "run": target.folder, "plan": str(chosen), "data": images.name, "split": split} | results.figures
        if calibration:
            answer.data["calibration"] = {"split": "validation", "images": int(seen.correct.shape[1])} | calibration.to_dict()
        answer.facts({"model": model.card.name, "plan": chosen, "data": f"{images.name}, {split}, {outcomes.correct.shape[1]:,} images",
                      "calibrated": _calibrated(calibration, own)})  # fmt: skip
        answer.shown += ["", *sheets(results)]
        if out is not None:
            answer.data["report"] = _write(out, results)
            answer.shown.append(f"report: {answer.data['report']}")


def _observed(model: AdaptiveModel, images, batch_size: int, what: str) -> ExitOutcomes:
    from foveate.exit_calibration import observe_exits

    with bar(what) as progress:
        return observe_exits(model, images, batch_size, progress)


def _calibrated(point: Any, own: Any) -> str:
    if point is None:
        return ""
    return (f"threshold {point.threshold:g}: {point.accuracy_percent:.2f} % at {point.macs / 1e9:.4g} GMACs on the validation images, "
            f"{own.accuracy_percent:.2f} % at {own.macs / 1e9:.4g} here")  # fmt: skip


def _write(out: Path, results: Any) -> Path:
    from foveate.report import save_results, write_report

    save_results(out, results)
    return write_report(out / "report.html", results)
