"""bench --all: dense models, plans and peers in all backends in turn, and whether a plan is faster than the best dense model of this machine."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.answer import bar, table
from foveate.cli.bench_engines import DENSE, EAGER, PLAN, Candidate
from foveate.cli.timed_images import turning

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.measure.clock import Spread, Timing

PERCENTILES = (50, 95, 99)
TIMM_COLUMNS = ("model", "infer_samples_per_sec", "infer_step_time", "infer_batch_size", "infer_img_size", "infer_gmacs", "param_count")
"""The first columns of the CSV file are those of timm's benchmark.py: images a second, milliseconds a call, images a call, pixels, 1e9, 1e6."""
OWN_COLUMNS = ("plan", "kind", "backend", "precision", "latency_ms", "latency_ms_p50", "latency_ms_p95", "latency_ms_p99", "speedup", "speedup_over_best_dense",
               "ceiling_percent", "peak_mib", "verdict")


def timed(made: Sequence[Candidate], images: Tensor, batch: int, rounds: int, warmup: int) -> dict[str, Timing]:
    """All candidates in turn, by name, on the next images at each call."""
    import torch

    from foveate.measure.clock import interleave

    wait = torch.cuda.synchronize if next(made[0].model.parameters()).is_cuda else None
    runners = {one.name: turning(one.run, images, batch) for one in made}
    with bar(f"timing {len(runners)} engines, batch {batch}") as progress:
        return interleave(runners, rounds, warmup, progress, images=batch, synchronize=wait)


def memory(made: Sequence[Candidate], images: Tensor, batch: int) -> dict[str, float | None]:
    """MiB that a call holds beyond what was held before it, by name; None for runtimes that keep what they once took, so that a later call needs nothing."""
    from foveate.measure.memory import peak_mib

    device = str(next(made[0].model.parameters()).device)
    return {one.name: peak_mib(lambda one=one: one.run(images[:batch]), device) if one.backend in (EAGER, "torch") else None for one in made}


def rows(made: Sequence[Candidate], timings: dict[str, Timing], costs: dict[str, tuple[float, int]], ceilings: dict[str, float], against: str,
         peaks: dict[str, float | None]) -> list[dict[str, Any]]:
    """One entry a candidate.

    costs: plan -> (MACs of the mean image, parameters). ceilings: giga multiply-accumulates a second by precision. peaks: see `memory`.

    speedup is over dense in the same backend and precision (with against="dense-best" over the best dense engine), and where that one is
    missing over timm's eager model; speedup_over_best_dense over the dense engine with the least median. A plan is judged by the latter.
    """
    from foveate.measure.clock import HELPS, NO_GAIN, verdict

    best = min((one for one in made if one.kind == DENSE), key=lambda one: timings[one.name].latency_ms.median)
    dense = {(one.backend, one.precision): one for one in made if one.kind == DENSE}
    found = []
    for one in made:
        timing, (macs, params) = timings[one.name], costs[one.plan]
        same = best if against == "dense-best" else dense.get((one.backend, one.precision)) or dense[EAGER, "fp32"]
        speedup, over_best = over(timing, timings[same.name]), over(timing, timings[best.name])
        helps = over_best if against != "same" else speedup
        advice = f"use dense {best.backend} {best.precision}" if against != "same" else "use dense"
        said = f"{HELPS} x{helps.median:.2f}" if verdict(helps) == HELPS else f"{NO_GAIN}: {advice}"
        dense_word = "best dense" if one is best else "dense"
        p50, p95, p99 = percentiles(timing)
        percent = 100 * macs / 1e6 / timing.latency_ms.median / ceilings[one.precision] if one.precision in ceilings else None
        found.append({
            "plan": one.plan, "kind": one.kind, "backend": one.backend, "precision": one.precision, "batch": timing.batch, "macs": macs, "params": params,
            "latency_ms": timing.latency_ms.median, "latency_ms_low": timing.latency_ms.low, "latency_ms_high": timing.latency_ms.high, "latency_ms_p50": p50,
            "latency_ms_p95": p95, "latency_ms_p99": p99, "images_per_s": timing.images_per_s, "baseline": same.name, "speedup": speedup.median,
            "speedup_low": speedup.low, "speedup_high": speedup.high, "best_dense": best.name, "speedup_over_best_dense": over_best.median,
            "speedup_over_best_dense_low": over_best.low, "speedup_over_best_dense_high": over_best.high,
            "ceiling_percent": percent, "peak_mib": peaks.get(one.name), "verdict": dense_word if one.kind == DENSE else said, "repetitions": len(timing.samples_ms), "agreement": one.agreement,
        })  # fmt: skip
    return found


def verdicts(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """plan -> batch -> what its fastest engine comes to."""
    said: dict[str, dict[str, str]] = {}
    for row in sorted((row for row in found if row["kind"] == PLAN), key=lambda row: row["latency_ms"]):
        said.setdefault(row["plan"], {}).setdefault(str(row["batch"]), f"{row['verdict']} ({row['backend']} {row['precision']})")
    return {plan: dict(sorted(by.items(), key=lambda item: int(item[0]))) for plan, by in said.items()}


def over(timing: Timing, other: Timing) -> Spread:
    """How many times as fast as another candidate of the same rounds."""
    return replace(timing, baseline=other.name, baseline_ms=other.samples_ms).speedup


def percentiles(timing: Timing) -> tuple[float, ...]:
    """Milliseconds an image that half, 95 % and 99 % of the rounds stayed within; of few rounds the highest are the slowest one."""
    import numpy as np

    return tuple(float(value) for value in np.percentile(timing.samples_ms, PERCENTILES, method="higher"))


def sheet(found: Sequence[dict[str, Any]], batch: int) -> Any:
    """The rows of one batch size for a terminal, fastest first."""
    made = table("plan", "in", "GMACs", "ms an image", "p95", "p99", "images/s", "% of GEMM", "peak MiB", "over same", "over best dense", "verdict", left=2)
    made.title, made.title_justify = f"batch {batch}", "left"
    for row in sorted((row for row in found if row["batch"] == batch), key=lambda row: row["latency_ms"]):
        percent, peak = ("" if row[key] is None else f"{row[key]:.0f}" for key in ("ceiling_percent", "peak_mib"))
        same = "" if row["kind"] == DENSE else f"{row['speedup']:.2f}"
        made.add_row(row["plan"] if row["kind"] != DENSE else "dense", f"{row['backend']} {row['precision']}", f"{row['macs'] / 1e9:.2f}",
                     *(f"{row[key]:.2f}" for key in ("latency_ms", "latency_ms_p95", "latency_ms_p99")), f"{row['images_per_s']:.0f}", percent, peak, same,
                     f"{row['speedup_over_best_dense']:.2f}", row["verdict"])
    return made


def write_csv(path: Path, model: str, pixels: int, found: Sequence[dict[str, Any]]) -> Path:
    """One line a row, as timm's benchmark.py writes them, with further columns behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*TIMM_COLUMNS, *OWN_COLUMNS))
        for row in found:
            theirs = (model, round(row["images_per_s"], 2), round(row["latency_ms"] * row["batch"], 3), row["batch"], pixels, round(row["macs"] / 1e9, 2),
                      round(row["params"] / 1e6, 2))
            writer.writerow((*theirs, *(row[key] if not isinstance(row[key], float) else round(row[key], 4) for key in OWN_COLUMNS)))
    return path
