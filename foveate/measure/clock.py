"""Timings whose ratios can be trusted: all candidates run in turn, round by round, so that a slow minute hits each alike."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from foveate.errors import FoveateError
from foveate.ledger import Ledger, Operation

HELPS, NO_GAIN = "helps", "no gain here"
FEWEST_ROUNDS = 3


class Spread(NamedTuple):
    """A median with the quartiles below and above it (low <= median <= high)."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values) -> Self:
        """Median and interquartile range of a sequence of numbers."""
        low, median, high = np.percentile(np.asarray(values, dtype=float), (25, 50, 75))
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Timing:
    """What one candidate took, beside a baseline that ran in the same rounds.

    samples_ms: milliseconds per image, one for each round.
    batch: images in one call.
    baseline: name of the candidate that `speedup` compares with, and baseline_ms its samples of the same rounds.
    """

    name: str
    batch: int
    samples_ms: tuple[float, ...]
    baseline: str
    baseline_ms: tuple[float, ...]

    @property
    def latency_ms(self) -> Spread:
        """Milliseconds per image: median and interquartile range over the rounds."""
        return Spread.of(self.samples_ms)

    @property
    def images_per_s(self) -> float:
        """Throughput at the median."""
        return 1000 / self.latency_ms.median

    @property
    def speedup(self) -> Spread:
        """Baseline time over own time: median and interquartile range of the ratios of each round."""
        return Spread.of(np.asarray(self.baseline_ms) / np.asarray(self.samples_ms))

    @property
    def verdict(self) -> str:
        """"helps" or "no gain here", see `verdict`."""
        return verdict(self.speedup)


def verdict(speedup: Spread) -> str:
    """Judge a speed-up: it "helps" only where even the lower quartile of the ratios is above 1, otherwise "no gain here".

    The median alone would call half of all pairs of equal candidates a gain. The figures must come from one backend:
    a token dropped in a fast runtime against a dense model in a slow one says nothing about the token.
    """
    return HELPS if speedup.low > 1 else NO_GAIN


def interleave(
    runners: Mapping[str, Callable[[], object]],
    repetitions: int = 15,
    warmup: int = 3,
    progress: Callable[[int, int], None] | None = None,
    *,
    images: int | Mapping[str, int] = 1,
    baseline: str | None = None,
    seconds: float | None = None,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time every runner once a round, in an order that turns from round to round, and compare them round by round.

    runners: name -> a call without arguments that does the work once.
    repetitions: rounds that count (>= 1); warmup: calls of each runner before them (>= 0).
    progress: called as progress(rounds done, rounds in all), warm-up rounds included.
    images: images one call works on, the same for all or by name (>= 1).
    baseline: the runner that speed-ups refer to; by default the first.
    seconds: stop early once the counted rounds have taken this long, but not before three of them.
    synchronize: waits until the device has finished, such as torch.cuda.synchronize.

    Raises FoveateError where there is nothing to time, a count is out of range or the baseline is not among the runners.
    """
    batches = _checked(runners, repetitions, warmup, images, baseline)
    baseline = next(iter(runners)) if baseline is None else baseline
    wait = synchronize or (lambda: None)
    for turn in range(warmup):
        for run in runners.values():
            run()
        wait()
        if progress:
            progress(turn + 1, warmup + repetitions)
    samples: dict[str, list[float]] = {name: [] for name in runners}
    end = None if seconds is None else time.perf_counter() + seconds
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a sample would be charged to whoever runs then
    try:
        for turn in range(repetitions):
            for name in turned(list(runners), turn):
                samples[name].append(1000 * _timed(runners[name], wait) / batches[name])
            gc.collect(0)
            if progress:
                progress(warmup + turn + 1, warmup + repetitions)
            if end is not None and turn + 1 >= FEWEST_ROUNDS and time.perf_counter() > end:
                break
    finally:
        if collecting:
            gc.enable()
    fixed = {name: tuple(values) for name, values in samples.items()}
    return {name: Timing(name, batches[name], fixed[name], baseline, fixed[baseline]) for name in runners}


def turned(names: list[str], turn: int) -> list[str]:
    """Order of one round: rotated by one from round to round, and backwards in every second cycle.

    Rotation alone would leave everyone behind the same neighbour, whose caches and heat it would always inherit.
    """
    shift = turn % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if (turn // len(names)) % 2 else order


def timing_ledger(timing: Timing, params: int = 0) -> Ledger:
    """The median as a Ledger of one operation `model`, the form that counter and simulators fill in too."""
    whole = Operation("model", "model", latency_ms=timing.latency_ms.median)
    return Ledger((whole,), params, f"measured: {timing.name}, batch {timing.batch}, median of {len(timing.samples_ms)} rounds")


def _timed(run: Callable[[], object], wait: Callable[[], object]) -> float:
    """Seconds of one call; the device is idle at its start and at its end."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def _checked(runners, repetitions, warmup, images, baseline) -> dict[str, int]:
    """Images a call by runner, after refusing what cannot be timed."""
    if not runners:
        raise FoveateError("no runner to time", "at least one name with a call", "name a model or a plan to measure")
    if repetitions < 1 or warmup < 0:
        raise FoveateError(
            given=f"repetitions={repetitions}, warmup={warmup}",
            allowed="repetitions >= 1 and warmup >= 0",
            do="measure at least one round; 15 give a usable spread",
        )
    if baseline is not None and baseline not in runners:
        raise FoveateError(f"baseline {baseline!r}", f"one of {', '.join(runners)}", "name the runner to compare with")
    batches = dict(images) if isinstance(images, Mapping) else dict.fromkeys(runners, images)
    bad = [name for name in runners if batches.get(name, 0) < 1]
    if bad:
        raise FoveateError(
            given=f"images={batches.get(bad[0])} for {bad[0]!r}",
            allowed="a whole number >= 1 for every runner",
            do="give the number of images in one call",
        )
    return batches
