"""The commands that train, judge, time and picture, each on tiny things."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import answer, run
from PIL import Image

import foveate as fv
from foveate.cli import main
from foveate.cli.recipes import chosen_recipe

TINY = ["--model-set", "depth=3", "--model-set", "embed_dim=48", "--model-set", "num_heads=2"]
SMALL = ["--data", "digits", "--epochs", "1", "--batch-size", "1024"]
PLAN = "spvit(after=[1,2], keep=[0.6,0.3], select=argmax)"
TOPK = "spvit(after=[1,2], keep=[0.6,0.3])"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "base"
    assert main(["train", "foveate_nano_p4", *TINY, *SMALL, "--set", "precision=32-true", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pruned(base) -> Path:
    folder = base.parent / "pruned"
    command = ["adapt", str(base), "--plan", PLAN, "--epochs", "1", "--batch-size", "1024", "--set", "precision=32-true", "--out", str(folder)]
    assert main(command) == 0
    # Selectors that hardly learned keep everything; make their choices differ from image to image.
    model = fv.load(folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in model.spvit.parameters():
            torch.nn.init.normal_(parameter, std=1.0)
    fv.save(model, folder, json.loads((folder / "preprocessing.json").read_text()), [str(digit) for digit in range(10)])
    return folder


def test_train_leaves_a_run(base, capsys):
    record = json.loads((base / "run.json").read_text())
    assert record["steps"] == record["of_steps"] == 1
    assert record["test"]["n"] == 360
    assert record["command"].startswith("foveate train foveate_nano_p4 --model-set depth=3")
    assert fv.load(base).card.depth == 3


def test_pause_and_resume(capsys, tmp_path):
    command = ["train", "foveate_nano_p4", *TINY, "--data", "digits", "--batch-size", 1024, "--epochs", 2, "--out", tmp_path / "run"]
    paused = answer(capsys, *command, "--steps", 1)
    assert (paused["steps"], paused["of_steps"]) == (1, 2)
    assert "accuracy_percent" not in paused
    assert run(capsys, *command)[0] == 2
    done = answer(capsys, *command, "--resume")
    assert done["steps"] == 2
    assert 0 <= done["accuracy_percent"] <= 100
    assert answer(capsys, *command, "--resume") == done


def test_first_weights_grown_from_the_embedded_twin(capsys, monkeypatch, tmp_path):
    import timm

    seen = {}
    monkeypatch.setattr("foveate.train.base.fit", lambda model, out, sets, recipe, **options: seen.update(options))
    code, *_ = run(capsys, "train", "foveate_nano", "--data", "fashion-mnist-subset", "--init", "grow:foveate_nano_p4", "--out", tmp_path / "run")
    assert code == 0
    assert seen["init"] == "grow:" + timm.create_model("foveate_nano_p4").pretrained_cfg["file"]


def test_adapt_leaves_a_tested_run_with_its_trace(pruned, base):
    names = {"plan.json", "backbone.json", "preprocessing.json", "model.safetensors", "recipe.json", "run.json", "metrics.jsonl", "trace.json"}
    assert names <= {path.name for path in pruned.iterdir()}
    record = json.loads((pruned / "run.json").read_text())
    trace = fv.Trace.from_json((pruned / "trace.json").read_text())
    assert trace.images == record["test"]["n"] == 360
    assert record["test"]["tokens_mean"] == pytest.approx(trace.tokens_mean)
    assert fv.Plan.parse(str(pruned)) == fv.Plan.parse(PLAN)
    metrics = [json.loads(line) for line in (pruned / "metrics.jsonl").read_text().splitlines()]
    assert {"kl", "distillation", "spvit_ratio", "validation_accuracy_percent"} <= set(metrics[-1])


def test_eval_agrees_with_the_library(pruned, capsys):
    from foveate.train.data import load_data
    from foveate.train.preprocessing import Preprocessing

    found = answer(capsys, "eval", pruned, "--trace", "--limit", 100)
    model = fv.load(pruned)
    images = load_data("digits", "test", preprocessing=Preprocessing.from_json((pruned / "preprocessing.json").read_text())).batch(range(100))
    with torch.no_grad():
        logits, trace = model.traced(images.images)
    assert found["accuracy_percent"] == pytest.approx(100 * float((logits.argmax(1) == images.labels).float().mean()))
    assert found["tokens_mean"] == pytest.approx(trace.tokens_mean)
    assert len(set(trace.tokens[0])) > 1  # otherwise the trace would have nothing to say
    assert found["macs"] == pytest.approx(fv.count(model, trace=trace).macs)
    assert found["images"] == 100
    assert json.loads((pruned / "trace.json").read_text())["images"] == 100
    counted = answer(capsys, "count", pruned, "--trace", pruned)
    assert counted["macs"] == pytest.approx(found["macs"])
    assert "mean over 100 images" in counted["label"]


def test_eval_judges_fixed_point_hardware_too(pruned, capsys):
    found = answer(capsys, "eval", pruned, "--fixed-point", 16, "--limit", 100)
    assert found["bits"] == 16
    assert found["accuracy_percent"] == answer(capsys, "eval", pruned, "--limit", 100)["accuracy_percent"]
    assert found["accuracy_percent_fixed_point"] == pytest.approx(found["accuracy_percent"], abs=5)
    code, text, _ = run(capsys, "eval", pruned, "--fixed-point", 4, "--limit", 100)
    assert code == 0
    assert "in 4 bits" in text
    code, out, err = run(capsys, "eval", pruned, "--fixed-point", 25, "--limit", 10)
    assert (code, out) == (2, "")
    assert "4 to 24 bits" in err


def test_a_run_takes_another_plan_with_its_weights(pruned, base, capsys):
    topk = answer(capsys, "eval", pruned, "--plan", TOPK, "--limit", 50)
    assert topk["tokens_mean"] == [1 + 29 + 1, 1 + 15 + 2]
    code, _, err = run(capsys, "eval", base, "--plan", TOPK, "--limit", 50)
    assert code == 0
    assert "untrained" in err


def test_bench_compares_with_the_dense_model(pruned, capsys, tmp_path):
    found = answer(capsys, "bench", pruned, "--plan", TOPK, "--backend", "torch", "--batch", 1, 2, "--repetitions", 3, "--warmup", 1, "--out", tmp_path)
    assert [row["batch"] for row in found["results"]] == [1, 2]
    for row in (found, *found["results"]):
        assert (row["backend"], row["precision"], row["baseline"]) == ("torch", "fp32", "dense")
        assert row["latency_ms"] > 0
        assert row["images_per_s"] == pytest.approx(1000 / row["latency_ms"])
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["verdict"] in ("helps", "no gain here")
    (tmp_path / "report.html").unlink()
    assert answer(capsys, "report", tmp_path)["report"] == str(tmp_path / "report.html")
    assert "dense" in (tmp_path / "report.html").read_text()


def test_bench_splits_compute_and_overhead(pruned, capsys, tmp_path):
    found = answer(capsys, "bench", pruned, "--plan", TOPK, "--breakdown", "--batch", 1, 2, "--repetitions", 3, "--warmup", 0, "--out", tmp_path)
    for row in (found, *found["results"]):
        assert row["backend"] == "torch"
        assert 0 < row["overhead_ms"] < row["breakdown_latency_ms"]
        assert row["overhead_percent_low"] <= row["overhead_percent"] <= row["overhead_percent_high"] < 100
        assert {part["part"] for part in row["overhead_parts"]} == {"selector", "packaging and gathers"}
    assert "Compute and overhead" in (tmp_path / "report.html").read_text()
    code, out, err = run(capsys, "bench", pruned, "--breakdown", "--backend", "openvino")
    assert code == 2
    assert "--breakdown with --backend openvino" in err


def test_bench_of_a_backbone_without_weights(capsys, monkeypatch):
    monkeypatch.setattr("foveate.cli.timing.TIMED_IMAGES", 2)
    found = answer(capsys, "bench", "vit_tiny_patch16_224", "--backend", "torch", "--batch", 1, "--repetitions", 1, "--warmup", 0)
    assert found["verdict"] == "baseline"
    assert found["plan"] == "dense"
    assert found["speedup"] == 1


def pictures(folder: Path) -> dict[str, Path]:
    """One 28x28 picture in many forms, all of which show the same; and some of other sizes."""
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8))
    forms = {"grey": grey, "rgb": grey.convert("RGB"), "rgba": grey.convert("RGBA"), "palette": grey.convert("P"), "la": grey.convert("LA")}
    forms["grey16"] = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    paths = {}
    for name, picture in forms.items():
        paths[name] = folder / f"{name}.png"
        picture.save(paths[name])
    for name, size in (("wide", (90, 30)), ("dot", (1, 1))):
        paths[name] = folder / f"{name}.jpg"
        grey.resize(size).save(paths[name])
    return paths


def test_predict_any_picture(pruned, capsys, tmp_path):
    paths = pictures(tmp_path)
    found = answer(capsys, "predict", pruned, *paths.values(), "--top", 3)["predictions"]
    by = {Path(one["image"]).stem: one for one in found}
    for name in ("rgb", "rgba", "palette", "la", "grey16"):
        assert [one["class"] for one in by[name]["top"]] == [one["class"] for one in by["grey"]["top"]], name
        chances = [[one["probability_percent"] for one in by[form]["top"]] for form in (name, "grey")]
        assert chances[0] == pytest.approx(chances[1], abs=1e-3), name
        assert by[name]["tokens"] == by["grey"]["tokens"]
    model, settings = fv.load(pruned), json.loads((pruned / "preprocessing.json").read_text())
    mean, std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.asarray(Image.open(paths["rgb"])).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        chances, classes = model((pixels - mean) / std).softmax(-1)[0].topk(3)
    assert [one["index"] for one in by["grey"]["top"]] == classes.tolist()
    assert [one["probability_percent"] for one in by["grey"]["top"]] == pytest.approx((100 * chances).tolist(), abs=1e-3)
    assert by["dot"]["top"][0]["class"] in {str(digit) for digit in range(10)}
    assert "grey.png" in run(capsys, "predict", pruned, paths["grey"])[1].replace("\n", "").replace(" ", "")


def test_predict_with_weights_from_a_file(base, capsys, tmp_path):
    """Another head than timm's default is read off the checkpoint."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("foveate_nano_p4", num_classes=4)
    fv.save(model, tmp_path / "four")
    paths = pictures(tmp_path)
    found = answer(capsys, "predict", "foveate_nano_p4", paths["rgb"], "--weights", tmp_path / "four" / "model.safetensors", "--top", 9)
    assert {one["class"] for one in found["predictions"][0]["top"]} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("what", ["tokens", "heads", "cls-cka", "attention"])
def test_inspect(what, pruned, capsys, tmp_path):
    found = answer(capsys, "inspect", what, pruned, "--count", 4, "--out", tmp_path)
    page = Path(found["report"])
    assert page == tmp_path / "report.html"
    assert "foveate inspect" in page.read_text()


def test_none_is_a_word_where_a_setting_is_one():
    recipe = chosen_recipe("pivot-nano", None, None, None, None, ["quantise=none", "augmentation=None", "drop_path=none"])
    assert (recipe.quantise, recipe.augmentation, recipe.drop_path) == ("none", "none", None)
    with pytest.raises(fv.FoveateError, match="optimizer"):
        chosen_recipe("pivot-nano", None, None, None, None, ["optimizer=3"])
