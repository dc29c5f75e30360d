"""What the efforts of a cascade do with a labelled set: who answers what, and what every threshold would give. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foveate.errors import FoveateError
from foveate.gates import Gate
from foveate.trace import Trace

ROUNDING = 1e-4
"""How far a threshold stays above the hardest image where none goes on: more than batches and backends differ in float32."""
LECS = tuple(percent / 100 for percent in range(60, 101, 5))


class Unreachable(FoveateError):
    """A low effort constraint that no threshold meets."""


@dataclass(frozen=True)
class Answered:
    """How many images each effort answered and how many of them rightly, lowest effort first (section 3.1 of PIVOT).

    answered, correct: images by effort. nan: images by effort that it gave no probabilities for.
    F_L, C_L and I_L are the lowest effort's, F_H, C_H and I_H those of all others together, as shares of all images: C_L + I_L = F_L,
    and C_L + C_H is the accuracy (the paper counts images for C and I).
    """

    answered: tuple[int, ...]
    correct: tuple[int, ...]
    nan: tuple[int, ...]

    @classmethod
    def of(cls, trace: Trace, correct: np.ndarray, efforts: int) -> "Answered":
        """trace: of a cascade of so many `efforts`. correct: bool [images], whether the logits named the right class."""
        taken = np.asarray(trace.efforts)
        nan = {one.effort: one.nan for one in trace.passes}
        numbers = range(1, efforts + 1)
        return cls(tuple(int((taken == n).sum()) for n in numbers), tuple(int(correct[taken == n].sum()) for n in numbers),
                   tuple(nan.get(n, 0) for n in numbers))

    @property
    def images(self) -> int:
        return sum(self.answered)

    @property
    def fractions(self) -> tuple[float, ...]:
        """Share of images that each effort answered."""
        return tuple(n / self.images for n in self.answered)

    @property
    def F_L(self) -> float:  # noqa: N802  (the paper's symbol, as are the next)
        return self.answered[0] / self.images

    @property
    def F_H(self) -> float:  # noqa: N802
        return sum(self.answered[1:]) / self.images

    @property
    def C_L(self) -> float:  # noqa: N802
        return self.correct[0] / self.images

    @property
    def C_H(self) -> float:  # noqa: N802
        return sum(self.correct[1:]) / self.images

    @property
    def I_L(self) -> float:  # noqa: N802
        return (self.answered[0] - self.correct[0]) / self.images

    @property
    def I_H(self) -> float:  # noqa: N802
        return (sum(self.answered[1:]) - sum(self.correct[1:])) / self.images

    def to_dict(self) -> dict[str, Any]:
        """The six shares, and for each effort its own in percent of all images."""
        percent = [100 / self.images * n for n in (*self.answered, *self.correct)]
        count = len(self.answered)
        efforts = [{"effort": k + 1, "answered_percent": percent[k], "correct_percent": percent[count + k],
                    "incorrect_percent": percent[k] - percent[count + k], "nan_images": self.nan[k]} for k in range(count)]
        return {name: getattr(self, name) for name in ("F_L", "F_H", "C_L", "C_H", "I_L", "I_H")} | {"efforts": efforts}


def break_even(low: float, high: float) -> float:
    """F_H* = 1 - C_L / C_H: the share of images that may go on before a cascade costs more than its high effort alone.

    low, high: what an image costs in either effort, in any one unit. Below 0 where the low effort is the dearer one.
    """
    return 1 - low / high


def calibrated(gate: Gate, difficulty: np.ndarray, lec: float, effort: int = 1) -> tuple[Gate, float]:
    """(gate, share that stays): the threshold raised until at least `lec` of the images stay, exactly (Phase 2 of PIVOT, F_L >= LEC).

    The threshold lies half way between the hardest image that stays and the easiest that goes on, so that rounding in another batch or
    backend moves neither; for lec = 1 every image with probabilities stays, also those that are harder than any of these.
    difficulty: float32 [images] by this gate, NaN never stays; ties stay together, so that the share may be larger than asked.
    lec: the low effort constraint, in (0, 1]. effort: its number, for messages.
    Raises FoveateError where too many images are without an answer, naming the largest share that can stay.
    """
    if isinstance(lec, bool) or not isinstance(lec, (int, float)) or not 0 < lec <= 1:
        raise FoveateError(f"lec={lec!r}", "a share of images above 0 and up to 1", "write 0.7 for LEC 70")
    known = np.sort(difficulty[~np.isnan(difficulty)])
    needed = max(1, int(np.ceil(lec * len(difficulty) - 1e-9)))
    if needed > len(known):
        best = len(known) / len(difficulty)
        raise Unreachable(f"lec={lec:g} for effort {effort}, which gives NaN logits for {len(difficulty) - len(known)} of {len(difficulty)} images",
                          f"F_L up to {best:.4g}, the share of images that it answers at all", "lower lec, or find out why these logits are NaN")
    if lec == 1:
        return gate.open, 1.0
    hardest = known[needed - 1]
    beyond = known[known > hardest]
    limit = (hardest + beyond[0]) / 2 if len(beyond) else np.float32(min(gate.open.limit, hardest + ROUNDING))
    limit = hardest if len(beyond) and limit >= beyond[0] else limit  # neighbours in float32 have no middle
    return gate.at(limit), float(np.count_nonzero(known <= limit) / len(difficulty))


@dataclass(frozen=True)
class SweepPoint:
    """What one low effort constraint gives on the images that it was calibrated on.

    lec: asked for; thresholds: found; fractions: of images answered by each effort. macs: of the mean image, all its passes.
    delay, energy: of the mean image, split into the pass of the lowest effort where it answered (low), those of higher efforts that
    answered (high), and passes that did not answer (recomputation, D_L F_H in section 3.4 of PIVOT).
    edp: energy times delay of the mean image. edp_of_passes: each pass's energy times its delay, summed over the passes of the mean
    image; this is what PIVOT prints for its cascades, and what edp_low, edp_high and edp_recomputation (Fig. 8b) add up to.
    """

    lec: float
    thresholds: tuple[float, ...]
    fractions: tuple[float, ...]
    accuracy_percent: float
    macs: float
    delay: float
    delay_low: float
    delay_high: float
    delay_recomputation: float
    energy: float
    edp: float
    edp_of_passes: float
    edp_low: float
    edp_high: float
    edp_recomputation: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What every effort does with every image of a labelled set; any thresholds' result follows without running a model again.

    gates: of the cascade. difficulty: float32 [efforts - 1, images] as foveate.nn.gates.difficulty gives it, NaN without probabilities.
    correct: bool [efforts, images]. nan: bool [efforts, images]. macs: float [efforts, images].
    delay, energy: float [efforts, images] in `delay_unit` and `energy_unit`. cost: where they come from, in words.
    """

    gates: tuple[Gate, ...]
    difficulty: np.ndarray
    correct: np.ndarray
    nan: np.ndarray
    macs: np.ndarray
    delay: np.ndarray
    energy: np.ndarray
    delay_unit: str = "GMAC"
    energy_unit: str = "GMAC"
    cost: str = "MACs as a stand-in for delay and energy"

    @property
    def images(self) -> int:
        return self.correct.shape[1]

    def efforts(self, gates: Sequence[Gate]) -> np.ndarray:
        """The 1-based effort that answers each image behind these gates, int [images]."""
        taken, waiting = np.full(self.images, len(self.correct)), np.ones(self.images, dtype=bool)
        for number, (gate, difficulty) in enumerate(zip(gates, self.difficulty), 1):
            stays = waiting & (difficulty <= np.float32(gate.limit))
            taken[stays], waiting = number, waiting & ~stays
        return taken

    def answered(self, gates: Sequence[Gate]) -> Answered:
        """Which effort answers how many images behind these gates."""
        taken = self.efforts(gates)
        numbers = range(1, len(self.correct) + 1)
        return Answered(tuple(int((taken == n).sum()) for n in numbers), tuple(int(self.correct[n - 1][taken == n].sum()) for n in numbers),
                        tuple(int(self.nan[n - 1][taken >= n].sum()) for n in numbers))

    def gates_for(self, lec: float | Sequence[float]) -> tuple[Gate, ...]:
        """The gates with thresholds at which each effort but the last answers `lec` of the images that reach it.

        lec: one share for all stages, or one a stage. A stage that no image reaches keeps its threshold. Raises as `calibrated`.
        """
        lecs = tuple(lec) if isinstance(lec, (list, tuple)) else (lec,) * len(self.gates)
        if len(lecs) != len(self.gates):
            raise FoveateError(f"lec={lecs} for {len(self.correct)} efforts", f"one share, or {len(self.gates)}, one for each effort but the last",
                               "give one share for all stages")
        gates, waiting = [], np.ones(self.images, dtype=bool)
        for number, (gate, share, difficulty) in enumerate(zip(self.gates, lecs, self.difficulty), 1):
            gate = calibrated(gate, difficulty[waiting], share, number)[0] if waiting.any() else gate
            gates.append(gate)
            waiting &= ~(difficulty <= np.float32(gate.limit))
        return tuple(gates)

    def point(self, lec: float) -> SweepPoint:
        """Accuracy and cost behind the gates that `lec` asks for."""
        gates = self.gates_for(lec)
        taken, found = self.efforts(gates), self.answered(gates)
        number = np.arange(1, len(self.correct) + 1)[:, None]
        ran, answers = number <= taken, number == taken
        parts = {"low": answers & (number == 1), "high": answers & (number > 1), "recomputation": ran & ~answers}
        mean = lambda figure, where: float((figure * where).sum() / self.images)
        delay, energy, products = mean(self.delay, ran), mean(self.energy, ran), self.delay * self.energy
        return SweepPoint(
            lec, tuple(gate.threshold for gate in gates), found.fractions, 100 * sum(found.correct) / self.images, mean(self.macs, ran), delay,
            *(mean(self.delay, where) for where in parts.values()), energy, delay * energy, mean(products, ran),
            *(mean(products, where) for where in parts.values()))  # fmt: skip

    def sweep(self, lecs: Sequence[float] = LECS) -> list[SweepPoint]:
        """A point for every low effort constraint that can be met; those beyond the images without an answer are left out."""
        points = []
        for lec in lecs:
            try:
                points.append(self.point(lec))
            except Unreachable:
                continue
        return points
