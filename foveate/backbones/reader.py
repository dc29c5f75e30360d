"""From live layers to the parts and operations of a Card, without forgetting one."""

import math

from torch import nn

from foveate.card import Part
from foveate.errors import FoveateError
from foveate.ledger import Operation


class Reader:
    """Turns layers into parts and remembers which it has read: a layer that nobody read would be a cost that nobody counts."""

    def __init__(self, model: nn.Module, name: str):
        self.name = name
        self.unread = {m: path for path, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}

    def refuse(self, what: str) -> FoveateError:
        """The FoveateError for a structure whose cost is not known."""
        return FoveateError(
            given=f"{self.name}: {what}",
            allowed="layers of timm's Vision Transformer, EVA, PiT, Swin Transformer, LeViT, MobileViT and of foveate's LV-ViT and IRET",
            do="use a supported backbone (`foveate models`)",
        )

    def linear(self, layer: nn.Module, name: str, rows: str = "tokens", times: int = 1) -> Part:
        """A linear layer as the part `name`."""
        if self.unread.pop(layer, None) is None or not isinstance(layer, nn.Linear):
            raise self.refuse(f"{name} is a {type(layer).__name__}")
        return Part(name, layer.in_features, layer.out_features, rows, times)

    def convolution(self, layer: nn.Module, name: str, size: tuple[int, int]) -> tuple[Operation, tuple[int, int]]:
        """A convolution over an image of `size` as the GEMM it unfolds to, and the size of its result."""
        if self.unread.pop(layer, None) is None or not isinstance(layer, nn.Conv2d):
            raise self.refuse(f"{name} is a {type(layer).__name__}")
        result = tuple(
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, padding, dilation, kernel, stride in zip(
                size, layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
            )
        )
        groups, area = layer.groups, math.prod(layer.kernel_size)
        inputs = layer.in_channels // groups * area
        return Operation("conv", name, math.prod(result), layer.out_channels // groups, inputs, groups), result


def image_size(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) in pixels of the images that a timm model takes; None where it does not say."""
    if size := getattr(model, "img_size", None) or getattr(getattr(model, "patch_embed", None), "img_size", None):
        return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    grid = next((module.resolution for module in model.modules() if hasattr(module, "attention_bias_idxs")), None)
    if grid and hasattr(model.stem, "stride"):  # LeViT: the places of its score biases, and how far apart its stem sets them
        return tuple(side * model.stem.stride for side in grid)
    config = getattr(model, "pretrained_cfg", None) or {}
    # Convolutions take any size: MobileViT's is the one it is meant for.
    return tuple(config["input_size"][-2:]) if type(model).__name__ == "ByobNet" and "input_size" in config else None
