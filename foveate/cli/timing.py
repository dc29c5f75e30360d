"""bench: milliseconds an image, interleaved with the dense model in the same backend and precision."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, bar, columns, note, sheets, waiting
from foveate.cli.options import Data, DataDir, Device, Json, ModelOrRun, PlanText, Pretrained, Threads, Weights
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.adaptive import AdaptiveModel
    from foveate.cascade import Cascade
    from foveate.measure.clock import Timing
    from foveate.report import Row
    from foveate.runtime import Engine

TIMED_IMAGES = 64
CASCADE_IMAGES = 256  # the share of them that goes on decides what a cascade costs
HIGHEST = "highest effort"


def bench(
    ctx: typer.Context,
    model_or_run: ModelOrRun,
    plan: PlanText = None,
    backend: Annotated[
        str, typer.Option(metavar="BACKEND", help="auto (the fastest of torch and openvino here), torch, torch-compile or openvino.")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="PRECISION",
            help="Of the matrix products: fp32, bf16, int8 (openvino, runs trained with quantise=int8), or auto (the fastest that agrees).",
        ),
    ] = "fp32",
    batch: Annotated[list[int], typer.Option(min=1, metavar="N...", help="Images a call; several as in --batch 1 16.")] = [1, 16],  # noqa: B006
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

    --breakdown adds compute_ms, overhead_ms and overhead_percent (Fig. 7 of PIVOT), measured apart from the latencies.

    A cascade is also held against its highest effort alone, and its share of images that go on against the ledger's break-even.

    `foveate bench attention` is a command of its own: Taylor attention against the best softmax attention, see `foveate bench attention --help`.
    A run in a folder of that name is ./attention.
    """
    from foveate.cli.breakdown import backend_of, split_row, split_sheets
    from foveate.cli.targets import open_model, plan_of, target_of

    with answering(json) as answer:
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        target = target_of(model_or_run)
        chosen = plan_of(target, plan)
        backend = backend_of(backend) if breakdown else backend
        with waiting("loading the model"):
            import torch

            from foveate.cli.judge import chosen_device

            if threads:
                torch.set_num_threads(threads)
            model = open_model(target, chosen, weights, pretrained, random_weights=True).to(chosen_device(device))
            sample = CASCADE_IMAGES if hasattr(model, "efforts") else TIMED_IMAGES
            images = _images(target, model, data, data_dir, max(sample, *batch))
        rows = [_row(model, images, one, backend, precision, repetitions, warmup, threads) for one in dict.fromkeys(batch)]
        if breakdown:
            rows = [row | split_row(model, images, row["batch"], row["precision"], repetitions, warmup) for row in rows]
        answer.data = {"model": model.card.name, "run": target.folder, "plan": str(chosen)} | rows[0] | {"results": rows}
        drawn = _drawn(model, images, rows, target)
        from foveate.report import Results, terminal_table

        answer.shown = [terminal_table(part, width=columns(sys.__stdout__)) for part in drawn]
        extra = split_sheets(rows) if breakdown else {}
        answer.shown += sheets(Results("", **extra))
        if hasattr(model, "efforts"):
            answer.data |= _worth(model)
            answer.shown += [_said(row, answer.data["break_even_percent"]) for row in rows]
        if out is not None:
            answer.shown.append(f"report: {_write(out, answer.data, drawn, ctx.obj, started, time.perf_counter() - clock, extra)}")


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
        runners = {str(model.plan): _turning(engine, images, batch)}
        highest = model.efforts[-1] if hasattr(model, "efforts") else model
        plain = {} if model.plan == Plan() else {"dense": replan(highest, Plan())}
        plain |= {HIGHEST: highest} if highest is not model and highest.plan != Plan() else {}
        kinds: dict[str, str] = {}
        for name, other in reversed(plain.items()):
            able = precisions_of(engine.backend, other)  # a dense model behind 8-bit efforts may not be trained in 8 bits itself
            kinds[name] = engine.precision if engine.precision in able else able[0]
            made = load_engine(other, engine.backend, kinds[name], images[:batch], threads=threads)
            runners = {name: _turning(made, images, batch)} | runners
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


def _worth(model: Cascade) -> dict[str, Any]:
    """What the ledger says of a cascade before it is timed: MACs of an image in each effort, and the share that may go on from the first."""
    from foveate.counting import effort_ledgers
    from foveate.efforts import break_even

    low, *_, high = macs = [ledger.macs for ledger in effort_ledgers(model, model.plan)]
    return {"macs_of_efforts": macs, "break_even_percent": 100 * break_even(low, high) if len(macs) == 2 else None}


