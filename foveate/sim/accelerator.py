"""An accelerator of arrays and processors that work one after the other: the sum of its operations' times.

This is PIVOT-Sim's model (section 3.4): products of matrices on the systolic array, everything else on the processing system,
no overlap, no waiting for memory unless `stalls` asks for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from foveate.sim.cost import Cost, Work, millijoules, milliseconds
from foveate.sim.dataflow import INPUT, Folding
from foveate.sim.errors import SimError
from foveate.sim.machine import PRODUCTS, Array, Machine, Processor
from foveate.sim.mapping import NOWHERE, Rule, rule_for
from foveate.sim.traffic import array_words, line_bytes, outside_words


@dataclass(frozen=True)
class Once:
    """One repetition of an operation: time, cycles of the clock (None without one), waiting, and energy beyond machine.power_w."""

    latency_ms: float
    cycles: float | None
    stall_cycles: float = 0.0
    energy_mj: float | None = None


@dataclass(frozen=True)
class Results:
    """What an operation hands on to further units: m x n elements, whatever made them."""

    kind: str
    origin: str
    m: int
    n: int
    k: int
    times: float


def accelerator_costs(operations: Sequence[Work], machine: Machine, rules: Sequence[Rule], stalls: bool = False) -> list[Cost]:
    """A cost for every operation and unit, in order, and the machine's overheads where they fall due.

    Raises SimError for an operation that no rule maps or whose unit cannot run it.
    """
    costs, known, filled = [], {}, set()
    for index, work in enumerate(operations):
        rule = rule_for(tuple(rules), work.kind, work.origin, machine.name)
        if rule.unit == NOWHERE:
            costs.append(Cost(index, work.kind, work.origin, NOWHERE, None, 0.0))
            continue
        shape = (rule, work.kind, work.m, work.n, work.k, work.times, machine.density(work.origin))
        if shape not in known:
            known[shape] = [once(work, machine, rule, name, stalls) for name in rule.units], memory_energies(work, machine, rule)
        for name, one in zip(rule.units, known[shape][0]):
            costs.append(cost_of(index, work, machine, name, one, fill_cycles(work, machine, rule, name, filled)))
        costs += memory_costs(index, work, known[shape][1])
    return with_overheads(costs, machine)


def cost_of(index: int, work: Work, machine: Machine, unit: str, one: Once, fill: float = 0) -> Cost:
    """All repetitions of an operation on one unit, one after the other; fill: cycles before the first."""
    latency = one.latency_ms * work.times + (milliseconds(fill, machine.clock_mhz) if fill else 0.0)
    cycles = None if one.cycles is None else one.cycles * work.times + fill
    energy = None if one.energy_mj is None else one.energy_mj * work.times
    energy = energy if machine.power_w is None else millijoules(machine.power_w, latency)
    return Cost(index, work.kind, work.origin, unit, cycles, latency, energy, one.stall_cycles * work.times)


def memory_costs(index: int, work: Work, energies: dict[str, float]) -> list[Cost]:
    """What all repetitions of an operation cost in memories; they take no time of their own here."""
    return [Cost(index, work.kind, work.origin, name, None, 0.0, energy * work.times) for name, energy in energies.items()]


def fill_cycles(work: Work, machine: Machine, rule: Rule, unit: str, filled: set[tuple[str, str]]) -> float:
    """Cycles that an array takes to fill before the first joined product of a block; `filled` remembers which have."""
    array, place = machine.unit(unit), (".".join(work.origin.split(".")[:2]), unit)
    if rule.folds == "apart" or not isinstance(array, Array) or place in filled:
        return 0
    filled.add(place)
    return array.rows + array.columns - 2 if array.fill_cycles is None else array.fill_cycles


def once(work: Work, machine: Machine, rule: Rule, unit: str, stalls: bool = False) -> Once:
    """One repetition of an operation on `unit`, one of those that `rule` names."""
    found = machine.unit(unit)
    # Scores are masked; what they are multiplied to is not.
    share = packed_share(work, machine, rule) or 1.0 if work.kind not in PRODUCTS else 1.0
    if unit != rule.unit:
        work = Results("elementwise", work.origin, work.m, work.n, 1, work.times)
    if isinstance(found, Array):
        return _on_array(work, machine, found, rule, stalls)
    return _on_processor(work, machine, found, share)


def folding(work: Work, array: Array, rule: Rule, machine: Machine) -> Folding:
    """How a product (or the scores that an array holds) is cut to fit an array."""
    dataflow = rule.dataflow or array.dataflow
    n, k = work.n, work.k
    if rule.pairs == "window":
        window = int(machine.constants["window"])
        n, k = (n, min(k, window)) if dataflow == INPUT else (min(n, window), k)
    joined, packed = rule.folds == "joined", packed_share(work, machine, rule)
    return Folding(work.m, n, k, array.rows, array.columns, dataflow, joined, packed, rule.cycles_per_fold)


def packed_share(work: Work, machine: Machine, rule: Rule) -> float | None:
    """Places that the surviving pairs take after packing, of those that all pairs would; None without a mask."""
    density = machine.density(work.origin) if rule.pairs == "masked" else None
    return None if density is None else density / machine.constants.get("pack_efficiency", 1.0)


def buffer_room(machine: Machine, array: Array) -> dict[str, float]:
    """Words that the array's buffers hold: operands of the machine's precision, partial sums of the array's."""
    bits = {"inputs": machine.precision_bits, "weights": machine.precision_bits, "outputs": array.sum_bits}
    sizes = {holds: machine.memory(holds) for holds in bits}
    return {holds: memory.size_kb * 1024 * 8 / bits[holds] for holds, memory in sizes.items() if memory and memory.size_kb}


