"""How the time of a plan splits into compute and overhead (Fig. 7 of PIVOT), measured inside torch's eager passes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.measure.clock import Spread, Timing, interleave
from foveate.measure.race import DTYPES

SELECTOR, PACKAGING = "selector", "packaging and gathers"
RECOMPUTATION, GATE, REGROUPING = "recomputation", "gate", "regrouping"


class Meter:
    """Adds up the seconds spent in named parts of a pass. A part inside another counts for itself, not for the outer one.

    synchronize: waits until the device has finished, such as torch.cuda.synchronize; the pass is slower for it.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None):
        self._wait = synchronize or (lambda: None)
        self._inner: list[float] = []
        self._spent: dict[str, float] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose calls count for `part`."""

        def run(*given, **more):
            self._wait()
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*given, **more)
            finally:
                self._wait()
                seconds = time.perf_counter() - start
                self._spent[part] = self._spent.get(part, 0.0) + seconds - self._inner.pop()
                if self._inner:
                    self._inner[-1] += seconds

        return run

    def take(self) -> dict[str, float]:
        """Seconds by part since the last `take`."""
        spent, self._spent = self._spent, {}
        return spent


@dataclass(frozen=True)
class Breakdown:
    """What one model took in each round, and what of it was overhead; the rest is compute.

    timing: of the whole calls. parts_ms: milliseconds an image of each kind of overhead, one for each round of `timing`.
    """

    timing: Timing
    parts_ms: dict[str, tuple[float, ...]]

    @property
    def overhead_ms(self) -> Spread:
        """Milliseconds an image that are not spent in the backbone's layers, or spent in them for an answer that does not stand."""
        return Spread.of(self._overhead)

    @property
    def compute_ms(self) -> Spread:
        """Milliseconds an image of all the rest."""
        return Spread.of(np.asarray(self.timing.samples_ms) - self._overhead)

    @property
    def overhead_percent(self) -> Spread:
        """Share of the overhead in the whole time, in percent."""
        return Spread.of(100 * self._overhead / np.asarray(self.timing.samples_ms))

    def percent(self, part: str) -> Spread:
        """Share of one kind of overhead in the whole time, in percent."""
        return Spread.of(100 * np.asarray(self.parts_ms[part]) / np.asarray(self.timing.samples_ms))

    @property
    def _overhead(self) -> np.ndarray:
        return np.sum([np.zeros(len(self.timing.samples_ms)), *self.parts_ms.values()], axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Medians and quartiles under the names of the JSON answers, and `overhead_parts` with the median of each kind."""
        figures = {"compute_ms": self.compute_ms, "overhead_ms": self.overhead_ms, "overhead_percent": self.overhead_percent}
        spread = {f"{key}{end}": value for key, (median, low, high) in figures.items() for end, value in (("", median), ("_low", low), ("_high", high))}
        parts = [{"part": part, "overhead_ms": Spread.of(values).median, "percent": self.percent(part).median} for part, values in self.parts_ms.items()]
        return spread | {"overhead_parts": parts}


def breakdown(
    runners: Mapping[str, Callable[[], Mapping[str, float]]],
    repetitions: int = 15,
    warmup: int = 3,
    progress: Callable[[int, int], None] | None = None,
    *,
    images: int | Mapping[str, int] = 1,
    baseline: str | None = None,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Breakdown]:
    """Times every runner once a round, as `interleave` does, and splits what it took.

    runners: name -> a call that does the work once and returns the seconds of each kind of overhead in it, see `metered`.
    The other arguments and what is raised: as in `interleave`.
    """
    kept: dict[str, list[Mapping[str, float]]] = {name: [] for name in runners}
    timings = interleave({name: _keeping(run, kept[name]) for name, run in runners.items()}, repetitions, warmup, progress,
                         images=images, baseline=baseline, synchronize=synchronize)
    found = {}
    for name, timing in timings.items():
        counted = kept[name][-len(timing.samples_ms):]
        parts = dict.fromkeys(part for spent in counted for part in spent)
        found[name] = Breakdown(timing, {part: tuple(1000 * spent.get(part, 0.0) / timing.batch for spent in counted) for part in parts})
    return found


def metered(model: nn.Module, precision: str = "fp32", synchronize: Callable[[], object] | None = None) -> Callable[..., dict[str, float]]:
    """A call that runs a copy of `model` in torch eager on one batch of images [B, C, H, W] after the other: seconds of each kind of overhead.

    model: an AdaptiveModel, or a Cascade of them. precision: "fp32" or "bf16". Overhead is: selectors; packaging and gathers behind them;
    of cascades the gates, regrouping, and recomputation: the passes of images that a higher effort answered, their selectors apart.
    What a method does inside attention (such as the mask of vitcod) is compute. Raises FoveateError for another precision.
    """
    if precision not in DTYPES:
        raise FoveateError(f"precision {precision!r}", ", ".join(DTYPES), "choose one of these")
    meter, twin = Meter(synchronize), copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    like, run = next(twin.parameters()), twin
    joined = hasattr(twin, "efforts")
    efforts = list(twin.efforts) if joined else [twin]
    seen = [0] * len(efforts)
    for number, effort in enumerate(efforts):
        _watch(effort, meter)
        if joined:
            effort.forward = _counting(meter.timed(str(number), effort.forward), seen, number)
    if joined:
        twin.too_hard, run = meter.timed(GATE, twin.too_hard), meter.timed(REGROUPING, twin)

    @torch.inference_mode()
    def call(*batches: Tensor) -> dict[str, float]:
        meter.take()
        seen[:] = [0] * len(seen)
        for images in batches:
            run(images.to(like.device, like.dtype))
        spent = meter.take()
        passes = [spent.pop(str(number), 0.0) for number in range(len(efforts))]
        again = sum(seconds * further / images for seconds, images, further in zip(passes, seen, seen[1:]) if images)
        return ({RECOMPUTATION: again} if joined else {}) | spent

    return call


def _watch(model: nn.Module, meter: Meter) -> None:
    """Lets what the pruning methods of an adapted model run behind the blocks count as overhead."""
    for method in model.plan.methods:
        if method.prunes:
            hooks = model.get_submodule(method.name)
            for child in hooks.children():
                for module in child.children() if isinstance(child, (nn.ModuleDict, nn.ModuleList)) else (child,):
                    module.forward = meter.timed(SELECTOR, module.forward)
            hooks.after = meter.timed(PACKAGING, hooks.after)


def _counting(run: Callable[[Tensor], Tensor], seen: list[int], number: int) -> Callable[[Tensor], Tensor]:
    """`run`, which notes how many images it was given."""

    def counted(images: Tensor) -> Tensor:
        seen[number] += len(images)
        return run(images)

    return counted


def _keeping(run: Callable[[], Mapping[str, float]], kept: list[Mapping[str, float]]) -> Callable[[], None]:
    return lambda: kept.append(run())
