"""The command `cascade`, and what the other commands make of its run, on tiny models and the digits."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from command import answer, run
from PIL import Image

import foveate as fv
import foveate.backbones  # noqa: F401
from foveate.cli import main
from foveate.quantised import observe, quantise
from foveate.train.data import load_data
from foveate.train.preprocessing import Preprocessing

LOW = fv.Plan([fv.SPViT(after=(1,), keep=(0.3,))])
DATA = ["--data", "digits"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A cheap and a dear run of one backbone, hardly trained, that take the digits at 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    model = timm.create_model("foveate_nano_p4", img_size=16, depth=3, embed_dim=48, num_heads=2).eval()
    with torch.no_grad():
        model.head.weight.mul_(40)
    fv.save(fv.adapt(model, LOW), folder / "low")
    fv.save(model, folder / "high")
    return folder


@pytest.fixture(scope="module")
def made(runs):
    out = runs / "cascade"
    assert main(["cascade", str(runs / "low"), str(runs / "high"), *DATA, "--lec", "0.6", "--sweep", "--out", str(out)]) == 0
    return out


def three_parts(capsys, *arguments) -> str:
    """The message of a command that must be refused."""
    code, out, err = run(capsys, *arguments)
    assert code == 2, err
    assert out == "" and [line.partition(":")[0] for line in err.splitlines() if not line.startswith("note")] == ["given", "allowed", "do"]
    return err


def test_a_cascade_is_a_run_with_its_record(made):
    names = {path.name for path in made.iterdir()}
    assert {"plan.json", "effort-1", "effort-2", "run.json", "trace.json", "results.json", "report.html"} <= names
    record, model = json.loads((made / "run.json").read_text()), fv.load(made)
    assert record["calibration"]["split"] == "validation" and record["calibration"]["images"] == 143 and record["lec"] == 0.6
    assert record["calibration"]["F_L"] == pytest.approx(0.6, abs=1 / 143) and model.plan.fractions[0] == record["calibration"]["F_L"]
    assert record["test"]["n"] == 360 and fv.Trace.from_json((made / "trace.json").read_text()).images == 360
    page = (made / "report.html").read_text()
    assert "recomputation" in page and "LEC" in page


def test_the_threshold_comes_from_the_validation_images_alone(made, runs):
    """semantics.md 22: the same threshold from the library's validation split; the test set is not among them."""
    settings = Preprocessing.from_json((runs / "low" / "preprocessing.json").read_text())
    images = load_data("digits", "validation", preprocessing=settings)
    fresh = fv.Cascade([fv.load(runs / "low"), fv.load(runs / "high")], fv.Entropy(0.9))
    assert fv.calibrate(fresh, images, 0.6).plan == fv.load(made).plan


def test_eval_says_who_answered(made, capsys, tmp_path):
    found = answer(capsys, "eval", made, *DATA, "--trace", "--out", tmp_path)
    record = json.loads((made / "run.json").read_text())["test"]
    for key in ("accuracy_percent", "macs", "F_L", "F_H", "C_L", "C_H", "I_L", "I_H"):
        assert found[key] == pytest.approx(record[key]), key
    assert found["C_L"] + found["C_H"] == pytest.approx(found["accuracy_percent"] / 100)
    assert [row["effort"] for row in found["efforts"]] == [1, 2] and 0 < found["F_H"] < 1
    counted = answer(capsys, "count", made, "--trace", tmp_path / "trace.json")
    assert counted["macs"] == pytest.approx(found["macs"]) and "mean over 360" in counted["label"]
    assert "effort" in run(capsys, "eval", made, *DATA)[1]


def test_count_takes_the_calibrated_fractions_or_others(made, runs, capsys):
    low, high = (answer(capsys, "count", runs / name) for name in ("low", "high"))
    own = answer(capsys, "count", made)
    share = json.loads((made / "plan.json").read_text())["fractions"][1]
    assert own["macs"] == pytest.approx(low["macs"] + share * high["macs"]) and own["params"] == low["params"] + high["params"]
    other = answer(capsys, "count", made, "--fractions", ".5,.5")
    assert other["macs"] == pytest.approx(low["macs"] + 0.5 * high["macs"]) and [row["run_percent"] for row in other["efforts"]] == [100, 50]
    assert answer(capsys, "count", made, "--plan", "dense")["macs"] == high["macs"]


