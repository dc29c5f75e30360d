"""When each unit of a simulated accelerator works on what (Fig. 7 of ViTALiTy)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from foveate.errors import FoveateError
from foveate.report.style import COLOURS, INK, PAPER, new_figure, styled

FORMATS = (".svg", ".png", ".pdf")
NARROWEST = 0.035
"""Share of the axis below which a bar is too narrow for the number of its head."""


@dataclass(frozen=True)
class Span:
    """Work of one unit. start, end: cycles, which may be negative. name: the operation; part: which of its repetitions."""

    unit: str
    name: str
    start: float
    end: float
    part: int = 1


def timeline_figure(spans: Sequence[Span], title: str, first: float, last: float, note: str = "") -> Figure:
    """A row for each unit from cycle `first` to `last`, a bar for each span in its operation's colour, the repetition's number on it."""
    shown = [span for span in spans if span.end > first and span.start < last]
    units, names = (list(dict.fromkeys(getattr(span, key) for span in shown)) for key in ("unit", "name"))
    # More operations than colours: from the first one again, pale.
    look = {name: {"color": COLOURS[i % len(COLOURS)], "alpha": 1 if i < len(COLOURS) else 0.5} for i, name in enumerate(names)}
    with styled():
        figure, axes = new_figure(9.0, 1.2 + 0.42 * len(units) + 0.2 * -(-len(names) // 3))
        axis = axes[0, 0]
        for span in shown:
            row = units.index(span.unit)
            start, end = max(span.start, first), min(span.end, last)
            axis.barh(row, end - start, 0.62, left=start, edgecolor=PAPER, linewidth=0.8, **look[span.name])
            if end - start > NARROWEST * (last - first):
                axis.text((start + end) / 2, row, str(span.part), ha="center", va="center", fontsize=8.5, color=PAPER)
        for name in names:
            axis.plot([], [], linewidth=7, label=name, **look[name])
        axis.set(xlabel="cycles" + (f"; {note}" if note else ""), title=title, xlim=(first, last), ylim=(len(units) - 0.5, -0.5))
        axis.set_yticks(range(len(units)), units, color=INK)
        axis.grid(False, axis="y")
        figure.legend(loc="outside lower left", frameon=False, fontsize=9, ncols=3)
    return figure


def write_timeline(path: Path, figure: Figure) -> None:
    """Writes the figure in the format that the file's name ends with; raises FoveateError for another."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise FoveateError(f"{path.name} for a timeline", f"a name that ends with {', '.join(FORMATS)}", f"write for instance {path.stem or 'timeline'}.svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    with styled():
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
