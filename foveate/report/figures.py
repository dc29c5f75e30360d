"""The figures of a report: what accuracy costs, what the clock says to the operation count, how many tokens stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from foveate.report.results import Curve, Row, TokenCounts
from foveate.report.style import COLOURS, INK, MUTED, PAPER, looks, new_figure, styled

WIDTH_IN = 5.0
LONGEST_LABEL = 30


def batches_of(rows: Sequence[Row]) -> list[int]:
    """Batch sizes that any row was measured at, in increasing order."""
    return sorted({batch for row in rows for batch in row.latency_ms})


def macs_unit(rows: Sequence[Row]) -> tuple[float, str]:
    """(divisor, unit) that suits the largest count: GMAC from a billion on, MMAC below."""
    return (1e9, "GMAC") if max((row.macs for row in rows), default=0) >= 1e9 else (1e6, "MMAC")


def pareto_macs(rows: Sequence[Row]) -> Figure:
    """Accuracy over operations per image, one point a plan with its standard error."""
    rows = _evaluated(rows)
    divisor, unit = macs_unit(rows)
    look = looks(rows)
    # Backends share their operation counts; where they share the accuracy too, one point stands for all.
    points = {(row.plan, row.macs, row.accuracy_percent): row for row in rows}.values()
    drawn = [_Point(row.macs / divisor, row, row.plan, *look[row.plan]) for row in points]
    return _scatter(drawn, f"{unit} per image", "Accuracy and operations")


def pareto_latency(rows: Sequence[Row], batch: int) -> Figure:
    """Accuracy over measured milliseconds per image at one batch size; quartiles as horizontal bars.

    Where several backends were measured, points of all but the first are hollow.
    """
    look = looks(rows)  # of all rows: a plan keeps its colour where others were not measured
    rows = [row for row in _evaluated(rows) if batch in row.latency_ms]
    backends = list(dict.fromkeys((row.backend, row.precision) for row in rows))
    drawn = []
    for row in rows:
        median, low, high = row.latency_ms[batch]
        first = (row.backend, row.precision) == backends[0]
        name = row.plan if len(backends) == 1 else f"{row.plan}, {row.backend} {row.precision}"
        drawn.append(_Point(median, row, name, *look[row.plan], hollow=not first, x_error=[[median - low], [high - median]]))
    images = "1 image" if batch == 1 else f"{batch} images"
    return _scatter(drawn, f"milliseconds per image, {images} at a time", f"Accuracy and time, batch {batch}")


def speedup_bars(rows: Sequence[Row]) -> Figure:
    """Measured speed-up of each plan over the dense model in the same backend, beside what the operation count promises.

    A bar is the median over the rounds, its whisker the quartiles; the upright stroke is dense MACs over the plan's MACs.
    """
    dense = {(row.backend, row.precision): row.macs for row in rows if row.is_baseline}
    look, several = looks(rows), len({(row.backend, row.precision) for row in rows if row.speedup}) > 1
    rows = [row for row in rows if row.speedup and not row.is_baseline]
    batches = sorted({batch for row in rows for batch in row.speedup})
    thick, furthest = 0.68 / max(1, len(batches)), 1.0
    with styled():
        figure, axes = new_figure(WIDTH_IN, 1.25 + len(rows) * (0.36 + 0.26 * len(batches)))
        axis = axes[0, 0]
        for place, row in enumerate(rows):
            name = f"{row.plan}, {row.backend} {row.precision}" if several else row.plan
            axis.text(0, place - 0.36, _shortened(name, 60), fontsize=9.5, va="bottom", color=look[row.plan][0])
            for index, batch in enumerate(batches):
                if batch in row.speedup:
                    y = place - 0.34 + (index + 0.5) * thick
                    _bar(axis, y, 0.9 * thick, row.speedup[batch], look[row.plan][0], batch, faint=index % 2 == 0)
            promised = dense.get((row.backend, row.precision), 0) / row.macs
            if promised:
                axis.plot([promised, promised], [place - 0.36, place + 0.36], color=INK, linewidth=2.2)
            furthest = max(furthest, promised, *(spread[2] for spread in row.speedup.values()))
        axis.plot([], [], color=INK, linewidth=2.2, label="what the operation count promises")
        axis.axvline(1, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        axis.set(xlim=(0, 1.1 * furthest), ylim=(len(rows) - 0.55, -0.75), yticks=[])
        axis.set(xlabel="speed-up over dense, same backend", title="The clock and the operation count")
        axis.grid(False, axis="y")
        figure.legend(loc="outside lower left", frameon=False, fontsize=9.5)
    return figure


def kept_histogram(counts: Sequence[TokenCounts], look: dict[str, tuple[str, str]] | None = None) -> Figure:
    """How many patch tokens the images keep: a panel a stage, a colour a plan, the median as a line and the quartiles as a band."""
    look = look or {}
    colours = {c.plan: look.get(c.plan, (COLOURS[i % len(COLOURS)], ""))[0] for i, c in enumerate(counts)}
    stages = max(counts, key=lambda c: len(c.stages)).stages
    same = len({total for c in counts for total in c.total}) == 1
    with styled():
        figure, axes = new_figure(WIDTH_IN, 0.75 + 1.35 * len(stages), len(stages), 1, sharex=same)
        for stage, axis in enumerate(axes[:, 0]):
            there = [c for c in counts if stage < len(c.kept)]
            total = max(c.total[stage] for c in there)
            left = np.mean([np.median(c.kept[stage]) for c in there]) > total / 2
            for line, one in enumerate(there):
                label = one.plan if stage == 0 else None
                words = _histogram(axis, np.asarray(one.kept[stage]), one.total[stage], colours[one.plan], label and _shortened(label, 62))
                axis.text(0.02 if left else 0.98, 0.95 - 0.2 * line, words, transform=axis.transAxes, fontsize=9.5, va="top",
                          ha="left" if left else "right", color=colours[one.plan])  # fmt: skip
            axis.set(xlim=(0, 1.02 * total), ylabel="images (%)")
            axis.set_title(f"{stages[stage]} (of {total} patches)", fontweight="normal")
        axes[-1, 0].set_xlabel("patch tokens kept")
        columns = 2 if max(len(c.plan) for c in counts) <= LONGEST_LABEL else 1
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=10 if columns == 2 else 9.5)
    return figure


def curve_figure(curve: Curve) -> Figure:
    """A line with its band."""
    with styled():
        figure, axes = new_figure(WIDTH_IN, 3.0)
        axis = axes[0, 0]
        if curve.low is not None and curve.high is not None:
            axis.fill_between(curve.x, curve.low, curve.high, color=COLOURS[0], alpha=0.18, linewidth=0)
        axis.plot(curve.x, curve.y, color=COLOURS[0], linewidth=2, marker="o", markersize=4.5)
        axis.set(xlabel=curve.x_label, ylabel=curve.y_label, title=curve.title)
        if np.allclose(curve.x, np.round(curve.x)):
            axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _evaluated(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.accuracy_percent is not None]


@dataclass(frozen=True)
class _Point:
    """A plan in an accuracy plot."""

    x: float
    row: Row
    name: str
    colour: str
    marker: str
    hollow: bool = False
    x_error: Any = None


def _scatter(points: Sequence[_Point], x_label: str, title: str) -> Figure:
    """Accuracies with their errors; names stand beside the points, or in a legend where there is no room for one of them."""
    with styled():
        figure, axes = new_figure(WIDTH_IN, 3.4)
        axis = axes[0, 0]
        for p in points:
            axis.errorbar(p.x, p.row.accuracy_percent, xerr=p.x_error, yerr=p.row.accuracy_error, color=p.colour, marker=p.marker,
                          markersize=8, markerfacecolor=PAPER if p.hollow else p.colour, linestyle="none", elinewidth=1.4,
                          markeredgecolor=p.colour if p.hollow else PAPER, markeredgewidth=1.6 if p.hollow else 1, capsize=0,
                          label=_shortened(p.name, 62))  # fmt: skip
        axis.set(xlabel=x_label, ylabel="top-1 accuracy (%)", title=title)
        axis.margins(x=0.22, y=0.25)
        short = all(len(point.name) <= LONGEST_LABEL for point in points)
        if not (short and _label_points(figure, axis, points)):
            for text in list(axis.texts):
                text.remove()
            axis.margins(x=0.12, y=0.25)
            figure.set_figheight(3.4 + 0.24 * len(points))
            figure.legend(loc="outside lower left", frameon=False, fontsize=9.5)
    return figure


def _shortened(name: str, width: int) -> str:
    """`name` without its middle: plans differ at their ends, where select=argmax and the backend stand."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[:half]}…{name[-half:]}"


