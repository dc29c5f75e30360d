"""Cascade: models of growing effort behind one another; only images that a cheap one is unsure of pay for a dear one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adaptive import AdaptiveModel
from foveate.budgeting import Ask, allowance
from foveate.budgets import SegmentCosts
from foveate.errors import FoveateError
from foveate.gates import Gate
from foveate.nn.exits import Budget
from foveate.nn.gates import no_answer, passes_on
from foveate.plan import Plan
from foveate.segments import cut_at_efforts
from foveate.trace import Pass, Trace

# What must be equal in all efforts, because all see the same images.
_INPUT = ("mean", "std", "crop_pct", "interpolation")


class Cascade(nn.Module):
    """Every image runs the first effort; those whose logits a gate finds too hard are regrouped and run the next one (section 3.1 of PIVOT).

    efforts: adapted models, at least two, the cheapest first; they are held, not copied, and trained each by itself. An effort starts
    again from the image and has weights of its own. gate: one for all, or one behind each effort but the last; it sees the logits
    that the effort returned, also from an early exit. fractions: share of images that each effort answers, if known.
    Raises FoveateError for fewer than two models, and for models that differ in their classes or in what images they take.
    """

    def __init__(self, efforts: Iterable[AdaptiveModel], gate: Gate | Sequence[Gate], fractions: Sequence[float] | None = None):
        super().__init__()
        efforts = list(efforts) if isinstance(efforts, Iterable) else [efforts]
        _check_models(efforts)
        self.plan = Plan.cascade([effort.plan for effort in efforts], gate, fractions)
        self.efforts = nn.ModuleList(efforts)
        self.training = any(effort.training for effort in efforts)
        self.costs: SegmentCosts | None = None  # of the efforts, once a budget has asked for them

    @property
    def cards(self) -> tuple:
        """The backbone of each effort in numbers."""
        return tuple(effort.card for effort in self.efforts)

    @property
    def card(self):
        """The backbone of the highest effort, which an undivided model would have."""
        return self.efforts[-1].card

    @property
    def num_classes(self) -> int:
        return self.efforts[-1].num_classes

    @property
    def pretrained_cfg(self) -> dict:
        """timm's description of the weights of the highest effort: input size, mean, std, crop, interpolation, labels."""
        return self.efforts[-1].pretrained_cfg

    def gated(self, gates: Sequence[Gate], fractions: Sequence[float] | None = None) -> "Cascade":
        """The same models (not copies) behind other gates."""
        return Cascade(self.efforts, self.plan.with_gates(gates).gates, fractions)

    def forward(self, images: Tensor, budget_ms: Any = None, budget_mj: Any = None, strict: bool = True, target: str | None = None) -> Tensor:
        """Logits [B, classes] of images [B, 3, H, W] in their order, each from the effort that answered it.

        budget_ms, budget_mj, strict, target: as AdaptiveModel.forward takes them. Before an effort starts, the images that cannot pay for all of
        it keep the answer that they have.
        """
        ask = Ask(budget_ms, budget_mj, strict, target)
        if ask.anything:
            return self.traced(images, None, budget_ms, budget_mj, strict, target)[0]
        return self._climb(images, lambda number, group: (self.efforts[number - 1](group), None))[0]

    def traced(self, images: Tensor, decisions: Trace | None = None, budget_ms: Any = None, budget_mj: Any = None, strict: bool = True,
               target: str | None = None) -> tuple[Tensor, Trace]:
        """Logits and the Trace: efforts[image] is the 1-based effort that answered, passes hold what each effort did for its images.

        decisions: repeat these, the choices between efforts included. The others: as in `forward`. Raises FoveateError for decisions that are
        of other images or another cascade, decisions with a budget, and as AdaptiveModel.traced does.
        """
        inner, ask = _inner(decisions, len(images), len(self.efforts)), Ask(budget_ms, budget_mj, strict, target)
        run = lambda number, group: self.efforts[number - 1].traced(group, inner.get(number))
        if not ask.anything:
            return self._climb(images, run, decisions)
        ask.check_free(decisions)
        ask.check(True, self.training, str(self.plan))
        with torch.no_grad():
            allowed, self.costs = allowance(cut_at_efforts(self, images), self.costs, images, ask)
            return self._climb(images, run, budget=allowed)

    def masked(self, images: Tensor, trace: Trace) -> Tensor:
        """Logits of the training form of every effort under the decisions of `trace`; equal to those of `traced` (semantics.md 2)."""
        inner = _inner(trace, len(images), len(self.efforts))
        return self._climb(images, lambda number, group: (self.efforts[number - 1].masked(group, inner[number]), None), trace)[0]

    def too_hard(self, number: int, logits: Tensor) -> Tensor:
        """Which of the images that effort `number` (1-based) gave `logits` [B, classes] its gate passes on to the next effort, bool [B]."""
        return passes_on(self.plan.gates[number - 1], logits)

    def _climb(
        self, images: Tensor, run: Callable[[int, Tensor], tuple[Tensor, Trace | None]], decisions: Trace | None = None, budget: Budget | None = None
    ) -> tuple[Tensor, Trace]:
        """run: (1-based effort, its group of images) -> (logits, Trace). Without images left nothing runs."""
        short = set(budget.short) if budget else set()
        waiting, logits = torch.arange(len(images), device=images.device), None
        answered, passes = [1] * len(images), []
        for number in range(1, len(self.efforts) + 1):
            places = waiting.tolist()
            group = images if len(places) == len(images) else images[waiting]
            found, trace = run(number, group)
            logits = found.clone() if logits is None else logits.index_copy(0, waiting, found.to(logits))
            for place in places:
                answered[place] = number
            if trace is not None:
                passes.append(Pass(number, places, trace, int(no_answer(found).sum())))
            if number == len(self.efforts):
                break
            hard = self.too_hard(number, found) if decisions is None else _went_on(decisions, number, waiting)
            waiting = waiting[hard]
            if budget is not None:
                places = waiting.tolist()
                broke = budget.cannot_pay(number, places, [1] * len(places))
                short.update(place for place, poor in zip(places, broke) if poor)
                waiting = waiting[~torch.tensor(broke, dtype=torch.bool, device=waiting.device)]
            if len(waiting) == 0:
                break
        return logits, Trace(images=len(images), efforts=answered, passes=passes, short=sorted(short))


