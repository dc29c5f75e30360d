"""A model cut at its exits (or a cascade at its efforts): how images go from segment to segment, and what each segment takes here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from foveate.budgets import Latency
from foveate.card import Card
from foveate.methods.hooks import Run
from foveate.nn.exits import Budget, Waiting
from foveate.nn.tokens import Tokens
from foveate.trace import Trace

QUANTILE, RESERVE = 0.99, 1.05
"""A table holds the time that this share of passes stayed below, and so much more for what stands between two segments."""
FEWEST, MOST = 5, 60
"""Passes of each group size that are timed."""
WARM = 2
SHARES = (1.0, 0.6, 0.3)
"""Patches kept where a table is measured for a plan whose images keep different numbers of them."""


class Group(Protocol):
    """Images between two segments."""

    def counts(self) -> list[int]:
        """Live tokens of each image."""

    def select(self, images: Tensor) -> Self:
        """The same for some of the images, `images` [b] by number and increasing."""


Segment = Callable[[Any], tuple[Any, Tensor]]
"""A Group to the Group behind it and the logits [b, classes] of the exit there."""
Sure = Callable[[int, list[Tensor]], Tensor]
"""(0-based segment, logits [b, classes] of all exits so far) to which images may leave, bool [b]."""


@dataclass
class Pictures:
    """Images [B, C, H, W] before the first segment (or any effort of a cascade), with their tokens there."""

    images: Tensor
    tokens: int = 1

    def counts(self) -> list[int]:
        return [self.tokens] * len(self.images)

    def select(self, images: Tensor) -> Pictures:
        return self if len(images) == len(self.images) else Pictures(self.images[images], self.tokens)


@dataclass
class Passing:
    """Tokens of an adapted model between two of its segments, with what the pass keeps beside them."""

    tokens: Tokens
    run: Run

    def counts(self) -> list[int]:
        return self.tokens.counts()

    def select(self, images: Tensor) -> Passing:
        self.run.watched[-1:] = [row.select(images) for row in self.run.watched[-1:]]
        return Passing(self.tokens.select(images), self.run)


def run_segments(
    segments: Sequence[Segment], ends: Sequence[int], group: Any, sure: Sure, budget: Budget | None = None, decisions: Sequence[int] | None = None
) -> tuple[Tensor, Waiting]:
    """Logits [B, classes] of all images in their order, and who left where.

    group: what the first segment takes. ends: what each segment's exit is called. decisions: the exit of each image, instead of what gates and budget say.
    """
    waiting = Waiting.all(len(group.counts()), budget)
    for number, (segment, end) in enumerate(zip(segments, ends)):
        group, logits = segment(group)
        if number + 1 == len(segments):
            return waiting.finish(end, logits), waiting
        if decisions is not None:
            staying = waiting.replay(end, logits, decisions)
        else:
            staying = waiting.offer(end, logits, lambda answers: sure(number, answers), number + 1, group.counts)
        if staying is None:
            continue
        if len(staying) == 0:
            break
        group = group.select(staying)
    return waiting.finish(end, None), waiting


def group_sizes(images: int) -> list[int]:
    """The sizes that are worth timing for a call of `images`: all of them, half of them, and so on down to one."""
    sizes = [images]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


@dataclass
class Cut:
    """A model cut into segments, as it is run here.

    ends: 1-based block of the exit behind each segment, or number of the effort. plan, cards: what energies are simulated from, one card an effort.
    start: (images [b, C, H, W], share) to what the first segment takes, of which about `share` of the patches are kept; None: what the plan says.
    runner: what runs it, see `SegmentCosts`. first: where the first answer is, in words. tokens: of an image in the first segment.
    wait: until the device has finished.
    """

    segments: Sequence[Segment]
    ends: tuple[int, ...]
    sure: Sure
    plan: Any
    cards: tuple[Card, ...]
    start: Callable[[Tensor, float | None], Any]
    runner: str
    first: str
    tokens: int = 1
    wait: Callable[[], object] = lambda: None

    @torch.no_grad()
    def measure(self, images: Tensor, seconds: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> tuple[tuple[Latency, ...], ...]:
        """What each segment takes for groups of `images` [B, C, H, W], nobody leaving: in each round every group size once.

        seconds: rounds go on for so long, five at least and sixty at most. With the segment count its gate and the regrouping of all its images.
        """
        shares = shares_of(self.plan, self.cards[0]) if self.cards else (None,)
        samples: list[dict[tuple[int, int], list[float]]] = [{} for _ in self.segments]
        rounds, end = 0, clock() + seconds
        while rounds < WARM + FEWEST or (clock() < end and rounds < WARM + MOST):
            for size in group_sizes(len(images)):
                for share in shares:
                    for number, tokens, spent in self._timed(self.start(images[:size], share), clock):
                        if rounds >= WARM:
                            samples[number].setdefault((size, tokens), []).append(spent)
            rounds += 1
        return tuple(tuple(Latency(*key, 1000 * float(np.median(spent)), 1000 * RESERVE * float(np.quantile(spent, QUANTILE))) for key, spent in sorted(one.items()))
                     for one in samples)

    def _timed(self, group: Any, clock: Callable[[], float]) -> Iterator[tuple[int, int, float]]:
        """(segment, tokens of its fullest image, seconds) of one pass."""
        waiting = Waiting.all(len(group.counts()))
        everybody = torch.arange(waiting.images)
        for number, (segment, end) in enumerate(zip(self.segments, self.ends)):
            tokens = max(group.counts())
            self.wait()
            before = clock()
            group, logits = segment(group)
            if number + 1 < len(self.segments):
                waiting.offer(end, logits, lambda answers: self.sure(number, answers) & False, number + 1, group.counts)
                group = group.select(everybody.to(logits.device))
            self.wait()
            yield number, tokens, clock() - before


def shares_of(plan: Any, card: Card) -> tuple[float | None, ...]:
    """The shares of patches that a table must know; only what the plan says where all images keep equally many."""
    if not any(method.prunes and method.data_dependent for method in getattr(plan, "methods", ())):
        return (None,)
    return SHARES[:1] if any(block.transition for block in card.blocks) else SHARES


def cut_at_exits(model: Any, images: Tensor) -> Cut:
    """The segments of an AdaptiveModel with exits, in torch, as it runs `images`."""

    def segment(number: int) -> Segment:
        def call(group: Any) -> tuple[Passing, Tensor]:
            tokens, logits = model.segment(number, group.tokens if number else group.images, group.run)
            return Passing(tokens, group.run), logits

        return call

    def start(images: Tensor, share: float | None) -> Beginning:
        return Beginning(images, tokens, Run(masked=False, replay=None if share is None else keep_some(model, len(images), share)))

    tokens, ends = first_tokens(model.card), model.exit_blocks
    segments = [segment(number) for number in range(len(ends))]
    return Cut(segments, ends, lambda number, answers: model.sure(answers), model.plan, (model.card,), start, torch_runner(model, images),
               first_exit(model.card, ends), tokens, _wait(images))


def cut_at_efforts(cascade: Any, images: Tensor) -> Cut:
    """The efforts of a Cascade, in torch, each with all its blocks and all its patches."""

    def segment(effort: Any) -> Segment:
        def call(group: Pictures) -> tuple[Pictures, Tensor]:
            prunes = shares_of(effort.plan, effort.card) != (None,)
            whole = keep_some(effort, len(group.images), 1.0) if prunes or effort.exit_blocks else None
            return group, effort.traced(group.images, whole)[0]

        return call

    segments = [segment(effort) for effort in cascade.efforts]
    ends = tuple(range(1, len(segments) + 1))
    return Cut(segments, ends, lambda number, answers: ~cascade.too_hard(number + 1, answers[-1]), cascade.plan, cascade.cards,
               lambda images, share: Pictures(images), torch_runner(cascade, images), FIRST_EFFORT, wait=_wait(images))


@dataclass
class Beginning(Pictures):
    """Images with the pass that they begin."""

    run: Run | None = None


FIRST_EFFORT = "the first effort's answer"


def first_exit(card: Card, ends: Sequence[int]) -> str:
    """Where a model with exits after the blocks `ends` has its first answer."""
    return f"the exit after block {ends[0]} of {card.name}"


def first_tokens(card: Card) -> int:
    """Tokens of an image in the first block."""
    return card.prefix_tokens + card.blocks[0].patches


def keep_some(model: Any, images: int, share: float) -> Trace:
    """Decisions of `images` that keep about `share` of the patches at each stage, every second image one less, and leave at the last exit."""
    kept = []
    for block in model.pruning_blocks:
        slots = model.card.tokens_after(block)
        counts = [max(1, round(share * slots) - (image % 2 if share < 1 else 0)) for image in range(images)]
        kept.append(np.arange(slots) < np.array(counts)[:, None])
    return Trace(images=images, kept=kept, after=model.pruning_blocks, exits=[model.card.depth] * images if model.exit_blocks else [])


def torch_runner(model: torch.nn.Module, images: Tensor) -> str:
    """An eager model as a runner of such images."""
    like = next(model.parameters())
    return f"torch {str(like.dtype).removeprefix('torch.')}, {like.device.type}, {torch.get_num_threads()} threads, {images.shape[-2]}x{images.shape[-1]}"


def _wait(images: Tensor) -> Callable[[], object]:
    return torch.cuda.synchronize if images.is_cuda else lambda: None