def _bar(axis, y: float, height: float, spread, colour: str, batch: int, faint: bool) -> None:
    """One speed-up with its whisker and, on it, its figure in words."""
    median, low, high = spread
    axis.barh(y, median, height, color=colour, alpha=0.42 if faint else 1)
    axis.plot([low, high], [y, y], color=PAPER, linewidth=3.6)
    axis.plot([low, high], [y, y], color=INK, linewidth=1.6)
    axis.annotate(f"{median:.2f} at batch {batch}", (0, y), (6, -0.5), textcoords="offset points", va="center", fontsize=9.5,
                  color=INK if faint else PAPER, fontweight="normal" if faint else "bold")  # fmt: skip


def _histogram(axis, kept: np.ndarray, total: int, colour: str, label: str | None) -> str:
    """Share of images by number of kept patches; one upright stroke where every image keeps as many. Returns it in words."""
    if kept.min() == kept.max():
        axis.axvline(kept[0], color=colour, linewidth=2.4, label=label)
        return f"always {kept[0]}"
    width = max(1, round(total / 49))
    edges = np.arange(-0.5, total + width, width)
    axis.hist(kept, edges, weights=np.full(len(kept), 100 / len(kept)), color=colour, alpha=0.75, label=label)
    low, median, high = np.percentile(kept, (25, 50, 75))
    axis.axvspan(low, high, color=colour, alpha=0.13, linewidth=0, zorder=0)
    axis.axvline(median, color=colour, linewidth=1.6, linestyle=(0, (4, 2)))
    return f"median {median:.0f}, quartiles {low:.0f} to {high:.0f}"


