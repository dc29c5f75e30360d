"""bench --breakdown: what of a plan's time is overhead (Fig. 7 of PIVOT), in torch eager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveate.cli.answer import bar
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foveate.report import Bars, Table

SAMPLE_IMAGES = 16  # of a sample where images differ in what they cost, so that no median leaves out the few that cost much
HEAD = ("batch", "precision", "ms an image", "compute", "overhead", "overhead (%)", "quartiles", "of it (%)")


def backend_of(backend: str) -> str:
    """The backend whose passes can be split; raises FoveateError for another one that was asked for."""
    if backend not in ("auto", "torch"):
        raise FoveateError(f"--breakdown with --backend {backend}", "torch, whose passes can be timed part by part",
                           "leave --backend out, or write --backend torch")
    return "torch"


def split_row(model: nn.Module, images: Tensor, batch: int, precision: str, rounds: int, warmup: int) -> dict[str, Any]:
    """compute_ms, overhead_ms, overhead_percent and so on of `model`, in rounds of its own, and the latency that they split."""
    import torch

    from foveate.measure.breakdown import breakdown, metered

    wait = torch.cuda.synchronize if next(model.parameters()).is_cuda else None
    calls = max(1, SAMPLE_IMAGES // batch) if model.plan.data_dependent or hasattr(model, "efforts") else 1
    run, groups, state = metered(model, precision, wait), [g for g in images.split(batch) if len(g) == batch], {"at": 0}

    def turning() -> dict[str, float]:
        at = state["at"]
        state["at"] = at + calls
        return run(*(groups[(at + n) % len(groups)] for n in range(calls)))

    with bar(f"splitting torch {precision}, batch {batch}") as progress:
        found = breakdown({"plan": turning}, rounds, warmup, progress, images=calls * batch, synchronize=wait)["plan"]
    return found.to_dict() | {"breakdown_latency_ms": found.timing.latency_ms.median}


def split_sheets(rows: list[dict[str, Any]]) -> dict[str, tuple[Table | Bars, ...]]:
    """The split of each batch size as a table and as bars, under the names that Results has for them."""
    from foveate.report import Bar, Bars, Table

    lines, bars = [], []
    for row in rows:
        parts = row["overhead_parts"]
        figures = [f"{row[key]:.3g}" for key in ("breakdown_latency_ms", "compute_ms", "overhead_ms", "overhead_percent")]
        quartiles = f"{row['overhead_percent_low']:.3g} to {row['overhead_percent_high']:.3g}"
        of_it = ", ".join(f"{part['part']} {part['percent']:.2g}" for part in parts) or "none"
        lines.append((str(row["batch"]), row["precision"], *figures, quartiles, of_it))
        bars.append(Bar(f"batch {row['batch']}, {row['precision']}", (("compute", row["compute_ms"]), *((p["part"], p["overhead_ms"]) for p in parts))))
    about = "Medians over rounds of torch eager with clocks inside the passes; the latencies above are of rounds without them."
    title = "Compute and overhead"
    return {"tables": (Table(title, HEAD, tuple(lines), about, left=2),), "bars": (Bars(title, "milliseconds an image", tuple(bars), about),)}
