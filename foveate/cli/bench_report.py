"""bench: what it found, as rows of the table, a report folder, and sentences about a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.timed_images import TIMED_IMAGES

if TYPE_CHECKING:
    from foveate.adaptive import AdaptiveModel
    from foveate.cascade import Cascade
    from foveate.report import Row

HIGHEST = "highest effort"


def drawn_rows(model: AdaptiveModel, images, rows: list[dict[str, Any]], target) -> list[list[Row]]:
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


def write_folder(out: Path, data: dict[str, Any], drawn: list[list[Row]], sentence: str, command: str, started: str, seconds: float,
                 extra: dict[str, Any]) -> Path:
    from foveate.machine import machine
    from foveate.report import Made, Results, save_results, write_report

    found = machine()
    made = Made(command, round(seconds, 1), started, versions=found["versions"])
    rows = tuple(row for part in drawn for row in part)
    results = Results(f"{data['model']}: {data['plan']}", sentence, rows, found, made, **extra)
    save_results(out, results)
    return write_report(out / "report.html", results)


def sentence_of(rows: list[dict[str, Any]]) -> str:
    """The best of the rows in words."""
    best = max(rows, key=lambda row: row["speedup"])
    return f"{best['speedup']:.2f} times as fast as the dense model at batch {best['batch']} in {best['backend']} {best['precision']}."


def worth(model: Cascade) -> dict[str, Any]:
    """What the ledger says of a cascade before it is timed: MACs of an image in each effort, and the share that may go on from the first."""
    from foveate.counting import effort_ledgers
    from foveate.efforts import break_even

    low, *_, high = macs = [ledger.macs for ledger in effort_ledgers(model, model.plan)]
    return {"macs_of_efforts": macs, "break_even_percent": 100 * break_even(low, high) if len(macs) == 2 else None}


def said(row: dict[str, Any], even: float | None) -> str:
    going = ", ".join(f"{percent:.1f} %" for percent in row["run_percent"][1:])
    bound = "" if even is None else f" (by its MACs it pays below {even:.1f} %)"
    speedup = f"{row['speedup_over_highest_effort']:.2f} ({row['speedup_over_highest_effort_low']:.2f} to {row['speedup_over_highest_effort_high']:.2f})"
    return f"batch {row['batch']}: {going} of the images go on{bound}; {speedup} times as fast as the highest effort alone: {row['verdict_over_highest_effort']}"
