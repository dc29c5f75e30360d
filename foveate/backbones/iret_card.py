"""What IRET runs beside its blocks, for its card: the sampler and the first embedding, and the entries of its wider blocks."""

import math

from torch import nn

from foveate.backbones.iret_sampler import Lifting, Wavelet
from foveate.backbones.reader import Reader
from foveate.card import Part
from foveate.ledger import Operation

Size = tuple[int, int]


def iret_stem(reader: Reader, model: nn.Module, size: Size) -> tuple[tuple[Operation, ...], Size]:
    """The sampler's operations on an image of `size`, the first patch embedding, and the grid of its patches."""
    half = (size[0] // 2, size[1] // 2)
    if type(model.sampler) is Wavelet:
        taps = math.prod(model.sampler.kernels.shape[-2:])
        operations = [Operation("conv", "embed.sampler.bands", math.prod(half), 4, taps, model.in_chans)]
    else:
        # The mean of 2x2 pixels multiplies nothing.
        operations = [Operation("elementwise", "embed.downscale", math.prod(half), model.in_chans)]
        operations += _lifting(reader, model.sampler, size) if type(model.sampler) is Lifting else []
    embedding, grid = reader.convolution(model.patch_embed.proj, "embed.proj", half)
    return (*operations, embedding), grid


def _lifting(reader: Reader, sampler: Lifting, size: Size) -> list[Operation]:
    (height, width), place = size, "embed.sampler"
    layers = [(sampler.conv1, "conv1", size), (sampler.conv2, "conv2", size)]
    for step, of in (("horizontal", (height, width // 2)), ("vertical_low", (height // 2, width // 2)), ("vertical_high", (height // 2, width // 2))):
        for name in ("update", "predict"):
            operator = getattr(getattr(sampler, step), name)
            layers += [(operator[0], f"{step}.{name}.conv1", of), (operator[2], f"{step}.{name}.conv2", of)]
    return [reader.convolution(layer, f"{place}.{name}", of)[0] for layer, name, of in layers]


def entries(reader: Reader, model: nn.Module) -> dict[int, tuple[Part, ...]]:
    """1-based block -> what its focus runs on the live tokens."""
    found = {}
    for block, layer in zip(model.widen_at, model.focus, strict=True):
        projection = [reader.linear(layer.prefix_proj, "focus.prefix", "prefix")] if layer.prefix_proj is not None else []
        found[block] = (reader.linear(layer.embed, "focus.embed", "patches"), *projection)
    return found
