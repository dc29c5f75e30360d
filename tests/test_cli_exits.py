"""The commands `exits`, `count --exits` and `eval` of a run with early exits, on a tiny model and the digits."""

import pytest
import timm
import torch
from command import answer, run

import foveate as fv
import foveate.backbones  # noqa: F401
from foveate.report import load_results

DATA = ["--data", "digits"]
PLAN = "earlyexit(after=[1,2])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with exits, hardly trained, that takes the digits at 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("exits") / "run"
    torch.manual_seed(0)
    model = fv.adapt(timm.create_model("foveate_nano_p4", img_size=16, depth=3, embed_dim=48, num_heads=2).eval(), fv.Plan.parse(PLAN))
    with torch.no_grad():
        for exit in model.earlyexit.exits.values():
            exit.fc.weight.mul_(60)
        model.head.weight.mul_(40)
    fv.save(model, folder)
    return folder


def refused(capsys, *arguments) -> str:
    """The message of a command that must be refused."""
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "", err
    return err


def test_exits_says_what_each_threshold_gives(folder, capsys, tmp_path):
    found = answer(capsys, "exits", folder, *DATA, "--limit", "60", "--threshold", "0.3", "0.5", "1", "--out", tmp_path / "study")
    assert found["images"] == 60 and found["split"] == "test" and found["gate"] == "confidence" and found["blocks"] == [1, 2, 3]
    assert [head["block"] for head in found["heads"]] == [1, 2, 3] and all(0 <= head["accuracy_percent"] <= 100 for head in found["heads"])
    assert [row["threshold"] for row in found["thresholds"]] == [0.3, 0.5, 1.0]
    first, _, last = found["thresholds"]
    assert first["macs"] < last["macs"] == found["heads"][-1]["macs"] and last["unclassified_percent"] == 100
    assert sum(row["left_percent"] for row in first["exits"]) == pytest.approx(100) and first["exits"][0]["left_percent"] > 0
    own = found["chosen"]
    assert own["threshold"] == 0.7 and own["accuracy_percent"] == pytest.approx(
        sum(row["right_percent"] for row in own["exits"]) + own["unclassified_right_percent"])
    results = load_results(tmp_path / "study")
    assert [table.title for table in results.tables] == ["Each exit by itself", "What each confidence threshold gives", "Who leaves where at threshold 0.7"]
    assert len(results.charts) == 3 and len(results.bars) == 2 and results.figures["thresholds"] == found["thresholds"]
    assert "unclassified" in (tmp_path / "study" / "report.html").read_text()
    code, out, err = run(capsys, "exits", folder, *DATA, "--limit", "20")
    assert code == 0 and "What each confidence threshold gives" in out and "unclassified" in out, err


def test_a_threshold_for_a_budget_comes_from_the_validation_images(folder, capsys):
    whole = answer(capsys, "exits", folder, *DATA, "--limit", "10")["heads"]
    budget = (whole[0]["macs"] + whole[-1]["macs"]) / 2
    found = answer(capsys, "exits", folder, *DATA, "--limit", "60", "--gmacs", str(budget / 1e9))
    calibration = found["calibration"]
    assert calibration["split"] == "validation" and calibration["images"] == 143 and calibration["macs"] <= budget
    assert found["chosen"]["threshold"] == calibration["threshold"] and found["images"] == 60
    floor = answer(capsys, "exits", folder, *DATA, "--limit", "60", "--accuracy", "1")
    assert floor["calibration"]["accuracy_percent"] >= 1 and floor["calibration"]["macs"] <= calibration["macs"] + 1e9


def test_eval_says_who_left_where(folder, capsys):
    found = answer(capsys, "eval", folder, *DATA, "--limit", "60", "--plan", PLAN.replace("])", "], threshold=0.4)"))
    assert [row["block"] for row in found["exits"]] == [1, 2, 3] and sum(row["left_percent"] for row in found["exits"]) == pytest.approx(100)
    assert sum(row["correct_percent"] for row in found["exits"]) == pytest.approx(found["accuracy_percent"])


def test_count_and_simulate_take_shares_of_images(capsys):
    shares = ["deit_small_patch16_224", "--plan", "earlyexit(after=[4,8])", "--exits", ".3,.2,.5"]
    found = answer(capsys, "count", *shares)
    assert found["label"] == "exits 0.3, 0.2, 0.5" and found["macs"] == fv.count("deit_small_patch16_224", "earlyexit(after=[4,8])", exits=(0.3, 0.2, 0.5)).macs
    assert answer(capsys, "simulate", *shares)["latency_ms"] < answer(capsys, "simulate", *shares[:3])["latency_ms"]


def test_what_cannot_be_answered_is_refused(folder, capsys):
    assert "one of the two" in refused(capsys, "exits", folder, *DATA, "--accuracy", "90", "--gmacs", "1")
    assert "no early exits" in refused(capsys, "exits", "foveate_nano_p4")
    assert "write 0.7 for C_t = 70" in refused(capsys, "exits", folder, *DATA, "--limit", "20", "--threshold", "70")
    assert "accuracy of 100 %" in refused(capsys, "exits", folder, *DATA, "--limit", "20", "--accuracy", "100")
    assert "numbers joined by commas, one an exit" in refused(capsys, "count", "deit_small_patch16_224", "--plan", PLAN, "--exits", "half")
    assert "3 shares that sum to 1" in refused(capsys, "count", "deit_small_patch16_224", "--plan", PLAN, "--exits", ".5,.5")
