"""report/figures.py: what the figures hold: points, bars, labels, spreads."""

from dataclasses import replace

import numpy as np
import pytest

from foveate.report import TokenCounts
from foveate.report.figures import curve_figure, kept_histogram, pareto_latency, pareto_macs, speedup_bars
from foveate.report.style import BASELINE_COLOUR, looks, to_svg


def words(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def overlaps(figure):
    """Pairs of point labels whose boxes cover each other."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for axis in figure.axes for text in axis.texts]
    return [(i, j) for i, one in enumerate(boxes) for j, other in enumerate(boxes) if i < j and one.overlaps(other)]


def test_points_stand_at_their_figures_and_are_named(rows):
    figure = pareto_macs(rows)
    axis = figure.axes[0]
    points = {tuple(np.round(line.get_xydata()[0], 6)) for line in axis.lines if line.get_marker() not in ("None", "_", "|")}
    assert points == {(4.6, 79.8), (2.3, 79.3), (2.5, 79.1)}
    assert words(figure) == ["dense", "spvit <top-k>", "argmax"]
    assert axis.get_xlabel() == "GMAC per image" and "accuracy" in axis.get_ylabel()
    assert overlaps(figure) == []


def test_labels_of_crowded_points_do_not_cover_each_other(row):
    rows = [row(f"plan {i}", macs=2.3e9 + 2e8 * i, accuracy_percent=79.0 + 0.4 * i, baseline="plan 0") for i in range(4)]
    figure = pareto_macs(rows)
    assert len(words(figure)) == 4 and overlaps(figure) == []


def test_points_on_top_of_each_other_are_named_in_a_legend(row):
    rows = [row(f"plan {i}", accuracy_percent=79.0 + 0.01 * i, baseline="plan 0") for i in range(9)]
    figure = pareto_macs(rows)
    assert words(figure) == [] and len(figure.legends[0].get_texts()) == 9


def test_one_point_stands_for_backends_that_agree(rows):
    twice = [*rows, *(replace(r, backend="torch", latency_ms={16: (40.0, 39.0, 41.0)}) for r in rows)]
    assert len(words(pareto_macs(twice))) == 3
    crowded = pareto_latency(twice, 16)
    names = [text.get_text() for text in crowded.legends[0].get_texts()]
    assert words(crowded) == [] and len(names) == 6 and "dense, torch bf16" in names


def test_plans_too_long_for_a_label_go_to_a_legend_that_keeps_what_tells_them_apart(rows):
    inline = "spvit(after=[3, 6, 9], keep=[0.637, 0.406, 0.259], select=argmax)"
    rows = [rows[0], replace(rows[1], plan=inline), replace(rows[1], plan=inline, backend="torch")]
    figure = pareto_latency(rows, 16)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words(figure) == [] and names[0] == "dense, openvino bf16"
    assert len(set(names)) == 3 and all(len(name) <= 62 for name in names)
    assert names[1].startswith("spvit(after=[3, 6, 9]") and names[2].endswith("select=argmax), torch bf16")
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_latency_figure_takes_its_batch_and_skips_what_was_not_measured(rows):
    partly = [*rows[:2], replace(rows[2], latency_ms={1: (9.0, 8.0, 10.0)})]
    assert words(pareto_latency(partly, 16)) == ["dense", "spvit <top-k>"]
    axis = pareto_latency(partly, 1).axes[0]
    assert "1 image at a time" in axis.get_xlabel()


def test_bars_are_medians_and_the_stroke_is_the_ratio_of_operations(rows):
    figure = speedup_bars(rows)
    axis = figure.axes[0]
    assert [round(bar.get_width(), 3) for bar in axis.patches] == [1.6, 1.6, 0.97, 1.5]
    assert "0.97 at batch 1" in words(figure) and "1.50 at batch 16" in words(figure)
    strokes = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) == 0]
    assert sorted(strokes) == pytest.approx([1, 4.6 / 2.5, 4.6 / 2.3])
    assert axis.get_xlim()[1] > 4.6 / 2.3


def test_a_promise_beyond_every_bar_is_still_in_the_picture(rows):
    slow = replace(rows[1], macs=0.46e9, speedup={1: (0.8, 0.7, 0.9)})
    assert speedup_bars([rows[0], slow]).axes[0].get_xlim()[1] > 10


def test_histogram_has_a_panel_a_stage_and_says_the_spread(results):
    figure = kept_histogram(results.counts, looks(results.rows))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [f"{stage} (of 196 patches)" for stage in results.counts[0].stages]
    low, median, high = np.percentile(results.counts[0].kept[0], (25, 50, 75))
    assert words(figure)[:2] == [f"median {median:.0f}, quartiles {low:.0f} to {high:.0f}", "always 125"]
    heights = sum(bar.get_height() for bar in figure.axes[0].patches if bar.get_y() == 0 and bar.get_width() < 10)
    assert heights == pytest.approx(100)


@pytest.mark.parametrize("total", [1, 4, 49, 196, 3136])
def test_no_image_falls_out_of_the_histogram(total):
    kept = np.random.default_rng(0).integers(0, total + 1, 500)
    kept[:2] = 0, total
    axis = kept_histogram([TokenCounts("p", (kept,), (total,), ("after block 3",))]).axes[0]
    bars = [patch for patch in axis.patches if patch.get_height() != 1]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(100)


def test_curve_keeps_whole_numbers_on_its_axis(results):
    axis = curve_figure(results.curves[0]).axes[0]
    assert axis.get_xlabel() == "block" and axis.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert all(float(tick).is_integer() for tick in axis.get_xticks())
    assert len(axis.collections) == 1


def test_looks_are_the_same_for_any_order_of_backends(rows):
    look = looks(rows)
    assert look["dense"][0] == BASELINE_COLOUR
    assert len({colour for colour, _ in look.values()}) == 3
    assert looks([*rows, *(replace(r, backend="torch") for r in rows)]) == look


def test_svg_is_repeatable_inline_text_without_addresses(rows):
    svg = to_svg(pareto_macs(rows), 'a "quoted" <alt>')
    assert svg.startswith("<svg viewBox=") and svg.endswith("</svg>")
    assert "http" not in svg and "<metadata" not in svg and "<!DOCTYPE" not in svg
    assert 'aria-label="a &quot;quoted&quot; &lt;alt&gt;"' in svg
    assert ">dense<" in svg
    assert svg == to_svg(pareto_macs(rows), 'a "quoted" <alt>')
