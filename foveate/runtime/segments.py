"""A segment between two exits as a function from tensors to tensors: what a graph of it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adaptive import AdaptiveModel
from foveate.errors import FoveateError
from foveate.methods.hooks import Run
from foveate.nn.class_row import Watched
from foveate.nn.tokens import Tokens

X, PLACE, SIZES, BESIDE, ROW = "x", "place", "sizes", "beside", "row"
"""What flows between two segments, in this order, one row an image: tokens, their grid slots once some are gone, how many patches each stands for
once some were merged, what the backbone carries past the blocks, what the class token attended to."""

_NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Form:
    """The tensors between two segments, and what they are put together with again.

    tokens: all but these tensors. block: the watched block whose row flows along.
    """

    tokens: Tokens
    names: tuple[str, ...]
    block: int | None = None

    @classmethod
    def of(cls, tokens: Tokens, run: Run, single: bool, row: bool) -> Form:
        """The form of an example. single: the number of tokens is free, and one image comes at a time. row: what the class token attended to is still needed."""
        there = {X: True, PLACE: tokens.place.dim() > 1, SIZES: tokens.sizes is not None, BESIDE: tokens.beside is not None, ROW: row}
        names = tuple(name for name, needed in there.items() if needed)
        # Where counts are free, a traced graph must read from the places where the packages begin.
        packages = None if single and tokens.place.dim() > 1 else tokens.packages
        rest = replace(tokens, packages=packages, x=_NOTHING, sizes=None, beside=None, place=_NOTHING if there[PLACE] else tokens.place)
        return cls(rest, names, run.watched[-1].block if row else None)

    def packed(self, tokens: Tokens, run: Run) -> tuple[Tensor, ...]:
        """The tensors of what a segment left."""
        return tuple(run.class_row(tokens) if name == ROW else getattr(tokens, name) for name in self.names)

    def unpacked(self, tensors: Sequence[Tensor]) -> tuple[Tokens, Run]:
        """What the next segment works on."""
        given, run = dict(zip(self.names, tensors, strict=True)), Run(masked=False)
        tokens = replace(self.tokens, **{name: value for name, value in given.items() if name != ROW})
        if ROW in given:
            run.watched.append(Watched(self.block, tokens, given[ROW][..., None], _NOTHING, _NOTHING))
        return tokens, run


class Segment(nn.Module):
    """One segment: images or the tensors behind the segment before -> logits [B, classes], then the tensors for the next one."""

    def __init__(self, model: AdaptiveModel, number: int, before: Form | None, behind: Form | None):
        super().__init__()
        self.model, self.number, self.before, self.behind = model, number, before, behind

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        what, run = (given[0], Run(masked=False)) if self.before is None else self.before.unpacked(given)
        tokens, logits = self.model.segment(self.number, what, run)
        return (logits, *(self.behind.packed(tokens, run) if self.behind else ()))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it takes."""
        return self.before.names if self.before else ("images",)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives behind the logits."""
        return tuple(f"next_{name}" for name in self.behind.names) if self.behind else ()


@torch.no_grad()
def segments_for_graphs(model: AdaptiveModel, example: Tensor, single: bool) -> list[Segment]:
    """The segments of a model with exits, in evaluation mode; they share its weights.

    example: images [B, C, H, W] that show what flows between them. single: graphs take one image (another number of tokens in each).
    Raises FoveateError for a plan that keeps another number of tokens in each image, unless `single`.
    """
    forms: list[Form | None] = [None]
    given, run = example[: 1 if single else None], Run(masked=False)
    given = given.to(next(model.parameters()))
    for number in range(len(model.exit_blocks) - 1):
        given, _ = model.segment(number, given, run)
        if given.ragged:
            raise FoveateError(f"segments of {model.plan} for several images at once, which keep different numbers of tokens", "one image at a time in a graph",
                               'load it with backend="torch", which takes any number (or use select="topk")')
        forms.append(Form.of(given, run, single, row_needed(model, model.exit_blocks[number])))
    forms.append(None)
    return [Segment(model, number, *forms[number : number + 2]) for number in range(len(model.exit_blocks))]


def row_needed(model: AdaptiveModel, end: int) -> bool:
    """Whether something behind the exit of block `end` reads what the class token attended to before it."""
    skipped = {block for method in model.plan.methods if method.skips for block in method.attention()}
    for method in model.plan.methods:
        for block in method.watches(model.card):
            active = max(b for b in range(1, block + 1) if b not in skipped)
            if active <= end and (block > end or (block == end and not method.inside)):
                return True
    return False


def examples(segments: Sequence[Segment], images: Tensor) -> list[tuple[Tensor, ...]]:
    """What each segment takes when `images` go through all of them."""
    given: tuple[Any, ...] = (images,)
    taken = []
    with torch.no_grad():
        for segment in segments:
            taken.append(given)
            given = segment(*given)[1:]
    return taken
