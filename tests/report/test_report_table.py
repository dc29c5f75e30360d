"""report/table.py: the same figures in HTML and in the terminal, and an honest verdict."""

import io
import re

import pytest
from rich.console import Console

from foveate.report import html_table, terminal_table
from foveate.report.table import cells_of, head_of


def text_of(table, width=140):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_head_names_units_and_batches(row, rows):
    assert head_of(rows) == [
        "plan", "accuracy (%)", "tokens after each stage", "GMAC", "ms per image, batch 1", "ms per image, batch 16",
        "speed-up, batch 1", "speed-up, batch 16", "verdict",
    ]  # fmt: skip
    assert "MMAC" in head_of([row(macs=2.7e8)])


def test_cells_hold_figure_and_uncertainty(rows):
    dense, topk, _ = cells_of(rows)
    assert [cell.main for cell in topk] == ["spvit <top-k>", "79.30", "126 · 80.2", "2.3", "12.50", "7.50", "1.60", "1.60", "helps"]
    assert (topk[0].detail, topk[1].detail, topk[3].detail) == ("openvino bf16", "± 0.55", "÷ 2.00")
    assert (topk[6].detail, topk[8].tone) == ("1.50 to 1.70", "good")
    assert (dense[6].main, dense[6].detail, dense[8].main, dense[3].detail) == ("1", "baseline", "baseline", "")


def test_a_verdict_that_depends_on_the_batch_says_so(row, rows):
    mixed = cells_of(rows)[2][-1]
    assert (mixed.main, mixed.detail, mixed.tone) == ("helps at batch 16", "no gain here at batch 1", "flat")
    flat = cells_of([row("x", verdict={1: "no gain here"})])[0][-1]
    assert (flat.main, flat.tone) == ("no gain here", "flat")


def test_what_was_not_measured_is_a_dash(row):
    cells = cells_of([row("x", accuracy_percent=None, accuracy_error=None, latency_ms={1: (2.0, 1.9, 2.1)}), row(baseline="y")])[0]
    assert [cell.main for cell in cells] == ["x", "–", "–", "4.6", "2.00", "–", "–", "–", "–"]


def test_a_ratio_of_operations_refers_to_the_dense_row_of_the_same_backend(row):
    rows = [row(), row("x", macs=2.3e9), row("x", macs=2.3e9, backend="torch")]
    assert [cells[3].detail for cells in cells_of(rows)] == ["", "÷ 2.00", ""]


def test_html_has_every_cell_escaped_and_titled(rows):
    html = html_table(rows)
    assert html.count("<tr>") == 1 + len(rows)
    assert "spvit &lt;top-k&gt;" in html and "<top-k>" not in html
    for cells in cells_of(rows):
        assert all(cell.main.replace("<", "&lt;").replace(">", "&gt;") in html for cell in cells)
    titles = re.findall(r'data-head="([^"]+)"', html)
    assert titles == head_of(rows)[1:] * len(rows)
    assert html.count('scope="row"') == len(rows) and html.count('class="good"') == 1


def test_the_terminal_shows_the_same_figures(rows):
    text = text_of(terminal_table(rows, "Results"))
    assert text.startswith("Results")
    for cells in cells_of(rows):
        assert all(cell.main in text or " " in cell.main for cell in cells)
    assert "± 0.55" in text and "11.90 to 12.20" in text


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_keeps_every_figure_on_its_line(rows, width):
    text = text_of(terminal_table(rows, width=width), width)
    line = next(line for line in text.splitlines() if "spvit" in line)
    assert line.split()[-7:] == ["79.30", "2.3", "12.50", "7.50", "1.60", "1.60", "helps"]
    assert max(map(len, text.splitlines())) <= width


def test_markup_in_a_plan_is_text_not_style(row):
    assert "spvit(after=[3,6],keep=[0.7,0.5])" in text_of(terminal_table([row("spvit(after=[3,6],keep=[0.7,0.5])")], width=200), 200).replace("\n", "")
