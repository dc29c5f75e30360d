"""bench: milliseconds an image, interleaved with the dense model in the same backend and precision."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import Answer, answering, bar, columns, sheets, waiting
from foveate.cli.bench_report import HIGHEST, drawn_rows, said, sentence_of, worth, write_folder
from foveate.cli.bench_table import write_csv
from foveate.cli.options import Data, DataDir, Device, Json, ModelOrRun, Pretrained, Threads, Weights
from foveate.cli.timed_images import TIMED_IMAGES, images_to_time, turning

if TYPE_CHECKING:
    from foveate.adaptive import AdaptiveModel
    from foveate.measure.clock import Timing
    from foveate.report import Row
    from foveate.runtime import Engine

CASCADE_IMAGES = 256  # the share of them that goes on decides what a cascade costs


def bench(
    ctx: typer.Context,
    model_or_run: ModelOrRun,
    plan: Annotated[
        list[str] | None,
        typer.Option(metavar="PLAN", show_default=False, help="As everywhere (`foveate count --help`); several with --plan again. Default: the run's own."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND",
            show_default=False,
            help="auto (the fastest of torch and openvino here), torch, torch-compile, openvino or onnxruntime. Default: auto; with --all every installed one "
            "but torch-compile, which compiles for a minute.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISION",
            show_default=False,
            help="Of the matrix products: fp32, bf16, int8, or auto (the fastest that agrees). Default: fp32; with --all every one that a backend has.",
        ),
    ] = None,
    batch: Annotated[list[int], typer.Option(min=1, metavar="N...", help="Images a call; several as in --batch 1 16.")] = [1, 16],  # noqa: B006
    everything: Annotated[bool, typer.Option("--all", help="Time dense models and plans in all backends and precisions, beside timm's eager model.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="Also time ToMe and EViT at the MACs of the first plan; implies --all.")] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="WHAT", show_default=False, help="What a plan must beat: same (dense in the same backend and precision) or all and dense-best "
                     "(the best dense engine here; dense-best puts the other speed-ups over it, too); implies --all, whose default is all."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="Also write the rows with the columns of timm's benchmark.py; implies --all.")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds that count; each runs every model once, in turn.")] = 30,
    warmup: Annotated[int, typer.Option(min=0, metavar="N", help="Rounds before them that do not count.")] = 4,
    threads: Threads = None,
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="Also split the time, in torch eager, into compute and overhead (selectors, gathers, gates, recomputation).")
    ] = False,
    device: Device = "cpu",
    data: Data = None,
    data_dir: DataDir = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Also write results.json and report.html there, for instance into the run.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure milliseconds per image against the dense model.

    Plan and dense model run in the same backend and precision, round by round, on images of the data (synthetic ones for a backbone without
    data). Speed-up is the median of the rounds' ratios; "helps" needs even their lower quartile above 1. Before it is timed, each engine's
    logits are held against torch in float32. In the JSON object "results" has one entry a batch size; the first stands at the top level too.

    --all (or several plans, backends or precisions) times everything in the same rounds and holds each plan against the best dense engine of
    this machine as well: "helps x1.63", or "no gain here: use dense openvino int8". Shares of the GEMM ceiling are of what one large product
    of matrices reaches here. "results" then has one entry an engine and batch size; the fastest engine of the first plan stands at the top.

    --breakdown adds compute_ms, overhead_ms and overhead_percent (Fig. 7 of PIVOT), measured apart from the latencies.

    A cascade is also held against its highest effort alone, and its share of images that go on against the ledger's break-even.

    `foveate bench attention` is a command of its own: Taylor attention against the best softmax attention, see `foveate bench attention --help`.
    A run in a folder of that name is ./attention.
    """
    from foveate.cli.bench_full import check_full, compare, listed
    from foveate.cli.targets import open_model, plan_of, target_of

    with answering(json) as answer:
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        plans, backends, precisions = plan or [None], listed(backend), listed(precision)
        full = everything or peers or csv is not None or against is not None or max(len(plans), len(backends), len(precisions)) > 1
        target = target_of(model_or_run)
        if full:
            check_full(target, plans, against, breakdown)
        with waiting("loading the model"):
            import torch

            from foveate.cli.judge import chosen_device

            if threads:
                torch.set_num_threads(threads)
            model = open_model(target, plan_of(target, plans[0]), weights, pretrained, random_weights=True).to(chosen_device(device))
            sample = CASCADE_IMAGES if hasattr(model, "efforts") else TIMED_IMAGES
            images = images_to_time(target, model, data, data_dir, max(sample, *batch))
        answer.data = {"model": model.card.name, "run": target.folder}
        rounds, extra = (repetitions, warmup, threads), {}
        if full:
            asked, trained = [plan_of(target, text) for text in plans], target.folder is not None
            drawn, sentence = compare(answer, model, asked, images, batch, backends, precisions, peers, against or "all", rounds, trained)
        else:
            drawn, sentence, extra = _one(answer, target, model, images, batch, (*backends, "auto")[0], (*precisions, "fp32")[0], rounds, breakdown)
        if csv is not None:
            answer.shown.append(f"rows: {write_csv(csv, model.card.name, model.card.image_size[-1], answer.data['results'])}")
        if out is not None:
            answer.shown.append(f"report: {write_folder(out, answer.data, drawn, sentence, ctx.obj, started, time.perf_counter() - clock, extra)}")


