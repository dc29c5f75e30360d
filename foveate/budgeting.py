"""From `budget_ms` and `budget_mj` of a call to what may be spent: the table of a model's segments, measured or simulated when it is first needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from foveate.budgets import Allowance, Energy, EnergyBudget, SegmentCosts, TimeBudget, begin, limits_of, no_exits
from foveate.card import Card
from foveate.cascade_plan import CascadePlan
from foveate.errors import FoveateError
from foveate.ledger import Ledger
from foveate.machine import package_versions, processor
from foveate.methods import cost
from foveate.plan import Plan
from foveate.segments import Cut, shares_of
from foveate.sim import Machine
from foveate.simulation import charged, machine_of
from foveate.workload import Seen, Workload, all_stages, workload

clock = time.perf_counter
TARGET = "zcu102"
"""Where energy is simulated unless another target is named: PIVOT's ZCU102."""


@dataclass(frozen=True)
class Ask:
    """What a caller wants an answer to cost at most.

    budget_ms: milliseconds from the call to an image's answer; budget_mj: millijoules of an image on `target`. A number for all images, or one for each.
    strict: refuse budgets below the first possible answer; otherwise such images get that answer and stand in trace.short.
    """

    budget_ms: Any = None
    budget_mj: Any = None
    strict: bool = True
    target: str | None = None

    @property
    def anything(self) -> bool:
        return self.budget_ms is not None or self.budget_mj is not None

    def arguments(self) -> dict[str, Any]:
        """As AdaptiveModel.forward takes them."""
        return {"budget_ms": self.budget_ms, "budget_mj": self.budget_mj, "strict": self.strict, "target": self.target}

    def check(self, exits: bool, training: bool, what: str) -> None:
        """Raises FoveateError where nothing can be saved: a model (`what`, in words) without exits, or in training."""
        name = "budget_mj" if self.budget_ms is None else "budget_ms"
        if not exits:
            raise no_exits(f"{name}={getattr(self, name)!r}", what)
        if training:
            raise FoveateError(f"{name} for {what} in training", "models in evaluation", "call model.eval() before")

    def check_free(self, decisions: Any) -> None:
        """Raises FoveateError where decisions are to be repeated: nothing is left to decide."""
        if decisions is not None:
            raise FoveateError("decisions to repeat, and a budget", "one of the two", "leave the budget out: the decisions say where images leave")


def allowance(cut: Cut, known: SegmentCosts | None, images: Tensor, ask: Ask) -> tuple[Allowance, SegmentCosts]:
    """What may be spent on images [B, C, H, W] from now on, and the table that says what a segment costs.

    known: the table so far; what is missing in it is measured or simulated first. Raises FoveateError for budgets that are none, or below the first answer.
    """
    costs = known if known and known.ends == cut.ends else SegmentCosts(cut.ends)
    budgets: list[EnergyBudget | TimeBudget] = []
    if ask.budget_mj is not None:
        limits = limits_of(ask.budget_mj, len(images), "budget_mj")
        costs = with_energy(cut, costs, ask.target or TARGET)
        budgets.append(EnergyBudget(costs, limits))
    if ask.budget_ms is not None:
        limits = limits_of(ask.budget_ms, len(images), "budget_ms")
        costs = with_latency(cut, costs, images)
        budgets.append(TimeBudget(costs, limits, clock))
    tokens = [cut.tokens] * len(images)
    return (begin(budgets, tokens, cut.first, ask.strict) if tokens else Allowance(budgets)), costs


def with_latency(cut: Cut, known: SegmentCosts, images: Tensor) -> SegmentCosts:
    """`known` with times of this machine for groups of up to all of `images` [B, C, H, W]; those of another machine or runner are not used."""
    if known.covers(len(images)) and (known.machine, known.runner) == (machine_key(), cut.runner):
        return known
    return replace(known, latency=cut.measure(images), machine=machine_key(), runner=cut.runner)


def with_energy(cut: Cut, known: SegmentCosts, target: str) -> SegmentCosts:
    """`known` with energies on `target`. Raises FoveateError where nobody knows what runs."""
    if not cut.cards:
        raise FoveateError("budget_mj for graphs of an unknown backbone", "models and run folders, of which the operations are known", "use budget_ms, or load the run itself")
    return known if known.energy and known.target == target else replace(known, energy=energies(cut.plan, cut.cards, target), target=target)


@cache
def machine_key() -> str:
    """What times belong to: the processor, its cores, the GPU and the versions of what computes."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    versions = (f"{name} {version}" for name, version in package_versions(("torch", "openvino", "onnxruntime")).items())
    own = processor()
    return ", ".join(filter(None, (own["cpu_model"], f"{own['cpu_cores']} cores", *own["cpu_flags"], gpu, *versions)))


def energies(plan: Plan | CascadePlan, cards: Sequence[Card], target: str = TARGET) -> tuple[tuple[Energy, ...], ...]:
    """Millijoules of each segment for one image on `target`: what its operations cost there (semantics.md 16).

    cards: of the backbone; of a cascade one for each effort, which costs what all of its blocks do. Where images keep different numbers of
    tokens, a segment costs what it would if nothing more were dropped in it. Raises FoveateError for a target without figures of energy.
    """
    machine = machine_of(target)
    if isinstance(plan, CascadePlan):
        return tuple((Energy(1, _energy(_work(card, effort, None), card, machine)),) for card, effort in zip(cards, plan.efforts))
    card, ends = cards[0], plan.exits(cards[0])
    found: list[list[Energy]] = [[] for _ in ends]
    for share in shares_of(plan, card):
        work = _work(card, plan, share)
        spent = [0.0, *(_energy(_up_to(work, end), card, machine) for end in ends)]
        for points, start, before, after in zip(found, (0, *ends), spent, spent[1:]):
            points.append(Energy(_entering(work, start), after - before))
    return tuple(tuple(points) for points in found)


def _work(card: Card, plan: Plan, share: float | None) -> Workload:
    """The work of an image that runs to the end. share: of the patches, kept by every stage; None where the plan says how many."""
    effects = [cost(method.name).effect(method, card) for method in plan.settled(card)]
    work = workload(card, effects)
    if share is None:
        return work
    kept = (max(1, round(share * card.tokens_after(stage.after))) + (stage.package and share < 1) for stage in all_stages(effects))
    return workload(card, effects, Seen(tokens=tuple(work.blocks[0].prefix + count for count in kept)))


def _up_to(work: Workload, end: int) -> Workload:
    """The part up to the exit behind block `end`; what methods run behind that block belongs to the next segment."""
    if end == work.card.depth:
        return work
    return replace(work, blocks=[*work.blocks[: end - 1], replace(work.blocks[end - 1], after=[])])


def _entering(work: Workload, block: int) -> int:
    """Tokens that leave `block`, before what methods run behind it; those of the stem for 0."""
    last = work.blocks[max(block, 1) - 1]
    return last.inner[0] if block and last.inner else last.tokens


def _energy(work: Workload, card: Card, machine: Machine) -> float:
    another = 'name another target with target=..., such as "xeon-6230" (`foveate targets`)'
    try:
        found = charged(Ledger(work.operations()), machine, card).energy_mj
    except FoveateError as error:
        raise FoveateError(error.given, error.allowed, another) from None
    if found is None:
        raise FoveateError(f"energies on {machine.name}, which has none", "a target with watts or energies", another)
    return found
