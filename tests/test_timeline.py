"""Timelines of simulated accelerators as figures, and what `foveate simulate` says of machines without a unit for softmax."""

import pytest
from command import answer, run

import foveate as fv
from foveate.report.timelines import Span, timeline_figure, write_timeline
from foveate.simulation import timeline

DEIT = "deit_tiny_patch16_224"
SPANS = (Span("array", "qkv", -100, 0), Span("array", "context", 0, 60, 1), Span("array", "context", 60, 63, 2), Span("adders", "mean", 10, 50, 2))


def test_a_figure_has_a_row_for_each_unit_and_a_bar_for_each_span_in_sight():
    axis = timeline_figure(SPANS, "Block 1", -20, 70, "cycles from the projections").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["array", "adders"]
    bars = [(bar.get_x(), bar.get_width()) for bar in axis.patches]
    assert bars == [(-20, 20), (0, 60), (60, 3), (10, 40)]  # what lies outside is cut off
    assert [text.get_text() for text in axis.texts] == ["1", "1", "2"]  # the narrow one has none
    assert len({axis.patches[i].get_facecolor() for i in (0, 1, 3)}) == 3
    assert axis.patches[1].get_facecolor() == axis.patches[2].get_facecolor()
    assert axis.get_xlim() == (-20, 70)
    assert len(timeline_figure(SPANS, "Block 1", 5, 70).axes[0].patches) == 3


def test_it_is_written_in_the_format_of_its_name(tmp_path):
    figure = timeline_figure(SPANS, "Block 1", -20, 70)
    for name, begins in (("a/t.svg", b"<?xml"), ("t.png", b"\x89PNG"), ("t.pdf", b"%PDF")):
        write_timeline(tmp_path / name, figure)
        assert (tmp_path / name).read_bytes().startswith(begins)
    with pytest.raises(fv.FoveateError, match="t.svg"):
        write_timeline(tmp_path / "t.txt", figure)


def test_the_first_block_whose_units_overlap_is_shown():
    """A plan that replaces the attention of blocks 3 and 4 only, on a machine that runs softmax one operation after the other."""
    found = fv.simulate(DEIT, "vitality", "vitality")
    assert timeline(found, "vitality")[0] == 1
    ledger = fv.Ledger(tuple(o for o in found.operations if o.block is None or o.block >= 3 or ".attn." not in o.origin))
    assert timeline(ledger, "vitality")[0] == 3
    with pytest.raises(fv.FoveateError, match="of kind 'accelerator'"):
        timeline(found, "zcu102")


def test_simulate_draws_a_timeline(capsys, tmp_path):
    path = tmp_path / "fig7.svg"
    data = answer(capsys, "simulate", DEIT, "--plan", "vitality", "--target", "vitality", "--timeline", path)
    assert data["timeline"] == str(path)
    assert "accumulators" in path.read_text()
    assert data["latency_ms_dense"] is None
    assert data["by_unit"]["SRAM"]["energy_mj"] > 0
    code, _, err = run(capsys, "simulate", DEIT, "--plan", "spvit-deit-tiny", "--timeline", path)
    assert code
    assert 'such as vitality' in err


def test_simulate_compares_with_the_dense_model_where_the_machine_can_run_it(capsys):
    _, out, err = run(capsys, "simulate", DEIT, "--plan", "vitality", "--target", "vitality")
    assert "needs units that this machine does not have" in out
    assert "SRAM" in out
    assert "norms, activations" in err
    _, out, _ = run(capsys, "simulate", DEIT, "--plan", "vitality", "--target", "vitality-extended")
    assert "times as fast as the dense" in out
    code, _, err = run(capsys, "simulate", DEIT, "--target", "vitality")
    assert code
    assert "blocks.1.attn.softmax, an operation of kind 'softmax', on vitality" in err


def test_targets_explains_variants(capsys):
    data = answer(capsys, "targets", "vitality@peak=tx2")
    assert data["copies"] == pytest.approx(0.16)
    assert data["area_mm2"] == pytest.approx(5.223)
    assert any(flow["operation"] == "attn.context" for flow in data["flows"])
    _, out, _ = run(capsys, "targets", "vitality@peak=tx2")
    assert "0.16 of it share the work" in out
    assert "5.223 mm2, 1460.5 mW" in out
    _, out, _ = run(capsys, "targets", "sanger@density=0.3", "--toml")
    assert "[constants]" in out
