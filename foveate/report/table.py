"""The table of results: one list of columns and cells, drawn as HTML for the report and by rich for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from foveate.report.figures import batches_of, macs_unit
from foveate.report.results import Row, Triple
from foveate.report.style import looks

NONE = "–"
HELPS = "helps"


@dataclass(frozen=True)
class Cell:
    """A figure, what qualifies it, and its tone: "" or "good" (a gain beyond its spread) or "flat" (none)."""

    main: str
    detail: str = ""
    tone: str = ""


def head_of(rows: Sequence[Row]) -> list[str]:
    """Column titles, units included."""
    batches = batches_of(rows)
    return [
        "plan",
        "accuracy (%)",
        "tokens after each stage",
        macs_unit(rows)[1],
        *(f"ms per image, batch {batch}" for batch in batches),
        *(f"speed-up, batch {batch}" for batch in batches),
        "verdict",
    ]


def cells_of(rows: Sequence[Row]) -> list[list[Cell]]:
    """Cells of all rows, in the order of `head_of`."""
    divisor, _ = macs_unit(rows)
    batches = batches_of(rows)
    dense = {(row.backend, row.precision): row.macs for row in rows if row.is_baseline}
    return [
        [
            Cell(row.plan, " ".join(filter(None, (row.backend, row.precision)))),
            _accuracy(row),
            Cell(" · ".join(_count(tokens) for tokens in row.tokens_mean) or NONE),
            _macs(row, divisor, dense.get((row.backend, row.precision))),
            *(_spread(row.latency_ms.get(batch)) for batch in batches),
            *(Cell("1", "baseline") if row.is_baseline else _spread(row.speedup.get(batch)) for batch in batches),
            _verdict(row, batches),
        ]
        for row in rows
    ]


def html_table(rows: Sequence[Row]) -> str:
    """The table as HTML; on a narrow screen each row becomes a card with its column titles beside the figures."""
    head, look = head_of(rows), looks(rows)
    lines = []
    for row, cells in zip(rows, cells_of(rows)):
        dot = f'<i class="dot" style="background:{look[row.plan][0]}"></i>'
        first = f'<th scope="row">{dot}{_html(cells[0])}</th>'
        rest = (f'<td data-head="{escape(title)}"{_tone(cell)}>{_html(cell)}</td>' for title, cell in zip(head[1:], cells[1:]))
        lines.append(f"<tr>{first}{''.join(rest)}</tr>")
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    return f'<table class="results"><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def terminal_table(rows: Sequence[Row], title: str | None = None, width: int = 120) -> Table:
    """The same cells as a rich table; below 110 columns without token counts and the details under the figures."""
    batches, slim = batches_of(rows), width < 110
    heads = ["plan", "accuracy %", "tokens", macs_unit(rows)[1]]
    heads += [f"ms b{batch}" for batch in batches] + [f"{'x' if slim else 'speed-up'} b{batch}" for batch in batches]
    shown = [index for index in range(len(heads) + 1) if not (slim and heads[index : index + 1] == ["tokens"])]
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for index in shown:
        name, wraps = [*heads, "verdict"][index], index in (0, len(heads))
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=not wraps, min_width=14 if wraps else None)
    styles = {"good": "bold green", "flat": "yellow", "": "none"}
    for cells in cells_of(rows):
        texts = [Text(cell.main, styles[cell.tone]) for cell in cells]
        for text, cell in zip(texts, cells):
            if cell.detail and not slim:
                text.append(f"\n{cell.detail}", "dim not bold")
        table.add_row(*(texts[index] for index in shown))
    return table


def _accuracy(row: Row) -> Cell:
    if row.accuracy_percent is None:
        return Cell(NONE)
    return Cell(f"{row.accuracy_percent:.2f}", "" if row.accuracy_error is None else f"± {row.accuracy_error:.2f}")


def _count(tokens: float) -> str:
    return f"{tokens:.0f}" if tokens >= 100 else f"{tokens:.1f}".removesuffix(".0")


def _macs(row: Row, divisor: float, dense: float | None) -> Cell:
    saved = "" if dense is None or row.is_baseline else f"÷ {dense / row.macs:.2f}"
    return Cell(f"{row.macs / divisor:.4g}", saved)


def _spread(spread: Triple | None) -> Cell:
    if spread is None:
        return Cell(NONE)
    digits = 2 if spread[0] < 100 else 1
    median, low, high = (f"{value:.{digits}f}" for value in spread)
    return Cell(median, f"{low} to {high}")


def _verdict(row: Row, batches: Sequence[int]) -> Cell:
    """One word where all batch sizes agree, otherwise which batch sizes it helps at."""
    said = {batch: row.verdict[batch] for batch in batches if batch in row.verdict}
    if row.is_baseline or not said:
        return Cell("baseline" if row.is_baseline else NONE)
    words = set(said.values())
    if len(words) == 1:
        word = words.pop()
        return Cell(word, tone="good" if word == HELPS else "flat")
    good = ", ".join(str(batch) for batch, word in said.items() if word == HELPS)
    rest = "; ".join(f"{word} at batch {batch}" for batch, word in said.items() if word != HELPS)
    return Cell(f"{HELPS} at batch {good}", rest, "flat")


def _html(cell: Cell) -> str:
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    return f"<span>{escape(cell.main)}</span>{detail}"


def _tone(cell: Cell) -> str:
    return f' class="{cell.tone}"' if cell.tone else ""
