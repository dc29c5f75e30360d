"""Bad input on the command line: three parts on standard error, exit code 2, nothing on standard output, nothing lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.cli import main

DEIT = "deit_small_patch16_224"
NANO = "foveate_nano_p4"


def refused(capsys, *arguments) -> dict[str, str]:
    """The three parts of the message of a command that must be refused."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    parts = {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}
    assert list(parts) == ["given", "allowed", "do"], err
    assert all(parts.values())
    return parts


@pytest.fixture(scope="module")
def model():
    """A small dense model with 3 blocks, 16x16 pixels and 10 classes."""
    import timm

    import foveate.backbones  # noqa: F401

    torch.manual_seed(0)
    return timm.create_model(NANO, img_size=16, depth=3, embed_dim=48, num_heads=2).eval()


@pytest.fixture
def dense(model, tmp_path) -> Path:
    return fv.save(model, tmp_path / "dense")


@pytest.fixture
def pruned(model, tmp_path) -> Path:
    return fv.save(fv.adapt(model, fv.Plan([fv.SPViT(after=(1, 2), keep=(0.6, 0.3))])), tmp_path / "pruned")


@pytest.fixture
def photos(tmp_path) -> Path:
    """An image folder of 10 classes with 2 images each in train/ and val/."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(10):
            folder = tmp_path / "photos" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("arguments", "given", "do"),
    [
        (["count", "deit_smal_patch16_224"], "deit_smal_patch16_224", "deit_small_patch16_224"),
        (["count", "resnet50"], "resnet50", "foveate models"),
        (["count", DEIT, "--plan", "spvitt(after=[3],keep=[.5])"], "spvitt", "'spvit'"),
        (["count", DEIT, "--plan", "spvit-deit-smal"], "preset 'spvit-deit-smal'", "spvit-deit-small"),
        (["count", DEIT, "--plan", "plans/none.json"], "plans/none.json", "ls"),
        (["count", DEIT, "--plan", "spvit(after=[3],keep=[.5]"], "spvit(after=[3],keep=[.5]", "quote"),
        (["count", DEIT, "--plan", "spvit(after=[3],keep=[__import__('os')])"], "not a plain value", "quote"),
        (["count", DEIT, "--plan", "spvit(after=[3],keep=[.5],kep=1)"], "'kep'", "foveate methods"),
        (["count", DEIT, "--plan", "spvit(after=[3,6],keep=[.5,.7])"], "keep=[0.5, 0.7]", "sort"),
        (["count", DEIT, "--plan", "spvit(after=[3,6],keep=[1.5,.7])"], "keep", "share"),
        (["count", DEIT, "--plan", "spvit(after=[3,6],keep=[.5])"], "keep=[0.5]", "one ratio a stage"),
        (["count", DEIT, "--plan", "spvit(after=[3,14],keep=[.5,.3])"], "14", "earlier block"),
        (["count", DEIT, "--plan", "spvit(after=[3],keep=[.5],select=best)"], "best", "choose"),
        (["count", DEIT, "--plan", "spvit(after=[3],keep=[.5])+spvit(after=[6],keep=[.2])"], "spvit twice", "join"),
        (["count", DEIT, "--tokens", "89,x"], "89,x", "--tokens 89,28,13"),
        (["count", DEIT, "--tokens", "89"], "tokens=(89,)", "leave tokens out"),
        (["count", DEIT, "--include", "heads"], "heads", "blocks"),
        (["count", DEIT, "--trace", "nowhere"], "nowhere", "foveate eval"),
        (["count", "runs/nowhere"], "runs/nowhere", "ls"),
        (["count", "spvit-deit-small"], "preset", "deit_small_patch16_224 --plan spvit-deit-small"),
        (["models", "zzzz"], "zzzz", "shorter"),
        (["models", "deit_smal_patch"], "deit_smal_patch", "did you mean"),
        (["methods", "spvitt"], "spvitt", "spvit"),
        (["train", NANO, "--recipe", "nano", "--out", "x"], "recipe 'nano'", "JSON"),
        (["train", NANO, "--data", "mnist", "--out", "x"], "mnist", "--data-dir"),
        (["train", NANO, "--data-dir", "nowhere", "--out", "x"], "nowhere", "--data-dir"),
        (["train", NANO, "--set", "lr", "--out", "x"], "--set lr", "lr=1e-3"),
        (["train", NANO, "--set", "lrr=3", "--out", "x"], "lrr", "correct"),
        (["train", NANO, "--set", "lr=-1", "--out", "x"], "lr=-1", "lr"),
        (["train", NANO, "--split", "tests", "--out", "x"], "tests", "split"),
        (["train", NANO, "--pretrained", "--init", "a", "--out", "x"], "--init and --pretrained", "keep"),
        (["train", NANO, "--init", "nowhere", "--out", "x"], "nowhere", "path"),
        (["train", "foveate_nano_p9", "--out", "x"], "foveate_nano_p9", "foveate models"),
        (["train", NANO, "--device", "tpu", "--out", "x"], "tpu", "choose"),
        (["eval", "vit_small_patch16_224"], "without weights", "foveate train"),
        (["eval", "vit_small_patch16_224", "--weights", "nowhere.safetensors"], "nowhere.safetensors", "ls"),
        (["report", "nowhere"], "nowhere", "ls"),
        (["inspect", "tokes", NANO], "tokes", "choose"),
        (["bench", NANO, "--bach", "1"], "--bach", "foveate bench --help"),
        (["bench", NANO, "--batch", "one"], "--batch", "foveate bench --help"),
        (["bench", NANO, "--repetitions", "0"], "--repetitions", "foveate bench --help"),
        (["bench"], "missing argument", "foveate bench --help"),
        (["bnch"], "bnch", "foveate --help"),
        (["predict", NANO], "missing argument", "foveate predict --help"),
    ],
)
def test_words(arguments, given, do, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = refused(capsys, *arguments)
    assert given in parts["given"]
    assert do in parts["do"]
    assert not (tmp_path / "x" / "plan.json").exists()


def test_close_words_are_offered_for_commands(capsys):
    assert "bench" in refused(capsys, "bnch")["given"]
    assert "--batch" in refused(capsys, "bench", NANO, "--bach", "1")["given"]


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ('{"foveate_plan": 9, "methods": []}', "version 9"),
        ('{"foveate_plan": 1, "methods": [], "colour": 1}', "colour"),
        ('{"foveate_plan": 1, "methods": {}}', "methods"),
        ('{"foveate_plan": 1, "methods": [{"method": "spvit", "after": "3", "keep": [0.5]}]}', "after"),
        ('{"foveate_plan": 1, "met', "not JSON"),
    ],
)
def test_plan_files(text, given, capsys, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    assert given in refused(capsys, "count", DEIT, "--plan", tmp_path / "plan.json")["given"]


def test_runs_that_are_none(dense, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "without plan.json" in refused(capsys, "eval", tmp_path / "empty")["given"]
    (tmp_path / "empty" / "run.json").write_text("{}")
    assert "--resume" in refused(capsys, "eval", tmp_path / "empty")["do"]
    assert "--weights" in refused(capsys, "eval", dense / "model.safetensors")["do"]
    assert "results.json" in refused(capsys, "report", dense)["given"]
    assert "has no trace.json" in refused(capsys, "count", dense, "--trace", dense)["given"]


@pytest.mark.parametrize("name", ["model.safetensors", "backbone.json", "preprocessing.json", "plan.json"])
def test_damaged_runs(name, dense, capsys):
    whole = (dense / name).read_bytes()
    (dense / name).write_bytes(whole[: len(whole) // 2])
    assert name in refused(capsys, "eval", dense, "--data", "digits")["given"]
    (dense / name).unlink()
    if name != "preprocessing.json":
        assert name in refused(capsys, "eval", dense, "--data", "digits")["given"]


def test_weights_of_another_architecture(dense, model, capsys):
    parts = refused(capsys, "eval", NANO, "--weights", dense, "--data", "digits")
    assert "model.safetensors" in parts["given"]
    assert "of shape" in parts["given"] or "lacks" in parts["given"]
    assert "--weights" in refused(capsys, "eval", dense, "--weights", dense)["do"]


def test_weights_that_are_no_numbers(capsys, tmp_path):
    import timm
    from safetensors.torch import save_file

    state = timm.create_model(NANO).state_dict()
    state["blocks.1.mlp.fc1.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "bad.safetensors")
    parts = refused(capsys, "eval", NANO, "--weights", tmp_path / "bad.safetensors", "--data", "digits")
    assert "blocks.1.mlp.fc1.weight" in parts["given"]
    assert "NaN" in parts["given"]


def test_a_plan_is_applied_once(pruned, capsys, tmp_path):
    parts = refused(capsys, "adapt", pruned, "--plan", "random(after=[1],keep=[0.5])", "--out", tmp_path / "out")
    assert "already runs by the plan" in parts["given"]
    assert not (tmp_path / "out").exists()


def test_a_run_is_never_overwritten(dense, capsys, tmp_path):
    before = {path.name: path.read_bytes() for path in dense.iterdir()}
    for command in (["train", NANO], ["adapt", NANO, "--plan", "random(after=[1],keep=[0.5])"]):
        assert "already holds a run" in refused(capsys, *command, "--data", "digits", "--out", dense)["given"]
    assert {path.name: path.read_bytes() for path in dense.iterdir()} == before
    (tmp_path / "file").write_text("")
    assert "a file" in refused(capsys, "train", NANO, "--out", tmp_path / "file")["given"]


def test_plans_that_do_not_fit_the_run(dense, pruned, capsys):
    assert "blocks 1...2" in refused(capsys, "eval", dense, "--plan", "random(after=[3],keep=[0.5])")["allowed"]
    assert "selectors" in refused(capsys, "inspect", "heads", dense, "--data", "digits", "--count", 2)["allowed"]
    assert "stages 1...2" in refused(capsys, "inspect", "heads", pruned, "--data", "digits", "--count", 2, "--stage", 3)["allowed"]


def test_a_trace_of_another_plan(pruned, dense, capsys):
    assert main(["eval", str(pruned), "--data", "digits", "--limit", "4", "--trace"]) == 0
    assert "with stages after blocks (1, 2)" in refused(capsys, "count", dense, "--trace", pruned, "--plan", "dense")["given"]
    (dense / "trace.json").write_text('{"images": 1')
    assert "foveate eval RUN --trace" in refused(capsys, "count", dense, "--trace", dense)["do"]


def test_classes_that_do_not_match(dense, photos, capsys, tmp_path):
    shutil.rmtree(photos / "train" / "class9")
    assert "class9" in refused(capsys, "eval", dense, "--data-dir", photos)["given"]
    shutil.rmtree(photos / "val" / "class9")
    parts = refused(capsys, "eval", dense, "--data-dir", photos)
    assert "10 classes" in parts["given"]
    assert "with 9" in parts["given"]


def test_folders_without_images(dense, photos, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "train/CLASS" in refused(capsys, "eval", dense, "--data-dir", tmp_path / "empty")["allowed"]
    for path in photos.rglob("*.png"):
        path.rename(path.with_suffix(".txt"))
    assert "no image" in refused(capsys, "eval", dense, "--data-dir", photos)["given"]


def test_a_damaged_image_is_named_and_left_out_or_refused(dense, photos, capsys):
    bad = photos / "val" / "class3" / "0.png"
    bad.write_bytes(bad.read_bytes()[:60])
    capsys.readouterr()
    assert main(["eval", str(dense), "--data-dir", str(photos), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 19
    assert "1 damaged image" in err
    assert str(bad) in err
    assert str(bad) in refused(capsys, "eval", dense, "--data-dir", photos, "--strict")["given"]


def test_pictures_that_are_none(dense, capsys, tmp_path):
    good, text, cut = tmp_path / "good.png", tmp_path / "text.png", tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)).save(good)
    text.write_text("no image at all")
    cut.write_bytes(good.read_bytes()[:200])
    for path in (text, cut, tmp_path / "none.png", tmp_path):
        assert str(path) in refused(capsys, "predict", dense, good, path, "--json")["given"]


def test_data_that_nobody_named(dense, capsys):
    assert "--data-dir" in refused(capsys, "eval", dense)["do"]


def test_a_trace_without_a_folder(capsys):
    assert "--out" in refused(capsys, "eval", NANO, "--trace")["do"]
    assert "another" not in refused(capsys, "bench", NANO, "--backend", "tensorrt", "--batch", 1)["given"]


def test_an_image_size_that_the_patch_does_not_divide(capsys, tmp_path):
    parts = refused(capsys, "train", NANO, "--model-set", "img_size=30", "--model-set", "depth=1", "--data", "digits", "--out", tmp_path / "run")
    assert "30" in parts["given"]
