"""Settings of Linformer's attention, which ViTALiTy is compared with (Tables IV and VI)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import check_whole, wrong
from foveate.methods.replacement import Replacement


@dataclass(frozen=True)
class Linformer(Replacement):
    """Softmax attention over `rank` learned mixtures of the keys and values (Linformer, Eq. 7).

    rank: mixtures a head sees in place of the tokens; at most as many as there are tokens.
    blocks: 1-based blocks whose attention is replaced, or "all" that no other method of the plan names.
    """

    name: ClassVar[str] = "linformer"

    rank: int = 64
    blocks: tuple[int, ...] | str = "all"

    def __post_init__(self):
        super().__post_init__()
        check_whole(self, "rank", 1, "give a number of mixtures such as 64")

    def validate(self, card) -> None:
        super().validate(card)
        for block in self.chosen(card):
            if self.rank > (tokens := places(card, block)):
                wrong(self, "rank", self.rank, f"1 to {tokens}, the tokens that see one another in block {block} of {card.name}",
                      f"give a smaller rank such as {max(1, tokens // 4)}, or leave block {block} out of blocks")


def places(card, block: int) -> int:
    """Tokens of `card` that see one another in block `block`: prefix tokens and the places of the grid, or of one pixel group."""
    return card.prefix_tokens + card.block(block).patches // card.block(block).groups
