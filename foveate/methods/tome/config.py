"""Settings of ToMe (merge alike tokens instead of dropping any)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import Method, check_chosen_blocks, check_depth, check_whole, wrong


@dataclass(frozen=True)
class ToMe(Method):
    """Merges the most alike patch tokens inside each block (section 3 of ToMe), trained for it or not.

    r: how many patches each of the blocks merges into others, between attention and MLP, >= 1; never more than half of those there.
    blocks: "all", or 1-based numbers. Their softmax attention counts a merged token as many times as it is patches (Eq. 1 of ToMe).
    """

    name: ClassVar[str] = "tome"
    prunes: ClassVar[bool] = True
    inside: ClassVar[bool] = True

    r: int = 13
    blocks: tuple[int, ...] | str = "all"

    def __post_init__(self):
        check_whole(self, "r", 1, "give the number of patches to merge in each block, such as 13")
        check_chosen_blocks(self)

    def attention(self) -> tuple[int, ...] | str:
        return self.blocks

    def stages(self, card) -> tuple[int, ...]:
        return tuple(range(1, card.depth + 1)) if self.blocks == "all" else self.blocks

    def validate(self, card) -> None:
        if self.blocks != "all":
            check_depth(self, "blocks", card, card.depth)
        if any(block.coarsens for block in card.blocks):
            wrong(self, "blocks", self.blocks, f"backbones of one stage; {card.name} pools a grid of patches, in which a merged one has no place",
                  "use a backbone of the ViT, Eva, LV-ViT or IRET family, or evit")
