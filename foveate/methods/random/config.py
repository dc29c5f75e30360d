"""Settings of random token pruning, the first baseline of SPViT's Table 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import Method, check_blocks, check_bool, check_ratios, check_stages, check_weight, wrong


@dataclass(frozen=True)
class Random(Method):
    """Keeps randomly chosen patch tokens (Table 6 of SPViT): in training new ones for every image and step.

    after, keep, package, package_weight: as in SPViT. The counts are exact for every image; replaying a
    Trace (`model.traced(x, decisions=trace.shuffled(seed))`) gives each image another method's counts instead.
    seed: determines the places kept in evaluation, the same for every image.
    """

    name: ClassVar[str] = "random"
    prunes: ClassVar[bool] = True

    after: tuple[int, ...]
    keep: tuple[float, ...]
    package: bool = True
    package_weight: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_blocks(self, "after")
        check_ratios(self, "keep", len(self.after))
        if any(a < b for a, b in zip(self.keep, self.keep[1:])):
            wrong(self, "keep", list(self.keep), "ratios that decrease from stage to stage (each relative to all patch tokens)",
                  "sort them: a token once dropped does not come back")
        check_bool(self, "package")
        check_weight(self, "package_weight")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            wrong(self, "seed", self.seed, "a whole number", "give a whole number such as 0")

    def validate(self, card) -> None:
        check_stages(self, card)
