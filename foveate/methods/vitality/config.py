"""Settings of ViTALiTy (linear Taylor attention, trained with a sparse helper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.methods.base import Method, check_chosen_blocks, check_depth, check_pairs, wrong

MODES = ("vitality", "lowrank", "sparse", "lowrank+sparse", "baseline")
KD = "+kd"
TOKEN_FAMILIES = ("vit", "eva", "lvvit")


@dataclass(frozen=True)
class ViTALiTy(Method):
    """Softmax attention replaced by its first-order Taylor expansion (section III of ViTALiTy), and the methods it is compared with.

    mode: "vitality" trains low-rank + sparse and infers low-rank alone; "lowrank", "sparse" (Sanger) and "lowrank+sparse" do
        the same in both; "baseline" keeps softmax. With "+kd" behind it, a distillation token learns from the teacher (DeiT);
        backbones that lack one get it, and inference averages both classifiers.
    threshold: T of the sparse branch, in (0, 1]: it keeps the pairs whose predicted attention is above T.
        None: 0.5, or 0.02 for mode="sparse", as in the paper.
    blocks: 1-based blocks whose attention is replaced, or "all" that no other method of the plan names.
    range: over what the 4-bit predictor takes its ranges: each "image" (and head), so that an image's mask does not depend on
        its batch, or the whole "tensor" (Sanger).
    """

    name: ClassVar[str] = "vitality"

    mode: str = "vitality"
    threshold: float | None = None
    blocks: tuple[int, ...] | str = "all"
    range: str = "image"

    def __post_init__(self):
        if not isinstance(self.mode, str) or self.mode.removesuffix(KD) not in MODES:
            wrong(self, "mode", self.mode, f"{', '.join(MODES)}; {KD} behind it adds a distillation token", 'choose one, for instance "vitality"')
        if self.threshold is None:
            object.__setattr__(self, "threshold", self.default("threshold"))
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not number or not 0 < self.threshold <= 1:
            wrong(self, "threshold", self.threshold, "a share of attention in (0, 1]", "give T as a number: 0.5 (ViTALiTy) or 0.02 (Sanger)")
        if self.range not in ("image", "tensor"):
            wrong(self, "range", self.range, '"image" or "tensor"', "choose one of the two")
        check_chosen_blocks(self)

    def default(self, field: str) -> Any:
        if field == "threshold":
            return 0.02 if self.attention_kind == "sparse" else 0.5
        return super().default(field)

    @property
    def attention_kind(self) -> str:
        """The mode without "+kd"."""
        return self.mode.removesuffix(KD)

    @property
    def distils(self) -> bool:
        """Whether a distillation token learns from the teacher."""
        return self.mode.endswith(KD)

    def adds_token(self, card) -> bool:
        """Whether the backbone gets a distillation token because it has none."""
        return self.distils and not any(part.name == "head.dist" for part in card.head)

    def attention(self) -> tuple[int, ...] | str:
        return () if self.attention_kind == "baseline" else self.blocks

    def validate(self, card) -> None:
        if self.blocks != "all":
            check_depth(self, "blocks", card, card.depth)
        if self.attention_kind != "baseline":
            check_pairs(self, "mode", card)
        if self.adds_token(card) and not card.num_classes:
            wrong(self, "mode", self.mode, f"{KD} on models with a classifier; {card.name} has none", "create the model with num_classes=...")
        if self.adds_token(card) and (card.family not in TOKEN_FAMILIES or card.pool != "token"):
            wrong(self, "mode", self.mode, f"{KD} on backbones that classify by a class token; {card.name} does not",
                  f"use mode={self.attention_kind!r} there: the teacher's logits still teach through the recipe's kl_weight")
