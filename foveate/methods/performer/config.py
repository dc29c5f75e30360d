"""Settings of Performer's attention, which ViTALiTy is compared with (Tables IV and VI)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import check_whole
from foveate.methods.replacement import Replacement

LARGEST_SEED = 2**63 - 1
"""Of torch's generators."""


@dataclass(frozen=True)
class Performer(Replacement):
    """Softmax attention estimated by positive orthogonal random features (FAVOR+ of Performer, Lemma 1).

    features: random directions a head; None: d ln d, rounded, for heads of width d: the paper's bound on the error of the estimate
        asks for a number that grows like d log d, however many tokens there are.
    seed: determines the directions, the same for all heads of a block and others in each block. They are saved with the model.
    blocks: 1-based blocks whose attention is replaced, or "all" that no other method of the plan names.
    """

    name: ClassVar[str] = "performer"

    features: int | None = None
    seed: int = 0
    blocks: tuple[int, ...] | str = "all"

    def __post_init__(self):
        super().__post_init__()
        if self.features is not None:
            check_whole(self, "features", 1, "give a number of directions such as 64, or leave it out")
        check_whole(self, "seed", 0, "give a whole number such as 0", LARGEST_SEED)

    def features_of(self, width: int) -> int:
        """Directions for heads of this width."""
        return self.features or max(1, round(width * math.log(width)))
