"""inspect, demo, report: pictures and pages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from foveate.cli.answer import answering, columns, plain, sheets, waiting
from foveate.cli.options import Data, DataDir, Json, ModelOrRun, PlanText, Pretrained, Split, Weights
from foveate.errors import FoveateError

WHAT = ("tokens", "heads", "cls-cka", "attention", "cka")


def inspect(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            show_default=False,
            help="tokens (which patches live on after each stage), heads (each head's scores in a selector), "
            "cls-cka (in which block tokens are encoded well enough to be judged), attention (which share of the softmax's inputs "
            "lies in \\[-1, 1), before and after the keys are mean-centred), or cka (which attentions repeat what an MLP before them has said).",
        ),
    ],
    model_or_run: ModelOrRun,
    plan: PlanText = None,
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = "test",
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default=False, help="Images looked at. Default: 8, 512 for cls-cka, 256 for cka.")
    ] = None,
    stage: Annotated[int, typer.Option(min=1, metavar="N", help="heads: the selector of this stage, counted from 1.")] = 1,
    weights: Weights = None,
    pretrained: Pretrained = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Where report.html goes. Default: RUN/inspect-WHAT, or runs/inspect-WHAT-MODEL.")
    ] = None,
    json: Json = False,
) -> None:
    """Look inside: kept tokens, head scores, CKA to the class token, similarities of queries and keys, or redundant attentions, as a page of pictures.

    The first three correspond to figures 6, 3 and 4 of the SPViT paper, attention to figure 3 of ViTALiTy, cka to figure 3 of PIVOT.
    """
    from foveate.cli.targets import open_model, single_plan_of, target_of

    with answering(json) as answer:
        if what not in WHAT:
            raise FoveateError(f"inspect {what}", ", ".join(WHAT), "choose one of these")
        target = target_of(model_or_run)
        chosen = single_plan_of(target, plan)
        own = target.folder is not None and not target.embedded
        folder = out or (target.folder / f"inspect-{what}" if own else Path("runs") / f"inspect-{what}-{target.text}")
        with waiting("loading the model"):
            from foveate import insight
            from foveate.cli.images import images_for
            from foveate.machine import package_versions
            from foveate.report import Made, load_results

            started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            model = open_model(target, chosen, weights, pretrained)
            images = images_for(target, model, data, data_dir, split)
        with waiting(f"looking at {what}"):
            page = insight.inspect(what, model, images, folder, count, stage, Made(ctx.obj, None, started, versions=package_versions()))
        results = load_results(folder)
        answer.data = {"what": what, "model": model.card.name, "plan": str(chosen), "report": page} | results.figures
        answer.shown = [*sheets(results), f"report: {page}"]


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where report.html goes.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the images and rounds, to see that everything runs; the figures mean little.")] = False,
    json: Json = False,
) -> None:
    """Run the main job: a real Vision Transformer on real images becomes adaptive, is measured and pictured (4 minutes on two cores).

    Evaluates and times the embedded dense base, SPViT and random pruning, fine-tunes a fresh plan live, and writes report.html. Needs no
    network and no GPU.
    """
    with answering(json) as answer:
        with waiting("loading torch"):
            from rich.console import Console

            from foveate.demo import run_demo
            from foveate.report import to_dict

        results = run_demo(out, quick, Console(stderr=True) if json else _stdout_console())
        rows = to_dict(results)["rows"] if results is not None else []
        answer.data = plain({"out": out, "report": out / "report.html", "rows": rows})


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="A folder with results.json, as demo, inspect and `bench --out` leave it.")],
    json: Json = False,
) -> None:
    """Write report.html of a run anew from its results."""
    from foveate.report import render_run

    with answering(json) as answer:
        if not run.is_dir():
            raise FoveateError(f"run {str(run)!r}, which is no folder here", "a folder with results.json", "check the path (`ls`)")
        page = render_run(run)
        answer.data = {"report": page}
        answer.shown = [f"report: {page}"]


def _stdout_console():
    """The demo's table belongs on standard output; inside `answering` that name means standard error."""
    import sys

    from rich.console import Console

    return Console(file=sys.__stdout__, width=columns(sys.__stdout__))
