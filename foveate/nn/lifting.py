"""The lifting scheme of IRET (Eqs. 8-12): one step along one axis, its inverse, and the losses of its operators."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from foveate.nn.precision import at_least_float32

Operator = Callable[[Tensor], Tensor]
"""A map [B, C, h, w] -> [B, C, h, w]: the updater U or the predictor P."""
BANDS = 3
"""Sub-bands LH, HL and HH, in the order in which IRET uses them; what `lifting_losses` needs follows them."""


def split(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The even and the odd samples along `dim`: x_e[n] = x[2n], x_o[n] = x[2n + 1] (Eq. 8 of IRET).

    x: any shape, of even length in `dim` (negative). Returns two views of half the length.
    """
    pairs = x.unflatten(dim, (-1, 2))
    return pairs.select(dim, 0), pairs.select(dim, 1)


def lift(x: Tensor, dim: int, update: Operator, predict: Operator) -> tuple[Tensor, Tensor]:
    """One lifting step along `dim`, the updater first (Eqs. 9 and 10 of IRET).

    c[n] = x_e[n] + U(x_o[n]) is the approximation, d[n] = x_o[n] - P(c[n]) the details. Returns (c, d).
    """
    even, odd = split(x, dim)
    low = even + update(odd)
    return low, odd - predict(low)


def unlift(low: Tensor, high: Tensor, dim: int, update: Operator, predict: Operator) -> Tensor:
    """The signal whose `lift` is (low, high): x_o = d + P(c), x_e = c - U(x_o)."""
    odd = high + predict(low)
    return torch.stack([low - update(odd), odd], dim).flatten(dim - 1, dim)


def update_error(low: Tensor, odd: Tensor) -> Tensor:
    """U(x_o) - (x_o - x_e), whose squares Eq. 12 of IRET adds up, from c = x_e + U(x_o): it is c - x_o."""
    return low - odd


def lifting_losses(sampled: Tensor) -> tuple[Tensor, Tensor]:
    """Loss(P) and Loss(U) of a two-dimensional lifting (Eqs. 11 and 12 of IRET), each the sum over its three steps.

    sampled: [B, 9, C, h, w] as a lifting sampler returns it in training: LH, HL, HH, then two maps each of the details of the
        horizontal step, of the update errors of the two vertical steps, and of those of the horizontal one. Details are
        prediction errors, d = x_o - P(c), those of the vertical steps LH and HH.
    Deviation: the paper adds up over the samples n; here each step counts with the mean of its squares, so that the
    losses do not grow with the image.
    """
    squares = at_least_float32(sampled).square().mean((0, 2, 3, 4))
    across, down, wide = (squares[BANDS + 2 * i : BANDS + 2 * i + 2] for i in range(3))
    return squares[0] + squares[2] + across.mean(), down.sum() + wide.mean()
