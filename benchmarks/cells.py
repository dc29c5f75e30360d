"""Figures of a benchmark held against what was asked for: one cell a figure, as a table for a terminal and as markdown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from foveate.measure import Spread, Timing, interleave

PASS, SHORT, REPORTED, ERROR, ABSENT = "pass", "falls short", "reported", "error", "not measured"
LEAST_MS, MOST_CALLS = 100.0, 64
"""A sample lasts so long at least, by as many calls in a row, so that what ran before does not weigh on short ones."""


@dataclass(frozen=True)
class Cell:
    """One figure. row, column: where it stands. value: median and quartiles of the rounds' figures, None where there is none.

    least: what was asked for, None for a figure that is only reported. unit: "x" or "%". note: what it was measured on. error: why there is none.
    """

    row: str
    column: str
    value: Spread | None = None
    least: float | None = None
    unit: str = "x"
    note: str = ""
    error: str = ""

    @property
    def verdict(self) -> str:
        """Whether the median reaches what was asked for."""
        if self.value is None:
            return ERROR if self.error else ABSENT
        return REPORTED if self.least is None else PASS if self.value.median >= self.least else SHORT

    @property
    def words(self) -> tuple[str, ...]:
        """Row, column, figure, what was asked for, verdict, note."""
        digits = 2 if self.unit == "x" else 1
        sign = {"x": "x", "%": " %"}[self.unit]
        shown = lambda number: f"{number:.{digits}f}"
        figure = "" if self.value is None else f"{shown(self.value.median)}{sign} ({shown(self.value.low)} to {shown(self.value.high)})"
        least = "" if self.least is None else f">= {self.least:g}{sign}"
        return self.row, self.column, figure, least, self.verdict, self.error or self.note


HEAD = ("row", "at", "median (quartiles)", "asked for", "verdict", "measured on")


def table(cells: Iterable[Cell], title: str = "") -> Table:
    """The cells for a terminal."""
    made = Table(*HEAD, title=title or None, title_justify="left")
    for cell in cells:
        made.add_row(*cell.words)
    return made


def markdown(cells: Iterable[Cell]) -> str:
    """The cells as lines of a markdown table."""
    lines = [HEAD, ("-",) * len(HEAD), *(cell.words for cell in cells)]
    return "\n".join(f"| {' | '.join(word.replace('|', '/') for word in line)} |" for line in lines)


def timed(runs: Mapping[str, Callable[[], object]], images: int, rounds: int, least_ms: float = LEAST_MS) -> dict[str, Timing]:
    """Interleaved timings; a sample is as many calls in a row as last `least_ms`. images: of one call."""
    calls = {name: _calls(run, least_ms) for name, run in runs.items()}
    many = {name: _repeated(run, calls[name]) for name, run in runs.items()}
    return interleave(many, rounds, 1, images={name: images * count for name, count in calls.items()})


def ratio(timings: Mapping[str, Timing], slow: str, fast: str, times: float = 1.0) -> Spread:
    """Median and quartiles, over the rounds, of how many times as long `slow` takes as `fast`, times a factor."""
    return Spread.of(times * np.asarray(timings[slow].samples_ms) / np.asarray(timings[fast].samples_ms))


def milliseconds(timings: Mapping[str, Timing]) -> str:
    """The medians in words."""
    return ", ".join(f"{name} {timing.latency_ms.median:.2f}" for name, timing in timings.items()) + " ms an image"


def _calls(run: Callable[[], object], least_ms: float) -> int:
    run()
    start = time.perf_counter()
    run()
    return max(1, min(MOST_CALLS, round(least_ms / (1000 * (time.perf_counter() - start)))))


def _repeated(run: Callable[[], object], calls: int) -> Callable[[], None]:
    def many() -> None:
        for _ in range(calls):
            run()

    return many
