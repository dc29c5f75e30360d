"""PIVOT's modules: none of its own; it takes attention branches out of the blocks and keeps them aside."""

from __future__ import annotations

from torch import Tensor, nn

from foveate.card import ATTENTION_BRANCH
from foveate.methods.hooks import Hooks, Run
from foveate.methods.pivot.config import PIVOT
from foveate.methods.pivot.losses import entropy_loss
from foveate.nn.attention import SKIP, Mix


class PIVOTHooks(Hooks):
    """Skips the attention of the chosen blocks, whose weights are no part of the model meanwhile.

    In place of each child of a skipped branch stands None, so that `uninstall` finds its place again. The children wait in `aside`,
    which is no module: parameters(), state_dict() and to() do not see them, copies and pickles do.
    """

    def __init__(self, config: PIVOT):
        super().__init__()
        self.config = config
        self.aside: dict[int, dict[str, nn.Module | nn.Parameter]] = {}

    @property
    def taken(self) -> tuple[int, ...]:
        return self.config.skip

    def install(self, blocks: list[nn.Module]) -> None:
        for number in self.config.skip:
            block = blocks[number - 1]
            self.aside[number] = {name: part for name in ATTENTION_BRANCH if (part := getattr(block, name, None)) is not None}
            for name in self.aside[number]:
                setattr(block, name, None)

    def uninstall(self, blocks: list[nn.Module]) -> None:
        for number, parts in self.aside.items():
            block = blocks[number - 1]
            like = next(block.parameters())
            for name, part in parts.items():
                if isinstance(part, nn.Parameter):
                    part = nn.Parameter(part.detach().to(like.device, like.dtype), part.requires_grad)
                else:
                    part = part.to(like.device, like.dtype)
                    part.train(block.training)  # no chain: LeViT's own train() returns nothing
                setattr(block, name, part)
        self.aside = {}

    def attention(self, block: int, run: Run) -> Mix:
        return SKIP

    def label_losses(self, run: Run, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        labels = targets if targets.dim() == 1 else targets.argmax(-1)
        return {"entropy": self.config.entropy_weight * entropy_loss(logits, labels)} if self.config.entropy_weight else {}


def build(config: PIVOT, card) -> PIVOTHooks:
    """The modules of `config`; what they hold is known when the blocks are."""
    return PIVOTHooks(config)
