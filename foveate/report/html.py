"""report.html: one file that holds everything it shows, light, readable on a phone, no address in it."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from foveate.files import write_atomic
from foveate.report import charts, figures
from foveate.report.heatmaps import head_maps_html, matrix_figure, matrix_in_words
from foveate.report.page import PAGE
from foveate.report.results import Results
from foveate.report.store import from_dict, load_results
from foveate.report.style import as_list, looks, to_svg
from foveate.report.table import html_table
from foveate.report.tokens import token_grid_html


def write_report(path: str | Path, results: Results | Mapping[str, Any]) -> Path:
    """Write the report of `results` to `path` as one self-contained HTML file and return the path.

    results: a Results, or the nested dictionary of `foveate.report.to_dict`. The folder is made where it is missing.
    Raises FoveateError where the dictionary has unknown keys or arrays do not fit together.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(results if isinstance(results, Results) else from_dict(results))
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def render_run(folder: str | Path) -> Path:
    """Write report.html anew from results.json and results.npz of a run folder."""
    return write_report(Path(folder) / "report.html", load_results(folder))


def render(results: Results) -> str:
    """The page as text."""
    sections = [
        *_table(results), *_tables(results), *_notes(results), *_tradeoff(results), *_charts(results), *_tokens(results), *_heads(results),
        *_curves(results), *_made(results),
    ]  # fmt: skip
    return PAGE.substitute(
        title=escape(results.title),
        sentence=f"<p class='lead'>{escape(results.sentence)}</p>" if results.sentence else "",
        machine=_machine_card(results.machine),
        sections="\n".join(sections),
    )


def _table(results: Results) -> list[str]:
    if not results.rows:
        return []
    caption = (
        "Accuracy is top-1 with one standard error. Tokens include prefix and package tokens. MACs are multiply-accumulates of "
        "the mean image (papers call them FLOPs). Times are medians with their quartiles below; a speed-up is the median of the "
        "ratios of rounds in which both ran, over the dense model in the same backend and precision. "
        "A plan “helps” only where the lower quartile of its speed-up is above 1."
    )
    return [_section("Results", f"<figure>{html_table(results.rows)}<figcaption>{caption}</figcaption></figure>")]


def _tables(results: Results) -> list[str]:
    return [_section(table.title, f"<figure>{charts.table_html(table)}<figcaption>{escape(table.caption)}</figcaption></figure>") for table in results.tables]


def _notes(results: Results) -> list[str]:
    notes = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    return [f"<ul class='notes'>{notes}</ul>"] if notes else []


def _tradeoff(results: Results) -> list[str]:
    rows, shown = results.rows, []
    evaluated = [row for row in rows if row.accuracy_percent is not None]
    batches = figures.batches_of(evaluated)
    if evaluated:
        alt = "Accuracy over operations: " + _spoken((r.plan, r.accuracy_percent, "%") for r in evaluated)
        shown.append(_figure(figures.pareto_macs(rows), alt, "Up and left is better. Bars are one standard error."))
    for batch in dict.fromkeys((*batches[:1], *batches[-1:])):
        there = [row for row in evaluated if batch in row.latency_ms]
        alt = f"Accuracy over time at batch {batch}: " + _spoken((r.plan, r.latency_ms[batch][0], "ms") for r in there)
        text = "The same accuracies over measured time. Horizontal bars are quartiles of the rounds."
        shown.append(_figure(figures.pareto_latency(rows, batch), alt, text))
    compared = [row for row in rows if row.speedup and not row.is_baseline]
    if compared:
        first = {row.plan: next(iter(row.speedup.values()))[0] for row in compared}
        alt = "Speed-up over the dense model: " + _spoken((plan, value, "times") for plan, value in first.items())
        text = "Bars are measured medians with their quartiles, pale for the smaller batch; strokes are the ratio of operations."
        shown.append(_figure(figures.speedup_bars(rows), alt, text))
    return [_section("What it costs", f"<div class='figures'>{''.join(shown)}</div>")] if shown else []


