"""simulate: what a plan costs on a machine in milliseconds and millijoules, without running it. The bridge between plans and foveate.sim.

(The module is not called `simulate`, because then importing it would hide the function `foveate.simulate`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from foveate import sim
from foveate.card import Card
from foveate.cascade_plan import CascadePlan, passes
from foveate.counting import card_of, cards_of, count
from foveate.errors import FoveateError
from foveate.ledger import Ledger, Operation
from foveate.plan import Plan
from foveate.sim import scalesim
from foveate.simulated import Simulation, cascade, part_of, summed
from foveate.trace import Trace

T = TypeVar("T")


def simulate(
    model: Any,
    plan: Plan | CascadePlan | str | None = None,
    target: str = "zcu102",
    batch: int = 1,
    trace: Trace | None = None,
    tokens: Sequence[int] | None = None,
    fractions: Sequence[float] | None = None,
    exits: Sequence[float] | None = None,
    mapping: str | None = None,
    stalls: bool = False,
) -> Simulation:
    """The time and energy of one image (or of the mean image of `trace`) on a machine.

    model, plan, trace, tokens, exits: as in `count`; for a cascade also a Cascade, or a sequence with one model an effort. A plan whose
    cost depends on the image, without trace and tokens, is the dense upper bound and labelled so. A trace gives the mean of its
    images' costs, not the cost of mean counts.
    target: a name of `foveate targets`, or a machine file. mapping: a file of [[mapping]] tables instead of the machine's own.
    batch: equal images that run together, from 1: backbone layers with weights see all their tokens at once.
    fractions: of a cascade, the share of images that each effort answers (default: the plan's own; else every effort runs for
    every image). The cascade's figures are sums over its passes (PIVOT, section 3.3: D_L + F_H D_H).
    stalls: arrays wait for the memory outside; off, as in PIVOT's figures.
    Raises FoveateError for what `count` refuses, an unknown target or a broken machine file, and an operation that the machine
    has no unit for.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise FoveateError(f"batch={batch!r}", "a whole number of images from 1", "write batch=1")
    plan = getattr(model, "plan", None) or Plan() if plan is None else plan
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    machine = machine_of(target)
    options = {"batch": batch, "rules": None if mapping is None else _told(sim.load_mapping, str(mapping), machine), "stalls": stalls}
    if not isinstance(plan, CascadePlan):
        passes(plan, fractions)  # refuses fractions
        return _effort(card_of(model), plan, machine, trace, tokens, exits, options)
    if tokens is not None or exits is not None:
        raise FoveateError(f"tokens={tuple(tokens)} for a cascade" if tokens is not None else f"exits={tuple(exits)} for a cascade", "a trace or fractions", "simulate each effort with its tokens, or give a trace")
    traces = {} if trace is None else {one.effort: one.trace for one in trace.passes}
    ran = [
        (_effort(card, effort, machine, traces.get(number), None, None, options), share)
        for number, (card, (effort, share)) in enumerate(zip(cards_of(model, len(plan.efforts)), passes(plan, fractions, trace)), 1) if share
    ]  # fmt: skip
    known = trace is not None or fractions is not None or plan.fractions is not None
    return cascade(ran) if known else cascade(ran, "upper bound: every effort for every image")


def machine_of(target: str) -> sim.Machine:
    """The machine of a target's name or file; raises FoveateError as `simulate` does."""
    return _told(sim.load, str(target))


def timeline(ledger: Ledger, target: str, mapping: str | None = None) -> tuple[int, sim.Timeline]:
    """When each unit of a pipelined machine works on what, in the first block in which units overlap; cycle 0: the projections are done.

    Returns the block's number and its timeline. Raises FoveateError for a machine whose units never overlap, and as `simulate` does.
    """
    machine = machine_of(target)
    rules = None if mapping is None else _told(sim.load_mapping, str(mapping), machine)
    lines = _told(sim.timelines, ledger.operations, machine, rules)
    return min(lines.items(), key=lambda line: (line[1].cycles == line[1].serial_cycles, line[0]))


def write_scale_sim(folder: Path, ledger: Ledger, machine: sim.Machine) -> dict[str, Path]:
    """Writes SCALE-Sim's files for the products of matrices of a Ledger; see foveate.sim.scalesim. Raises FoveateError."""
    return _told(scalesim.write_scale_sim, folder, ledger.operations, machine)


def charged(
    ledger: Ledger, machine: sim.Machine, card: Card | None = None, batch: int = 1, rules: Sequence[sim.Rule] | None = None, stalls: bool = False
) -> Simulation:
    """The operations of a Ledger on a machine that is already read.

    card: says which operations have weights that a batch shares, and the model's name; without it a batch shares nothing.
    Raises FoveateError as `simulate` does.
    """
    operations, costs = _ran(ledger, machine, card, batch, rules, stalls)
    remarks = tuple(_told(sim.remarks, ledger.operations, machine, rules, card.name if card else ""))
    return Simulation(operations, ledger.params, _label(ledger.label, machine, batch), machine.name, batch, summed([(costs, 1.0)]), remarks)


