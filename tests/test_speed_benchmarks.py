"""benchmarks/cpu.py and gpu.py: their smallest runs, what they judge, and the file that comes of it. No time is judged."""

import csv
import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import foveate as fv
from foveate.machine import machine
from foveate.measure import Spread, Timing

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A benchmark script as a module; its neighbours are found as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def asked(script, monkeypatch):
    """The smallest run."""
    monkeypatch.setattr(script("staged_rows"), "BACKENDS", ("torch",))
    return replace(script("cpu").QUICK, rounds=1)


def test_a_cell_is_judged_by_its_median(script):
    cells = script("cells")
    of = lambda median, least: cells.Cell("row", "b1", Spread(median, median - 0.1, median + 0.1), least)
    assert [of(1.5, 1.5).verdict, of(1.49, 1.5).verdict, of(1.2, None).verdict] == ["pass", "falls short", "reported"]
    assert (cells.Cell("row", "b1", error="why").verdict, cells.Cell("row", "b1").verdict) == ("error", "not measured")
    assert of(1.5, 1.45).words == ("row", "b1", "1.50x (1.40 to 1.60)", ">= 1.45x", "pass", "")
    assert replace(of(91.23, 90.0), unit="%").words[2:4] == ("91.2 % (91.1 to 91.3)", ">= 90 %")


def test_ratios_are_taken_round_by_round(script):
    timings = {name: Timing(name, 1, samples, "a", (1.0,) * 3) for name, samples in (("a", (2.0, 4.0, 30.0)), ("b", (1.0, 2.0, 10.0)))}
    assert script("cells").ratio(timings, "a", "b") == Spread(2.0, 2.0, 2.5)
    assert script("cells").ratio(timings, "b", "a", 100.0).median == 50.0


def test_a_sample_is_as_many_calls_as_it_says(script):
    seen = []
    timings = script("cells").timed({"one": lambda: seen.append(1), "two": lambda: None}, 2, 3, least_ms=0.0)
    assert len(timings["one"].samples_ms) == 3 and timings["one"].batch == 2
    assert len(seen) == 2 + 1 + 3  # to size the sample, to warm up, in rounds


def test_a_row_that_fails_hides_no_other(script, monkeypatch):
    cpu, cells = script("cpu"), script("cells")

    def broken(asked):
        yield cells.Cell("first half", "b1", Spread(2.0, 2.0, 2.0), 1.0)
        raise ValueError("a graph that nobody runs")

    monkeypatch.setattr(cpu, "ROWS", {"bad": broken, "good": lambda asked: [cells.Cell("good", "b1", Spread(1.0, 1.0, 1.0), 2.0)]})
    said = []
    found = cpu.measured(["bad", "good"], cpu.QUICK, said.append)
    assert found == said and [cell.verdict for cell in found] == ["pass", "error", "falls short"]
    text = cpu.text(found, ["## Where the time goes"], machine(), "python benchmarks/cpu.py", "today")
    assert "**1 pass, 1 error, 1 falls short.**" in text
    assert "- bad: ValueError: a graph that nobody runs" in text.partition("## What could not be measured")[2]
    assert "- good, b1: 1.00x (1.00 to 1.00) where >= 2x was asked for." in text.partition("## What falls short")[2]
    assert text.count("\n| ") == 2 + 3 and text.endswith("## Where the time goes\n")




@pytest.mark.parametrize("name", ["cascade", "exits"])
def test_staged_rows_run(script, asked, name):
    found = list(script("cpu").ROWS[name](asked))
    assert [cell.least for cell in found] == [90.0, None][: len(found)]
    assert all(cell.value.median > 0 or "overhead" in cell.row for cell in found)
    assert "ledger" in found[0].note


def test_ragged_batches_run_beside_their_ideal(script, asked):
    (cell,) = script("cpu").ROWS["ragged"](asked)
    assert (cell.unit, cell.least, cell.column) == ("%", 90.0, "b2") and cell.value.low > 0


def test_the_ideal_computes_what_dense_blocks_do(script):
    ragged = script("ragged_rows")
    dense = tiny.adapted(fv.Plan(), "deit").eval()
    images = tiny.images("deit", 2)
    tokens = dense.card.prefix_tokens + dense.card.blocks[0].patches
    with torch.no_grad():
        assert torch.allclose(ragged.Counted(dense, [tokens] * dense.card.depth)(images), dense(images), atol=1e-5)
        fewer = ragged.Counted(dense, [tokens] + [3] * (dense.card.depth - 1))
        with_hook = []
        dense.blocks[-1].register_forward_hook(lambda module, given, made: with_hook.append(made.shape))
        assert torch.isfinite(fewer(images)).all()
    assert with_hook == [torch.Size([2, 3, dense.card.blocks[-1].dim])]


def test_steering_finds_what_gives_the_share_that_is_wanted(script):
    state = {}
    script("ragged_rows").steer(lambda amount: state.update(at=amount), lambda: float(np.tanh(state["at"])), 0.5, -4.0, 4.0)
    assert np.tanh(state["at"]) == pytest.approx(0.5, abs=5e-3)


def test_taylor_row_runs(script, asked):
    (cell,) = script("cpu").ROWS["taylor"](asked)
    assert cell.column == "n=32" and "taylor eager" in cell.note


def test_the_gpu_script_runs_without_one(script, monkeypatch, capsys, tmp_path):
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "PRODUCT", {"cpu": 64})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick", "--batch", "2", "--csv", str(tmp_path / "rows.csv")])
    gpu.main()
    printed = capsys.readouterr().out
    assert "no GPU is measured" in printed and "no varlen attention here" in printed
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["form"] for row in rows] == ["dense", "top-k", "per-image counts, packed"]
    assert float(rows[1]["gmacs"]) < float(rows[0]["gmacs"]) and float(rows[0]["speedup"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_gpu_script_says_that_there_is_none(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no GPU here"):
        script("gpu").main()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: torch.cuda.is_available() is False")
def test_varlen_attention_is_that_of_each_image(script):
    from foveate.nn.attention import dense_attention
    from foveate.nn.ragged import by_image, varlen_attention

    lengths = (5, 197, 64)
    q, k, v = torch.randn(sum(lengths), 3, 6, 64, device="cuda", dtype=torch.bfloat16).unbind(1)
    expected = by_image(lambda *given: dense_attention(*given, 0.125), q, k, v, lengths)
    assert torch.allclose(varlen_attention(q, k, v, lengths, 0.125), expected, atol=0.02)


def test_the_readmes_lines_for_speed_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```py\n(.*?)```", (BENCHMARKS.parent / "README.md").read_text(), re.S)
    (block,) = [block for block in blocks if "runtime.load(" in block]
    fv.save(tiny.adapted(fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))]), "deit").eval(), tmp_path / "runs" / "fast")
    monkeypatch.chdir(tmp_path)
    names = {"images": tiny.images("deit", 2)}
    exec(compile(block.replace('backend="auto"', 'backend="torch"'), "README.md", "exec"), names)
    assert names["logits"].shape[0] == 2 and capsys.readouterr().out.startswith("torch ")
