"""Settings of structure pruning, the second baseline of SPViT's Table 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import Method, check_chosen_blocks, check_depth, check_ratios, wrong


@dataclass(frozen=True)
class Structure(Method):
    """Prunes the input features of the four linears of each block for every token ("structure" in Table 6 of SPViT).

    keep: share of the input features that each of qkv, proj, fc1 and fc2 still reads, in (0, 1]; those with the
        largest weights (L2 norm of their column) stay.
    blocks: 1-based blocks to prune, or "all".
    """

    name: ClassVar[str] = "structure"

    keep: float
    blocks: tuple[int, ...] | str = "all"

    def __post_init__(self):
        check_ratios(self, "keep", 1)
        object.__setattr__(self, "keep", self.keep[0])
        check_chosen_blocks(self)

    def validate(self, card) -> None:
        if card.family in ("eva", "levit"):
            wrong(self, "keep", self.keep, f"backbones whose attention and MLP call plain linears as modules; {card.name} does not",
                  "use a backbone of the ViT, LV-ViT, PiT, Swin or MobileViT family for this baseline")
        if self.blocks != "all":
            check_depth(self, "blocks", card, card.depth)

    def applies_to(self, block: int) -> bool:
        return self.blocks == "all" or block in self.blocks
