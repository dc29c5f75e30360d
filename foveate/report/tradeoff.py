"""Accuracy against operation count, one panel a data set: families of models as lines, with what nobody printed said below (Fig. 19 of IRET)."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from foveate.report.style import COLOURS, INK, MARKERS, MUTED, as_list, new_figure, styled

WIDTH_IN = 5.0


@dataclass(frozen=True)
class Point:
    """One model: its cost in GMACs, its top-1 accuracy in percent, None where it is not known, and half a 95 % interval of that."""

    name: str
    gmacs: float
    accuracy_percent: float | None = None
    uncertainty_percent: float | None = None


@dataclass(frozen=True)
class Panel:
    """Models of one data set: family -> its points. missing: families of which not even the cost is known."""

    title: str
    families: dict[str, tuple[Point, ...]]
    missing: tuple[str, ...] = ()


def tradeoff_figure(panels: Sequence[Panel]) -> Figure:
    """The panels below one another; a family has the same colour and marker in all of them.

    A model whose accuracy is not known is a stroke on the axis at its cost, in its family's colour.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.families))
    look = {name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i, name in enumerate(names)}
    with styled():
        figure, axes = new_figure(WIDTH_IN, 3.4 * len(panels) + 0.24 * len(names), len(panels), 1)
        for axis, panel in zip(axes[:, 0], panels):
            for name, points in panel.families.items():
                _family(axis, sorted(points, key=lambda point: point.gmacs), look[name])
            if words := unknown_in_words(panel):
                axis.text(0.99, 0.06, words, transform=axis.transAxes, ha="right", va="bottom", fontsize=8.5, color=MUTED, wrap=True)
            axis.set(xlabel="GMACs an image", ylabel="top-1 accuracy (%)", title=panel.title)
            axis.set_xlim(left=0)
            axis.margins(y=0.15)
        for name in names:
            axes[0, 0].plot([], [], label=name, markersize=7, linewidth=1.6, **look[name])
        figure.legend(loc="outside lower left", frameon=False, fontsize=9.5, ncols=2)
    return figure


def unknown_in_words(panel: Panel) -> str:
    """What the panel lacks, or nothing: families whose accuracies, or of which anything at all, are not known."""
    without = [name for name, points in panel.families.items() if not any(point.accuracy_percent is not None for point in points)]
    words = [f"{as_list(without)}: cost only"] if without else []
    return "; ".join(words + ([f"not printed: {as_list(panel.missing)}"] if panel.missing else []))


def panel_in_words(panel: Panel) -> str:
    """The panel for those who do not see it."""
    lines = []
    for name, points in panel.families.items():
        known = [f"{point.accuracy_percent:.2f} % at {point.gmacs:.3g} GMACs" for point in points if point.accuracy_percent is not None]
        lines += [f"{name}: {as_list(known)}"] if known else []
    return ". ".join([panel.title, *lines, *filter(None, [unknown_in_words(panel)])])


def _family(axis, points: Sequence[Point], look: dict[str, str]) -> None:
    known = [point for point in points if point.accuracy_percent is not None]
    axis.plot([p.gmacs for p in known], [p.accuracy_percent for p in known], markersize=7, linewidth=1.6, markeredgecolor=INK, markeredgewidth=0.4, **look)
    for point in known:
        if point.uncertainty_percent:
            axis.errorbar(point.gmacs, point.accuracy_percent, point.uncertainty_percent, color=look["color"], elinewidth=1, capsize=0, alpha=0.6)
    for point in points:
        if point.accuracy_percent is None:
            axis.axvline(point.gmacs, ymax=0.04, color=look["color"], linewidth=2.4)
