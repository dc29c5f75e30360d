"""Fake quantisation to 8 bits: floating-point tensors that only take values an integer stands for, with ranges that can be learned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

TOP = 255
"""The highest of the 256 levels; the lowest is 0."""
NARROWEST = 1e-30
"""The least width of a range, for rows of weights that are all zero."""


def step_and_zero(low: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """(step, zero): level q in 0...255 stands for step (q - zero), and zero is whole, so that 0 is a level.

    low, span: the range [low, low + |span|], of one shape. Where 0 would fall between two levels the range grows on one side, to the
    wider of the two that have it as a level; a range on one side of 0 is extended to it. Both as in NNCF's asymmetric quantiser.
    """
    low, high = low.clamp_max(0.0), (low + span.abs()).clamp_min(0.0)
    reach = (high - low).clamp_min(NARROWEST)
    zero = (-low * (TOP / reach)).round()
    whole = reach / TOP
    above, below = high / (TOP - zero).clamp_min(1.0), -low / zero.clamp_min(1.0)
    return torch.maximum(torch.where(zero < TOP, above, whole), torch.where(zero > 0, below, whole)), zero


def frozen(x: Tensor, low: Tensor, span: Tensor) -> Tensor:
    """x on the 256 levels of the range; torch's own operation, which OpenVINO turns into a FakeQuantize.

    x: any shape. low, span: [1] for one range, or [C, 1, ...] for one for each entry of x's first dimension. Same values as `learned`.
    """
    step, zero = step_and_zero(low.detach().float(), span.detach().float())
    zero = zero.to(torch.int32)
    if low.numel() == 1:
        return torch.fake_quantize_per_tensor_affine(x.float(), step.view(1), zero.view(1), 0, TOP).to(x.dtype)
    return torch.fake_quantize_per_channel_affine(x.float(), step.flatten(), zero.flatten(), 0, 0, TOP).to(x.dtype)


def learned(x: Tensor, low: Tensor, span: Tensor) -> Tensor:
    """The values of `frozen`, with gradients for x and for the range.

    Rounding passes a gradient through as if it were not there. Where x is cut off, the gradient belongs to the end that does it; elsewhere
    d y / d span = (y - x) / span. These are the gradients of NNCF's quantisers, but that x counts as cut off from half a step beyond an end.
    """
    return _Learned.apply(x, low, span)


class _Learned(Function):
    @staticmethod
    def forward(ctx, x: Tensor, low: Tensor, span: Tensor) -> Tensor:
        step, zero = step_and_zero(low.float(), span.float())
        # float32 whatever x is: 255 levels and what lies between them do not fit into bfloat16. In place, because memory is what it costs.
        place = x * step.reciprocal()
        level = place.round().add_(zero).clamp_(0, TOP).sub_(zero)
        ctx.save_for_backward(torch.sub(level, place, out=place), low, span)
        return level.mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        error, low, span = ctx.saved_tensors  # level - place: within half a step, unless x was cut off
        wide = gradient.to(error.dtype)
        # Masks are floats: products with booleans take five times as long on a CPU.
        inside, not_below = error.abs().le_(0.5).mul_(wide), error.clone().le_(0.5)
        if low.numel() == 1:
            total = lambda one, other: torch.dot(one.flatten(), other.flatten()).view(low.shape)
            kept, all_of_it, within = total(wide, not_below), wide.sum().view(low.shape), inside.sum().view(low.shape)
        else:
            total = lambda one, other: (one * other).sum_to_size(low.shape)
            kept, all_of_it, within = total(wide, not_below), wide.sum_to_size(low.shape), inside.sum_to_size(low.shape)
        by_span = (total(inside, error) / TOP + kept - within) * span.sign()
        return inside.to(gradient.dtype), (all_of_it - within).to(low.dtype), by_span.to(span.dtype)
