"""How sure logits are: entropy, largest probability, margin; and which images a gate passes on. In float32 whatever the logits' dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.errors import FoveateError


def entropy(logits: Tensor) -> Tensor:
    """Eq. 3 of PIVOT, E = -1 / log K sum_y p(y) log p(y) with p the softmax of the logits: 1 where all K classes are alike, 0 for certainty.

    logits: [..., K], K >= 2; minus infinity rules a class out. Returns float32 [...] in [0, 1], NaN where a logit is NaN or plus infinity.
    Raises FoveateError for a single class. The paper writes pi(y|x) for p and calls it a logit; its released code divides by K.
    """
    log_p = _checked(logits).log_softmax(-1)
    p = log_p.exp()
    # 0 log 0 = 0, where the product would be 0 times minus infinity; a NaN is not > 0 and stays through its own factor p.
    terms = p * torch.where(p > 0, log_p, 0.0)
    return (-terms.sum(-1) / math.log(logits.shape[-1])).clamp(0, 1)


def max_probability(logits: Tensor) -> Tensor:
    """The largest softmax probability of logits [..., K], K >= 2, as float32 [...]; NaN as in `entropy`."""
    return _checked(logits).softmax(-1).amax(-1)


def margin(logits: Tensor) -> Tensor:
    """The largest softmax probability less the second largest, of logits [..., K], K >= 2, as float32 [...]; NaN as in `entropy`."""
    first, second = _checked(logits).softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return first - second


MEASURES = {"entropy": entropy, "max_probability": max_probability, "margin": margin}


def difficulty(gate, logits: Tensor) -> Tensor:
    """The measure of `gate` turned so that harder images have larger values, float32 [...]; compare it with gate.limit.

    gate: a value of foveate.gates. logits: [..., K], K >= 2.
    """
    measure = MEASURES[gate.name](logits)
    return measure if gate.rises else -measure


def passes_on(gate, logits: Tensor) -> Tensor:
    """Which images are too hard for the effort that gave these logits, bool [...]: on the threshold an image stays; NaN goes on."""
    return ~(difficulty(gate, logits) <= gate.limit)


def no_answer(logits: Tensor) -> Tensor:
    """Which images have no probabilities, bool [...]: a logit is NaN or plus infinity."""
    return logits.float().softmax(-1).isnan().any(-1)


def _checked(logits: Tensor) -> Tensor:
    if logits.shape[-1] < 2:
        raise FoveateError(f"logits of {logits.shape[-1]} class", "at least two classes", "a gate needs classes to choose between: leave it out here")
    return logits.float()
