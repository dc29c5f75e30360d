"""Staged engines: a graph for each segment between two exits (or an engine for each effort of a cascade); between them whoever is done leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from foveate.budgeting import Ask, allowance
from foveate.budgets import SegmentCosts
from foveate.nn.exits import sureness
from foveate.plan import Plan
from foveate.segments import Cut, Pictures, Segment, run_segments
from foveate.trace import Trace

LARGEST = 16
"""Images that a segment's graph runs at once. More come in groups of nearly equal size: all sizes are known beforehand, and none gains beyond it."""
Call = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""All inputs of a segment's graph to all of its outputs, the logits first; the next call may overwrite those."""


@dataclass
class Carried:
    """What flows between two segments as tensors, one row an image."""

    tensors: Sequence[Tensor]

    def counts(self) -> list[int]:
        return [self.tensors[0].shape[1]] * len(self.tensors[0])

    def select(self, images: Tensor) -> Carried:
        return self if len(images) == len(self.tensors[0]) else Carried([tensor.index_select(0, images) for tensor in self.tensors])


def graph_segment(call: Call) -> Segment:
    """A segment that a graph runs, LARGEST images at once at most."""

    def segment(group: Pictures | Carried) -> tuple[Carried, Tensor]:
        given = [group.images] if isinstance(group, Pictures) else group.tensors
        parts = -(-len(given[0]) // LARGEST)
        if parts < 2:
            logits, *left = call(given)
        else:
            made = [[tensor.clone() for tensor in call(part)] for part in zip(*(tensor.tensor_split(parts) for tensor in given))]
            logits, *left = map(torch.cat, zip(*made))
        return Carried(left), logits

    return segment


def gate_of(plan: Plan, card) -> Callable[[int, list[Tensor]], Tensor]:
    """Which images may leave at the exits of `plan`, as foveate.segments.Sure."""
    method = next(method for method in plan.methods if method.exits(card))
    return lambda number, answers: method.sure(sureness(method.gate, answers))


@dataclass
class Staged:
    """images [B, C, H, W] -> logits [B, classes] in their order, each from the exit (or the effort) that answered.

    ran: images that each segment has run so far. costs: of the segments, once a budget has asked for them.
    """

    who: ClassVar[str] = "exits"

    cut: Cut
    costs: SegmentCosts | None = None
    ran: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.ran = [0] * len(self.cut.segments)

    def __call__(self, images: Tensor, ask: Ask | None = None) -> Tensor:
        return self.traced(images, ask)[0]

    def traced(self, images: Tensor, ask: Ask | None = None, decisions: Sequence[int] | None = None) -> tuple[Tensor, Trace]:
        """Logits, and a Trace of who answered and whose budget was short; there are no tokens in it.

        ask: budgets. decisions: the exit (effort) of each image, instead of what gates and budgets say.
        """
        allowed = None
        if ask is not None:
            allowed, self.costs = allowance(self.cut, self.costs, images, ask)
        segments = [self._counting(number, segment) for number, segment in enumerate(self.cut.segments)]
        logits, waiting = run_segments(segments, self.cut.ends, Pictures(images, self.cut.tokens), self.cut.sure, allowed, decisions)
        return logits, Trace(images=len(images), short=sorted(set(waiting.short)), **{self.who: list(waiting.exits)})

    def _counting(self, number: int, segment: Segment) -> Segment:
        def call(group):
            self.ran[number] += len(group.counts())
            return segment(group)

        return call