def test_count_of_a_plan_file(capsys, tmp_path):
    name, file = "deit_small_patch16_224", tmp_path / "cascade.json"
    file.write_text(fv.Plan.cascade([fv.Plan([fv.SPViT(after=3, keep=0.5)]), fv.Plan()], fv.Entropy(0.3)).to_json())
    low, high = (fv.count(name, plan).macs for plan in (fv.Plan([fv.SPViT(after=3, keep=0.5)]), None))
    assert answer(capsys, "count", name, "--plan", file, "--fractions", ".8,.2")["macs"] == pytest.approx(low + 0.2 * high)
    code, out, err = run(capsys, "count", name, "--plan", file)
    assert code == 0 and "upper bound" in out and "--fractions" in err
    assert "add up to 0.9" in three_parts(capsys, "count", name, "--plan", file, "--fractions", ".8,.1")
    assert "--fractions x,y" in three_parts(capsys, "count", name, "--plan", file, "--fractions", "x,y")
    assert "fractions" in three_parts(capsys, "count", name, "--fractions", ".8,.2")


def test_predict_says_which_effort_answered(made, capsys, tmp_path):
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(paths[-1])
    found = answer(capsys, "predict", made, *paths)["predictions"]
    assert len(found) == 6 and {one["effort"] for one in found} <= {1, 2}
    alone = [answer(capsys, "predict", made, path)["predictions"][0] for path in paths]
    assert [one["effort"] for one in alone] == [one["effort"] for one in found]
    assert [one["top"][0]["index"] for one in alone] == [one["top"][0]["index"] for one in found]


def test_bench_holds_a_cascade_against_its_highest_effort_and_the_dense_model(made, runs, capsys):
    found = answer(capsys, "bench", made, *DATA, "--backend", "torch", "--batch", 1, 4, "--repetitions", 3, "--warmup", 1)
    low, high = (fv.count(fv.load(runs / name)).macs for name in ("low", "high"))
    assert found["break_even_percent"] == pytest.approx(100 * (1 - low / high)) and found["macs_of_efforts"] == [low, high]
    for row in found["results"]:
        assert row["baseline"] == "dense" and row["highest_effort_latency_ms"] == row["baseline_latency_ms"] > 0
        assert row["speedup_over_highest_effort_low"] <= row["speedup_over_highest_effort"] <= row["speedup_over_highest_effort_high"]
        assert row["verdict_over_highest_effort"] in ("helps", "no gain here") and row["run_percent"][0] == 100 >= row["run_percent"][1]


def test_bench_of_two_pruned_efforts_times_the_highest_one_too(runs, capsys, tmp_path):
    middle = fv.Plan([fv.SPViT(after=(2,), keep=(0.7,))])
    plan = tmp_path / "plan.json"
    plan.write_text(fv.Plan.cascade([LOW, middle], fv.Entropy(0.5)).to_json())
    found = answer(capsys, "bench", runs / "high", "--plan", plan, "--backend", "torch", "--batch", 2, "--repetitions", 2, "--warmup", 0)
    assert found["highest_effort_latency_ms"] != found["baseline_latency_ms"]
    shown = run(capsys, "bench", runs / "high", "--plan", plan, "--backend", "torch", "--batch", 2, "--repetitions", 2, "--warmup", 0)[1]
    assert "highest effort" in shown and re.search(r"of the images go on \(by its MACs it pays below \d", shown)


