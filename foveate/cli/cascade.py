"""cascade: trained runs put behind one another, their thresholds calibrated, the whole tested once."""

from __future__ import annotations

import json as jsonlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import Answer, answering, bar, note, sheets, table, waiting
from foveate.cli.options import BatchSize, Data, DataDir, Device, Json, Limit, Strict
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.cascade import Cascade
    from foveate.cli.targets import Target
    from foveate.efforts import Outcomes


Runs = Annotated[
    list[str], typer.Argument(metavar="LOW_RUN HIGH_RUN...", show_default=False, help="Two runs or more of one data set, the cheapest effort first.")
]
Lec = Annotated[
    float,
    typer.Option(metavar="SHARE", help="Low effort constraint: share of the images reaching an effort that it answers itself, above 0 and up to 1."),
]
Sweep = Annotated[
    bool, typer.Option("--sweep", help="Also show what constraints from 0.6 to 1 give on the calibration images, and write report.html.")
]
Machine = Annotated[
    str | None,
    typer.Option(metavar="TARGET", show_default=False, help="Sweep with delay and energy of a machine of `foveate targets`. Default: MACs stand in."),
]


def cascade(
    ctx: typer.Context,
    runs: Runs,
    out: Annotated[Path, typer.Option(metavar="RUN", show_default=False, help="Folder for the cascade: its plan and a copy of each run.")],
    lec: Lec = 0.7,
    gate: Annotated[str, typer.Option(metavar="GATE", help="What is held against the threshold: entropy, max-probability or margin.")] = "entropy",
    data: Data = None,
    data_dir: DataDir = None,
    limit: Limit = None,
    sweep: Sweep = False,
    target: Machine = None,
    batch_size: BatchSize = 250,
    device: Device = "auto",
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Join efforts into a cascade: only what a cheap one is unsure of runs a dear one.

    Thresholds are calibrated on the validation images (--limit: the first N of them), never on the test set, which is read once at the end.
    A run trained on train+validation has seen those images, and is too sure of them. The result is a run for eval, count, bench and predict.
    """
    with answering(json) as answer:
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        _check(lec, out)
        cost = _cost(target)
        joined, source = _joined(runs, gate, device)
        with waiting("reading the images"):
            from foveate.calibration import calibrate, observe
            from foveate.cli.images import data_name, images_for
            from foveate.cli.judge import judged

            chosen = data_name(source, data, data_dir)
            calibration = images_for(source, joined, chosen, data_dir, "validation", strict, limit)
        with bar("calibrating") as progress:
            outcomes = observe(joined, calibration, batch_size, *cost, progress=progress)
        if outcomes.macs[0].mean() >= outcomes.macs[-1].mean():
            note(f"{runs[0]} costs no less than {runs[-1]}: the first effort should be the cheapest")
        joined = calibrate(joined, outcomes, lec)
        test = images_for(source, joined, chosen, data_dir, "test", strict)
        result, trace = judged(joined, test, batch_size, device)
        record = {
            "command": ctx.obj, "started": started, "model": joined.card.name, "data": chosen, "data_dir": data_dir, "classes": list(test.classes),
            "efforts_from": runs, "lec": lec,
            "calibration": {"split": "validation", "images": outcomes.images} | outcomes.answered(joined.plan.gates).to_dict(),
            "test": {k: v for k, v in result.items() if k != "correct"}, "seconds": round(time.perf_counter() - clock, 1),
        }  # fmt: skip
        _write(out, joined, calibration.preprocessing, record, trace)
        said = {k: v for k, v in (record | record["test"]).items() if k not in ("test", "classes", "command", "n")}
        answer.data = {"run": out, "plan": str(joined.plan), "thresholds": [g.threshold for g in joined.plan.gates], "images": result["n"]} | said
        _show(answer, joined, record["calibration"], result)
        if sweep or target:
            _show_sweep(answer, out, joined, outcomes, ctx.obj, started)


def _joined(runs: list[str], gate: str, device: str) -> tuple[Cascade, Target]:
    """The runs behind one another, not calibrated yet, and the one that says which data they were trained on."""
    from foveate.cli.targets import single_plan_of, target_of
    from foveate.gates import gate_class

    kind, targets = gate_class(gate), [target_of(run) for run in runs]
    plans = [single_plan_of(one, None) for one in targets]
    with waiting("loading the models"):
        from foveate.cascade import Cascade
        from foveate.cli.judge import chosen_device
        from foveate.cli.targets import open_model

        place = chosen_device(device)
        joined = Cascade([open_model(one, plan) for one, plan in zip(targets, plans)], kind(0.5)).to(place)
    for one in targets:
        _check_seen(one)
    return joined, next((one for one in reversed(targets) if one.embedded or one.record().get("data")), targets[-1])


def _check(lec: float, out: Path) -> None:
    """Before anything is loaded."""
    if not 0 < lec <= 1:
        raise FoveateError(f"--lec {lec:g}", "a share of images above 0 and up to 1", "write --lec 0.7 for LEC 70")
    if out.is_file() or (out / "plan.json").exists():
        what = "which is a file" if out.is_file() else "which already holds a run"
        raise FoveateError(f"--out {out}, {what}", "a new folder", "choose another --out")


def _check_seen(target: Target) -> None:
    """A note where a run was trained on the images that its threshold is about to be calibrated on."""
    from foveate.cli.targets import ASSETS

    recipe = target.folder / ("card.json" if target.embedded else "recipe.json") if target.folder else ASSETS / f"{target.text}.card.json"
    try:
        record = jsonlib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if "train+validation" in (record.get("split"), *str(record.get("command")).split()):
        note(f"{target.text} was trained on train+validation: it is surer of the calibration images than it will be of new ones")


def _cost(target: str | None) -> tuple[Any, str]:
    """(cost of an effort, its name) for `observe`."""
    if target is None:
        return None, ""
    from foveate.simulation import machine_of, simulate

    machine_of(target)  # an unknown name is refused before anything runs
    return lambda effort, trace: simulate(effort.card, effort.plan, target=target, trace=trace), f"simulated on {target}"


def _write(out: Path, joined: Cascade, preprocessing, record: dict[str, Any], trace) -> None:
    from dataclasses import asdict

    from foveate.cli.answer import plain
    from foveate.store import save
    from foveate.train.files import environment, write_json, write_text

    settings = asdict(preprocessing)
    save(joined, out, settings | {name: list(settings[name]) for name in ("mean", "std")}, record["classes"])
    write_text(out / "trace.json", trace.to_json())
    write_json(out / "run.json", plain(record | environment()))


def _show(answer: Answer, joined: Cascade, calibration: dict[str, Any], result: dict[str, Any]) -> None:
    from foveate.counting import effort_ledgers
    from foveate.efforts import break_even

    ledgers = effort_ledgers(joined, joined.plan)
    pays = f"; by its MACs it pays below {100 * break_even(ledgers[0].macs, ledgers[-1].macs):.1f} %" if len(ledgers) == 2 else ""
    saved = 100 * result["macs"] / result["macs_dense"]
    answer.facts({
        "cascade": joined.plan,
        "calibrated": f"on {calibration['images']:,} validation images, of which effort 1 answers {100 * calibration['F_L']:.1f} %",
        "accuracy": f"{result['accuracy_percent']:.2f} % ± {result['uncertainty_percent']:.2f} on {result['n']:,} test images",
        "goes on": f"{100 * result['F_H']:.1f} % of them{pays}",
        "GMACs": f"{result['macs'] / 1e9:.4g}, {saved:.1f} % of the dense {result['macs_dense'] / 1e9:.4g}",
        "params": f"{result['params'] / 1e6:.3f} M in all efforts together",
    })  # fmt: skip
    shown = table("effort", "plan", "MMACs", "answers (%)", "rightly (%)", "wrongly (%)", left=2)
    for row, effort, ledger in zip(result["efforts"], joined.efforts, ledgers):
        percents = (f"{row[key]:.2f}" for key in ("answered_percent", "correct_percent", "incorrect_percent"))
        shown.add_row(str(row["effort"]), str(effort.plan), f"{ledger.macs / 1e6:,.1f}", *percents)
    answer.shown.append(shown)


def _show_sweep(answer: Answer, out: Path, joined: Cascade, outcomes: Outcomes, command: str, started: str) -> None:
    from foveate.cli.lec import sweep_results
    from foveate.machine import machine
    from foveate.report import Made, save_results, write_report

    points = outcomes.sweep()
    answer.data["sweep"] = [point.to_dict() for point in points]
    answer.data["sweep_units"] = {"delay": outcomes.delay_unit, "energy": outcomes.energy_unit, "cost": outcomes.cost}
    if not points:
        note("no constraint of the sweep can be met: too many images without an answer")
        return
    found = machine()
    results = sweep_results(joined.plan, outcomes, points, found, Made(command, None, started, versions=found["versions"]))
    save_results(out, results)
    answer.data["report"] = write_report(out / "report.html", results)
    answer.shown += [*sheets(results), f"report: {answer.data['report']}"]
