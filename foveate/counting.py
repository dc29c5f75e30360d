"""count: what a plan costs on a backbone, in multiply-accumulates, without running it.

MACs are called MACs; the "GFLOPs" of the papers are giga-MACs. (The module is not called `count`, because then importing it
would hide the function `foveate.count`.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from foveate.cascade_plan import CascadePlan, passes
from foveate.card import Card, Transition, keep_card, stored_card
from foveate.errors import FoveateError
from foveate.ledger import Ledger
from foveate.methods import cost
from foveate.plan import Plan
from foveate.trace import Trace
from foveate.workload import Effect, Seen, Stage, all_stages, workload


def count(
    model: Any,
    plan: Plan | CascadePlan | str | None = None,
    trace: Trace | None = None,
    tokens: Sequence[int] | None = None,
    include: str = "all",
    fractions: Sequence[float] | None = None,
    exits: Sequence[float] | None = None,
) -> Ledger:
    """The operations of one image (or of the mean image of `trace`) as a Ledger.

    model: a timm name (torch is not loaded for names with a card), a Card, a live timm model, or an AdaptiveModel, whose own
        plan is counted unless another is given.
    plan: a Plan, or text as Plan.parse reads it; None is the dense model.
    trace: what a pass really did; the figure is the mean of its images' costs, not the cost of mean counts (semantics.md 20).
    tokens: instead of a trace, live tokens (prefix and packages included) after each pruning stage.
    include: "all", "blocks" without embeddings and heads, or "attention", what runs between projections and output linears.
    fractions: of a cascade, the share of images that each effort answers, instead of a trace; by default the plan's own.
    exits: of a plan with early exits, the share of images that leave at each, the last one (the model's own head) included; `tokens`
        may be given beside it. Without trace and exits, all exits are computed and nobody leaves: an upper bound.
    A cascade costs the mean over its images of all efforts they ran, each from the image on; its parameters are those of all efforts.
    `model` may then be a Cascade, or a sequence with one model an effort. Without trace and fractions all efforts run: an upper bound.
    A plan whose cost depends on the image, counted without trace and tokens, is the dense upper bound and labelled so.
    Raises FoveateError for an unknown name, a plan that does not fit, and a trace or tokens of another plan.
    """
    if plan is None:
        plan = getattr(model, "plan", None) or Plan()
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    if isinstance(plan, CascadePlan) or fractions is not None:
        return _cascade(model, plan, trace, tokens, fractions, exits).only(include)
    card = card_of(model)
    plan.validate(card)
    effects = [cost(method.name).effect(method, card) for method in plan.settled(card)]
    params = card.params + sum(effect.params for effect in effects)
    for name, given in (("tokens", tokens), ("exits", exits)):
        if trace is not None and given is not None:
            raise FoveateError(given=f"count(trace=..., {name}=...)", allowed="one of the two", do=f"leave {name} out: the trace has them")
    if trace is not None:
        return _mean(card, effects, params, trace).only(include)
    seen = None if tokens is None else _given(tokens, all_stages(effects))
    leaving = {None: 1.0} if exits is None else exit_shares(plan, card, exits)
    works = {block: workload(card, effects, seen if block is None else replace(seen or Seen(), exit=block)) for block, share in leaving.items() if share}
    label = _label(plan, card, seen, exits, any(work.bound for work in works.values()))
    ledgers = [Ledger(work.operations(), params) for work in works.values()]
    return Ledger.mean(ledgers, [leaving[block] for block in works], label).only(include)


def exit_shares(plan: Plan, card: Card, exits: Sequence[float]) -> dict[int, float]:
    """The share of images that leave behind each block. exits: one share an exit of `plan`, in order; they sum to 1.

    Raises FoveateError for another number of shares, and for shares that are none.
    """
    blocks = plan.exits(card)
    number = lambda share: isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share <= 1
    if not blocks or len(exits) != len(blocks) or not all(map(number, exits)) or abs(sum(exits) - 1) > 1e-6:
        raise FoveateError(
            given=f"exits={tuple(exits)} for the plan {plan}",
            allowed=f"{len(blocks)} shares that sum to 1, for the exits after blocks {', '.join(map(str, blocks))}" if blocks else "plans with early exits",
            do="give the share of images that leave at each exit, the model's own head included" if blocks else "leave exits out",
        )
    return dict(zip(blocks, exits))


def effort_ledgers(model: Any, plan: CascadePlan, trace: Trace | None = None) -> list[Ledger]:
    """What each effort of a cascade costs one image that runs it: the mean image of its pass where `trace` has one.

    model: as in `count`. Raises FoveateError for another number of models than efforts.
    """
    cards = cards_of(model, len(plan.efforts))
    ran = {one.effort: one.trace for one in trace.passes} if trace else {}
    return [count(card, effort, trace=ran.get(number)) for number, (card, effort) in enumerate(zip(cards, plan.efforts), 1)]


def cards_of(model: Any, efforts: int) -> list[Card]:
    """The Card of each effort. model: a Cascade, a sequence with one model an effort, or one model for all, each as in `card_of`.

    Raises FoveateError for another number of models than efforts.
    """
    models = getattr(model, "cards", None) or (model if isinstance(model, (list, tuple)) else [model] * efforts)
    if len(models) != efforts:
        raise FoveateError(
            given=f"{len(models)} models for {efforts} efforts",
            allowed="one model for all efforts, or one an effort",
            do="give the models in the order of the efforts, the cheapest first",
        )
    return [card_of(one) for one in models]


def _cascade(model: Any, plan: Plan | CascadePlan, trace: Trace | None, tokens: Any, fractions: Any, exits: Any) -> Ledger:
    shares = passes(plan, fractions, trace)
    if tokens is not None or exits is not None:
        raise FoveateError(
            given=f"count({'exits' if tokens is None else 'tokens'}=...) for a cascade", allowed="fractions, or a trace",
            do="give the share of images that each effort answers"
        )
    ledgers = effort_ledgers(model, plan, trace)
    bound = any("bound" in ledger.label for ledger in ledgers)
    known = fractions or plan.fractions
    if trace is not None:
        label = f"mean over {trace.images:,} image{'s' if trace.images > 1 else ''}"
    else:
        label = f"fractions {', '.join(f'{f:g}' for f in known)}" if known else "all efforts run"
    label = f"upper bound: {label}" if bound or not (trace or known) else label
    operations = [o for (_, share), ledger in zip(shares, ledgers) if share for o in ledger.scaled(share).operations]
    return Ledger(tuple(operations), sum(ledger.params for ledger in ledgers), label)


def card_of(model: Any) -> Card:
    """The Card of a timm name, a live timm model or an AdaptiveModel.

    An unknown name loads torch once, to build the model without memory for its parameters, and its card is then cached.
    Raises FoveateError with close matches for a name that timm does not know either.
    """
    if isinstance(model, Card):
        return model
    card = getattr(model, "card", None)
    if isinstance(card, Card):
        return card
    if not isinstance(model, str):
        return import_module("foveate.backbones.describe").describe(model)
    card = stored_card(model)
    if card is None:
        card = import_module("foveate.backbones.describe").describe_name(model)
        keep_card(card, model)
    return card


def _label(plan: Plan, card: Card, seen: Seen | None, exits: Sequence[float] | None, bound: bool) -> str:
    told = [f"tokens {', '.join(map(str, seen.tokens))}"] if seen else []
    told += [f"exits {', '.join(f'{share:g}' for share in exits)}"] if exits is not None else []
    everybody_stays = exits is None and plan.exits(card)
    # Counts of tokens say nothing of exits, nor shares of exits of tokens.
    open_stages = seen is None and any(method.prunes and method.data_dependent for method in plan.methods)
    if told:
        return f"upper bound for {'; '.join(told)}" if bound or everybody_stays or open_stages else "; ".join(told)
    if everybody_stays:
        return "upper bound: all exits computed, nobody leaves"
    if plan.data_dependent:
        return "dense upper bound"
    return "upper bound" if bound else "one image"


def _given(tokens: Sequence[int], stages: list[Stage]) -> Seen:
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in tokens]
    if not all(whole) or len(whole) != len(stages):
        raise FoveateError(
            given=f"tokens={tuple(tokens)}",
            allowed=f"{len(stages)} whole numbers, one for each pruning stage of the plan",
            do="give the live tokens after each stage, prefix and package tokens included" if stages else "leave tokens out",
        )
    return Seen(tokens=tuple(int(n) for n in tokens))


def _mean(card: Card, effects: list[Effect], params: int, trace: Trace) -> Ledger:
    stages = _checked_stages(effects, trace)
    images = Counter(_seen(card, trace, stages))
    bound, ledgers = False, []
    for seen in images:
        work = workload(card, effects, seen)
        bound |= work.bound
        ledgers.append(Ledger(work.operations(), params))
    label = f"mean over {trace.images:,} image{'s' if trace.images > 1 else ''}"
    return Ledger.mean(ledgers, list(images.values()), f"upper bound of the {label}" if bound else label)


def macs_each(model: Any, plan: Plan, trace: Trace) -> list[float]:
    """MACs of each image of `trace`, which `plan` made; arguments and errors as in `count`."""
    card = card_of(model)
    effects = [cost(method.name).effect(method, card) for method in plan.settled(card)]
    images = list(_seen(card, trace, _checked_stages(effects, trace)))
    macs = {seen: Ledger(workload(card, effects, seen).operations()).macs for seen in set(images)}
    return [macs[seen] for seen in images]


def macs_at_exits(model: Any, plan: Plan, trace: Trace) -> dict[int, list[float]]:
    """MACs of each image of `trace` had it left behind each exit of `plan`, by block; arguments and errors as in `count`.

    trace: of a pass in which nobody left (AdaptiveModel.exit_logits).
    """
    card = card_of(model)
    return {block: macs_each(card, plan, replace(trace, exits=[block] * trace.images)) for block in plan.exits(card)}


def _checked_stages(effects: list[Effect], trace: Trace) -> list[Stage]:
    stages = all_stages(effects)
    if trace.passes:
        raise FoveateError(
            given="the trace of a cascade for a plan that is none",
            allowed="a trace that this plan made",
            do="count with the cascade's plan, or with trace.passes[...].trace of one effort",
        )
    if trace.images < 1 or len(trace.tokens) != len(stages) or tuple(trace.after) != tuple(s.after for s in stages):
        raise FoveateError(
            given=f"a trace of {trace.images} images with stages after blocks {tuple(trace.after)}",
            allowed=f"a trace of at least one image with stages after blocks {tuple(s.after for s in stages)}",
            do="count with the plan that the trace was made with",
        )
    return stages


def _seen(card: Card, trace: Trace, stages: list[Stage]) -> Iterable[Seen]:
    """One record for each image of `trace`."""
    blank = [()] * trace.images
    tokens = list(zip(*trace.tokens)) or blank
    block_tokens = list(zip(*trace.block_tokens)) or blank
    present, kept = blank, blank
    if trace.kept and stages:
        present = list(zip(*_present(card, trace, stages)))
        kept = list(zip(*(mask.sum(axis=1).tolist() for mask in trace.kept)))
    exits = trace.exits or [None] * trace.images
    return (Seen(*fields) for fields in zip(tokens, block_tokens, present, kept, exits, strict=True))


def _present(card: Card, trace: Trace, stages: list[Stage]) -> Iterable[list[int]]:
    """Patch tokens before each stage, image by image, from the masks after the stages."""
    mask, passed = np.ones((trace.images, card.blocks[0].patches), dtype=bool), 0
    for stage, kept in zip(stages, trace.kept, strict=True):
        for block in card.blocks[passed : stage.after]:
            if block.transition:
                mask = merged(mask, block.grid, block.transition)
        yield mask.sum(axis=1).tolist()
        mask, passed = kept, stage.after


def merged(mask: np.ndarray, grid: tuple[int, int], transition: Transition) -> np.ndarray:
    """Which places of the next grid live: those that read at least one live place (semantics.md 7).

    mask: bool [images, places of `grid`]. Returns bool [images, places of the next grid].
    """
    kernel, stride, padding = transition.kernel, transition.stride, transition.padding
    field = mask.reshape(len(mask), *grid)
    # Swin pads an odd side at its end; a place beyond the edge is never live, so that generous padding changes nothing.
    field = np.pad(field, ((0, 0), (padding, padding + stride), (padding, padding + stride)))
    sides = [_places(side, transition) for side in grid]
    live = np.zeros((len(mask), *sides), dtype=bool)
    for row in range(kernel):
        for column in range(kernel):
            live |= field[:, row :: stride, column :: stride][:, : sides[0], : sides[1]]
    return live.reshape(len(mask), -1)


def _places(side: int, transition: Transition) -> int:
    if transition.padding:
        return (side + 2 * transition.padding - transition.kernel) // transition.stride + 1
    return -(-side // transition.stride)
