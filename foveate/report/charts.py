"""Charts with several lines, bars of parts and tables of their own: what inspections and measurements of attention show."""

from html import escape

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from foveate.report.results import Bars, Chart, Table
from foveate.report.style import COLOURS, INK, MARKERS, MUTED, PAPER, new_figure, styled

WIDTH_IN = 5.0
NARROWEST = 0.085
"""Share of the axis below which a part of a bar is too narrow for its figure."""


def chart_figure(chart: Chart) -> Figure:
    """The lines of `chart`, each in its colour and with its marker, its band pale behind it."""
    with styled():
        figure, axes = new_figure(WIDTH_IN, 3.0 + 0.24 * len(chart.lines))
        axis = axes[0, 0]
        for line, colour, marker in zip(chart.lines, COLOURS, MARKERS):
            if line.low is not None and line.high is not None:
                axis.fill_between(chart.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
            axis.plot(chart.x, line.y, color=colour, linewidth=2, marker=marker, markersize=5, label=line.name)
        for mark in chart.marks:
            axis.axhline(mark, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        axis.set(xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
        if chart.log:
            axis.set(xscale="log", yscale="log", xticks=chart.x)
            axis.xaxis.set_minor_formatter(NullFormatter())
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_formatter(StrMethodFormatter("{x:g}"))
        elif np.allclose(chart.x, np.round(chart.x)):
            axis.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside lower left", frameon=False, fontsize=9.5)
    return figure


def chart_in_words(chart: Chart) -> str:
    """The chart for those who do not see it."""
    lines = (f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in chart.lines)
    return f"{chart.title}: {chart.y_label}, {', '.join(lines)}"


def bars_figure(bars: Bars) -> Figure:
    """The bars below one another; a part has the same colour in all of them, and its figure on it where there is room."""
    names = list(dict.fromkeys(name for bar in bars.bars for name, _ in bar.parts))
    # More parts than colours: from the first one again, pale.
    look = {name: {"color": COLOURS[i % len(COLOURS)], "alpha": 1 if i < len(COLOURS) else 0.55} for i, name in enumerate(names)}
    longest = max(sum(value for _, value in bar.parts) for bar in bars.bars)
    with styled():
        figure, axes = new_figure(WIDTH_IN, 1.15 + 0.62 * len(bars.bars) + 0.22 * len(names))
        axis = axes[0, 0]
        for place, bar in enumerate(bars.bars):
            start = 0.0
            axis.text(0, place - 0.3, bar.name, fontsize=9.5, va="bottom", color=INK)
            for name, value in bar.parts:
                axis.barh(place, value, 0.5, left=start, edgecolor=PAPER, linewidth=1, **look[name])
                if value > NARROWEST * longest:
                    axis.text(start + value / 2, place, f"{value:.3g}", ha="center", va="center", fontsize=9, color=PAPER)
                start += value
        for name in names:
            axis.plot([], [], linewidth=7, label=name, **look[name])
        axis.set(xlabel=bars.x_label, title=bars.title, yticks=[], ylim=(len(bars.bars) - 0.55, -0.7), xlim=(0, 1.02 * longest))
        axis.grid(False, axis="y")
        figure.legend(loc="outside lower left", frameon=False, fontsize=9.5, ncols=2 if max(map(len, names)) < 30 else 1)
    return figure


def bars_in_words(bars: Bars) -> str:
    """The bars for those who do not see them."""
    said = (f"{bar.name}: {', '.join(f'{name} {value:.3g}' for name, value in bar.parts)}" for bar in bars.bars)
    return f"{bars.title}, {bars.x_label}. {'; '.join(said)}"


def table_html(table: Table) -> str:
    """A table as HTML; on a narrow screen each row becomes a card with its column titles beside the figures."""
    kinds = ['class="word"' if index < table.left else "" for index in range(len(table.head))]
    titles = "".join(f'<th scope="col" {kind}>{escape(title)}</th>' for title, kind in zip(table.head, kinds))
    lines = []
    for first, *rest in table.rows:
        cells = (f'<td data-head="{escape(title)}" {kind}><span>{escape(cell)}</span></td>' for title, kind, cell in zip(table.head[1:], kinds[1:], rest))
        lines.append(f'<tr><th scope="row"><span>{escape(first)}</span></th>{"".join(cells)}</tr>')
    return f'<table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
