"""Settings of EViT (keep what the class token attends to, fuse the rest)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import Method, check_blocks, check_bool, check_ratios, check_stages, wrong


@dataclass(frozen=True)
class EViT(Method):
    """Keeps the patches that the class token attends to most, and fuses the others into one token (section 3 of EViT).

    after: 1-based blocks in which that happens, between attention and MLP.
    keep: share of the stage's own patch tokens that lives on from each of them, in (0, 1], decreasing; exact counts. The
        paper's rate is the share of the tokens that are there: its 0.7 in three blocks is 0.7, 0.49, 0.343 here.
    fuse: make one token of what a block drops.
    """

    name: ClassVar[str] = "evit"
    prunes: ClassVar[bool] = True
    inside: ClassVar[bool] = True

    after: tuple[int, ...] = (4, 7, 10)
    keep: tuple[float, ...] = (0.7, 0.49, 0.343)
    fuse: bool = True

    def __post_init__(self):
        check_blocks(self, "after")
        check_ratios(self, "keep", len(self.after))
        if any(a < b for a, b in zip(self.keep, self.keep[1:])):
            wrong(self, "keep", list(self.keep), "ratios that decrease from block to block (each relative to all patch tokens)",
                  "sort them: a token once dropped does not come back")
        check_bool(self, "fuse")

    def watches(self, card) -> tuple[int, ...]:
        return self.after

    def validate(self, card) -> None:
        check_stages(self, card)
