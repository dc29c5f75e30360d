"""How well an engine agrees with the model it was made from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.errors import FoveateError

# Of models trained with int8 the logits agree to 4e-7, but for images in which a value lies between two levels: there to 2e-3 in
# foveate_nano_p4, where that is nearly every image, and to 0.04 in tiny models of all families with random weights. Quantised
# afterwards a trained nano differs by 0.01 in the median image and 0.2 in the worst of 2000, a DeiT-S with random weights by 0.04 and 0.1.
TOLERANCE = {"fp32": 2e-3, "bf16": 0.1, "int8": 0.1}
WORST = {"fp32": 2e-3, "bf16": 0.1, "int8": 0.3}
# A decision on its threshold may fall the other way by a rounding (semantics.md 2), and bf16 moves many a threshold: top-k
# plans with untrained selectors differed by up to 0.19 in the median image and 0.36 in the worst one (OpenVINO, AVX512-BF16).
DECIDING_TOLERANCE = {"fp32": 2e-3, "bf16": 0.3, "int8": 0.3}
DECIDING_WORST = {"fp32": 0.5, "bf16": 1.0, "int8": 1.0}
SAME_ANSWERS = {"fp32": 0.0, "bf16": 0.0, "int8": 0.5}
"""Share of images that must keep their answer where no labels judge it. With random weights it is low (0.7 in bf16 and int8): answers are close there."""
LOST_PERCENT = 1.0
"""Right answers, in percent of the images, that 8 bits may cost where labels tell; one image of few is always allowed."""


@dataclass(frozen=True)
class Agreement:
    """Distance between an engine's logits and those of eager float32, on the same images.

    images: how many were compared. scale: largest absolute logit, which the two distances are shares of.
    worst, typical: largest difference of a logit, over all images and of the median image.
    same_top1: share of images with the same answer.
    overlap: of each pruning stage, the patches that both keep over those that either keeps, the mean over images; empty where nobody looked.
    lost_percent: right answers that the engine has fewer, in percent of the images; None without labels.
    """

    images: int
    scale: float
    worst: float
    typical: float
    same_top1: float
    overlap: tuple[float, ...] = ()
    lost_percent: float | None = None

    def __str__(self) -> str:
        kept = f", kept patches overlap by {', '.join(f'{share:.3f}' for share in self.overlap)}" if self.overlap else ""
        lost = f", {0.0 - self.lost_percent:+.1f} points of accuracy" if self.lost_percent is not None else ""
        return (
            f"logits differ by {self.worst:.1e} of the largest ({self.typical:.1e} in the median image), "
            f"same answer for {self.same_top1:.0%} of {self.images} images{lost}{kept}"
        )


def agreement(logits: Tensor, expected: Tensor, labels: Tensor | None = None) -> Agreement:
    """Compare logits [B, classes] with those expected of the same images; another number of answers is no agreement.

    labels: the right answers [B], where they are known.
    """
    logits, expected = logits.float().cpu(), expected.float().cpu()
    scale = float(expected.abs().max())
    if logits.shape != expected.shape:
        return Agreement(len(expected), scale, worst=torch.inf, typical=torch.inf, same_top1=0.0)
    differences = torch.nan_to_num((logits - expected).abs().amax(1), nan=torch.inf) / (scale or 1.0)
    return Agreement(
        images=len(expected),
        scale=scale,
        worst=float(differences.max()),
        typical=float(differences.median()),
        same_top1=float((logits.argmax(1) == expected.argmax(1)).float().mean()),
        lost_percent=None if labels is None else _right_percent(expected, labels) - _right_percent(logits, labels),
    )


def _right_percent(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels.cpu()).double().mean())


def require(found: Agreement, engine: str, precision: str, decides: bool, tolerance: float | None) -> Agreement:
    """`found` itself, or FoveateError with its figures where it lies beyond what `precision` explains.

    decides: the plan takes decisions; then the median image is held to the tolerance and single images to a wider one.
    tolerance: a share of the largest logit that replaces the usual one. In 8 bits the loss of accuracy is held instead, where it is known.
    """
    if precision == "int8" and found.lost_percent is not None:
        return _require_accuracy(found, engine)
    median, worst = (DECIDING_TOLERANCE[precision], DECIDING_WORST[precision]) if decides else (TOLERANCE[precision], WORST[precision])
    if tolerance is not None:
        median, worst = tolerance, max(worst, tolerance) if decides else tolerance
    if found.typical <= median and found.worst <= worst and found.same_top1 >= SAME_ANSWERS[precision]:
        return found
    typical = f", {median:.1e} in the median image" if median < worst else ""
    same = f", the same answer for {SAME_ANSWERS[precision]:.0%} of the images" if SAME_ANSWERS[precision] else ""
    raise FoveateError(
        given=f"{engine}, whose logits are not those of the model: {found}",
        allowed=f"differences up to {worst:.1e} of the largest logit{typical}{same}",
        do='load it with backend="torch" and precision="fp32", or allow more with tolerance=...',
    )


def _require_accuracy(found: Agreement, engine: str) -> Agreement:
    allowed = max(LOST_PERCENT, 100 / found.images)
    if found.lost_percent <= allowed:
        return found
    raise FoveateError(
        given=f"{engine}, which costs {found.lost_percent:.1f} points of accuracy on {found.images} images: {found}",
        allowed=f"at most {allowed:.1f} points",
        do='load it with precision="bf16", give more images to calibrate on with calibration=..., or train with the recipe\'s quantise="int8"',
    )