def _on_array(work: Work, machine: Machine, array: Array, rule: Rule, stalls: bool) -> Once:
    if work.kind not in PRODUCTS and rule.cycles_per_fold is None:
        raise _cannot(work, machine, array.name, "products of matrices (gemm, conv)")
    fold = folding(work, array, rule, machine)
    outside = _outside_bytes(work, machine, array, fold)
    waiting = 0.0
    slow = [m.bandwidth_gb_s for m in machine.memories if m.holds in ("outside", "all") and m.bandwidth_gb_s]
    if stalls and slow:
        # With double buffers the next operands come while the array works, so that only the longer of the two counts.
        waiting = max(0.0, outside / (min(slow) * 1e3) * machine.clock_mhz - fold.cycles)
    latency = milliseconds(fold.cycles + waiting, machine.clock_mhz)
    return Once(latency, fold.cycles, waiting, _array_energy(work, machine, array, fold, rule, latency))


def _outside_bytes(work: Work, machine: Machine, array: Array, fold: Folding) -> float:
    """Bytes that miss the array's buffers."""
    return outside_words(fold, buffer_room(machine, array)).bytes(machine.precision_bits, array.sum_bits) if work.kind in PRODUCTS else 0.0


def _array_energy(work: Work, machine: Machine, array: Array, fold: Folding, rule: Rule, latency_ms: float) -> float | None:
    """Millijoules of the array, as far as the machine states them; None where it states nothing."""
    product = work.kind in PRODUCTS
    kept = (machine.density(work.origin) or 1) if rule.pairs == "masked" else 1
    macs = work.m * work.n * work.k * kept if product else 0
    parts = [] if array.power_w is None else [millijoules(array.power_w, latency_ms)]
    parts += [] if array.energy_pj_per_mac is None else [array.energy_pj_per_mac * macs * 1e-9]
    parts += [] if array.energy_pj_per_weight is None else [array.energy_pj_per_weight * array_words(fold).weights * product * 1e-9]
    if array.activity is not None:
        parts.append(array.activity * millijoules(array.rated_power_w, milliseconds(macs / (array.rows * array.columns), machine.clock_mhz)))
    return sum(parts) if parts else None


def memory_energies(work: Work, machine: Machine, rule: Rule) -> dict[str, float]:
    """Millijoules that one repetition of a product costs in each memory that states an energy.

    Buffers carry what the array reads and writes; shared memory and the memory outside carry what misses the buffers.
    """
    array = machine.unit(rule.unit)
    if machine.power_w is not None or work.kind not in PRODUCTS or not isinstance(array, Array):
        return {}
    fold, energies = folding(work, array, rule, machine), {}
    words = array_words(fold)
    carried = {"inputs": words.inputs, "weights": words.weights, "outputs": words.outputs}
    for memory in machine.memories:
        if memory.energy_pj_per_byte is not None:
            if memory.line_words:
                moved = line_bytes(work, rule, memory.line_words, machine.precision_bits, array.sum_bits)
            elif memory.holds in carried:
                moved = carried[memory.holds] * machine.precision_bits / 8
            else:
                moved = _outside_bytes(work, machine, array, fold)
            energies[memory.name] = memory.energy_pj_per_byte * moved * 1e-9
    return energies


def _on_processor(work: Work, machine: Machine, unit: Processor, share: float) -> Once:
    """share: of the elements, those that survive a mask."""
    elements, cycles, nanoseconds = work.m * work.n, None, unit.ns_per_operation or 0.0
    macs = elements * work.k if work.kind in PRODUCTS else 0
    if macs:
        if not unit.gmac_per_s:
            raise _cannot(work, machine, unit.name, "elements, not products of matrices")
        nanoseconds += macs / unit.gmac_per_s
    else:
        if not (unit.ns_per_element or unit.ns_per_row or _counts_cycles(unit)):
            raise _cannot(work, machine, unit.name, "products of matrices, not elements")
        nanoseconds += share * (elements * (unit.ns_per_element or 0.0) + work.m * (unit.ns_per_row or 0.0))
        cycles = share * _processor_cycles(work, unit) if _counts_cycles(unit) else None
    latency = nanoseconds * 1e-6 + (milliseconds(cycles, machine.clock_mhz) if cycles else 0.0)
    parts = [] if unit.power_w is None else [millijoules(unit.power_w, latency)]
    parts += [] if unit.activity is None else [unit.activity * millijoules(unit.rated_power_w, latency)]
    parts += [] if unit.energy_pj_per_mac is None else [unit.energy_pj_per_mac * macs * 1e-9]
    parts += [] if unit.energy_pj_per_element is None or macs else [unit.energy_pj_per_element * share * elements * 1e-9]
    return Once(latency, cycles, 0.0, sum(parts) if parts else None)


def _counts_cycles(unit: Processor) -> bool:
    return bool(unit.cycles_per_element or unit.elements_per_cycle or unit.cycles_per_row or unit.lanes)


def _processor_cycles(work: Work, unit: Processor) -> float:
    """Cycles of one repetition; those of lanes are its share of a row that all repetitions fill side by side."""
    elements = work.m * work.n
    cycles = elements * (unit.cycles_per_element or 0.0) + work.m * (unit.cycles_per_row or 0.0)
    cycles += -(-elements // unit.elements_per_cycle) if unit.elements_per_cycle else 0
    return cycles + (work.m * math.ceil(work.n * work.times / unit.lanes) / work.times if unit.lanes and work.times else 0)


def with_overheads(costs: list[Cost], machine: Machine) -> list[Cost]:
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