def _tokens(results: Results) -> list[str]:
    parts = []
    for grid in results.grids:
        text = "Veiled patches were removed and took no further part; the corner says what share of the patches lives on."
        parts.append(f"<h3>{escape(grid.title)}</h3><figure>{token_grid_html(grid)}<figcaption>{text}</figcaption></figure>")
    if results.counts:
        names = as_list([one.plan for one in results.counts])
        text = "Share of test images by the number of patches they keep. Dashed: median; band: quartiles."
        figure = figures.kept_histogram(results.counts, looks(results.rows))
        alt = f"Histogram of patch tokens kept per image, by stage, for {names}"
        parts.append(f"<div class='figures'>{_figure(figure, alt, text)}</div>")
    return [_section("Where it looks", "".join(parts))] if parts else []


def _heads(results: Results) -> list[str]:
    text = "Each head scores every patch (dark violet: drop, yellow: keep); the last picture merges them with the weights of Eq. 6."
    parts = [
        f"<h3>{escape(maps.title)}</h3><figure>{head_maps_html(maps)}<figcaption>{text}</figcaption></figure>"
        for maps in results.heads
    ]
    return [_section("What each head sees", "".join(parts))] if parts else []


def _curves(results: Results) -> list[str]:
    shown = []
    for curve in results.curves:
        alt = f"{curve.title}: {curve.y_label} from {curve.y[0]:.3g} to {curve.y[-1]:.3g}" if len(curve.y) else curve.title
        shown.append(_figure(figures.curve_figure(curve), alt, curve.caption))
    return [_section("Curves", f"<div class='figures'>{''.join(shown)}</div>")] if shown else []


def _charts(results: Results) -> list[str]:
    shown = [_figure(charts.chart_figure(chart), charts.chart_in_words(chart), chart.caption) for chart in results.charts]
    shown += [_figure(charts.bars_figure(bars), charts.bars_in_words(bars), bars.caption) for bars in results.bars]
    shown += [_figure(matrix_figure(matrix), matrix_in_words(matrix), matrix.caption) for matrix in results.matrices]
    return [_section("In pictures", f"<div class='figures'>{''.join(shown)}</div>")] if shown else []


def _made(results: Results) -> list[str]:
    made = results.made
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    entries = {
        "command": f"<code>{escape(made.command)}</code>" if made.command else "",
        "started": escape(made.started),
        "took": "" if made.seconds is None else _duration(made.seconds),
        "seeds": ", ".join(map(str, made.seeds)),
        "versions": escape(versions),
    }
    return [_section("How this was made", _definitions(entries))] if any(entries.values()) else []


def _machine_card(machine: Mapping[str, Any]) -> str:
    """The few facts of the machine that explain a time; a high load says so in words."""
    if not machine:
        return ""
    cores = machine.get("cpu_cores")
    busy = (machine.get("load_average_1min") or 0) > 0.5 * (cores or 1)
    entries = {
        "processor": " · ".join(
            filter(None, [machine.get("cpu_model"), f"{cores} cores" if cores else "", *machine.get("cpu_flags", [])])
        ),
        "graphics": ", ".join(machine.get("gpus", [])),
        "memory": f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else "",
        "system": " · ".join(filter(None, [machine.get("os"), f"Python {machine['python']}" if machine.get("python") else ""])),
        "load before": f"{machine['load_average_1min']} (other work was running: expect wide spreads)" if busy else "",
        "commit": machine.get("git_commit") or "",
    }
    return f"<section class='card' aria-label='machine'>{_definitions({k: escape(str(v)) for k, v in entries.items()})}</section>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _figure(figure: Figure, alt: str, caption: str) -> str:
    return f"<figure>{to_svg(figure, alt)}<figcaption>{escape(caption)}</figcaption></figure>"


def _definitions(entries: Mapping[str, str]) -> str:
    """A definition list of the entries that have a value; values are HTML."""
    pairs = "".join(f"<div><dt>{escape(key)}</dt><dd>{value}</dd></div>" for key, value in entries.items() if value)
    return f"<dl>{pairs}</dl>"


def _spoken(entries) -> str:
    return ", ".join(f"{name} {value:.4g} {unit}" for name, value, unit in entries)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


