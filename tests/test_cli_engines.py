"""predict and eval with --backend: the engine's answers, the table it was chosen from, and refusals. No time is judged."""

import json

import numpy as np
import pytest
import tiny
from command import answer, run
from PIL import Image

import foveate as fv
from foveate.cli import engines
from foveate.runtime import loading


@pytest.fixture(autouse=True)
def only_torch(monkeypatch, tmp_path):
    """"auto" means torch's two precisions here: graphs and their 8 bits have tests of their own."""
    monkeypatch.setattr(loading, "installed_backends", lambda: ("torch", "torch-compile"))
    monkeypatch.setattr(loading, "AUTO", ("torch",))
    monkeypatch.setattr(engines, "CHECKED_ON", 4)
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)).save(tmp_path / "one.png")
    return tmp_path / "one.png"


@pytest.fixture
def folder(tmp_path):
    return fv.save(tiny.adapted(fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))]), "deit").eval(), tmp_path / "run")


def test_predict_in_an_engine_answers_as_without_one(capsys, picture):
    plain = answer(capsys, "predict", "spvit-nano", picture)
    ours = answer(capsys, "predict", "spvit-nano", picture, "--backend", "torch", "--precision", "fp32")
    assert (ours["backend"], ours["precision"], ours["fallback"]) == ("torch", "fp32", None)
    for one, other in zip(ours["predictions"][0]["top"], plain["predictions"][0]["top"]):
        assert one["class"] == other["class"] and one["probability_percent"] == pytest.approx(other["probability_percent"], abs=0.01)


def test_the_choice_is_explained_and_kept_in_the_run(capsys, folder, picture):
    code, out, err = run(capsys, "predict", folder, picture, "--backend", "auto", "--explain")
    assert code == 0, err
    assert "1 image a call" in out and "fastest" in out and "bf16" in out
    (entry,) = json.loads((folder / "engines.json").read_text()).values()
    assert {(row["backend"], row["precision"]) for row in entry["rows"]} == {("torch", "fp32"), ("torch", "bf16")}
    text = run(capsys, "predict", folder, picture, "--backend", "torch", "--precision", "fp32", "--explain")[1]
    assert "torch" in text and "logits differ by" in text


def test_another_plan_than_the_runs_own_is_not_kept_there(capsys, folder, picture):
    answer(capsys, "predict", folder, picture, "--backend", "auto", "--plan", "spvit(after=[2],keep=[0.5])")
    assert not (folder / "engines.json").exists()


def test_eval_says_how_often_the_engine_is_right(capsys):
    found = answer(capsys, "eval", "spvit-nano", "--limit", 20, "--backend", "torch", "--precision", "fp32")
    assert found["accuracy_percent_engine"] == found["accuracy_percent"] and found["backend"] == "torch" and "same answer for 100%" in found["agreement"]


def test_a_budget_and_an_engine_are_refused_together(capsys, folder, picture):
    code, _, err = run(capsys, "predict", folder, picture, "--backend", "torch", "--budget-ms", 20)
    assert code == 2 and "given:" in err and "allowed:" in err and "do:" in err
