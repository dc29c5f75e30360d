"""Budgets: what an answer may cost, in milliseconds or millijoules, and the table of what the next segment of a model costs."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, Self

from foveate.errors import FoveateError

VERSION = 1
ROUNDING = 1e-9
"""Share of a budget by which a sum of energies may lie above it: a budget of exactly the whole cost pays for everything."""


class Latency(NamedTuple):
    """What one segment took for a group of `images` with up to `tokens` live tokens each: the median, and what nearly every pass stayed below."""

    images: int
    tokens: int
    median_ms: float
    high_ms: float


class Energy(NamedTuple):
    """What one segment costs an image that enters it with `tokens` live tokens."""

    tokens: int
    energy_mj: float


@dataclass(frozen=True)
class SegmentCosts:
    """What each segment of a model costs: from one exit to the next, or one effort of a cascade.

    ends: 1-based block behind which each segment ends; of a cascade the number of each effort.
    latency: of each segment, what was measured; empty where nothing was. machine, runner: where, and in what (backend, precision, device, threads).
    energy: of each segment, what was simulated on `target`; empty where nothing was.
    """

    ends: tuple[int, ...]
    latency: tuple[tuple[Latency, ...], ...] = ()
    machine: str = ""
    runner: str = ""
    energy: tuple[tuple[Energy, ...], ...] = ()
    target: str = ""

    def latency_ms(self, segment: int, images: int, tokens: int) -> float:
        """Milliseconds of the 0-based `segment` for a group of `images`, the fullest with `tokens`; never below what was measured for less.

        Between two measured group sizes or token counts it is the larger one's. Beyond the largest group it is that group's once more for each further
        part of it, beyond the largest count it grows with the square.
        """
        points = self.latency[segment]
        largest, most = max(p.images for p in points), max(p.tokens for p in points)
        size, count = _next(images, (p.images for p in points)), _next(tokens, (p.tokens for p in points))
        below = max(p.high_ms for p in points if p.images <= size and p.tokens <= count)
        return below * math.ceil(images / largest) * max(1.0, tokens / most) ** 2

    def energy_mj(self, segment: int, tokens: int) -> float:
        """Millijoules of the 0-based `segment` for an image that enters it with `tokens`; between two simulated counts it is the larger one's."""
        points = self.energy[segment]
        count, most = _next(tokens, (p.tokens for p in points)), max(p.tokens for p in points)
        return max(p.energy_mj for p in points if p.tokens <= count) * max(1.0, tokens / most) ** 2

    def covers(self, images: int) -> bool:
        """Whether groups of up to `images` were measured."""
        return bool(self.latency) and all(max(p.images for p in points) >= images for points in self.latency)

    def to_dict(self) -> dict[str, Any]:
        return {"foveate_segment_costs": VERSION} | asdict(self) | {
            name: [[point._asdict() for point in points] for points in getattr(self, name)] for name in ("latency", "energy")}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = "segment costs") -> Self:
        """The table that `to_json` wrote; raises FoveateError for anything else."""
        try:
            return cls.from_dict(json.loads(text), source)
        except (ValueError, RecursionError) as error:
            if isinstance(error, FoveateError):
                raise
            raise _unreadable(source, error) from None

    @classmethod
    def from_dict(cls, data: Any, source: str = "segment costs") -> Self:
        """The table that `to_dict` gave; raises FoveateError for anything else."""
        try:
            if (version := data["foveate_segment_costs"]) != VERSION:
                raise FoveateError(f"{source} of version {version}", f"version {VERSION}", "measure them anew: delete the file")
            latency, energy = ([tuple(kind(**point) for point in points) for points in data[name]] for name, kind in (("latency", Latency), ("energy", Energy)))
            made = cls(tuple(int(end) for end in data["ends"]), tuple(latency), data["machine"], data["runner"], tuple(energy), data["target"])
            made._check()
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FoveateError):
                raise
            raise _unreadable(source, error) from None
        return made

    def _check(self) -> None:
        """Raises ValueError unless each segment has points with costs >= 0."""
        for name in ("latency", "energy"):
            segments = getattr(self, name)
            figures = [figure for points in segments for point in points for figure in point]
            if segments and (len(segments) != len(self.ends) or not all(segments)):
                raise ValueError(f"{name} of {len(segments)} segments for {len(self.ends)} exits")
            if not all(isinstance(figure, (int, float)) and 0 <= figure < math.inf for figure in figures):
                raise ValueError(f"{name} that is no number >= 0")


def _next(value: int, known: Iterable[int]) -> int:
    """The least of `known` that is not below `value`; the largest where all are."""
    ordered = sorted(set(known))
    return ordered[min(bisect_left(ordered, value), len(ordered) - 1)]


def _unreadable(source: str, error: Exception) -> FoveateError:
    return FoveateError(f"{source} that cannot be read ({type(error).__name__}: {error})", "JSON written by SegmentCosts.to_json", "measure them anew: delete the file")


