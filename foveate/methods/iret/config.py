"""Settings of IRET (forget what the class token does not attend to, focus on the rest)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.errors import FoveateError
from foveate.methods.base import Method, check_bool, check_weight, check_whole, wrong

SAMPLES = 3


@dataclass(frozen=True)
class IRET(Method):
    """Drops unattended patches before the layers that widen the others by sub-bands of the image (section IV of IRET).

    The models are iret_small, iret_tiny, iret_nano and their kind; their IRET layers are the blocks that widen.
    threshold: attention of the class token, mean over heads, below which a patch leaves before the next IRET layer, in [0, 1]: one for
        all layers, or one each. Uniform attention is 1/n. 0 drops nothing, and nothing is dropped in training.
    focus: the patches that stay are widened by what their sub-band shows; False is the same as samples=0, whatever samples says.
    samples: how many sub-bands are used, in the order of the layers (Fig. 15: I, I+S1, ...); 3 uses all there are. Patches get
        their new position embedding only from those that are left out.
    auxiliary_weight: in training, weight of the cross-entropy of each of the classifiers on the class token behind the IRET layers, >= 0;
        with 0 there are none. The paper says that they contribute, not how much.
    lifting_weight: weight of Loss(P) + Loss(U) (Eqs. 11, 12) of a lifting sampler, >= 0; 0.1 is our choice.
    omit: share of the training batches that miss the last sub-bands, in [0, 1]; how many they see is drawn evenly from none to all but
        one. The paper omits at random, and does not say how often: 0.25 is our choice.
    """

    name: ClassVar[str] = "iret"
    prunes: ClassVar[bool] = True

    threshold: float | tuple[float, ...] = 0.0004
    focus: bool = True
    samples: int = SAMPLES
    auxiliary_weight: float = 0.3
    lifting_weight: float = 0.1
    omit: float = 0.25

    def __post_init__(self):
        if isinstance(self.threshold, (list, tuple)):
            values = self.threshold
            object.__setattr__(self, "threshold", tuple(float(t) if _share(t) else t for t in values))
        elif _share(self.threshold):
            object.__setattr__(self, "threshold", float(self.threshold))
        if not all(map(_share, self._listed())) or not self._listed():
            wrong(self, "threshold", self.threshold, "numbers in [0, 1]: shares of the class token's attention, which is 1/n on average",
                  "give one such as 0.0004, or one for each IRET layer such as [0.0004, 0.0004, 0.0008]; 0 drops nothing")
        check_bool(self, "focus")
        check_whole(self, "samples", 0, "give the number of sub-bands to use, from 0 to 3", SAMPLES)
        for field in ("auxiliary_weight", "lifting_weight"):
            check_weight(self, field)
        if not _share(self.omit):
            wrong(self, "omit", self.omit, "a share in [0, 1]", "give the share of the training batches that miss sub-bands, such as 0.25")
        object.__setattr__(self, "omit", float(self.omit))

    @property
    def data_dependent(self) -> bool:
        return any(self._listed())

    def layers(self, card) -> tuple[int, ...]:
        """The IRET layers of the backbone that `card` describes: its blocks that widen."""
        return tuple(number for number, block in enumerate(card.blocks, 1) if block.entry)

    def stages(self, card) -> tuple[int, ...]:
        return tuple(number - 1 for number in self.layers(card))

    def thresholds(self, card) -> tuple[float, ...]:
        """One threshold for each IRET layer."""
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,) * len(self.layers(card))

    def watches(self, card) -> tuple[int, ...]:
        return tuple(block for block, threshold in zip(self.stages(card), self.thresholds(card)) if threshold)

    def bands(self, card) -> int:
        """How many sub-bands the IRET layers get to see."""
        if not self.focus:
            return 0
        return len(self.layers(card)) if self.samples == SAMPLES else min(self.samples, len(self.layers(card)))

    def validate(self, card) -> None:
        if card.family != "iret":
            raise FoveateError(f"iret on {card.name}, whose blocks do not widen by sub-bands of the image", "iret_small, iret_tiny, iret_nano",
                               "create the model as timm.create_model('iret_small'), or leave iret out of the plan")
        if len(self.thresholds(card)) != len(self.layers(card)):
            wrong(self, "threshold", list(self.threshold), f"one threshold, or {len(self.layers(card))}, one for each IRET layer of {card.name} "
                  f"(blocks {', '.join(map(str, self.layers(card)))})", "give one number for all layers, or one a layer")

    def _listed(self) -> tuple[Any, ...]:
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)


def _share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
