"""A table of measured latencies, of whole models or of parts of them: nothing is computed but the straight line between two measurements."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from foveate.sim.cost import Cost, Work
from foveate.sim.errors import SimError
from foveate.sim.machine import PRODUCTS, Entry, Machine

UNIT = "measured"
ELSEWHERE = "not measured"
NEAR = 0.02


def table_costs(operations: Sequence[Work], machine: Machine, model: str) -> list[Cost]:
    """What was measured of a model, spread over its operations.

    Where whole models were measured: the latency at its MACs, read off the line between two points, spread over its products by
    MACs. Where parts were: each part's latency, spread over its operations; what lies outside all parts costs nothing.
    model: its name in timm. Raises SimError for a model that was not measured and for MACs outside what was (2 % aside).
    """
    entries = [entry for entry in machine.entries if fnmatchcase(model, entry.model)]
    if any(entry.origins for entry in entries):
        return _parts(operations, machine, entries, model)
    points = sorted((entry.gmacs, entry.latency_ms) for entry in entries)
    gmacs = _gmacs(operations)
    if not points or not points[0][0] * (1 - NEAR) <= gmacs <= points[-1][0] * (1 + NEAR):
        raise _unknown(f"{model or 'a workload without a name'} with {gmacs:.3g} GMACs", machine)
    latency = _between(points, gmacs)
    shares = [_gmacs([work]) / gmacs for work in operations]
    return [Cost(i, work.kind, work.origin, UNIT, None, latency * share) for i, (work, share) in enumerate(zip(operations, shares, strict=True))]


def _parts(operations: Sequence[Work], machine: Machine, entries: list[Entry], model: str) -> list[Cost]:
    latencies = dict.fromkeys(range(len(operations)))
    for entry in entries:
        part = [i for i, work in enumerate(operations) if any(fnmatchcase(work.origin, pattern) for pattern in entry.origins)]
        gmacs = _gmacs([operations[i] for i in part])
        if part and abs(gmacs - entry.gmacs) > NEAR * entry.gmacs:
            raise _unknown(f"{entry.method} of {model} with {gmacs:.3g} GMACs", machine)
        sizes = [_gmacs([operations[i]]) if entry.gmacs else operations[i].m * operations[i].n * operations[i].times for i in part]
        for i, size in zip(part, sizes):
            latencies[i] = entry.latency_ms * size / sum(sizes)
    if not any(latencies.values()):
        raise _unknown(f"{model} with another attention", machine)
    return [
        Cost(i, work.kind, work.origin, ELSEWHERE if latencies[i] is None else UNIT, None, latencies[i] or 0.0) for i, work in enumerate(operations)
    ]


def _unknown(given: str, machine: Machine) -> SimError:
    measured = ", ".join(dict.fromkeys(_measured(entry) for entry in machine.entries))
    return SimError(f"{given} on {machine.name}, a table of measurements", f"what was measured, and what lies between: {measured}",
                    "take a target that computes (`foveate targets`)")  # fmt: skip


def _measured(entry: Entry) -> str:
    """An entry in words; parts of a model are named by what stands before the comma of their method."""
    return f"{entry.model} {entry.method.partition(',')[0]}" if entry.origins else f"{entry.model} {entry.method} at {entry.gmacs:g} GMACs"


def _gmacs(operations: Sequence[Work]) -> float:
    return sum(work.m * work.n * work.k * work.times for work in operations if work.kind in PRODUCTS) / 1e9


def _between(points: list[tuple[float, float]], gmacs: float) -> float:
    gmacs = min(max(gmacs, points[0][0]), points[-1][0])
    for (low, fast), (high, slow) in zip(points, points[1:]):
        if gmacs <= high:
            return fast + (slow - fast) * (gmacs - low) / (high - low)
    return points[-1][1]
