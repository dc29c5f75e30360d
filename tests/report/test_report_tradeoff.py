"""report/tradeoff.py and scripts/fig19.py: printed points, our own, and what is not known said so."""

import importlib.util
import json
from pathlib import Path

import pytest

import foveate as fv
from foveate.report.tradeoff import Panel, Point, panel_in_words, tradeoff_figure

SCRIPT = Path(fv.__file__).parent.parent / "scripts" / "fig19.py"


@pytest.fixture(scope="module")
def fig19():
    spec = importlib.util.spec_from_file_location("fig19", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_families_are_lines_by_rising_cost_and_unknown_accuracies_strokes():
    panel = Panel("Here", {"a": (Point("two", 2.0, 70.0, 1.0), Point("one", 1.0, 60.0), Point("none", 3.0)), "b": (Point("only", 4.0),)}, ("c", "d"))
    axis = tradeoff_figure([panel]).axes[0]
    lines = [line for line in axis.lines if list(line.get_ydata()) == [60.0, 70.0]]
    assert len(lines) == 1 and list(lines[0].get_xdata()) == [1.0, 2.0]
    assert sorted(line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]) == [3.0, 4.0]
    assert [text.get_text() for text in axis.texts] == ["b: cost only; not printed: c and d"]
    assert panel_in_words(panel) == "Here. a: 70.00 % at 2 GMACs and 60.00 % at 1 GMACs. b: cost only; not printed: c and d"


def test_the_same_family_looks_the_same_in_both_panels():
    panels = [Panel("One", {"a": (Point("x", 1.0, 60.0),)}), Panel("Two", {"b": (Point("y", 1.0, 50.0),), "a": (Point("x", 2.0, 61.0),)})]
    first, second = (axis.lines for axis in tradeoff_figure(panels).axes)
    (one,) = (line for line in first if list(line.get_ydata()) == [60.0])
    (two,) = (line for line in second if list(line.get_ydata()) == [61.0])
    assert one.get_color() == two.get_color() and one.get_marker() == two.get_marker()


def test_counted_costs_of_the_table_are_ours_and_every_accuracy_has_a_source(fig19):
    import csv

    rows = list(csv.DictReader(fig19.PUBLISHED.read_text().splitlines()))
    assert all(row["source"] for row in rows if row["top1_percent"]) and not any(row["top1_percent"] for row in rows if not row["gmacs"])
    for row in rows:
        if row["gmacs_from"] == "counted" and row["family"] == "DeiT":
            assert round(fv.count(row["model"]).macs / 1e9, 3) == float(row["gmacs"])
    panel = fig19.published()
    assert len(panel.families["IRET"]) == 9 and panel.missing == ("ATS", "AdaViT") and "ResNet: cost only" in panel_in_words(panel)


def test_runs_and_answers_of_eval_are_points(fig19, tmp_path):
    run, answer = tmp_path / "run", tmp_path / "answer.json"
    run.mkdir()
    (run / "plan.json").write_text(fv.Plan([fv.EViT()]).to_json())
    (run / "run.json").write_text(json.dumps({"model": "m", "data": "d", "test": {"macs": 5e7, "accuracy_percent": 90.5, "uncertainty_percent": 1.2}}))
    answer.write_text(json.dumps({"plan": "tome(r=3) + evit()", "macs": 4e7, "accuracy_percent": 91.0, "model": "m", "data": "d"}))
    panel = fig19.measured([run, answer])
    assert panel.title == "Ours: m, d" and panel.families["evit"][0] == Point("evit", 0.05, 90.5, 1.2)
    assert panel.families["tome+evit"][0].gmacs == 0.04
    (run / "run.json").write_text('{"model": "m"}')
    with pytest.raises(fv.FoveateError, match="(?s)no accuracy and cost.*foveate eval"):
        fig19.measured([run])