def _went_on(decisions: Trace, number: int, waiting: Tensor) -> Tensor:
    return torch.tensor([decisions.efforts[place] > number for place in waiting.tolist()], dtype=torch.bool, device=waiting.device)


def _inner(decisions: Trace | None, images: int, efforts: int) -> dict[int, Trace]:
    """The decisions inside each effort."""
    if decisions is None:
        return {}
    fits = isinstance(decisions, Trace) and decisions.images == images == len(decisions.efforts) and decisions.passes
    if not fits or max(decisions.efforts) > efforts:
        raise FoveateError(f"decisions of {getattr(decisions, 'images', decisions)!r} images that are none of this cascade",
                           f"the Trace of a cascade of {efforts} efforts for {images} images",
                           "use the Trace that cascade.traced(images) returned for the same images")
    return {one.effort: one.trace for one in decisions.passes}


def _check_models(efforts: list[Any]) -> None:
    wrong = [type(e).__name__ for e in efforts if not isinstance(e, AdaptiveModel)]
    if wrong or len(efforts) < 2:
        raise FoveateError(f"a cascade with a {wrong[0]} as an effort" if wrong else f"a cascade of {len(efforts)} model{'s' * (not efforts)}",
                           "two adapted models or more, the cheapest first",
                           "write fv.Cascade([low, high], gate=fv.Entropy(0.3)); fv.adapt(model, fv.Plan([])) makes an effort of a timm model")
    if efforts[0].num_classes < 2:
        raise FoveateError(f"a cascade of models with {efforts[0].num_classes} class", "at least two classes", "a gate needs classes to choose between")
    first = _described(efforts[0])
    for number, effort in enumerate(efforts[1:], 2):
        other = _described(effort)
        unlike = next((what for what in first if first[what] != other[what] and None not in (first[what], other[what])), None)
        if unlike:
            raise FoveateError(f"a cascade of effort 1 ({efforts[0].card.name}, {efforts[0].plan}) with {unlike} {first[unlike]} "
                               f"and effort {number} ({effort.card.name}, {effort.plan}) with {unlike} {other[unlike]}",
                               "efforts with the same classes that take the same images", f"train both on the same data with the same {unlike}")


def _described(effort: AdaptiveModel) -> dict[str, Any]:
    """What an effort answers and takes; None where its pretrained_cfg says nothing."""
    cfg, card = effort.pretrained_cfg, effort.card
    taken = {name: tuple(cfg[name]) if isinstance(cfg.get(name), list) else cfg.get(name) for name in _INPUT}
    names = {"class names": tuple(cfg.get("label_names") or ()) or None}
    return {"classes": effort.num_classes, "image size": tuple(card.image_size), "channels": card.in_chans} | taken | names
