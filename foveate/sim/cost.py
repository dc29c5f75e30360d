"""What one operation costs on a machine, and what a workload's operation must look like."""

from dataclasses import dataclass
from typing import Protocol

from foveate.sim.errors import SimError


class Work(Protocol):
    """An operation of a Ledger: `times` products [m, k] x [k, n], or m x n elements; see foveate.ledger.Operation."""

    kind: str
    origin: str
    m: int
    n: int
    k: int
    times: float


@dataclass(frozen=True)
class Cost:
    """Time and energy of one operation on one unit, all its repetitions together.

    operation: its index in the workload; None for an overhead of the machine. unit: "nowhere" where the model charges nothing.
    cycles: of the machine's clock that the unit works, None for a unit without that clock. stall_cycles: those that it waits
    for memory, not in `cycles`. latency_ms: what it adds to the whole (less than the unit's own time where others overlap it).
    energy_mj: None where the machine states neither power nor energy.
    """

    operation: int | None
    kind: str
    origin: str
    unit: str
    cycles: float | None
    latency_ms: float
    energy_mj: float | None = None
    stall_cycles: float = 0.0


def check_work(operations: list[Work], target: str) -> None:
    """Raises SimError for a workload without operations, or with one that has no tokens to work on."""
    if not operations:
        raise SimError(f"a workload of no operations for {target}", "at least one operation", "count a model: foveate.count(name).operations")
    for work in operations:
        shape = (work.m, work.n, work.k)
        if min(shape) < 1 or work.times < 0:
            raise SimError(
                f"{work.origin} with m, n, k = {', '.join(map(str, shape))}, {work.times:g} times, on {target}",
                "sizes from 1: at least one token",
                "keep at least one token in every stage",
            )


def milliseconds(cycles: float, clock_mhz: float) -> float:
    """Time of so many cycles."""
    return cycles / clock_mhz / 1000


def millijoules(power_w: float, latency_ms: float) -> float:
    """Energy of a constant power."""
    return power_w * latency_ms