def _said(row: dict[str, Any], even: float | None) -> str:
    going = ", ".join(f"{percent:.1f} %" for percent in row["run_percent"][1:])
    bound = "" if even is None else f" (by its MACs it pays below {even:.1f} %)"
    speedup = f"{row['speedup_over_highest_effort']:.2f} ({row['speedup_over_highest_effort_low']:.2f} to {row['speedup_over_highest_effort_high']:.2f})"
    return f"batch {row['batch']}: {going} of the images go on{bound}; {speedup} times as fast as the highest effort alone: {row['verdict_over_highest_effort']}"


def _turning(engine: Engine, images, batch: int):
    """A call that takes the next images each time: where each image keeps another number of tokens, one image is no sample."""
    state = {"at": 0}

    def run() -> None:
        at = state["at"]
        state["at"] = at + batch if at + 2 * batch <= len(images) else 0
        engine(images[at : at + batch])

    return run


def _images(target, model: AdaptiveModel, data: str | None, data_dir: Path | None, count: int):
    """Normalised images on the CPU: of the data where there are any, synthetic ones otherwise."""
    import torch

    from foveate.cli.images import images_for
    from foveate.runtime.loading import synthetic_images

    if data or data_dir or target.embedded or target.record().get("data"):
        try:
            found = images_for(target, model, data, data_dir, "test", limit=count)
            images = found.batch(range(len(found))).images
            return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
        except FoveateError as error:
            if data or data_dir:
                raise
            note(f"timed on synthetic images: {error.given}")
    with torch.random.fork_rng(devices=[]):
        return synthetic_images(model.card, count)


def _drawn(model: AdaptiveModel, images, rows: list[dict[str, Any]], target) -> list[list[Row]]:
    """Rows of the table, one list for each backend and precision that was used."""
    import torch

    from foveate.cli.targets import plan_of
    from foveate.counting import count, effort_ledgers
    from foveate.report import Row

    sample = images if hasattr(model, "efforts") else images[: TIMED_IMAGES if model.plan.data_dependent else 1]
    with torch.inference_mode():
        trace = model.traced(sample.to(next(model.parameters()).device))[1]
    ledger, dense, test = count(model, trace=trace), count(model.card), target.record().get("test") or {}
    parts = []
    for backend, precision in dict.fromkeys((row["backend"], row["precision"]) for row in rows):
        here = [row for row in rows if (row["backend"], row["precision"]) == (backend, precision)]
        common = {"backend": backend, "precision": precision}
        other = {"backend": backend, "precision": here[0].get("baseline_precision", precision)}
        part = [Row("dense", dense.macs, dense.params, latency_ms=_triples(here, "baseline_latency_ms"), **other)]
        if hasattr(model, "efforts") and model.efforts[-1].plan.methods:
            high = effort_ledgers(model, model.plan)[-1]
            part.append(Row(f"{HIGHEST}: {model.efforts[-1].plan}", high.macs, high.params, latency_ms=_triples(here, "highest_effort_latency_ms"),
                            backend=backend, precision=here[0].get("highest_effort_precision", precision)))
        if str(model.plan) != "dense":
            own = model.plan == plan_of(target, None)
            part.append(Row(
                str(model.plan), ledger.macs, ledger.params, test.get("accuracy_percent") if own else None,
                test["uncertainty_percent"] / 1.96 if own and test else None, trace.tokens_mean, _triples(here, "latency_ms"),
                _triples(here, "speedup"), verdict={row["batch"]: row["verdict"] for row in here}, **common))  # fmt: skip
        parts.append(part)
    return parts


def _triples(rows: list[dict[str, Any]], name: str) -> dict[int, tuple[float, float, float]]:
    """Median and quartiles of a figure by batch size."""
    return {row["batch"]: (row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in rows}


def _write(out: Path, data: dict[str, Any], drawn: list[list[Row]], command: str, started: str, seconds: float, extra: dict[str, Any]) -> Path:
    from foveate.machine import machine
    from foveate.report import Made, Results, save_results, write_report

    found = machine()
    made = Made(command, round(seconds, 1), started, versions=found["versions"])
    best = max(data["results"], key=lambda row: row["speedup"])
    sentence = f"{best['speedup']:.2f} times as fast as the dense model at batch {best['batch']} in {best['backend']} {best['precision']}."
    rows = tuple(row for part in drawn for row in part)
    results = Results(f"{data['model']}: {data['plan']}", sentence if len(rows) > 1 else "", rows, found, made, **extra)
    save_results(out, results)
    return write_report(out / "report.html", results)
