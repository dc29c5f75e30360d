"""Settings of SPViT (latency-aware soft token pruning)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.base import Method, check_blocks, check_bool, check_ratios, check_stages, check_weight, wrong


@dataclass(frozen=True)
class SPViT(Method):
    """Learned per-head token selectors with package tokens (section 4 of SPViT).

    after: 1-based blocks after which a selector stands; where a stage ends there (Swin, PiT), after its merging.
    keep: share of the stage's own patch tokens that lives on after each selector, in (0, 1], decreasing;
        exact counts for select="topk", targets of the ratio loss (Eq. 11, keep = 1 - rho) for select="argmax".
    select: "topk" keeps the best-scored `keep` share (static shapes, exports); "argmax" keeps what the selector
        says, image by image (Eq. 7 without noise). Both use the same weights, so a run can switch.
    package: gather what a stage drops into one package token (Eq. 8).
    package_weight: weight of package tokens where the backbone pools patch tokens (average or map pooling), >= 0.
    ratio_weight: lambda_ratio of Eq. 12.
    noise: "constant" samples decisions with the full Gumbel noise throughout training (the paper); "annealed" lets the
        noise fade to none over the first 80 % of training. With it, short trainings end with the decisions inference
        takes; with constant noise they end undecided, and argmax then keeps far more than asked.
    """

    name: ClassVar[str] = "spvit"
    prunes: ClassVar[bool] = True

    after: tuple[int, ...]
    keep: tuple[float, ...]
    select: str = "topk"
    package: bool = True
    package_weight: float = 1.0
    ratio_weight: float = 2.0
    noise: str = "constant"

    def __post_init__(self):
        check_blocks(self, "after")
        check_ratios(self, "keep", len(self.after))
        if any(a < b for a, b in zip(self.keep, self.keep[1:])):
            wrong(self, "keep", list(self.keep), "ratios that decrease from stage to stage (each relative to all patch tokens)",
                  "sort them: a token once dropped does not come back")
        if self.select not in ("topk", "argmax"):
            wrong(self, "select", self.select, '"topk" (fixed counts) or "argmax" (per image)', 'choose one of the two')
        if self.noise not in ("constant", "annealed"):
            wrong(self, "noise", self.noise, '"constant" (as in the paper) or "annealed" (for short trainings)', "choose one of the two")
        check_bool(self, "package")
        for field in ("package_weight", "ratio_weight"):
            check_weight(self, field)

    @property
    def data_dependent(self) -> bool:
        return self.select == "argmax"

    def validate(self, card) -> None:
        check_stages(self, card)
