"""bench attention: Taylor attention against the best softmax attention, alone and in whole models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, bar, sheets, waiting
from foveate.cli.options import Device, Json, Threads
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.measure.race import Race

MOST_SECONDS = 30.0
"""Rounds of one size stop after this time, but not before three of them."""


def bench_attention(
    ctx: typer.Context,
    tokens: Annotated[list[int], typer.Option(min=1, metavar="N...", help="Lengths of the sequence.")] = [197, 577, 1025, 2305, 4097],  # noqa: B006
    heads: Annotated[int, typer.Option(min=1, metavar="N", help="Heads.")] = 6,
    dim: Annotated[int, typer.Option(min=1, metavar="N", help="Width of a head.")] = 64,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", show_default=False, help="A whole backbone instead, with random weights: dense against the plan vitality().")
    ] = None,
    image_size: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="PIXELS...", show_default=False, help="With --model: sides of square images. Default: the backbone's own."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images a call.")] = 1,
    precision: Annotated[
        list[str] | None, typer.Option(metavar="PRECISION...", show_default=False, help="fp32, bf16. Default: both, and bf16 with --model.")
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compiled/--eager", show_default=False, help="With torch.compile as well, or eager versions only. Default: as well, but not with --model."
        ),
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds that count, fewer where they would take longer than 30 s a size.")] = 25,
    warmup: Annotated[int, typer.Option(min=0, metavar="N", help="Rounds before them that do not count.")] = 2,
    threads: Threads = None,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Also write results.json and report.html there.")] = None,
    json: Json = False,
) -> None:
    """Measure Taylor attention (ViTALiTy) against the best softmax attention.

    Softmax attention takes part as torch's fused one, spelled out, and spelled out for 256 queries at a time, each eager and compiled; the
    baseline is whichever has the least median at that size. All versions run in turn, round by round; a speed-up is the median of the rounds'
    ratios, and "helps" needs even their lower quartile above 1. The crossover is the length from which Taylor attention helps.

    With --model whole backbones race: dense in each of the three ways against the plan vitality() in the same backend and precision.
    """
    with answering(json) as answer:
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        if image_size and model is None:
            raise FoveateError("--image-size without --model", "--image-size with a backbone, or --tokens", "add --model deit_small_patch16_224")
        with waiting("loading torch"):
            from dataclasses import replace

            import torch

            from foveate.cli.attention_tables import kernel_results, model_results
            from foveate.cli.judge import chosen_device
            from foveate.machine import machine
            from foveate.measure.attention import check_precision
            from foveate.report import Made, save_results, write_report

            if threads:
                torch.set_num_threads(threads)
            found = machine()
        settings = {"batch": batch, "threads": torch.get_num_threads(), "device": chosen_device(device)}
        kinds = list(dict.fromkeys(precision or (["bf16"] if model else ["fp32", "bf16"])))
        check_precision(*kinds)
        rounds = {"repetitions": repetitions, "warmup": warmup, "seconds": MOST_SECONDS}
        if model is None:
            sizes = {"heads": heads, "dim": dim, "batch": batch, "device": settings["device"], "compiled": compiled is not False}
            results = kernel_results(*_kernels(sorted(set(tokens)), kinds, sizes, rounds), settings | {"heads": heads, "dim": dim})
        else:
            results = model_results(_models(model, image_size, kinds, bool(compiled), settings, rounds), settings | {"model": model})
        made = Made(ctx.obj, round(time.perf_counter() - clock, 1), started, versions=found["versions"])
        results = replace(results, machine=found, made=made)
        answer.data, answer.shown = results.figures, [*sheets(results), *results.notes]
        if out is not None:
            save_results(out, results)
            answer.shown.append(f"report: {write_report(out / 'report.html', results)}")


def _kernels(lengths: list[int], kinds: list[str], sizes: dict[str, Any], rounds: dict[str, Any]) -> tuple[list[Race], dict[str, int | None]]:
    """The races of attention alone, and each precision's crossover, which is searched among eager versions: they start at once."""
    from foveate.measure.race import Setting, crossover, race

    races, crossovers = [], {}
    for kind in kinds:
        own = []
        for length in lengths:
            with bar(f"timing {length:,} tokens in {kind}") as progress:
                own.append(race(Setting(length, kind, **sizes), progress=progress, **rounds))
        with waiting(f"searching the crossover in {kind}"):
            crossovers[kind] = crossover([one.eager() for one in own], lambda setting: race(setting, **rounds))
        races += own
    return races, crossovers


def _models(name: str, image_sizes: list[int] | None, kinds: list[str], compiled: bool, settings: dict[str, Any], rounds: dict[str, Any]) -> list[tuple]:
    """(precision, card, timings, what did not compile) at each image size."""
    from foveate.cli.attention_models import race_models

    rows = []
    for kind in kinds:
        for size in list(dict.fromkeys(image_sizes or [])) or [None]:
            with bar(f"timing {name} at {size or 'its own'} pixels in {kind}") as progress:
                rows.append((kind, *race_models(name, size, kind, settings["batch"], compiled, settings["device"], progress=progress, **rounds)))
    return rows
