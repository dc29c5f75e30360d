"""Settings of ATS (adaptive token sampling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import Method, check_blocks, check_depth, kept_count, wrong


@dataclass(frozen=True)
class ATS(Method):
    """Samples the patches that the class token attends to, as many as an image needs (section 3 of ATS); nothing to learn.

    after: 1-based blocks in which that happens, between attention and MLP; the default is all behind the third, for twelve blocks.
    tokens: how many samples are drawn, K: a whole number, or a share of the stage's patch tokens in (0, 1]. A patch that is
        drawn twice stays once, so that an image keeps K patches at most, and fewer where its attention is narrow.
    """

    name: ClassVar[str] = "ats"
    prunes: ClassVar[bool] = True
    inside: ClassVar[bool] = True

    after: tuple[int, ...] = (4, 5, 6, 7, 8, 9, 10, 11, 12)
    tokens: int | float = 0.7

    def __post_init__(self):
        check_blocks(self, "after")
        good = isinstance(self.tokens, (int, float)) and not isinstance(self.tokens, bool)
        if not good or not (self.tokens >= 1 if isinstance(self.tokens, int) else 0 < self.tokens <= 1):
            wrong(self, "tokens", self.tokens, "a whole number >= 1, or a share in (0, 1]",
                  "give a number of samples such as 108, or a share of the patches such as 0.55")

    @property
    def data_dependent(self) -> bool:
        return True

    def samples(self, patches: int) -> int:
        """K in a stage whose grid has so many patches."""
        return self.tokens if isinstance(self.tokens, int) else kept_count(self.tokens, patches)

    def watches(self, card) -> tuple[int, ...]:
        return self.after

    def validate(self, card) -> None:
        check_depth(self, "after", card, card.depth)
