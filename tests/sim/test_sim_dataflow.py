"""Cycles of the three dataflows: against SCALE-Sim's recorded figures and against an array stepped register by register."""

import json
from pathlib import Path

import numpy as np
import pytest
import ticks

from foveate.sim.dataflow import DATAFLOWS, INPUT, OUTPUT, WEIGHT, Folding
from foveate.sim.traffic import array_words, outside_words, tile_words

RECORDED = json.loads((Path(__file__).parent / "scale_sim.json").read_text())
STEPPED = {INPUT: ticks.input_stationary, WEIGHT: ticks.weight_stationary, OUTPUT: ticks.output_stationary}


def layers():
    return [(run, layer) for run in RECORDED["runs"] for layer in run["layers"]]


def folding(run, layer) -> Folding:
    return Folding(layer["m"], layer["n"], layer["k"], run["rows"], run["columns"], run["dataflow"])


def test_every_dataflow_was_recorded():
    assert RECORDED["scalesim"] == "3.0.0"
    assert {run["dataflow"] for run in RECORDED["runs"]} == set(DATAFLOWS)
    assert len(layers()) >= 36


def label(one) -> str:
    return f"{one['dataflow']}-{one['rows']}x{one['columns']}" if "rows" in one else f"{one['m']}-{one['n']}-{one['k']}"


@pytest.mark.parametrize(("run", "layer"), layers(), ids=label)
def test_cycles_are_those_of_scale_sim(run, layer):
    fold = folding(run, layer)
    assert fold.cycles == layer["demand_rows"] == layer["total_cycles"] + 1
    assert layer["stall_cycles"] == 0
    words = array_words(fold)
    assert (words.inputs, words.weights) == (layer["inputs"], layer["weights"])
    if run["dataflow"] != OUTPUT:
        assert words.outputs == layer["outputs"]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (2, 5), (1, 1), (5, 4)])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 4, 5), (7, 2, 9), (4, 10, 3), (8, 6, 4), (2, 3, 11)])
def test_an_array_stepped_cycle_by_cycle_computes_the_product_in_as_many_cycles(dataflow, rows, columns, m, n, k):
    rng = np.random.default_rng(m * n * k)
    inputs, weights = rng.normal(size=(m, k)), rng.normal(size=(k, n))
    product, cycles = STEPPED[dataflow](inputs, weights, rows, columns)
    np.testing.assert_allclose(product, inputs @ weights, atol=1e-12)
    assert cycles == Folding(m, n, k, rows, columns, dataflow).cycles


@pytest.mark.parametrize(
    ("name", "shape", "times", "cycles"),
    [("qkv", (197, 1152, 384), 1, 47304), ("qk", (197, 197, 64), 6, 12924), ("av", (197, 64, 197), 6, 32544),
     ("proj", (197, 384, 384), 1, 19656), ("fc1", (197, 1536, 384), 1, 61128), ("fc2", (197, 384, 1536), 1, 78624)],
)  # fmt: skip
def test_cycles_of_pivots_products(name, shape, times, cycles):
    assert times * Folding(*shape, 64, 36, INPUT).cycles == cycles


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_utilisation_is_work_over_places_and_cycles(dataflow):
    fold = Folding(36, 10_000, 64, 64, 36, dataflow)
    assert fold.utilisation == pytest.approx(36 * 10_000 * 64 / (fold.cycles * 64 * 36))
    assert 0.01 < fold.utilisation < 1
    assert Folding(36, 1_000_000, 64, 64, 36, INPUT).utilisation > 0.999


def test_what_fits_into_a_buffer_is_read_once():
    fold = Folding(m=100, n=50, k=128, rows=64, columns=36, dataflow=INPUT)  # 2 row folds, 3 column folds
    assert tile_words(fold) == 36 * 50
    small, large = {"inputs": 1, "weights": 1, "outputs": 1}, {"inputs": 1e9, "weights": 1e9, "outputs": 1e9}
    assert outside_words(fold, large) == outside_words(fold, {})
    assert (outside_words(fold, large).weights, outside_words(fold, large).partial) == (128 * 50, 0)
    spilled = outside_words(fold, small)
    assert (spilled.inputs, spilled.weights, spilled.outputs, spilled.partial) == (100 * 128, 3 * 128 * 50, 100 * 50, 2 * 100 * 50)
    assert spilled.bytes(8, 32) == 100 * 128 + 3 * 128 * 50 + 100 * 50 + 4 * 2 * 100 * 50


@pytest.mark.parametrize(("dataflow", "tile"), [(WEIGHT, 36 * 100), (OUTPUT, 0)])
def test_the_other_dataflows_stream_inputs_or_both(dataflow, tile):
    fold = Folding(m=100, n=50, k=128, rows=64, columns=36, dataflow=dataflow)
    read = outside_words(fold, {"inputs": 1, "weights": 1})
    assert tile_words(fold) == tile
    assert read.inputs == 2 * 100 * 128
    assert read.weights == 128 * 50 * (1 if dataflow == WEIGHT else 2)


def test_a_reduction_in_one_fold_leaves_no_partial_sums():
    assert tile_words(Folding(m=100, n=50, k=64, rows=64, columns=36, dataflow=INPUT)) == 0
