"""thresholds: what each attention threshold of IRET gives (Table 1, Figs. 16 and 17 of IRET)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, sheets, waiting
from foveate.cli.options import BatchSize, Data, DataDir, Device, Json, Limit, ModelOrRun, PlanText, Split, Strict, Weights
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.plan import Plan
    from foveate.report import Made, Results
    from foveate.trace import Trace

PUBLISHED = ("0", "0.0004", "0.0005", "0.0008", "0.0012", "0.0015", "0.0018", "0.002", "0.003")
"""The thresholds of Table 1 of IRET, made for 198 tokens."""


def thresholds(
    ctx: typer.Context,
    model_or_run: ModelOrRun,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="T...", show_default=False, help="Thresholds to compare, one for all IRET layers, or joined by commas one a layer: 0.0004,0.0005,0.0008. "
                     "Default: those of IRET's Table 1, 0 to 0.003, times 198 over the model's own tokens."),
    ] = None,
    plan: PlanText = None,
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = "test",
    limit: Limit = None,
    weights: Weights = None,
    batch_size: BatchSize = 250,
    device: Device = "auto",
    strict: Strict = False,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Write results.json and report.html with figures there.")] = None,
    json: Json = False,
) -> None:
    """Compare attention thresholds of one IRET model, without training it again.

    For each: accuracy, MACs, tokens dropped before each IRET layer, and the parameters "used" by the paper's definition (all of them times the
    cost's share of the dense one). Choose a threshold by --split validation; the test set is for the figures that you report.
    """
    from foveate.cli.targets import open_model, single_plan_of, target_of

    with answering(json) as answer:
        target = target_of(model_or_run)
        own = single_plan_of(target, plan)
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        if own.find("iret") is None:
            raise FoveateError(f"{model_or_run} with the plan {own}", "plans with iret", 'give a run trained with iret, or --plan "iret()" on an iret_* model')
        with waiting("loading the model"):
            from foveate.adoption import replan
            from foveate.cli.images import images_for
            from foveate.cli.judge import judged
            from foveate.machine import machine
            from foveate.report import Made

            model = open_model(target, own, weights)
            images = images_for(target, model, data, data_dir, split, strict, limit)
        uniform = 198 / (model.card.prefix_tokens + model.card.blocks[0].patches)
        chosen = [_numbers(text) for text in threshold] if threshold else [(round(float(text) * uniform, 6),) for text in PUBLISHED]
        points = []
        for values in chosen:
            result, trace = judged(replan(model, at_threshold(own, values)), images, batch_size, device)
            points.append(Point.of(values, model.card, own, result, trace))
        found = machine()
        made = Made(ctx.obj, time.perf_counter() - clock, started, versions=found["versions"])
        results = threshold_results(f"{model.card.name}, {own}", points, f"{points[0].images:,} images ({images.name}, {split})", found, made)
        answer.data = {"model": model.card.name, "run": target.folder, "plan": str(own), "data": images.name, "split": split} | results.figures
        answer.shown = sheets(results)
        if out is not None:
            from foveate.report import save_results, write_report

            save_results(out, results)
            answer.data["report"] = write_report(out / "report.html", results)
            answer.shown.append(f"report: {answer.data['report']}")


@dataclass(frozen=True)
class Point:
    """What one threshold (or one a layer) gives on a set of images.

    dropped: patches that leave before each of `layers` (1-based blocks), mean over images. left: tokens alive at the end, prefix included.
    macs, params, params_used: of the mean image; see `parameters_used`. rescued: images of which no patch would have stayed.
    """

    threshold: tuple[float, ...]
    images: int
    accuracy_percent: float
    uncertainty_percent: float
    macs: float
    macs_dense: float
    params: int
    params_used: float
    layers: tuple[int, ...]
    dropped: tuple[float, ...]
    left: float
    rescued: int

    @classmethod
    def of(cls, threshold: tuple[float, ...], card: Any, plan: Plan, result: dict[str, Any], trace: Trace) -> Point:
        from foveate.methods.iret.cost import parameters_used

        layers = plan.find("iret").layers(card)
        used = parameters_used(result["macs"], card.params, result["macs_dense"])
        return cls(threshold, result["n"], result["accuracy_percent"], result["uncertainty_percent"], result["macs"], result["macs_dense"], card.params, used,
                   layers, dropped_before(layers, trace), sum(trace.block_tokens[-1]) / trace.images, len(trace.rescued))  # fmt: skip

    @property
    def name(self) -> str:
        return ",".join(f"{value:g}" for value in self.threshold)


def dropped_before(layers: tuple[int, ...], trace: Trace) -> tuple[float, ...]:
    """Tokens that leave before each IRET layer (1-based block), the mean over the images of `trace` (Fig. 17 of IRET)."""
    stages = dict(zip(trace.after, trace.tokens))
    return tuple((sum(trace.block_tokens[layer - 2]) - sum(stages[layer - 1])) / trace.images for layer in layers)


def at_threshold(plan: Plan, values: tuple[float, ...]) -> Plan:
    """`plan` with another attention threshold."""
    from foveate.plan import Plan

    change = values[0] if len(values) == 1 else values
    return Plan(method.but(threshold=change) if method.name == "iret" else method for method in plan.methods)


def threshold_results(title: str, points: list[Point], source: str, machine: dict[str, Any], made: Made) -> Results:
    """The points as a report: the table, accuracy and cost by threshold (Fig. 16), tokens dropped in each layer (Fig. 17)."""
    import numpy as np

    from foveate.report import Bar, Bars, Chart, Line, Results, Table

    layers = points[0].layers
    head = ("threshold", "accuracy (%)", "GMACs", "params used (M)", *(f"dropped before {layer}" for layer in layers), "tokens left")
    rows = tuple((p.name, f"{p.accuracy_percent:.2f}", f"{p.macs / 1e9:.4g}", f"{p.params_used / 1e6:.4g}", *(f"{n:.1f}" for n in p.dropped), f"{p.left:.1f}")
                 for p in points)  # fmt: skip
    table = Table("Attention thresholds", head, rows, f"Means over {source}; accuracy to {max(p.uncertainty_percent for p in points):.2f} points (95 %). Params used: "
                  f"{points[0].params / 1e6:.2f} M times the share of the dense {points[0].macs_dense / 1e9:.4g} GMACs. Tokens left count class and distillation token.")
    single = [p for p in points if len(p.threshold) == 1]
    charts: tuple[Chart, ...] = ()
    if len(single) > 1:
        x = np.array([p.threshold[0] for p in single])
        charts = (Chart("Accuracy by attention threshold", "attention threshold", "top-1 accuracy (%)", x, (Line("all images", np.array([p.accuracy_percent for p in single])),)),
                  Chart("MACs by attention threshold", "attention threshold", "GMACs of the mean image", x, (Line("mean image", np.array([p.macs / 1e9 for p in single])),)))
    bars = Bars("Tokens dropped before each IRET layer", "tokens of the mean image", tuple(
        Bar(f"threshold {p.name}", (*((f"before block {layer}", n) for layer, n in zip(p.layers, p.dropped)), ("left", p.left))) for p in points))
    first, last = points[0], points[-1]
    sentence = (f"From threshold {first.name} to {last.name} the accuracy goes from {first.accuracy_percent:.2f} to {last.accuracy_percent:.2f} %, "
                f"the cost from {first.macs / 1e9:.4g} to {last.macs / 1e9:.4g} GMACs.")  # fmt: skip
    figures = {"images": first.images, "params": first.params, "macs_dense": first.macs_dense, "layers": list(layers), "thresholds": [_plain(p) for p in points]}
    return Results(title, sentence, machine=machine, made=made, tables=(table,), charts=charts, bars=(bars,), figures=figures)


def _plain(point: Point) -> dict[str, Any]:
    threshold = point.threshold[0] if len(point.threshold) == 1 else list(point.threshold)
    return {"threshold": threshold, "accuracy_percent": point.accuracy_percent, "uncertainty_percent": point.uncertainty_percent, "macs": point.macs,
            "params_used": point.params_used, "dropped": list(point.dropped), "tokens_left": point.left, "rescued": point.rescued}  # fmt: skip


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(f"--threshold {text}", "numbers in [0, 1], or as many joined by commas as there are IRET layers", "write for instance --threshold 0.0004 0.0008") from None
