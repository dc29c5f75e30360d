"""sweep: several plans fine-tuned from one dense base, one after the other, and their table."""

from __future__ import annotations

import ast
import json as jsonlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, columns, note
from foveate.cli.learn import RECIPES_HELP, Batch, Epochs, Resume, Seed, Settings, TrainSplit, dense_target, fine_tune
from foveate.cli.options import Data, DataDir, Device, Json, ModelOrRun, Pretrained, Strict, Weights
from foveate.cli.recipes import chosen_recipe, setting_value, usual_recipe
from foveate.cli.runs import check_folder
from foveate.cli.targets import ASSETS, Target
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.plan import Plan


def sweep(
    ctx: typer.Context,
    model_or_run: ModelOrRun,
    plan: Annotated[
        list[str],
        typer.Option(metavar="PLAN", show_default=False, help="A plan file, a preset or the inline form, quoted; repeat it for several plans."),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", show_default=False, help="Folder that gets one run folder a plan, results.json and report.html.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,...", show_default=False,
            help="Train each plan once for every value of one setting, such as threshold=0.002,0.02,0.2,0.5,0.9 or mode=lowrank,vitality; "
            "repeat it for all combinations.",
        ),
    ] = None,
    data: Data = None,
    data_dir: DataDir = None,
    recipe: Annotated[str | None, typer.Option(metavar="RECIPE", show_default=False, help=f"{RECIPES_HELP}, or a recipe.json. Default: as for adapt.")] = None,
    epochs: Epochs = None,
    batch_size: Batch = None,
    split: TrainSplit = None,
    settings: Settings = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    resume: Resume = False,
    seed: Seed = None,
    device: Device = "auto",
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Fine-tune several plans from one dense base.

    Each gets a run folder of its own below --out. With --resume, finished runs are taken as they are and an interrupted one goes on.
    """  # fmt: skip
    from foveate.cli.targets import single_plan_of
    from foveate.plan import Plan

    with answering(json) as answer:
        target = dense_target(model_or_run)
        plans = named({text: single_plan_of(target, text) for text in plan}, vary or [])
        for name, one in plans.items():
            if not (resume and _finished(out / name)):
                check_folder(out / name, resume)
            elif (done := Plan.parse(str(out / name))) != one:
                raise FoveateError(f"--resume with {one} for the run {out / name}, which was trained with {done}", "the plans that the runs below --out have",
                                   "choose another --out, or another name for the plan")
        for name, one in plans.items():
            if _finished(out / name) and resume:
                note(f"{name}: finished before")
                continue
            note(f"{name}: {one}")
            setting = chosen_recipe(recipe or usual_recipe(target, plan[0]), seed, epochs, batch_size, split, settings)
            fine_tune(target, one, out / name, setting, data=data, data_dir=data_dir, weights=weights, pretrained=pretrained, strict=strict,
                      resume=resume, device=device, command=ctx.obj)  # fmt: skip
        entries = [_entry(out / name, one) for name, one in plans.items()]
        base = _base_seconds(target)
        answer.data = {"base": model_or_run, "base_seconds": base, "seconds": sum(e["seconds"] for e in entries), "runs": entries}
        from foveate.report import terminal_table

        rows = _rows(entries)
        answer.shown = [terminal_table(rows, width=columns(sys.__stdout__))]
        took = f"{answer.data['seconds']:,.0f} s of training"
        took += f", the dense base from scratch {base:,.0f} s" if base else "; how long the dense base took is not recorded"
        answer.facts({"took": took, "report": _write(out, rows, target.text, answer.data, ctx.obj)})


def _base_seconds(target: Target) -> float | None:
    """How long the dense base was trained: its run says so, or the card beside embedded weights."""
    if target.folder is None and target.embedded:
        return jsonlib.loads((ASSETS / f"{target.text}.card.json").read_text(encoding="utf-8")).get("seconds")
    return target.record().get("seconds")


def named(plans: dict[str, Plan], vary: list[str]) -> dict[str, Plan]:
    """Every plan of the command line for all values of `vary`, by the name of its run folder: no run may take another's place.

    plans: by their texts. Inline forms of the same methods are told apart by their settings: pivot-skip=2,3.
    """
    short = [_name(text) for text in plans]
    found = {}
    for text, plan in plans.items():
        name = _name(text) if short.count(_name(text)) == 1 else _long_name(text)
        for key, one in varied(name, plan, vary).items():
            if key in found:
                raise FoveateError(f"plans of the same name: {', '.join(plans)}", "a name of its own for each",
                                   "rename the plan files, or leave one of them out")
            found[key] = one
    return found


def varied(name: str, plan: Plan, vary: list[str]) -> dict[str, Plan]:
    """`plan` for every combination of the values in `vary`, by a name that says which."""
    from foveate.plan import Plan

    plans = {name: plan}
    for text in vary:
        key, values = _values(text)
        owners = [m for m in plan.methods if key in {f.name for f in fields(m)}]
        if len(owners) != 1:
            known = ", ".join(sorted({f.name for m in plan.methods for f in fields(m)}))
            raise FoveateError(f"--vary {key} for the plan {plan}", f"a setting of one of its methods: {known}", "correct the name")
        change = lambda m, value: m.but(**{key: value}) if m.name == owners[0].name else m
        plans = {
            f"{prefix}-{key}={_word(value)}" if prefix else f"{key}={_word(value)}": Plan(change(m, value) for m in one.methods)
            for prefix, one in plans.items() for value in values
        }  # fmt: skip
    return {name or "plan": one for name, one in plans.items()}


def _values(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    try:
        found = list(ast.literal_eval(f"[{values}]"))
    except (ValueError, SyntaxError):
        found = [setting_value(word.strip()) for word in values.split(",") if word.strip()]
    if not equals or not found:
        raise FoveateError(f"--vary {text}", "KEY=V1,V2,...", "write for instance --vary threshold=0.02,0.5")
    return key.strip(), found


def _word(value: Any) -> str:
    return str(value).replace(" ", "").replace("/", "_")


def _name(text: str) -> str:
    """A plan's folder: the file's or preset's name, the method's for the inline form (nothing where --vary says more)."""
    return Path(text).stem if "(" not in text else text.partition("(")[0].strip()


def _long_name(text: str) -> str:
    """The inline form without what folders should not be called; a file's name as it is."""
    return _word(text).replace("(", "-").translate(str.maketrans("", "", "[]()\"'")) if "(" in text else _name(text)


