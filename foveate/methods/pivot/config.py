"""Settings of PIVOT (attention skipping: the effort of a Vision Transformer is the number of its active attentions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import Method, check_blocks, check_depth, check_weight, wrong


@dataclass(frozen=True)
class PIVOT(Method):
    """Leaves out the attention of some blocks: norm, attention and residual; the MLP behind it stays (section 3 of PIVOT).

    skip: 1-based blocks whose attention is left out, in increasing order; at least one block keeps its own. Empty skips none:
        the highest effort, trained with the entropy term.
    entropy_weight: weight of L_En, the mean entropy (in nats) of the training images that are classified correctly, >= 0.
    """

    name: ClassVar[str] = "pivot"
    skips: ClassVar[bool] = True

    skip: tuple[int, ...]
    entropy_weight: float = 1.0

    def __post_init__(self):
        if isinstance(self.skip, (list, tuple)) and not self.skip:
            object.__setattr__(self, "skip", ())
        else:
            check_blocks(self, "skip")
        check_weight(self, "entropy_weight")

    def attention(self) -> tuple[int, ...]:
        return self.skip

    def effort(self, card) -> int:
        """The number of active attentions on the backbone that `card` describes."""
        return card.depth - len(self.skip)

    def validate(self, card) -> None:
        check_depth(self, "skip", card, card.depth)
        if not self.effort(card):
            wrong(self, "skip", list(self.skip), f"at most {card.depth - 1} of the {card.depth} attentions of {card.name}",
                  "leave at least one block out of skip: effort 0 would never let one patch see another")
        card.check_skippable(self.skip)
