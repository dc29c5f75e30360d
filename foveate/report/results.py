"""What a run found out, as values: rows of the table, token grids, histograms, heat maps, curves."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """One line of the table: a plan on one backend at one precision.

    accuracy_percent, accuracy_error: top-1 accuracy and its uncertainty in points (one standard error), None if not evaluated.
    tokens_mean: mean live tokens after each stage, prefix and package tokens included; empty for a dense model.
    macs: multiply-accumulates of the mean image; params: parameters of the model with its methods.
    latency_ms: batch -> (median, low, high) milliseconds per image; low and high are quartiles.
    speedup: batch -> (median, low, high) over `baseline` in the same backend, quartiles of the ratios of each round.
    verdict: batch -> "helps" or "no gain here"; empty for the baseline itself.
    """

    plan: str
    macs: float
    params: int
    accuracy_percent: float | None = None
    accuracy_error: float | None = None
    tokens_mean: tuple[float, ...] = ()
    latency_ms: dict[int, Triple] = field(default_factory=dict)
    speedup: dict[int, Triple] = field(default_factory=dict)
    baseline: str = "dense"
    backend: str = ""
    precision: str = ""
    verdict: dict[int, str] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether the speed-ups of its backend refer to this row."""
        return self.plan == self.baseline


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """Test images with the patch tokens that lived on after each stage (Fig. 6 of SPViT).

    images: uint8 [n, H, W] or [n, H, W, 3].
    kept: one bool array [n, rows * columns] a stage, True where a token lives on; in grid order.
    grids: (rows, columns) of each stage, which differ in hierarchical backbones.
    stages: a caption a stage, such as "after block 3"; labels: a caption an image, may be empty.
    """

    title: str
    images: np.ndarray
    kept: tuple[np.ndarray, ...]
    grids: tuple[tuple[int, int], ...]
    stages: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """How many patch tokens each image of a test set kept.

    kept: one int array [images] a stage; total: patch tokens at each stage if none were dropped; stages: captions.
    """

    plan: str
    kept: tuple[np.ndarray, ...]
    total: tuple[int, ...]
    stages: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """Scores that each head of a selector gave to each patch (Fig. 3 of SPViT).

    images: uint8 [n, H, W] or [n, H, W, 3]; scores: float [n, heads, rows * columns] in [0, 1], 1 = informative;
    merged: float [n, rows * columns], the weighted sum of Eq. 6; grid: (rows, columns).
    """

    title: str
    images: np.ndarray
    scores: np.ndarray
    merged: np.ndarray
    grid: tuple[int, int]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Curve:
    """A line with a band, such as CKA over blocks (Fig. 4 of SPViT) or accuracy over epochs.

    x, y: float [points]; low, high: float [points] or None.
    """

    title: str
    x_label: str
    y_label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart. y: float [points]; low, high: the edges of its band, float [points] or None."""

    name: str
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Chart:
    """Several lines over the same points x, float [points].

    log: both axes logarithmic. marks: values of y that are worth a dashed line, such as a speed-up of 1.
    """

    title: str
    x_label: str
    y_label: str
    x: np.ndarray
    lines: tuple[Line, ...]
    caption: str = ""
    log: bool = False
    marks: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Matrix:
    """How alike two series are, pair by pair, such as MLPs and attentions of all blocks (Fig. 3 of PIVOT).

    values: float [rows, columns] in [0, 1], both counted from 1; NaN where there is no value.
    """

    title: str
    row_label: str
    column_label: str
    values: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class Bar:
    """One bar of parts side by side: what each part is, and how long."""

    name: str
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Bars:
    """Bars of parts below one another on one axis, such as the milliseconds of an attention's steps."""

    title: str
    x_label: str
    bars: tuple[Bar, ...]
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table other than that of plans: column titles with their units, and rows of words and figures as they are read.

    The first `left` columns hold words.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    left: int = 1


@dataclass(frozen=True)
class Made:
    """How the figures were made: command line, wall time, start (ISO 8601), seeds and package versions."""

    command: str = ""
    seconds: float | None = None
    started: str = ""
    seeds: tuple[int, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """Everything a report shows.

    sentence: what was found, in one sentence; machine: the dictionary of `foveate.machine.machine()`;
    notes: sentences that a reader must know, such as what was left out and why.
    figures: the same for programs, under the keys of the command's JSON object; not shown.
    """

    title: str
    sentence: str = ""
    rows: tuple[Row, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    made: Made = Made()
    grids: tuple[TokenGrid, ...] = ()
    counts: tuple[TokenCounts, ...] = ()
    heads: tuple[HeadMaps, ...] = ()
    curves: tuple[Curve, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    bars: tuple[Bars, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    notes: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