def _finished(run: Path) -> bool:
    return "test" in Target(str(run), run).record()


def _entry(run: Path, plan: Plan) -> dict[str, Any]:
    """What one finished run says: its test result and its last epoch's metrics."""
    record = Target(str(run), run).record()
    test = {k: v for k, v in record["test"].items() if k != "n"}
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = jsonlib.loads(lines[-1]) if lines else {}
    entry = {"name": run.name, "run": run, "plan": str(plan), "params": record.get("params"), "seconds": record.get("seconds", 0), "images": record["test"]["n"]}
    return entry | test | {"last_epoch": last}


def _rows(entries: list[dict[str, Any]]):
    from foveate.report import Row

    return [
        Row(e["name"], e["macs"], e["params"] or 0, e["accuracy_percent"], e["uncertainty_percent"] / 1.96, tuple(e.get("tokens_mean", ())), baseline="")
        for e in entries
    ]


def _write(out: Path, rows, base: str, data: dict[str, Any], command: str) -> Path:
    from foveate.machine import machine
    from foveate.report import Made, Results, save_results, write_report

    found = machine()
    made = Made(command, round(data["seconds"], 1), versions=found["versions"])
    results = Results(f"{len(rows)} plans from {base}", "Every plan was fine-tuned from the same dense base with the same recipe.", tuple(rows), found, made)
    save_results(out, results)
    return write_report(out / "report.html", results)
