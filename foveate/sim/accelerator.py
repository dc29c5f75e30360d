"""An accelerator of arrays and processors that work one after the other: the sum of its operations' times.

This is PIVOT-Sim's model (section 3.4): products of matrices on the systolic array, everything else on the processing system,
no overlap, no waiting for memory unless `stalls` asks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.sim.cost import Cost, Work, millijoules, milliseconds
from foveate.sim.dataflow import Folding
from foveate.sim.errors import SimError
from foveate.sim.machine import PRODUCTS, Array, Machine, Processor
from foveate.sim.mapping import NOWHERE, Rule, rule_for
from foveate.sim.traffic import array_words, outside_words


@dataclass(frozen=True)
class Once:
    """One repetition of an operation: time, cycles of the clock (None without one), waiting, and energy beyond machine.power_w."""

    latency_ms: float
    cycles: float | None
    stall_cycles: float = 0.0
    energy_mj: float | None = None


def accelerator_costs(operations: Sequence[Work], machine: Machine, rules: Sequence[Rule], stalls: bool = False) -> list[Cost]:
    """A cost for every operation, in order, and the machine's overheads where they fall due.

    Raises SimError for an operation that no rule maps or whose unit cannot run it.
    """
    costs, known = [], {}
    for index, work in enumerate(operations):
        rule = rule_for(tuple(rules), work.kind, work.origin, machine.name)
        if rule.unit == NOWHERE:
            costs.append(Cost(index, work.kind, work.origin, NOWHERE, None, 0.0))
            continue
        shape = (rule, work.kind, work.m, work.n, work.k)
        if shape not in known:
            known[shape] = once(work, machine, rule, stalls)
        one = known[shape]
        latency = one.latency_ms * work.times
        energy = one.energy_mj if machine.power_w is None else millijoules(machine.power_w, one.latency_ms)
        cycles = None if one.cycles is None else one.cycles * work.times
        energy = None if energy is None else energy * work.times
        costs.append(Cost(index, work.kind, work.origin, rule.unit, cycles, latency, energy, one.stall_cycles * work.times))
    return _with_overheads(costs, machine)


def once(work: Work, machine: Machine, rule: Rule, stalls: bool = False) -> Once:
    """One repetition of an operation on the unit that `rule` names."""
    unit = machine.unit(rule.unit)
    return _on_array(work, machine, unit, rule, stalls) if isinstance(unit, Array) else _on_processor(work, machine, unit)


def folding(work: Work, array: Array, rule: Rule) -> Folding:
    """How a product is cut to fit an array."""
    return Folding(work.m, work.n, work.k, array.rows, array.columns, rule.dataflow or array.dataflow)


def buffer_room(machine: Machine, array: Array) -> dict[str, float]:
    """Words that the array's buffers hold: operands of the machine's precision, partial sums of the array's."""
    bits = {"inputs": machine.precision_bits, "weights": machine.precision_bits, "outputs": array.sum_bits}
    sizes = {holds: machine.memory(holds) for holds in bits}
    return {holds: memory.size_kb * 1024 * 8 / bits[holds] for holds, memory in sizes.items() if memory and memory.size_kb}


def _on_array(work: Work, machine: Machine, array: Array, rule: Rule, stalls: bool) -> Once:
    if work.kind not in PRODUCTS:
        raise _cannot(work, machine, array.name, "products of matrices (gemm, conv)")
    fold = folding(work, array, rule)
    outside = outside_words(fold, buffer_room(machine, array)).bytes(machine.precision_bits, array.sum_bits)
    waiting = 0.0
    slow = [m.bandwidth_gb_s for m in machine.memories if m.holds in ("outside", "all") and m.bandwidth_gb_s]
    if stalls and slow:
        # With double buffers the next operands come while the array works, so that only the longer of the two counts.
        waiting = max(0.0, outside / (min(slow) * 1e3) * machine.clock_mhz - fold.cycles)
    latency = milliseconds(fold.cycles + waiting, machine.clock_mhz)
    return Once(latency, fold.cycles, waiting, _array_energy(work, machine, array, fold, outside, latency))