def _label_points(figure: Figure, axis, points: Sequence[_Point]) -> bool:
    """Write each point's name beside it, at the first of eight places that covers neither a point nor another name.

    Returns whether every name found such a place inside the frame.
    """
    figure.draw_without_rendering()
    renderer, frame = figure.canvas.get_renderer(), axis.get_window_extent().extents
    centres = axis.transData.transform([(point.x, point.row.accuracy_percent) for point in points])
    taken = [np.array([*(centre - 7), *(centre + 7)]) for centre in centres]
    for point in points:
        for dx, dy in ((9, 7), (9, -7), (-9, 7), (-9, -7), (0, 11), (0, -11), (14, 0), (-14, 0)):
            label = axis.annotate(
                point.name, (point.x, point.row.accuracy_percent), (dx, dy), textcoords="offset points", color=point.colour,
                fontsize=10, ha=("right", "center", "left")[int(np.sign(dx)) + 1],
                va=("top", "center", "bottom")[int(np.sign(dy)) + 1],
            )  # fmt: skip
            box = label.get_window_extent(renderer).extents
            inside = (box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all()
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                break
            label.remove()
        else:
            return False
    return True


def _overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two boxes (x0, y0, x1, y1) cover each other."""
    return bool((np.minimum(one[2:], other[2:]) > np.maximum(one[:2], other[:2])).all())
