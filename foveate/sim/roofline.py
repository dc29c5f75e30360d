"""A roofline: every operation takes the longer of computing it at the peak and of moving its operands once.

For planning only. It knows no caches, kernels or threads, so that real programs are slower; programs that fuse operations
(one kernel for attention) move less and may come nearer to the peak than it says.
"""

from collections.abc import Sequence

from foveate.sim.cost import Cost, Work, millijoules
from foveate.sim.machine import PRODUCTS, Machine

UNIT = "processor"


def roofline_costs(operations: Sequence[Work], machine: Machine) -> list[Cost]:
    """A cost for every operation: max(MACs / peak, bytes / bandwidth) + the start-up time of each."""
    costs = []
    for index, work in enumerate(operations):
        latency = milliseconds_of(work, machine) * work.times
        energy = None if machine.power_w is None else millijoules(machine.power_w, latency)
        costs.append(Cost(index, work.kind, work.origin, UNIT, None, latency, energy))
    return costs


def milliseconds_of(work: Work, machine: Machine) -> float:
    """One repetition. Products read [m, k] and [k, n] and write [m, n]; everything else reads and writes m x n elements."""
    product = work.kind in PRODUCTS
    words = work.m * work.k + work.k * work.n + work.m * work.n if product else 2 * work.m * work.n
    macs = work.m * work.n * work.k if product else 0
    moving = words * machine.precision_bits / 8 / (machine.bandwidth_gb_s * 1e6)
    return max(macs / (machine.peak_gmac_per_s * 1e6), moving) + machine.overhead_us * 1e-3