class Spending(Protocol):
    """One kind of budget. limits: one an image."""

    name: str
    limits: Sequence[float]

    def cannot_begin(self, tokens: Sequence[int]) -> list[bool]:
        """Which images of a call, with their live tokens, cannot pay for the first segment, which all of them must run."""

    def cannot_pay(self, segment: int, images: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """See foveate.nn.exits.Budget."""

    def least(self, tokens: Sequence[int]) -> float:
        """The least that any budget of this call must be."""


@dataclass
class TimeBudget:
    """Milliseconds from now to each image's answer (semantics.md 16).

    All images of a group wait for the group. So the tightest leaves, which makes the segment cheaper for the others, until those that are left can pay.

    limits: one an image. clock: seconds, as time.perf_counter; `started` is its reading at the call.
    """

    costs: SegmentCosts
    limits: Sequence[float]
    clock: Callable[[], float] = time.perf_counter
    started: float | None = None
    name: str = "budget_ms"

    def __post_init__(self):
        self.started = self.clock() if self.started is None else self.started

    def cannot_begin(self, tokens: Sequence[int]) -> list[bool]:
        needed = self.least(tokens)
        return [limit < needed for limit in self.limits]

    def least(self, tokens: Sequence[int]) -> float:
        return self.costs.latency_ms(0, len(tokens), max(tokens)) + self._spent

    def cannot_pay(self, segment: int, images: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        spent = self._spent
        left = [self.limits[image] - spent for image in images]
        loosest_first = sorted(range(len(images)), key=lambda i: -left[i])
        fullest = [tokens[i] for i in loosest_first]
        for place in range(1, len(fullest)):
            fullest[place] = max(fullest[place], fullest[place - 1])
        while loosest_first and left[loosest_first[-1]] < self.costs.latency_ms(segment, len(loosest_first), fullest[len(loosest_first) - 1]):
            loosest_first.pop()
        going_on = set(loosest_first)
        return [i not in going_on for i in range(len(images))]

    @property
    def _spent(self) -> float:
        return 1000 * (self.clock() - self.started)


@dataclass
class EnergyBudget:
    """Millijoules of each image: the sum of the energies of the segments that it runs (semantics.md 16). limits: one an image."""

    costs: SegmentCosts
    limits: Sequence[float]
    name: str = "budget_mj"
    _spent: list[float] = field(default_factory=list)

    def __post_init__(self):
        self._spent = [0.0] * len(self.limits)

    def cannot_begin(self, tokens: Sequence[int]) -> list[bool]:
        return self.cannot_pay(0, range(len(tokens)), tokens)

    def least(self, tokens: Sequence[int]) -> float:
        return max(self.costs.energy_mj(0, count) for count in tokens)

    def cannot_pay(self, segment: int, images: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        broke = []
        for image, count in zip(images, tokens):
            after = self._spent[image] + self.costs.energy_mj(segment, count)
            broke.append(after > self.limits[image] * (1 + ROUNDING))
            self._spent[image] = after
        return broke


@dataclass
class Allowance:
    """What the images of one call may spend: an image leaves where one of the budgets cannot pay.

    short: images whose budget is below the first possible answer; they run to it all the same.
    """

    budgets: Sequence[Spending]
    short: Sequence[int] = ()

    def cannot_pay(self, segment: int, images: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        broke = [False] * len(images)
        for budget in self.budgets:
            there = [i for i, poor in enumerate(broke) if not poor]
            for i, poor in zip(there, budget.cannot_pay(segment, [images[i] for i in there], [tokens[i] for i in there])):
                broke[i] = poor
        return broke


def begin(budgets: Sequence[Spending], tokens: Sequence[int], first: str, strict: bool = True) -> Allowance:
    """What a call may spend that begins now.

    tokens: live tokens of each image in the first segment. first: where the first answer is, in words.
    Raises FoveateError where a budget is below the first possible answer, unless `strict` is false.
    """
    short: set[int] = set()
    for budget in budgets:
        broke = [image for image, poor in enumerate(budget.cannot_begin(tokens)) if poor]
        if broke and strict:
            tightest, unit = min(broke, key=lambda image: budget.limits[image]), budget.name.removeprefix("budget_")
            which = f" for image {tightest}" if len(set(budget.limits)) > 1 else ""
            what = f"{len(tokens)} images at once take" if len(tokens) > 1 and unit == "ms" else "one image takes"
            raise FoveateError(f"{budget.name}={budget.limits[tightest]:g}{which}", f"at least {budget.least(tokens):.4g} {unit}, which {what} up to {first}",
                               "give more, or pass strict=False: such images then get the first answer and stand in trace.short")
        short.update(broke)
    return Allowance(budgets, sorted(short))


def limits_of(given: Any, images: int, name: str) -> list[float]:
    """One budget an image. given: a number for all, or a sequence, array or tensor with one each.

    Raises FoveateError for another length, NaN, and what is negative or no number.
    """
    value = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(value, (list, tuple)):
        value = [value] * images
    if len(value) != images:
        raise FoveateError(f"{name} with {len(value)} budgets for {images} images", "one number, or one an image", f"give {images} numbers, or one for all")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= 0:
            raise FoveateError(f"{name} with {number!r}", "numbers >= 0" + (" of milliseconds" if name == "budget_ms" else " of millijoules"), "leave it out for no limit")
    return [float(number) for number in value]


def no_exits(name: str, what: str) -> FoveateError:
    """The error for a budget on something that can only run as a whole."""
    return FoveateError(f"{name} for {what}, which has no exits and no efforts", "models in which an image may stop early",
                        "put exits into the plan: fv.EarlyExit(after=(4, 8)), and train them; or build a cascade with fv.Cascade")