def _label(counted: str, machine: sim.Machine, batch: int) -> str:
    return f"{counted} on {machine.name}" + (f", batch {batch}" if batch > 1 else "")


def _ran(
    ledger: Ledger, machine: sim.Machine, card: Card | None, batch: int, rules: Sequence[sim.Rule] | None, stalls: bool
) -> tuple[tuple[Operation, ...], list[sim.Cost]]:
    """The operations with their time and energy, and the costs they come from, for one image of a batch."""
    shared = _with_weights(card) if card and batch > 1 else frozenset()
    work = [_batched(operation, batch, shared) for operation in ledger.operations]
    costs = _told(sim.simulate, work, machine, rules, stalls, card.name if card else "")
    if batch > 1:
        # Overheads are of one image each; what ran for the whole batch is divided among its images.
        costs = [one if one.operation is None else part_of(one, 1 / batch) for one in costs]
    return _filled(ledger.operations, costs), costs


def _effort(
    card: Card, plan: Plan, machine: sim.Machine, trace: Trace | None, tokens: Sequence[int] | None, exits: Sequence[float] | None, options: dict[str, Any]
) -> Simulation:
    options = {"card": card} | options
    counted = count(card, plan, trace, tokens, exits=exits)
    if exits is not None:
        alone = [tuple(float(place == at) for place in range(len(exits))) for at in range(len(exits))]
        ledgers, weights = zip(*((count(card, plan, None, tokens, exits=one), share) for one, share in zip(alone, exits) if share))
    elif trace is not None and trace.images > 1:
        ledgers, weights = zip(*((count(card, plan, image), number / trace.images) for image, number in _distinct(trace, card)))
    else:
        return charged(counted, machine, **options)
    parts = [_ran(ledger, machine, **options) for ledger in ledgers]
    filled = [Ledger(operations, ledger.params) for (operations, _), ledger in zip(parts, ledgers)]
    mean = Ledger.mean(filled, weights, _label(counted.label, machine, options["batch"]))
    costs = summed((costs, weight) for (_, costs), weight in zip(parts, weights))
    return replace(charged(ledgers[0], machine, **options), operations=mean.operations, label=mean.label, costs=costs)


def _distinct(trace: Trace, card: Card) -> Iterable[tuple[Trace, int]]:
    """A trace of one image for every kind of image in `trace`, with how many there are: machines need not be linear in the counts."""
    places = any(block.transition for block in card.blocks)  # which patches live matters only where the grid is merged
    alike: dict[tuple, list[int]] = {}
    for image in range(trace.images):
        rows = [tuple(row[image] for row in rows) for rows in (trace.tokens, trace.block_tokens)]
        kept = tuple(mask[image].tobytes() if places else int(mask[image].sum()) for mask in trace.kept)
        alike.setdefault((*rows, kept, trace.exits[image] if trace.exits else None), []).append(image)
    for images in alike.values():
        at = images[0]
        one = {name: [[row[at]] for row in getattr(trace, name)] for name in ("tokens", "block_tokens")}
        flat = {name: getattr(trace, name)[at : at + 1] for name in ("exits", "efforts")}
        yield replace(trace, images=1, kept=[mask[at : at + 1] for mask in trace.kept], **one, **flat), len(images)


def _with_weights(card: Card) -> frozenset[str]:
    """Origins of the backbone's own layers: their second operand is a weight, the same for every image of a batch."""
    blocks = [f"blocks.{number}.{part.name}" for number, block in enumerate(card.blocks, 1)
              for part in (*block.linears, *(block.transition.parts if block.transition else ()))]  # fmt: skip
    return frozenset([*(operation.origin for operation in card.stem), *blocks, *(part.name for part in card.head)])


def _batched(operation: Operation, batch: int, shared: frozenset[str]) -> Operation:
    """The operation for a batch: rows of all images against one weight, or one repetition an image."""
    if batch > 1 and operation.macs and operation.origin in shared:
        return replace(operation, m=operation.m * batch)
    return replace(operation, times=operation.times * batch) if batch > 1 else operation


def _filled(operations: tuple[Operation, ...], costs: list[sim.Cost]) -> tuple[Operation, ...]:
    """The operations with their time and energy; a machine's overheads come as operations of their own, where they fall due."""
    rows: dict[int, list] = {}
    for at, cost in enumerate(costs):
        row = rows.setdefault(-1 - at if cost.operation is None else cost.operation, [cost, 0.0, None])
        row[1] += cost.latency_ms
        row[2] = row[2] if cost.energy_mj is None else (row[2] or 0.0) + cost.energy_mj
    return tuple(
        Operation("overhead", cost.origin, latency_ms=latency, energy_mj=energy) if index < 0
        else replace(operations[index], latency_ms=latency, energy_mj=energy)
        for index, (cost, latency, energy) in rows.items()
    )  # fmt: skip


def _told(function: Callable[..., T], *arguments: Any) -> T:
    """`function`'s result; its complaint as a FoveateError."""
    try:
        return function(*arguments)
    except sim.SimError as error:
        raise FoveateError(error.given, error.allowed, error.do) from None
