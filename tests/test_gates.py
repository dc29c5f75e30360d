"""Gates as values: what they accept, and that they come back from JSON."""

import dataclasses
import subprocess
import sys

import pytest

import foveate as fv
from foveate.gates import GATES, gate_class, gate_from_dict

KINDS = list(GATES.values())


def refused(*words: str):
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_frozen_values(kind):
    gate = kind(threshold=0.25)
    assert gate == kind(0.25) and hash(gate) == hash(kind(0.25)) and gate != kind(0.5)
    assert gate_from_dict(gate.to_dict()) == gate and type(gate_from_dict(gate.to_dict())) is kind
    with pytest.raises(dataclasses.FrozenInstanceError):
        gate.threshold = 0.5
    assert kind(1) == kind(1.0) and isinstance(kind(1).threshold, float)


def test_gates_of_other_kinds_differ():
    assert len({kind(0.25) for kind in KINDS}) == len(KINDS) == 3
    assert fv.Entropy(0.3) != fv.Margin(0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [-0.1, 1.001, 70, float("nan"), float("inf"), True, "0.3", None, [0.3]])
def test_other_thresholds_are_refused(kind, threshold):
    with refused(kind.name, "threshold"):
        kind(threshold)


@pytest.mark.parametrize("kind, limit", [(fv.Entropy, 0.25), (fv.MaxProbability, -0.25), (fv.Margin, -0.25)])
def test_the_limit_and_back(kind, limit):
    assert kind(0.25).limit == limit and kind(0.9).at(limit) == kind(0.25)
    assert kind(0.0).at(kind(0.0).limit) == kind(0.0) and kind(0.5).open.limit == (1 if kind.rises else 0)


def test_words():
    assert [str(kind(0.3)) for kind in KINDS] == ["entropy > 0.3", "max_probability < 0.3", "margin < 0.3"]


@pytest.mark.parametrize("form, words", [
    ({"gate": "entropi", "threshold": 0.3}, "'entropi'"), ({"gate": "entropy"}, "gate"), ({"gate": "entropy", "threshold": 0.3, "x": 1}, "gate"),
    ("entropy", "gate"), (None, "gate"), ({"gate": 3, "threshold": 0.3}, "3"), ({"gate": "entropy", "threshold": 30}, "30")])
def test_wrong_forms_are_refused(form, words):
    with refused(words):
        gate_from_dict(form)


def test_names_on_the_command_line():
    assert gate_class("max-probability") is fv.MaxProbability
    with pytest.raises(fv.FoveateError, match="'margin'"):
        gate_class("margn")


def test_gates_load_no_torch():
    code = "import sys, foveate as fv; fv.Entropy(0.3); fv.Plan.cascade([fv.Plan(), fv.Plan()], fv.Entropy(0.3)); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
