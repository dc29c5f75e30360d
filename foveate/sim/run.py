"""One call for every kind of machine: workload, machine and mapping in, a cost for each operation out."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from foveate.sim.accelerator import accelerator_costs, buffer_room, folding
from foveate.sim.cost import Cost, Work, check_work
from foveate.sim.errors import SimError
from foveate.sim.machine import PRODUCTS, Array, Machine
from foveate.sim.mapping import NOWHERE, Rule, rule_for
from foveate.sim.pipeline import block_timelines, pipeline_costs
from foveate.sim.roofline import roofline_costs
from foveate.sim.table import table_costs
from foveate.sim.timeline import Timeline
from foveate.sim.traffic import tile_words

PREDICTOR = "attn.predictor"
"""What makes the mask of a block's scores, for rules with masked pairs."""
# From a machine's kind to its model: (operations, machine, rules, stalls, name of the backbone) -> costs.
MODELS = {
    "accelerator": lambda work, machine, rules, stalls, model: accelerator_costs(work, machine, rules, stalls),
    "pipeline": lambda work, machine, rules, stalls, model: pipeline_costs(work, machine, rules, stalls),
    "roofline": lambda work, machine, rules, stalls, model: roofline_costs(work, machine),
    "table": lambda work, machine, rules, stalls, model: table_costs(work, machine, model),
}


def simulate(
    operations: Sequence[Work], machine: Machine, rules: Sequence[Rule] | None = None, stalls: bool = False, model: str = ""
) -> list[Cost]:
    """The costs of a workload, in running order; several may belong to one operation.

    operations: anything with kind, origin, m, n, k and times, such as a Ledger's operations. rules: a mapping instead of the
    machine's own. stalls: arrays wait for the memory outside (not in PIVOT's figures). model: the backbone's name, which a
    table of measurements needs.
    Raises SimError for an empty workload, sizes below 1, and an operation that the machine cannot run.
    """
    operations = list(operations)
    check_work(operations, machine.name)
    machine = _masked(operations, machine)
    costs = MODELS[machine.kind](operations, machine, tuple(machine.rules if rules is None else rules), stalls, model)
    if machine.copies == 1:
        return costs
    # So many machines share the work evenly: they are done sooner, at the same energy.
    return [replace(cost, latency_ms=cost.latency_ms / machine.copies, stall_cycles=cost.stall_cycles / machine.copies) for cost in costs]


def timelines(operations: Sequence[Work], machine: Machine, rules: Sequence[Rule] | None = None, stalls: bool = False) -> dict[int, Timeline]:
    """When each unit of a pipelined machine works on what, block by block; arguments and errors as in `simulate`.

    Raises SimError for a machine of another kind, whose units work one after the other.
    """
    operations = list(operations)
    check_work(operations, machine.name)
    machine = _masked(operations, machine)
    if machine.kind != "pipeline":
        raise SimError(f"a timeline of {machine.name}, of kind {machine.kind!r}", 'a machine of kind "pipeline", such as vitality', "take --target vitality")
    return block_timelines(operations, machine, tuple(machine.rules if rules is None else rules), stalls)


def _masked(operations: list[Work], machine: Machine) -> Machine:
    """The machine with the density of every block: None where nothing predicts which pairs matter."""
    names = {work.origin for work in operations}
    blocks = max((int(name.split(".")[1]) for name in names if name.startswith("blocks.")), default=0)
    if machine.densities and blocks != len(machine.densities):
        given = f"{len(machine.densities)} densities for {blocks} blocks on {machine.name}"
        raise SimError(given, "one density for all blocks, or one for each", "give the run that trained this model, or one number")
    predicted = [f"blocks.{block}.{PREDICTOR}" in names for block in range(1, blocks + 1)]
    return replace(machine, densities=tuple(machine.density(f"blocks.{block}") if mask else None for block, mask in enumerate(predicted, 1)))


def remarks(operations: Sequence[Work], machine: Machine, rules: Sequence[Rule] | None = None, model: str = "") -> list[str]:
    """What a reader of the figures must know: what is charged nothing, contradictions of the source, what does not fit."""
    rules = tuple(machine.rules if rules is None else rules)
    found = [note.text for note in machine.notes if any(fnmatchcase(model, pattern) for pattern in note.models)]
    if machine.kind == "roofline":
        found.insert(0, "a roofline: for planning, not a measurement")
    predicts = any(work.origin.endswith(PREDICTOR) for work in operations) and any(rule.pairs == "masked" for rule in rules)
    if predicts and not machine.densities and machine.constants.get("density", 1) == 1:
        found.append(f"an upper bound: every pair of a query and a key survives; give {machine.name.partition('@')[0]}@density=... as it was measured")
    mapped = [(work, rule_for(rules, work.kind, work.origin, machine.name)) for work in operations] if rules else []
    free = dict.fromkeys(f"nothing is charged for {', '.join(rule.kinds)}: {rule.why}" for _, rule in mapped if rule.unit == NOWHERE)
    return [*found, *free, *_spilling(mapped, machine)]


def _spilling(mapped: list[tuple[Work, Rule]], machine: Machine) -> list[str]:
    """The largest tile of partial sums that an output buffer cannot hold, for each array."""
    worst: dict[str, tuple[float, str]] = {}
    memory = machine.memory("outputs")
    for work, rule in mapped:
        unit = machine.unit(rule.unit) if rule.unit != NOWHERE else None
        if isinstance(unit, Array) and work.kind in PRODUCTS:
            words, room = tile_words(folding(work, unit, rule, machine)), buffer_room(machine, unit).get("outputs", float("inf"))
            if words > room:
                tile = (words * unit.sum_bits / 8 / 1024, f"{work.origin} leaves {words:,} partial sums of {unit.sum_bits} bits a fold")
                worst[unit.name] = max(worst.get(unit.name, tile), tile, key=lambda one: one[0])
    return [
        f"{memory.name} ({memory.size_kb:g} KB) cannot hold a tile of partial sums: {text} ({size:,.0f} KB)" for size, text in worst.values()
    ]
