"""An accelerator whose units overlap: each block's operations placed in time, as the machine's flows allow (Fig. 7 of ViTALiTy).

An operation without a flow waits for everything before it in its block. Operations with flows that stand side by side run
repetition by repetition (head by head), so that one unit prepares the next head while another works on this one. Blocks, and
what lies outside blocks, run one after the other. The latency of an operation is what it adds to the end; cycles and energy are
those of its unit.
"""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from foveate.sim.accelerator import Once, cost_of, fill_cycles, memory_costs, memory_energies, once, with_overheads
from foveate.sim.cost import Cost, Work, millijoules, milliseconds
from foveate.sim.errors import SimError
from foveate.sim.machine import Flow, Machine
from foveate.sim.mapping import NOWHERE, Rule, rule_for
from foveate.sim.timeline import Task, Timeline, schedule


class Step:
    """One operation of a block on its units. number: its place in the block. pieces: tasks that it is cut into on each unit.

    rule: where it runs. flow: what it waits for; None: everything before it. ran: (unit, one repetition, cycles to fill) for each unit.
    """

    def __init__(self, number: int, work: Work, rule: Rule, flow: Flow | None, ran: list[tuple[str, Once, float]]):
        self.number, self.work, self.rule, self.flow, self.ran = number, work, rule, flow, ran
        self.name = _name(work)
        self.pieces = int(work.times) if flow else 1

    def task(self, place: int, piece: int) -> str:
        """Name of a piece (from 1) on the unit at `place` of `ran`."""
        return f"{self.name}@{self.ran[place][0]}#{piece}"

    def last(self, piece: int, of: int) -> str:
        """The task behind which piece `piece` of `of` of another operation finds its share of this one's results."""
        return self.task(-1, -(-piece * self.pieces // of))


def pipeline_costs(operations: Sequence[Work], machine: Machine, rules: Sequence[Rule], stalls: bool = False) -> list[Cost]:
    """A cost for every operation and unit, in order, and the machine's overheads where they fall due.

    Raises SimError for an operation that no rule maps or whose unit cannot run it, and for a mean of several images.
    """
    costs, known, filled = [], {}, set()
    for start, part in _parts(operations):
        if not _in_block(part[0]):
            costs += [cost for i, work in enumerate(part) for cost in _alone(start + i, work, machine, rules, stalls, filled)]
            continue
        key = tuple((_name(w), w.kind, w.m, w.n, w.k, w.times, machine.density(w.origin)) for w in part)
        if key not in known:
            known[key] = _block(part, machine, tuple(rules), stalls)
        costs += [replace(cost, operation=start + cost.operation, origin=part[cost.operation].origin) for cost in known[key]]
    return with_overheads(costs, machine)


def block_timelines(operations: Sequence[Work], machine: Machine, rules: Sequence[Rule], stalls: bool = False) -> dict[int, Timeline]:
    """The timeline of each block, by its 1-based number; tasks are called "attn.context@SA-General#1", the last figure the head.

    Cycle 0 is where what has no flow and stands before all flows (the projections) has ended; without flows the block's beginning.
    """
    lines = {}
    for _, part in _parts(operations):
        if _in_block(part[0]):
            steps = _steps(part, machine, tuple(rules), stalls)
            line = _placed(steps, machine)
            flowing = next((step.number for step in steps if step.flow), 0)
            first = {step.task(-1, step.pieces) for step in steps if step.number < flowing}
            zero = max((event.end for event in line.events if event.task.name in first), default=0.0)
            lines[int(part[0].origin.split(".")[1])] = line.shifted(-zero)
    return lines


def _parts(operations: Sequence[Work]) -> list[tuple[int, list[Work]]]:
    """Runs of operations of one block, or of none, with the index at which each begins."""
    parts: list[tuple[int, list[Work]]] = []
    for index, work in enumerate(operations):
        place = work.origin.split(".")[:2] if _in_block(work) else None
        if parts and place == (parts[-1][1][0].origin.split(".")[:2] if _in_block(parts[-1][1][0]) else None):
            parts[-1][1].append(work)
        else:
            parts.append((index, [work]))
    return parts


def _in_block(work: Work) -> bool:
    return work.origin.startswith("blocks.")


def _name(work: Work) -> str:
    return work.origin.split(".", 2)[2] if _in_block(work) else work.origin


def _alone(index: int, work: Work, machine: Machine, rules: Sequence[Rule], stalls: bool, filled: set) -> list[Cost]:
    rule = rule_for(tuple(rules), work.kind, work.origin, machine.name)
    if rule.unit == NOWHERE:
        return [Cost(index, work.kind, work.origin, NOWHERE, None, 0.0)]
    units = [(name, once(work, machine, rule, name, stalls)) for name in rule.units]
    costs = [cost_of(index, work, machine, name, one, fill_cycles(work, machine, rule, name, filled)) for name, one in units]
    return costs + memory_costs(index, work, memory_energies(work, machine, rule))


def _block(part: list[Work], machine: Machine, rules: tuple[Rule, ...], stalls: bool) -> list[Cost]:
    steps = _steps(part, machine, rules, stalls)
    exposed = _placed(steps, machine).exposed()
    costs, ran = [], {step.number: step for step in steps}
    for number, work in enumerate(part):
        if number not in ran:
            costs.append(Cost(number, work.kind, work.origin, NOWHERE, None, 0.0))
            continue
        step = ran[number]
        for place, (unit, one, fill) in enumerate(step.ran):
            added = sum(exposed[name] for name in exposed if name.startswith(f"{step.name}@{unit}#"))
            latency = milliseconds(added, machine.clock_mhz)
            cost = cost_of(number, work, machine, unit, one, fill)
            energy = cost.energy_mj if machine.power_w is None else millijoules(machine.power_w, latency)
            costs.append(replace(cost, latency_ms=latency, energy_mj=energy))
        costs += memory_costs(number, work, memory_energies(work, machine, step.rule))
    return costs


def _steps(part: list[Work], machine: Machine, rules: tuple[Rule, ...], stalls: bool) -> list[Step]:
    steps, filled = [], set()
    for number, work in enumerate(part):
        rule = rule_for(rules, work.kind, work.origin, machine.name)
        if rule.unit == NOWHERE:
            continue
        if work.times != int(work.times):
            given = f"{work.origin}, run {work.times:g} times on average, on {machine.name}, which places single images in time"
            raise SimError(given, "whole repetitions", "give the trace itself, whose images run one by one")
        flow = next((flow for flow in machine.flows if fnmatchcase(_name(work), flow.operation)), None)
        ran = [(name, once(work, machine, rule, name, stalls), fill_cycles(work, machine, rule, name, filled)) for name in rule.units]
        steps.append(Step(number, work, rule, flow, ran))
    for section in _sections(steps):
        if len({step.work.times for step in section}) > 1:
            for step in section:
                step.pieces = 1
    for step in steps:
        if step.flow is None:
            # Its results come over its whole time: cut so that each repetition of a follower can take its share.
            step.pieces = max([1, *(other.pieces for other in steps if other.flow and _names(other.flow.follows, step))])
    return steps


def _names(patterns: tuple[str, ...], step: Step) -> bool:
    return any(fnmatchcase(step.name, pattern) for pattern in patterns)


def _sections(steps: list[Step]) -> list[list[Step]]:
    """Runs of steps with flows; a step without one is a section of its own."""
    sections: list[list[Step]] = []
    for step in steps:
        if sections and step.flow and sections[-1][-1].flow:
            sections[-1].append(step)
        else:
            sections.append([step])
    return sections


def _placed(steps: list[Step], machine: Machine) -> Timeline:
    tasks: list[Task] = []
    before: tuple[str, ...] = ()
    for section in _sections(steps):
        names = []
        for piece in range(1, section[0].pieces + 1):
            for step in section:
                made = _tasks(step, piece, steps, before if step.flow is None else None, machine)
                tasks += made
                names.append(made[-1].name)
        before = tuple(names) if section[0].flow is None else (*before, *names)
    return schedule(tasks)


def _tasks(step: Step, piece: int, steps: list[Step], before: tuple[str, ...] | None, machine: Machine) -> list[Task]:
    """One piece of an operation on each of its units, one behind the other."""
    after, follows = before or (), ()
    if step.flow:
        earlier = [other for other in steps if other.number < step.number]
        after = tuple(other.last(piece, step.pieces) for other in earlier if _names(step.flow.after, other))
        follows = tuple(other.last(piece, step.pieces) for other in earlier if _names(step.flow.follows, other))
    tasks = []
    for place, (unit, one, fill) in enumerate(step.ran):
        cycles = _cycles(one, machine) * step.work.times / step.pieces + (fill if piece == 1 else 0)
        tasks.append(Task(step.task(place, piece), unit, cycles, after, follows))
        after, follows = (), (tasks[-1].name,)
    return tasks


def _cycles(one: Once, machine: Machine) -> float:
    return one.latency_ms * machine.clock_mhz * 1000 if one.cycles is None else one.cycles + one.stall_cycles
