"""Taylor attention against the best softmax attention of the same backend: all versions in turn, and the length from which Taylor helps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from foveate.errors import FoveateError
from foveate.measure.attention import DTYPES, check_precision
from foveate.measure.clock import HELPS, Timing, interleave
from foveate.nn.attention import dense_attention
from foveate.nn.taylor import taylor_attention

CHUNK = 256
LEAST_MS, MOST_CALLS = 2.0, 64
"""A sample lasts so long at least, by as many calls in a row, so that what ran before does not weigh on short ones."""
CLOSE = 1.1
"""The crossover is searched until the lengths on both sides of it differ by less than this factor."""
Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Runs = dict[str, Callable[[], object]]


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Explicit softmax attention for 256 queries at a time, whose scores stay in the cache."""
    return torch.cat([dense_attention(part, k, v, scale, fused=False) for part in q.split(CHUNK, -2)], -2)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention as two matrix products with a softmax between them."""
    return dense_attention(q, k, v, scale, fused=False)


TAYLOR = "taylor"
VERSIONS: dict[str, Attention] = {TAYLOR: taylor_attention, "fused": dense_attention, "explicit": explicit_attention, "chunked": chunked_attention}
"""What takes part: Taylor attention, and softmax by torch's scaled_dot_product_attention, spelled out, and spelled out in chunks."""


@dataclass(frozen=True)
class Setting:
    """One size of the race. compiled: whether every version takes part with torch.compile as well."""

    tokens: int
    precision: str = "fp32"
    heads: int = 6
    dim: int = 64
    batch: int = 1
    device: str = "cpu"
    compiled: bool = False


@dataclass(frozen=True, eq=False)
class Race:
    """What came out at one size: timings by name, such as "explicit compiled", each compared with the best softmax version.

    left_out: what did not compile, and why.
    """

    setting: Setting
    timings: dict[str, Timing]
    left_out: dict[str, str]

    @property
    def baseline(self) -> Timing:
        """The softmax version with the least median."""
        return self.timings[next(iter(self.timings.values())).baseline]

    @property
    def best(self) -> Timing:
        """Taylor attention's fastest form."""
        return fastest(self.timings)

    def eager(self) -> Race:
        """The same race among eager versions."""
        timings = {name: timing for name, timing in self.timings.items() if name.endswith("eager")}
        return Race(replace(self.setting, compiled=False), against_best(timings, self.setting.batch), {})


def fastest(timings: Mapping[str, Timing]) -> Timing:
    """Taylor attention's form with the least median."""
    return min((timing for name, timing in timings.items() if name.startswith(TAYLOR)), key=lambda timing: timing.latency_ms.median)


def race(setting: Setting, repetitions: int = 15, warmup: int = 2, progress: Callable[[int, int], None] | None = None,
         seconds: float | None = None) -> Race:
    """Times every version on random q, k and v that are views of one projection [B, n, 3, H, d], up to z [B, n, H d].

    repetitions, warmup, progress, seconds: as in `interleave`. The baseline is the best of the very same rounds, which
    favours it. Raises FoveateError for another precision or counts out of range.
    """
    check_precision(setting.precision)
    if min(setting.tokens, setting.heads, setting.dim, setting.batch) < 1:
        raise FoveateError(f"{setting}", "at least one token, head, dimension and image", "give whole numbers >= 1")
    with torch.inference_mode():
        projected = torch.randn(setting.batch, setting.tokens, 3, setting.heads, setting.dim, device=setting.device).to(DTYPES[setting.precision])
        inputs = (*projected.permute(2, 0, 3, 1, 4).unbind(0), setting.dim**-0.5)
        runs, left_out = forms(VERSIONS, inputs, setting.compiled)
        wait = torch.cuda.synchronize if setting.device != "cpu" else lambda: None
        calls = {name: _calls(run, wait) for name, run in runs.items()}
        many = {name: _repeated(run, calls[name]) for name, run in runs.items()}
        timings = interleave(many, repetitions, warmup, progress, images={name: count * setting.batch for name, count in calls.items()},
                             seconds=seconds, synchronize=wait)
    return Race(setting, against_best(timings, setting.batch), left_out)


def against_best(timings: Mapping[str, Timing], batch: int) -> dict[str, Timing]:
    """The same timings, compared round by round with the softmax version that has the least median. batch: images in one call of a version."""
    best = min((timing for name, timing in timings.items() if not name.startswith(TAYLOR)), key=lambda timing: timing.latency_ms.median)
    return {name: replace(timing, batch=batch, baseline=best.name, baseline_ms=best.samples_ms) for name, timing in timings.items()}


def crossover(races: Sequence[Race], measure: Callable[[Setting], Race]) -> int | None:
    """The least number of tokens from which Taylor attention helps, within 10 %; None where it does not at the largest length.

    races: of one precision, by rising length. measure: races at further lengths, between the last length at which it does
    not help and the next one; from 1 token on where it helps at all lengths. Noise decides where the two are close.
    """
    if races[-1].best.verdict != HELPS:
        return None
    losing = [index for index, one in enumerate(races) if one.best.verdict != HELPS]
    first = losing[-1] + 1 if losing else 0
    low, high = races[first - 1].setting.tokens if first else 1, races[first].setting.tokens
    while high > low + 1 and high > CLOSE * low:
        middle = min(max(round(math.sqrt(low * high)), low + 1), high - 1)
        helps = measure(replace(races[first].setting, tokens=middle)).best.verdict == HELPS
        low, high = (low, middle) if helps else (middle, high)
    return high


def forms(versions: Mapping[str, Callable[..., object]], inputs: Sequence[object], compiled: bool) -> tuple[Runs, dict[str, str]]:
    """A call of each version on `inputs` by name and form, "explicit eager" or "explicit compiled", and why the missing ones did not compile.

    Compiled ones are compiled already when this returns.
    """
    runs, left_out = {}, {}
    if compiled:
        torch.compiler.reset()  # one graph a function: after eight sizes of one torch would silently go back to eager
    for name, version in versions.items():
        runs[f"{name} eager"] = partial(version, *inputs)
        if compiled:
            quick = partial(torch.compile(version, dynamic=False), *inputs)
            try:
                quick()
                runs[f"{name} compiled"] = quick
            except Exception as error:  # noqa: BLE001  (whatever a compiler says, the eager versions can still be compared)
                left_out[f"{name} compiled"] = str(error).strip().splitlines()[0]
    return runs, left_out


def _calls(run: Callable[[], object], wait: Callable[[], object]) -> int:
    run()
    wait()
    start = time.perf_counter()
    run()
    wait()
    return max(1, min(MOST_CALLS, round(LEAST_MS / (1000 * (time.perf_counter() - start)))))


def _repeated(run: Callable[[], Tensor], calls: int) -> Callable[[], None]:
    def many() -> None:
        for _ in range(calls):
            run().transpose(1, 2).flatten(2)  # to what the output linear reads

    return many
