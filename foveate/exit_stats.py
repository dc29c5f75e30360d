"""What early exits do with a labelled set: who leaves where, how often rightly, at what cost, for any threshold. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foveate.errors import FoveateError
from foveate.methods.earlyexit.config import EarlyExit
from foveate.trace import Trace

STEPS = 1000
"""Thresholds between 0 and 1 that a calibration tries."""


@dataclass(frozen=True)
class ExitPoint:
    """What one threshold gives; percentages of all images.

    right, wrong: images that leave at each exit because it is sure, and are right or wrong.
    unclassified: images that not even the last exit is sure of, which get its answer all the same; unclassified_right of them are right.
    accuracy_percent: all right answers, those of unclassified images included. macs: of the mean image.
    """

    threshold: float
    accuracy_percent: float
    macs: float
    right: tuple[float, ...]
    wrong: tuple[float, ...]
    unclassified: float
    unclassified_right: float

    @property
    def leaving(self) -> tuple[float, ...]:
        """Images that each exit answers, the unclassified ones with the last."""
        sure = [right + wrong for right, wrong in zip(self.right, self.wrong)]
        return (*sure[:-1], sure[-1] + self.unclassified)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ExitOutcomes:
    """What every exit says of every image of a labelled set; any threshold's result follows without running a model again.

    config: the exits' gate and threshold. blocks: 1-based, the last one that of the model's own head. measure: [exits, images] as
    foveate.nn.exits.sureness gives it, NaN without probabilities. correct: bool [exits, images]. macs: float [exits, images], of an image that leaves there.
    """

    config: EarlyExit
    blocks: tuple[int, ...]
    measure: np.ndarray
    correct: np.ndarray
    macs: np.ndarray

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Top-1 accuracy of each exit on all images, in percent (Table 2 of IRET)."""
        return tuple(100 * float(row.mean()) for row in self.correct)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Thresholds worth a row: 0.6, 0.65, ... 1 for confidence (Table 3 of IRET), a scale of the same length for the other gates."""
        if self.config.gate == "patience":
            return tuple(range(1, len(self.blocks)))
        scale = {"entropy": range(40, -1, -5), "margin": range(20, 101, 10)}.get(self.config.gate, range(60, 101, 5))
        return tuple(percent / 100 for percent in scale)

    def point(self, threshold: float | None = None) -> ExitPoint:
        """Accuracy, cost and the exit histogram (Figs. 20 and 21 of IRET) at a threshold; by default the plan's own.

        Raises FoveateError for a threshold that the gate does not take.
        """
        return self._at(self.config.threshold if threshold is None else self.config.but(threshold=threshold).threshold)

    def _at(self, threshold: float) -> ExitPoint:
        sure = self.config.sure(self.measure, threshold)
        answered, image = sure.any(0), np.arange(sure.shape[1])
        index = np.where(answered, sure.argmax(0), len(self.blocks) - 1)
        right = self.correct[index, image]
        share = lambda chosen: tuple(100 / len(image) * np.bincount(index[chosen], minlength=len(self.blocks)).astype(float))
        percent = lambda chosen: 100 * float(np.mean(chosen))
        return ExitPoint(threshold, percent(right), float(self.macs[index, image].mean()), share(answered & right), share(answered & ~right),
                         percent(~answered), percent(~answered & right))  # fmt: skip

    def sweep(self, thresholds: Iterable[float] | None = None) -> list[ExitPoint]:
        """A point for each threshold; by default for `thresholds`."""
        return [self.point(threshold) for threshold in (self.thresholds if thresholds is None else thresholds)]

    def calibrated(self, accuracy_percent: float | None = None, macs: float | None = None) -> ExitPoint:
        """The cheapest threshold with at least this accuracy, or the most accurate within these MACs of the mean image.

        Tried are 1,000 steps from 0 to 1, of patience every count. Where several thresholds are alike, the one that is surest counts.
        Raises FoveateError unless one of the two is given, and where no threshold reaches it, naming the best there is.
        """
        if (accuracy_percent is None) == (macs is None):
            given = "nothing to calibrate exits for" if macs is None else "an accuracy and MACs to calibrate exits for"
            raise FoveateError(given, "one of the two", "give the accuracy in percent, or the MACs")
        steps = self.thresholds if self.config.gate == "patience" else [step / STEPS for step in range(STEPS + 1)]
        steps = steps if self.config.gate == "entropy" else steps[::-1]
        points = [self._at(step) for step in steps]
        if macs is not None:
            points, cheapest = [p for p in points if p.macs <= macs], min(points, key=lambda p: p.macs)
            if not points:
                least = f"{cheapest.macs / 1e9:.4g} and more: what this gate reaches at {cheapest.threshold:g}"
                raise FoveateError(f"{macs / 1e9:.4g} GMACs for an image", least, "give more, or add an earlier exit")
            return max(points, key=lambda p: p.accuracy_percent)
        best = max(points, key=lambda p: p.accuracy_percent)
        points = [p for p in points if p.accuracy_percent >= accuracy_percent]
        if not points:
            raise FoveateError(f"an accuracy of {accuracy_percent:g} %", f"up to {best.accuracy_percent:.2f} %, which these exits reach at {best.threshold:g}",
                               "ask for less, or train the exits longer")
        return min(points, key=lambda p: p.macs)


def left_at(trace: Trace, correct: np.ndarray, blocks: Sequence[int]) -> list[dict[str, float]]:
    """How many images left at each exit, and how many of them rightly, in percent of all.

    trace: of a model with exits behind `blocks`. correct: bool [images].
    """
    exits = np.asarray(trace.exits)
    return [{"block": block, "left_percent": 100 * float(np.mean(exits == block)), "correct_percent": 100 * float(np.mean((exits == block) & correct))}
            for block in blocks]
