"""results/simulators.md is what its script makes, names every fitted constant, and keeps what was promised."""

import csv
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from foveate import sim
from foveate.sim.catalog import SHIPPED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield importlib.import_module("simulators")
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def text(script):
    return script.text()


def test_the_committed_file_is_what_the_script_makes(text):
    assert (ROOT / "results" / "simulators.md").read_text(encoding="utf-8") == text


def test_nine_of_ten_exact_rows_hold(script):
    found = script.rows()
    exact = [row for row in found if row.checkable == "exact"]
    assert len(exact) == 48
    assert sum(row.holds for row in exact) >= 0.9 * len(exact)
    assert {(row.model, row.quantity) for row in exact if not row.holds} == {("DeiT-T", "speed-up on the ZCU102")}
    assert sum(row.holds for row in found) >= 0.9 * len(found)


def test_what_differs_says_why(script, text):
    for row in script.rows():
        assert row.holds or row.why, row
        assert row.holds or f"{row.why}." in text
    assert "prints no hardware number" in text  # IRET


def test_a_trained_models_masks_are_an_input_of_sanger(script, text):
    masks = importlib.import_module("sparse_masks")
    machine = sim.load(f"sanger@density={masks.RESULT}")
    line = json.loads(masks.RESULT.read_text())
    assert machine.densities == tuple(line[f"vitality_density_block_{block}"] for block in range(1, 13))
    assert all(line[f"split_efficiency_block_{block}"] <= line[f"pack_efficiency_block_{block}"] <= 1 for block in range(1, 13))
    assert line["trained"] in text
    assert f"| mean | {sum(machine.densities) / 12:.2f} |" in text


def test_rows_of_a_mask_are_split_and_packed():
    masks = importlib.import_module("sparse_masks")
    mask = np.zeros((5, 8), dtype=bool)
    for row, count in enumerate((7, 3, 0, 4, 1)):
        mask[row, :count] = True
    assert masks.pieces(mask, 4) == [4, 4, 3, 3, 1]
    assert masks.packed_rows([4, 4, 3, 3, 1], 4) == 4
    line = masks.measured([mask[None, None]], 4)
    assert line == {"vitality_density_block_1": 0.375, "split_efficiency_block_1": 0.75, "pack_efficiency_block_1": 0.9375}


def test_what_is_computed_only_is_counted_apart(script):
    found = script.rows()
    out = [row for row in found if row.basis == "out"]
    assert f"| all | {script.share(found)} |" in script.summary(found)
    assert script.summary(found).endswith(f"{script.share(out)} |")
    # What follows from a fitted delay, or from an MLP ratio taken because it fits, is not computed only.
    assert not {(row.where, row.model) for row in out} & {("Table 2", "DeiT-S"), ("Table 3", "LVViT-S")}


def test_every_fitted_constant_is_named(text):
    part = text.partition("## What was fitted or chosen")[2].partition("## Every number")[0]
    for name in sim.targets():
        own = (SHIPPED / f"{name}.toml").read_text(encoding="utf-8")
        for path, source in sim.load(name).sources.items():
            if source.fitted and source.text in own:
                assert f"| {name} | {path} | {source.value:g} | {source.text} |" in part


def test_the_printed_numbers_are_all_of_known_kinds(script):
    with (ROOT / "results" / "published_hardware.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["checkable"] for line in lines} == {"exact", "approx", "trend"}
    assert {line["from"] for line in lines} == set(script.FROM)
    assert {line["paper"] for line in lines} == {"PIVOT", "SPViT", "ViTALiTy"}
    papers = {(line["paper"], line["where"]) for line in lines}
    assert papers >= {("ViTALiTy", f"Table {n}") for n in ("II", "III", "V", "VI")} | {("PIVOT", f"Table {n}") for n in (1, 2, 3)} | {("SPViT", "Table 2")}


@pytest.mark.parametrize(
    ("printed", "ours", "tolerance", "holds"),
    [
        ("2", 2.05, "3 %", True), ("2", 2.07, "3 %", False), ("60", 59.1, "1 point", True), ("60", 58.9, "1 point", False), ("4", 7.9, "x2", True),
        ("4", 1.9, "x2", False), ("3", 2.6, "2.5 to 4", True), ("3", 4.1, "2.5 to 4", False), ("40 to 60", 39.0, "range", False),
        ("40 to 60", 41.0, "range", True), ("64×1", "64×1", "=", True), ("64×1", "64×2", "=", False), ("7.92", 7.92, "=", True), ("7.92", 7.9, "=", False),
    ],
)  # fmt: skip
def test_tolerances(script, printed, ours, tolerance, holds):
    assert script.Row("p", "w", "m", "q", printed, "", tolerance, "exact", "out", ours, "").holds == holds
