"""A model as a fixed-point accelerator runs it: rounded weights and activations, to see what that does to accuracy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from foveate.adaptive import AdaptiveModel
from foveate.errors import FoveateError
from foveate.nn.fixed_point import fixed_point, fraction_bits

FEWEST, MOST = 4, 24
"""Bits that float32 can emulate: its own mantissa has 24."""


@torch.no_grad()
def emulate(model: AdaptiveModel, images: Tensor, bits: int = 16) -> AdaptiveModel:
    """A copy of `model` in evaluation mode whose weights and layer outputs are fixed-point numbers of `bits` bits.

    images: normalised images [B, 3, H, W] from which each layer's range is taken; 64 from the training set are plenty.
    Every tensor of weights and the output of every layer without children (linears, convolutions, norms, activations) has a binary
    point of its own, as fine as its largest value allows. What runs inside a layer (sums of products, the softmax between the
    linears of an attention) stays wide, as accumulators are.
    Raises FoveateError for bits outside 4...24 and for no images.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not FEWEST <= bits <= MOST:
        raise FoveateError(f"fixed point of {bits!r} bits", f"{FEWEST} to {MOST} bits, the sign included", "take 16, as SPViT's board does")
    if len(images) == 0:
        raise FoveateError("no images to take the ranges from", "some normalised images of the training set", "give 64 of them")
    twin = copy.deepcopy(model).eval().float()
    for parameter in twin.parameters():
        parameter.copy_(fixed_point(parameter, fraction_bits(float(parameter.abs().max()), bits), bits))
    layers = [m for m in twin.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    largest: dict[nn.Module, float] = {}

    def watch(layer: nn.Module, _, out) -> None:
        if isinstance(out, Tensor) and out.is_floating_point():
            largest[layer] = max(largest.get(layer, 0.0), float(out.abs().max()))

    watching = [layer.register_forward_hook(watch) for layer in layers]
    twin(images.float())
    for handle in watching:
        handle.remove()
    for layer, reached in largest.items():
        layer.register_forward_hook(_Round(fraction_bits(reached, bits), bits))
    return twin


class _Round:
    """A forward hook that rounds what its layer gives out; a class, so that the model can still be copied and pickled."""

    def __init__(self, fraction: int, bits: int):
        self.fraction, self.bits = fraction, bits

    def __call__(self, layer: nn.Module, inputs, out: Tensor) -> Tensor:
        return fixed_point(out, self.fraction, self.bits)
