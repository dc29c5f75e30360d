"""A table of measured latencies of whole models: nothing is computed but the straight line between two measurements."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from foveate.sim.cost import Cost, Work
from foveate.sim.errors import SimError
from foveate.sim.machine import PRODUCTS, Machine

UNIT = "measured"
NEAR = 0.02


def table_costs(operations: Sequence[Work], machine: Machine, model: str) -> list[Cost]:
    """The latency of a model at its MACs, read off the line between its measured points and spread over its products by MACs.

    model: its name in timm. Raises SimError for a model that was not measured and for MACs outside what was (2 % aside).
    """
    points = sorted((entry.gmacs, entry.latency_ms) for entry in machine.entries if fnmatchcase(model, entry.model))
    gmacs = sum(_macs(work) for work in operations) / 1e9
    if not points or not points[0][0] * (1 - NEAR) <= gmacs <= points[-1][0] * (1 + NEAR):
        rows = ", ".join(f"{entry.model} {entry.method} at {entry.gmacs:g} GMACs" for entry in machine.entries)
        raise SimError(
            f"{model or 'a workload without a name'} with {gmacs:.3g} GMACs on {machine.name}, a table of measurements",
            f"what was measured, and what lies between: {rows}",
            "take a target that computes (`foveate targets`)",
        )
    latency = _between(points, gmacs)
    shares = [_macs(work) / gmacs / 1e9 for work in operations]
    return [Cost(i, work.kind, work.origin, UNIT, None, latency * share) for i, (work, share) in enumerate(zip(operations, shares, strict=True))]


def _macs(work: Work) -> float:
    return work.m * work.n * work.k * work.times if work.kind in PRODUCTS else 0


def _between(points: list[tuple[float, float]], gmacs: float) -> float:
    gmacs = min(max(gmacs, points[0][0]), points[-1][0])
    for (low, fast), (high, slow) in zip(points, points[1:]):
        if gmacs <= high:
            return fast + (slow - fast) * (gmacs - low) / (high - low)
    return points[-1][1]
