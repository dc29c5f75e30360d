"""paths: which attentions of a backbone are redundant, and the best path of every effort (Phase 1 of PIVOT)."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, bar, sheets, waiting
from foveate.cli.options import BatchSize, Data, DataDir, Device, Json, ModelOrRun, Pretrained, Split, Weights
from foveate.errors import FoveateError

if TYPE_CHECKING:
    import numpy as np

    from foveate.card import Card
    from foveate.methods.pivot.paths import DesignSpace
    from foveate.report import Made, Results


def paths(
    ctx: typer.Context,
    model_or_run: ModelOrRun,
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = "train",
    images: Annotated[int, typer.Option(min=4, metavar="N", help="Images that the CKA matrix is computed on, drawn by --seed.")] = 256,
    efforts: Annotated[
        str | None,
        typer.Option(metavar="LOW-HIGH", show_default=False, help="Numbers of active attentions: 3-9, or 3,6,12. Default: a quarter to three quarters of all."),
    ] = None,
    features: Annotated[str, typer.Option(metavar="FEATURES", help="Of an image: tokens (all of them, side by side) or mean (over the tokens).")] = "tokens",
    residual: Annotated[
        str, typer.Option(metavar="SIDE", help="Outputs of MLP and attention before or after they are added to the token stream.")
    ] = "before",
    estimator: Annotated[
        str, typer.Option(metavar="NAME", help="exact, or minibatch (unbiased, one batch in memory at a time: for thousands of images).")
    ] = "exact",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Determines which images are drawn.")] = 0,
    batch_size: BatchSize = 64,
    weights: Weights = None,
    pretrained: Pretrained = False,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default=False, help="Write a plan-effort-N.json each, cka.json, and report.html with the matrix as a heat map."),
    ] = None,
    json: Json = False,
) -> None:
    """Find redundant attentions, and the best path of every effort.

    An effort is the number of attentions that run (PIVOT). Where what an attention computes resembles what an MLP before it has computed
    already (CKA), it can be skipped; of all paths of an effort the one with the highest Path-Score is found, exactly.
    """
    from foveate.cli.targets import card_of_target, open_model, single_plan_of, target_of

    with answering(json) as answer:
        target = target_of(model_or_run)
        chosen = single_plan_of(target, None)
        wanted = _efforts(efforts, card_of_target(target))
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        with waiting("loading the model"):
            from foveate.cli.images import images_for
            from foveate.cli.judge import chosen_device
            from foveate.machine import machine, package_versions
            from foveate.methods.pivot.paths import design_space
            from foveate.redundancy import cka_matrix
            from foveate.report import Made

            model = open_model(target, chosen, weights, pretrained).to(chosen_device(device))
            given = images_for(target, model, data, data_dir, split)
        batches = _Batches(given, images, seed, batch_size, chosen_device(device))
        steps = model.card.depth if estimator == "exact" else len(batches)
        with bar("comparing MLPs and attentions") as progress:
            matrix = cka_matrix(model, batches, features, residual, estimator, lambda done, _: progress(done, steps))
        space = design_space(model.card.depth, wanted)
        found = _found(model.card, matrix, wanted, space)
        settings = {"images": batches.seen, "features": features, "residual": residual, "estimator": estimator, "seed": seed}
        made = Made(ctx.obj, time.perf_counter() - clock, started, (seed,), package_versions())
        results = _results(model.card, matrix, found, space, f"{given.name}, {split}", settings, machine(), made)
        answer.data = {"model": model.card.name, "run": target.folder, "data": given.name, "split": split} | settings | results.figures | {"out": out}
        answer.facts({"model": model.card.name, "data": f"{given.name}, {split}, {batches.seen:,} images"})
        answer.shown += ["", _picture(model.card.depth, found), *sheets(results), *results.notes]
        if out is not None:
            answer.shown.append(f"report: {_write(out, answer.data, found, results)}")


class _Batches:
    """Sampled images of a set, read when they are needed, in batches of nearly equal size; `seen` counts those that could be read."""

    def __init__(self, given, images: int, seed: int, batch_size: int, device: str):
        import numpy as np

        from foveate.redundancy import sampled

        chosen = sampled(len(given), images, seed)
        self.given, self.device, self.seen = given, device, 0
        self.parts: list[np.ndarray] = np.array_split(chosen, -(-len(chosen) // batch_size))

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            batch = self.given.batch(part).images
            self.seen += len(batch)
            yield batch.to(self.device)


def _efforts(text: str | None, card: Card) -> list[int]:
    """The efforts that were asked for; by default from a quarter to three quarters of the attentions (3-9 of 12, 4-12 of 16)."""
    least = max(1, len(_always(card)))
    if text is None:
        return list(range(max(least, card.depth // 4), max(least, 3 * card.depth // 4) + 1))
    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
        wanted = sorted({effort for part in ends for effort in range(part[0], part[-1] + 1)})
        good = all(len(part) <= 2 for part in ends) and wanted and least <= wanted[0] and wanted[-1] <= card.depth
    except ValueError:
        good = False
    if not good:
        raise FoveateError(f"--efforts {text} for {card.name}", f"numbers of active attentions from {least} to {card.depth}",
                           f"write a range or a list, such as --efforts {least}-{card.depth}")
    return wanted


def _always(card: Card) -> list[int]:
    """Blocks whose attention cannot be skipped."""
    return [number for number, block in enumerate(card.blocks, 1) if block.queries is not None]


def _found(card: Card, matrix: np.ndarray, wanted: list[int], space: DesignSpace) -> list[dict[str, Any]]:
    """The best path of each effort, highest effort first."""
    from foveate.counting import count
    from foveate.methods.pivot.paths import best_paths, plan_text

    best = best_paths(matrix, _always(card))
    return [{"effort": effort, "skip": list(best[effort].skip), "score": best[effort].score, "plan": plan_text(best[effort]),
             "macs": count(card, plan_text(best[effort])).macs, "paths": space.paths[effort]} for effort in reversed(wanted)]


def _picture(depth: int, found: list[dict[str, Any]]) -> str:
    from foveate.methods.pivot.paths import Path as EffortPath
    from foveate.methods.pivot.paths import picture

    return picture(depth, {one["effort"]: EffortPath(tuple(one["skip"]), one["score"]) for one in found})


def _results(card: Card, matrix: np.ndarray, found: list, space: DesignSpace, source: str, settings: dict[str, Any], machine: dict, made: Made) -> Results:
    from foveate.redundancy import as_lists, cka_map
    from foveate.report import Results, Table

    rows = tuple((str(one["effort"]), one["plan"], f"{one['score']:.3f}", f"{one['macs'] / 1e9:.4g}", f"{one['paths']:,}") for one in found)
    table = Table("The best path of each effort", ("effort", "plan", "score", "GMACs", "paths of this effort"), rows,
                  "Efforts count active attentions. The score sums the CKA of skipped attentions with the MLP that stands in for them.", left=2)
    pairs = [{"low": low, "high": high, "paths": paths} for (low, high), paths in space.pairs.items()]
    notes = (f"Phase 2 has {space.pivot} pairs of efforts to try; with every path of each effort there would be {space.random:,} "
             f"({space.ratio:,.0f} times as many).",) if space.pivot else ()
    sides = {"before": "before they are added to the token stream", "after": "after they are added to the token stream"}
    about = f" of {source}; outputs {sides[settings['residual']]}, features: {settings['features']}, estimator: {settings['estimator']}"
    figures = {"efforts": found, "design_space": {"paths": space.paths, "pairs": pairs, "random": space.random, "pivot": space.pivot, "ratio": space.ratio},
               "cka": as_lists(matrix)}
    return Results(f"{card.name}: redundant attentions", "", tables=(table,), matrices=(cka_map(matrix, settings["images"], about),),
                   machine=machine, made=made, notes=notes, figures=figures)


def _write(out: Path, data: dict[str, Any], found: list[dict[str, Any]], results: Results) -> Path:
    from foveate.cli.answer import plain
    from foveate.plan import Plan
    from foveate.report import save_results, write_report
    from foveate.train.files import write_text

    for one in found:
        write_text(out / f"plan-effort-{one['effort']}.json", Plan.parse(one["plan"]).to_json())
    kept = ("model", "data", "split", "images", "features", "residual", "estimator", "seed", "cka")
    write_text(out / "cka.json", jsonlib.dumps(plain({key: data[key] for key in kept}), indent=1))
    save_results(out, results)
    return write_report(out / "report.html", results)
