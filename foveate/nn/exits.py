"""Leaving early: which images of a batch still run, and the answers of those that have left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from foveate.nn.gates import MEASURES, no_answer
from foveate.nn.tokens import Tokens

Sure = Callable[[list[Tensor]], Tensor]
"""From the logits [n, classes] of all exits so far to whether an image may leave, bool [n]."""


class Budget(Protocol):
    """What may be spent on each image of a call; foveate.budgets has the budgets of time and energy.

    short: images whose budget is below the first possible answer.
    """

    short: Sequence[int]

    def cannot_pay(self, segment: int, images: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Which of `images` (numbers in the batch, with their live tokens) cannot pay for the 0-based `segment`, which runs to the next exit."""


@dataclass
class Waiting:
    """The images of one batch on their way through a model with exits.

    images: how many came. places: numbers of those that still run, increasing. exits: 1-based block of the exit that each image took.
    short: those that left with an answer they were not sure of, because their budget could not pay for more; those whose budget was
        below the first answer among them. budget: what they may spend.
    """

    images: int
    places: list[int]
    exits: list[int]
    short: list[int] = field(default_factory=list)
    budget: Budget | None = None
    _answers: list[Tensor] = field(default_factory=list)
    _logits: Tensor | None = None

    @classmethod
    def all(cls, images: int, budget: Budget | None = None) -> "Waiting":
        """Everybody still runs."""
        return cls(images, list(range(images)), [0] * images, list(budget.short) if budget else [], budget)

    def offer(self, block: int, logits: Tensor, sure: Sure, segment: int, counts: Callable[[], Sequence[int]]) -> Tensor | None:
        """Lets images leave behind `block` with `logits` [n, classes] if they are sure of them or cannot pay for `segment`, the next one.

        counts: () to the live tokens of each. Returns the numbers [m], among those that ran so far, of those that stay; None where all do.
        """
        self._answers.append(logits)
        gone = sure(self._answers)
        if self.budget is not None:
            going_on, tokens = (~gone).nonzero()[:, 0].tolist(), counts()
            broke = self.budget.cannot_pay(segment, [self.places[i] for i in going_on], [tokens[i] for i in going_on])
            self.short += [self.places[i] for i, poor in zip(going_on, broke) if poor]
            gone = gone.index_put((torch.tensor(going_on, dtype=torch.long, device=gone.device),), torch.tensor(broke, dtype=torch.bool, device=gone.device))
        return self._leave(block, logits, gone)

    def replay(self, block: int, logits: Tensor, exits: Sequence[int]) -> Tensor | None:
        """As `offer`, for images that leave where `exits` [images] says."""
        return self._leave(block, logits, torch.tensor([exits[place] == block for place in self.places], device=logits.device))

    def finish(self, block: int, logits: Tensor | None) -> Tensor:
        """The logits [images, classes] of all images in their order; `logits` are those of the images that ran to the last `block`."""
        if logits is not None:
            self._write(block, logits, torch.arange(len(self.places), device=logits.device))
        assert self._logits is not None
        return self._logits

    def _leave(self, block: int, logits: Tensor, gone: Tensor) -> Tensor | None:
        leaving, staying = gone.nonzero()[:, 0], (~gone).nonzero()[:, 0]
        if len(leaving) == 0:
            return None
        self._write(block, logits[leaving], leaving)
        self.places = [self.places[i] for i in staying.tolist()]
        self._answers = [answer[staying] for answer in self._answers]
        return staying

    def _write(self, block: int, logits: Tensor, which: Tensor) -> None:
        places = [self.places[i] for i in which.tolist()]
        for place in places:
            self.exits[place] = block
        if self._logits is None:
            self._logits = logits.new_zeros(self.images, *logits.shape[1:])
        self._logits = self._logits.index_copy(0, torch.tensor(places, dtype=torch.long, device=logits.device), logits.to(self._logits.dtype))


def stayed(tokens: Tokens, staying: Tensor | None) -> Tokens | None:
    """The tokens of the images `staying`; None where nobody is left, all of them where `staying` is None."""
    if staying is None:
        return tokens
    return tokens.select(staying) if len(staying) else None


def sureness(gate: str, answers: Sequence[Tensor]) -> Tensor:
    """What a gate measures at the latest of the exits so far, [n]; larger is surer, except for entropy.

    gate: "confidence", "max_probability", "margin", "entropy" or "patience". answers: logits [n, K] of the exits so far, K >= 2.
    float32, NaN where there are no probabilities; patience counts (int64).
    """
    if gate == "patience":
        return agreement(answers)
    return MEASURES["max_probability" if gate == "confidence" else gate](answers[-1])


def agreement(answers: Sequence[Tensor]) -> Tensor:
    """How many exits in a row, the latest included, have named the class that the one before named, int [n] (PABEE, arXiv:2006.04152).

    answers: logits [n, K] of the exits so far. The first exit has nothing to agree with, and an exit without probabilities agrees with none.
    """
    count = torch.zeros(len(answers[0]), dtype=torch.long, device=answers[0].device)
    for before, after in zip(answers, answers[1:]):
        same = (before.argmax(-1) == after.argmax(-1)) & ~no_answer(before) & ~no_answer(after)
        count = torch.where(same, count + 1, 0)
    return count
