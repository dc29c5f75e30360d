"""predict and eval under a budget, and profile segments. No time is judged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command import answer, run
from PIL import Image

import foveate as fv
import foveate.backbones  # noqa: F401  registers foveate_nano_p4
from foveate.budgets import Energy, Latency, SegmentCosts

ENDS = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    base = timm.create_model("foveate_nano_p4", depth=3, embed_dim=48, num_heads=2, num_classes=10)
    model = fv.adapt(base, fv.Plan([fv.EarlyExit(after=(1, 2), threshold=1.0)]))
    return fv.save(model, tmp_path_factory.mktemp("runs") / "exits")


@pytest.fixture(scope="module")
def energies(folder) -> list[float]:
    """Millijoules up to each exit."""
    model = fv.load(folder)
    with torch.no_grad():
        model(torch.zeros(1, 3, *model.card.image_size), budget_mj=1e9)
    return [sum(points[0].energy_mj for points in model.costs.energy[: n + 1]) for n in range(3)]


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_predict_leaves_where_the_budget_ends(capsys, folder, energies, picture):
    for limit, block, short in ((energies[0], 1, True), (energies[1], 2, True), (energies[2], 3, False)):
        found = answer(capsys, "predict", folder, picture, picture, "--budget-mj", limit)
        assert [(one["exit"], one["short"]) for one in found["predictions"]] == [(block, short)] * 2
        text = run(capsys, "predict", folder, picture, "--budget-mj", limit)[1]
        assert ("1 of 1 images left before they were sure" in text) is short
    assert answer(capsys, "predict", folder, picture)["predictions"][0]["exit"] == 3
    elsewhere = answer(capsys, "predict", folder, picture, "--budget-mj", 1e9, "--target", "xeon-6230")
    assert elsewhere["predictions"][0]["exit"] == 3


def test_budgets_below_the_first_answer(capsys, folder, energies, picture):
    code, out, err = run(capsys, "predict", folder, picture, "--budget-mj", energies[0] / 2)
    assert code == 2 and not out and "allowed: at least" in err and "exit after block 1" in err
    found = answer(capsys, "predict", folder, picture, "--budget-mj", energies[0] / 2, "--lenient")
    assert found["predictions"][0]["exit"] == 1 and found["predictions"][0]["short"]
    code, _, err = run(capsys, "predict", "spvit-nano", picture, "--budget-ms", 20)
    assert code == 2 and "fv.EarlyExit" in err


def test_eval_says_where_images_left(capsys, folder, energies):
    command = ("eval", folder, "--data", "digits", "--limit", 40)
    found = answer(capsys, *command, "--budget-mj", energies[1])
    assert found["short"] == 40 and found["budget_mj"] == energies[1] and [one["left_percent"] for one in found["exits"]] == [0, 100, 0]
    assert found["macs"] < answer(capsys, *command)["macs"]
    assert "40 images left before they were sure" in run(capsys, *command, "--budget-mj", energies[1])[1]
    assert answer(capsys, *command, "--budget-ms", 1e9)["short"] == 0


def test_profile_segments_keeps_its_table_with_the_run(capsys, folder, tmp_path, picture):
    copied = shutil.copytree(folder, tmp_path / "run")
    found = answer(capsys, "profile", "segments", copied, "--batch", 3, "--target", "xeon-6230")
    costs = SegmentCosts.from_json((copied / "segment_costs.json").read_text())
    assert found["ends"] == [1, 2, 3] == list(costs.ends) and found["target"] == costs.target == "xeon-6230"
    assert [[point.images for point in points] for points in costs.latency] == [[1, 2, 3]] * 3
    assert Path(found["segment_costs"]) == copied / "segment_costs.json"
    model = fv.load(copied)
    assert model.costs == costs
    answer(capsys, "predict", copied, picture, "--budget-ms", 1e9)
    assert SegmentCosts.from_json((copied / "segment_costs.json").read_text()) == costs
    fv.save(model, copied)
    assert not (copied / "segment_costs.json").exists()


def test_the_kept_table_decides(capsys, folder, tmp_path, picture, monkeypatch):
    """Its times are of another machine first, and measured anew then; as this machine's they leave no time for a second segment."""
    from foveate.budgeting import machine_key
    from foveate.segments import Cut, cut_at_exits

    copied = shutil.copytree(folder, tmp_path / "run")
    model = fv.load(copied)
    runner = cut_at_exits(model, torch.zeros(1, 3, 28, 28)).runner
    monkeypatch.setattr(Cut, "measure", lambda self, images: ((Latency(1, 50, 1e-9, 1e-9),),) * 3)
    for machine, block in (("another", 3), (machine_key(), 1)):
        costs = SegmentCosts(ENDS, ((Latency(1, 50, 1.0, 1.0),), *(((Latency(1, 50, 1e9, 1e9),),) * 2)), machine, runner, ((Energy(50, 1.0),),) * 3, "zcu102")
        (copied / "segment_costs.json").write_text(costs.to_json())
        assert answer(capsys, "predict", copied, picture, "--budget-ms", 1e8)["predictions"][0]["exit"] == block
    (copied / "segment_costs.json").write_text("{")
    code, _, err = run(capsys, "predict", copied, picture)
    assert code == 2 and "segment_costs.json that cannot be read" in err


def test_profile_segments_of_what_has_none(capsys, folder, tmp_path):
    code, _, err = run(capsys, "profile", "segments", "spvit-nano")
    assert code == 2 and "fv.EarlyExit" in err
    code, out, err = run(capsys, "profile", "segments", "foveate_nano_p4", "--plan", "earlyexit(after=[4])", "--threads", 1)
    assert code == 0 and "--out" in err and "up to block" in out and "zcu102" in out
    both = fv.save(fv.Cascade([fv.load(folder)] * 2, fv.Entropy(0.5)), tmp_path / "cascade")
    found = answer(capsys, "profile", "segments", both, "--precision", "bf16")
    assert found["ends"] == [1, 2] and "bfloat16" in found["runner"] and fv.load(both).costs.ends == (1, 2)
    assert json.loads((both / "segment_costs.json").read_text())["foveate_segment_costs"] == 1