def test_bench_of_an_8_bit_effort_before_a_dense_model_that_is_quantised_for_it(runs, capsys, tmp_path):
    low, high = (fv.load(runs / name) for name in ("low", "high"))
    quantise(low, observe(low, [torch.rand(8, 3, 16, 16)]))
    fv.save(fv.Cascade([low, high], fv.Entropy(0.5)), tmp_path / "mixed")
    found = answer(capsys, "bench", tmp_path / "mixed", *DATA, "--backend", "openvino", "--precision", "int8", "--batch", 2, "--repetitions", 2, "--warmup", 0)
    assert found["precision"] == "int8" and "baseline_precision" not in found and "highest_effort_precision" not in found, "all run in 8 bits"


def test_other_gates_three_efforts_and_a_simulated_sweep(runs, capsys, tmp_path):
    command = ["cascade", runs / "low", runs / "high", runs / "high", *DATA, "--gate", "max-probability", "--limit", 60, "--target", "zcu102"]
    found = answer(capsys, *command, "--out", tmp_path / "three")
    assert len(found["thresholds"]) == 2 and found["calibration"]["images"] == 60 and found["sweep_units"]["delay"] == "ms"
    assert [point["lec"] for point in found["sweep"]] == [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]
    assert isinstance(fv.load(tmp_path / "three").plan.gates[1], fv.MaxProbability)


def test_a_note_where_the_calibration_images_were_trained_on(runs, capsys, tmp_path):
    import shutil

    shutil.copytree(runs / "low", tmp_path / "low")
    (tmp_path / "low" / "recipe.json").write_text('{"split": "train+validation"}')
    command = ["cascade", tmp_path / "low", runs / "high", *DATA, "--limit", 40]
    assert "train+validation" in run(capsys, *command, "--out", tmp_path / "a")[2]
    assert "cheapest" in run(capsys, "cascade", runs / "high", runs / "low", *DATA, "--limit", 40, "--out", tmp_path / "b")[2]


@pytest.mark.parametrize("arguments, words", [
    (["low"], "1 model"), (["low", "nowhere/run"], "nowhere"), (["low", "high", "--lec", "70"], "--lec 70"), (["low", "high", "--lec", "0"], "--lec 0"),
    (["low", "high", "--gate", "entropi"], "'entropi'"), (["low", "high", "--target", "zcu103"], "zcu103"), (["low", "cascade"], "which is a cascade"),
    (["low", "high", "--limit", "1"], "1 class"), (["low", "other"], "effort 2"), (["low", "high", "--data", "digitss"], "digitss")])
def test_bad_input(runs, made, capsys, tmp_path, arguments, words):
    if "other" in arguments:
        fv.save(timm.create_model("foveate_nano_p4", img_size=16, depth=3, embed_dim=48, num_heads=2, num_classes=7), runs / "other")
    given = [runs / word if word in ("low", "high", "other", "cascade") else word for word in arguments]
    data = [] if "--data" in arguments else DATA
    assert words in three_parts(capsys, "cascade", *given, *data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_commands_for_one_model_refuse_a_cascade(made, runs, capsys, tmp_path):
    assert "already holds a run" in three_parts(capsys, "cascade", runs / "low", runs / "high", *DATA, "--out", made)
    out = ["--out", tmp_path / "x"]
    for command in (["inspect", "tokens", made], ["adapt", made, "--plan", "dense", *out], ["adapt", runs / "high", "--plan", made, *out]):
        assert "cascade of 2 efforts" in three_parts(capsys, *command)
    assert "efforts" in three_parts(capsys, "eval", made, "--plan", "dense")
    (made / "effort-2" / "model.safetensors").rename(tmp_path / "weights")
    try:
        assert "effort-2" in three_parts(capsys, "eval", made, *DATA)
    finally:
        (tmp_path / "weights").rename(made / "effort-2" / "model.safetensors")


def test_a_run_takes_other_gates(made, capsys, tmp_path):
    plan = fv.load(made).plan.with_gates([fv.Entropy(1.0)])
    (tmp_path / "low.json").write_text(plan.to_json())
    found = answer(capsys, "eval", made, *DATA, "--plan", tmp_path / "low.json", "--limit", 30)
    assert found["F_L"] == 1 and found["efforts"][1]["answered_percent"] == 0
