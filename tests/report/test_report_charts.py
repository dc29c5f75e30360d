"""report/charts.py: several lines, bars of parts and tables, and their place in a page."""

import re
from dataclasses import replace

import numpy as np
import pytest

from foveate.report import Bar, Bars, Chart, Line, Results, Table, load_results, render, save_results
from foveate.report.charts import bars_figure, chart_figure, table_html


@pytest.fixture
def chart():
    x = np.array([197, 577, 1025])
    lines = (Line("before", np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.5, 3.0]), np.array([1.5, 2.5, 5.0])), Line("after <b>", np.array([3.0, 3.0, 3.0])))
    return Chart("Shares & more", "tokens", "share (%)", x, lines, "It rises.", marks=(1.0,))


@pytest.fixture
def bars():
    return Bars("Steps", "milliseconds", (Bar("Taylor", (("1: centring", 3.0), ("2: context", 0.1))), Bar("softmax", (("SV", 7.0),))), "As measured.")


@pytest.fixture
def table():
    return Table("Steps of an attention", ("attention", "step", "ms"), (("Taylor", "G & more", "1.40"), ("softmax", "SV", "3.61")), "One row a step.", left=2)


def test_a_chart_has_its_lines_bands_and_marks(chart):
    axis = chart_figure(chart).axes[0]
    drawn = [line for line in axis.lines if len(line.get_xdata()) == 3]
    assert [line.get_label() for line in drawn] == ["before", "after <b>"] and list(drawn[0].get_ydata()) == [1, 2, 4]
    assert len(axis.collections) == 1, "one of the lines has a band"
    assert [line.get_ydata()[0] for line in axis.lines if len(line.get_xdata()) == 2] == [1.0]
    assert drawn[0].get_color() != drawn[1].get_color()


def test_logarithmic_axes_name_their_points(chart):
    figure = chart_figure(replace(chart, log=True))
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["197", "577", "1025"]


def test_parts_of_a_bar_stand_side_by_side_with_their_figures(bars):
    axis = bars_figure(bars).axes[0]
    assert [(round(p.get_x(), 6), round(p.get_width(), 6)) for p in axis.patches] == [(0, 3), (3, 0.1), (0, 7)]
    assert [text.get_text() for text in axis.texts] == ["Taylor", "3", "softmax", "7"], "no figure on a part that is too narrow"


def test_a_table_has_its_titles_beside_every_figure(table):
    html = table_html(table)
    assert html.count("<tr>") == 3 and 'data-head="ms"' in html and "G &amp; more" in html
    assert html.count('class="word"') == 2 + 2, "titles and cells of the two columns of words, the rows' own names apart"


def test_all_three_come_back_from_disk_and_into_the_page(chart, bars, table, tmp_path):
    results = Results("Attention", tables=(table,), charts=(chart,), bars=(bars,), notes=("Nothing was left out.",))
    save_results(tmp_path, results)
    back = load_results(tmp_path)
    assert back.bars == (bars,) and back.tables == (table,) and (back.charts[0].lines[0].high == chart.lines[0].high).all()
    page = render(back)
    assert page == render(results)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Steps of an attention", "In pictures"]
    assert page.count("<svg") == 2 and "after &lt;b&gt; from 3 to 3" in page and "Nothing was left out." in page