def _array_energy(work: Work, machine: Machine, array: Array, fold: Folding, outside: float, latency_ms: float) -> float | None:
    """Millijoules of the array and of the bytes it moves, as far as the machine states them; None where it states nothing.

    Buffers carry what the array reads and writes; shared memory and the memory outside carry what misses the buffers.
    """
    parts = []
    if array.power_w is not None:
        parts.append(millijoules(array.power_w, latency_ms))
    if array.energy_pj_per_mac is not None:
        parts.append(array.energy_pj_per_mac * work.m * work.n * work.k * 1e-9)
    words = array_words(fold)
    carried = {"inputs": words.inputs, "weights": words.weights, "outputs": words.outputs}
    for memory in machine.memories:
        if memory.energy_pj_per_byte is not None:
            moved = carried[memory.holds] * machine.precision_bits / 8 if memory.holds in carried else outside
            parts.append(memory.energy_pj_per_byte * moved * 1e-9)
    return sum(parts) if parts else None


def _on_processor(work: Work, machine: Machine, unit: Processor) -> Once:
    elements, cycles, nanoseconds = work.m * work.n, None, unit.ns_per_operation or 0.0
    macs = elements * work.k if work.kind in PRODUCTS else 0
    if macs:
        if not unit.gmac_per_s:
            raise _cannot(work, machine, unit.name, "elements, not products of matrices")
        nanoseconds += macs / unit.gmac_per_s
    else:
        if not (unit.ns_per_element or unit.ns_per_row or unit.cycles_per_element or unit.elements_per_cycle):
            raise _cannot(work, machine, unit.name, "products of matrices, not elements")
        nanoseconds += elements * (unit.ns_per_element or 0.0) + work.m * (unit.ns_per_row or 0.0)
        if unit.cycles_per_element or unit.elements_per_cycle:
            cycles = elements * (unit.cycles_per_element or 0.0) + (-(-elements // unit.elements_per_cycle) if unit.elements_per_cycle else 0)
    latency = nanoseconds * 1e-6 + (milliseconds(cycles, machine.clock_mhz) if cycles else 0.0)
    parts = [] if unit.power_w is None else [millijoules(unit.power_w, latency)]
    parts += [] if unit.energy_pj_per_mac is None else [unit.energy_pj_per_mac * macs * 1e-9]
    parts += [] if unit.energy_pj_per_element is None or macs else [unit.energy_pj_per_element * elements * 1e-9]
    return Once(latency, cycles, 0.0, sum(parts) if parts else None)


def _with_overheads(costs: list[Cost], machine: Machine) -> list[Cost]:
    """The overheads of each block behind its last operation, those of the image at the end."""
    last = {}
    for index, cost in enumerate(costs):
        if cost.origin.startswith("blocks."):
            last[cost.origin.split(".")[1]] = index
    ends, filled = {index: block for block, index in last.items()}, []
    for index, cost in enumerate(costs):
        filled.append(cost)
        if index in ends:
            filled += [_overhead(f"blocks.{ends[index]}.overhead", o.name, o.latency_ms, machine) for o in machine.overheads if o.per == "block"]
    return filled + [_overhead("overhead", o.name, o.latency_ms, machine) for o in machine.overheads if o.per == "image"]


def _overhead(origin: str, unit: str, latency_ms: float, machine: Machine) -> Cost:
    energy = None if machine.power_w is None else millijoules(machine.power_w, latency_ms)
    return Cost(None, "overhead", origin, unit, None, latency_ms, energy)


def _cannot(work: Work, machine: Machine, unit: str, runs: str) -> SimError:
    return SimError(
        f"{work.origin}, an operation of kind {work.kind!r}, on {unit} of {machine.name}",
        f"{unit} runs {runs}",
        f'map it to another unit: [[mapping]] unit = "...", kinds = ["{work.kind}"] before the rule that fits it now',
    )