def _one(answer: Answer, target, model, images, batches: list[int], backend: str, precision: str, rounds: tuple[int, int, int | None],
         breakdown: bool) -> tuple[list[list[Row]], str, dict[str, Any]]:
    """One plan beside the dense model in one backend and precision: fills `answer`; rows of the table, a sentence and the split of the time."""
    from foveate.cli.breakdown import backend_of, split_row, split_sheets
    from foveate.report import Results, terminal_table

    backend = backend_of(backend) if breakdown else backend
    rows = [_row(model, images, one, backend, precision, *rounds) for one in dict.fromkeys(batches)]
    if breakdown:
        rows = [row | split_row(model, images, row["batch"], row["precision"], *rounds[:2]) for row in rows]
    answer.data |= {"plan": str(model.plan)} | rows[0] | {"results": rows}
    drawn = drawn_rows(model, images, rows, target)
    answer.shown = [terminal_table(part, width=columns(sys.__stdout__)) for part in drawn]
    extra = split_sheets(rows) if breakdown else {}
    answer.shown += sheets(Results("", **extra))
    if hasattr(model, "efforts"):
        answer.data |= worth(model)
        answer.shown += [said(row, answer.data["break_even_percent"]) for row in rows]
    return drawn, sentence_of(rows) if sum(map(len, drawn)) > 1 else "", extra


def _row(model: AdaptiveModel, images, batch: int, backend: str, precision: str, rounds: int, warmup: int, threads: int | None) -> dict[str, Any]:
    """Timings of one batch size: the plan's, and of the dense model in the same rounds."""
    import torch

    from foveate.adoption import replan
    from foveate.measure.clock import interleave
    from foveate.plan import Plan
    from foveate.runtime import load_engine
    from foveate.runtime.maker import precisions_of

    with waiting(f"preparing batch {batch}"):
        engine = load_engine(model, backend, precision, images[:batch], threads=threads)
        runners = {str(model.plan): turning(engine, images, batch)}
        highest = model.efforts[-1] if hasattr(model, "efforts") else model
        plain = {} if model.plan == Plan() else {"dense": replan(highest, Plan())}
        plain |= {HIGHEST: highest} if highest is not model and highest.plan != Plan() else {}
        kinds: dict[str, str] = {}
        for name, other in reversed(plain.items()):
            able = precisions_of(engine.backend, other)  # a dense model behind 8-bit efforts may not be trained in 8 bits itself
            kinds[name] = engine.precision if engine.precision in able else able[0]
            made = load_engine(other, engine.backend, kinds[name], images[:batch], threads=threads)
            runners = {name: turning(made, images, batch)} | runners
    before = list(getattr(engine.run, "ran", ()))
    wait = torch.cuda.synchronize if next(model.parameters()).is_cuda else None
    with bar(f"timing {engine.name}, batch {batch}") as progress:
        timings = interleave(runners, rounds, warmup, progress, images=batch, baseline=next(iter(runners)), synchronize=wait)
    found = _figures(timings[str(model.plan)], timings[next(iter(runners))], engine)
    others = {"baseline_precision": kinds.get("dense"), "highest_effort_precision": kinds.get(HIGHEST, kinds.get("dense"))}
    found |= {key: kind for key, kind in others.items() if kind not in (None, engine.precision)}
    return found | (_cascaded(timings, str(model.plan), [n - m for n, m in zip(engine.run.ran, before)]) if before else {})


def _cascaded(timings: dict[str, Timing], name: str, ran: list[int]) -> dict[str, Any]:
    """The cascade against its highest effort alone (the dense model, where that is one), in the same rounds."""
    from dataclasses import replace

    highest = timings.get(HIGHEST) or timings["dense"]
    against = replace(timings[name], baseline=HIGHEST, baseline_ms=highest.samples_ms)
    figures = {"highest_effort_latency_ms": highest.latency_ms, "speedup_over_highest_effort": against.speedup}
    spread = {f"{key}{end}": value for key, (median, low, high) in figures.items() for end, value in (("", median), ("_low", low), ("_high", high))}
    return spread | {"verdict_over_highest_effort": against.verdict, "run_percent": [100 * n / ran[0] for n in ran]}


def _figures(timing: Timing, baseline: Timing, engine: Engine) -> dict[str, Any]:
    latency, speedup, judged = timing.latency_ms, timing.speedup, timing is not baseline
    return {
        "batch": timing.batch, "backend": engine.backend, "precision": engine.precision, "latency_ms": latency.median,
        "latency_ms_low": latency.low, "latency_ms_high": latency.high, "images_per_s": timing.images_per_s, "baseline": baseline.name,
        "baseline_latency_ms": baseline.latency_ms.median, "baseline_latency_ms_low": baseline.latency_ms.low,
        "baseline_latency_ms_high": baseline.latency_ms.high, "speedup": speedup.median, "speedup_low": speedup.low, "speedup_high": speedup.high,
        "verdict": timing.verdict if judged else "baseline", "repetitions": len(timing.samples_ms), "agreement": str(engine.agreement),
        "passed_over": engine.passed_over,
    }  # fmt: skip
