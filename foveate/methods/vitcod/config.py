"""Settings of a fixed sparse attention like ViTCoD's, which PIVOT is compared with (Table 4 and Fig. 7 of PIVOT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import kept_count, wrong
from foveate.methods.replacement import Replacement

WHOLE_MAPS = ("vit", "eva", "lvvit", "pit")


@dataclass(frozen=True)
class ViTCoD(Replacement):
    """Softmax attention between fixed pairs of patch tokens, the same in every image (ViTCoD, arXiv:2210.09573).

    sparsity: share of the patch tokens that a patch token does not see, in [0, 1); it always sees itself.
    blocks: 1-based blocks whose attention is replaced, or "all" that no other method of the plan names.
    """

    name: ClassVar[str] = "vitcod"

    sparsity: float = 0.9
    blocks: tuple[int, ...] | str = "all"

    def __post_init__(self):
        super().__post_init__()
        value = self.sparsity
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            wrong(self, "sparsity", value, "a share in [0, 1)", "give the share of pairs to leave out, such as 0.9")
        object.__setattr__(self, "sparsity", float(value))

    def kept(self, patches: int) -> int:
        """Patch tokens that one of `patches` sees, itself included."""
        return kept_count(1 - self.sparsity, patches)

    def validate(self, card) -> None:
        if card.family not in WHOLE_MAPS:
            wrong(self, "blocks", self.blocks, f"backbones whose attention is one map of all patch tokens; that of {card.name} is not "
                  "(windows, pixel groups or a shrinking grid with score biases)", "use a backbone of the ViT, Eva, LV-ViT or PiT family")
        super().validate(card)
