"""Structure pruning: linears that read only the features with the largest weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.methods.base import kept_count
from foveate.methods.hooks import Hooks
from foveate.methods.structure.config import Structure


class NarrowLinear(nn.Linear):
    """A linear that reads only the input features `kept`; weight and bias stay whole and keep their names.

    In training the other features are multiplied by zero (their weights get no gradient); in evaluation they are
    left out of the product.
    """

    def __init__(self, linear: nn.Linear, keep: float):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        strength = linear.weight.detach().float().norm(dim=0)
        kept = torch.topk(strength, kept_count(keep, linear.in_features)).indices.sort().values
        self.register_buffer("kept", kept)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mask = torch.zeros(self.in_features, dtype=x.dtype, device=x.device).index_fill(0, self.kept, 1.0)
            return F.linear(x * mask, self.weight, self.bias)
        return F.linear(x[..., self.kept], self.weight[:, self.kept], self.bias)

    def whole(self) -> nn.Linear:
        """The linear as it was, with this one's present weights."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)


class StructureHooks(Hooks):
    """Narrows qkv, proj, fc1 and fc2 of the chosen blocks."""

    def __init__(self, config: Structure):
        super().__init__()
        self.config = config

    def install(self, blocks: list[nn.Module]) -> None:
        for number, block in enumerate(blocks, 1):
            if self.config.applies_to(number):
                for parent, name in _linears(block):
                    setattr(parent, name, NarrowLinear(getattr(parent, name), self.config.keep))

    def uninstall(self, blocks: list[nn.Module]) -> None:
        for block in blocks:
            for parent, name in _linears(block):
                linear = getattr(parent, name)
                if isinstance(linear, NarrowLinear):
                    setattr(parent, name, linear.whole())


def _linears(block: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(parent, name) for parent in (block.attn, block.mlp) if parent is not None for name, child in parent.named_children()
            if isinstance(child, nn.Linear)]


def build(config: Structure, card) -> StructureHooks:
    """The modules of `config`; they are made when the blocks are known."""
    return StructureHooks(config)
