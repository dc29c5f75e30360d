import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import foveate
from foveate.errors import FoveateError
from foveate.train.base import create_base, train_base
from foveate.train.data import load_data
from foveate.train.files import read_checkpoint, read_lines
from foveate.train.fit import DataSets, fit
from foveate.train.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, lr=2e-3, augmentation="none", precision="32-true")
TIMES = ("seconds", "images_per_s")


def tiny(**settings) -> VisionTransformer:
    torch.manual_seed(0)
    values = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    return VisionTransformer(**values | settings)


def sets(count: int = 50) -> DataSets:
    train = load_data("digits")
    return DataSets(train.subset(range(count)), train.subset(range(100, 120)), load_data("digits", "test").subset(range(10)))


def quietly(model, out, recipe=RECIPE, data=None, **options):
    return fit(model, out, data or sets(), recipe, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("scenarios")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).with_name("scenarios.py")), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder, {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in ran.stdout.splitlines()}


def test_a_run_killed_four_times_equals_an_uninterrupted_one(scenarios):
    folder, ends = scenarios
    deaths = ("die_in_training", "die_at_the_end_of_an_epoch", "die_before_the_checkpoint", "die_before_saving")
    assert [ends[death] for death in deaths] == ["killed"] * 4
    assert ends["train"] == ends["whole"] == "exit 0"
    whole, killed = (load_file(folder / run / "model.safetensors") for run in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
    whole, killed = (read_lines(folder / run / "metrics.jsonl") for run in ("whole", "killed"))
    assert len(whole) == 4
    for line, other in zip(whole, killed, strict=True):
        assert {k: v for k, v in line.items() if k not in TIMES} == {k: v for k, v in other.items() if k not in TIMES}
    optimizers = [read_checkpoint(folder / run / "checkpoints" / "last.ckpt")["optimizer"]["state"] for run in ("whole", "killed")]
    assert all(torch.equal(optimizers[0][key]["exp_avg"], optimizers[1][key]["exp_avg"]) for key in optimizers[0])
    assert not list(folder.rglob(".*.tmp"))
    runs = [json.loads((folder / run / "run.json").read_text()) for run in ("whole", "killed")]
    assert runs[0]["test"] == runs[1]["test"] and runs[1]["steps"] == runs[1]["of_steps"] == 24


def test_two_processes_train_like_one(scenarios):
    folder, ends = scenarios
    assert ends["two"] == "exit 0 exit 0" and ends["one"] == "exit 0"
    one, two = (read_lines(folder / run / "metrics.jsonl") for run in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert [line["validation_loss"] for line in two] == pytest.approx([line["validation_loss"] for line in one], rel=1e-4)
    assert one[0]["loss"] != one[1]["loss"]
    weights = [load_file(folder / run / "model.safetensors") for run in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-4) for name in weights[0])


def test_a_run_folder_holds_what_the_run_was(tmp_path):
    model = tiny()
    assert quietly(model, tmp_path, command="foveate train ...") == tmp_path
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["command"] == "foveate train ..." and run["data"] == "digits" and run["seed"] == 0
    assert run["versions"]["torch"] and run["machine"]["cpu_cores"] and run["test"]["n"] == 10
    assert (run["steps"], run["of_steps"]) == (6, 6)
    assert Recipe.from_json((tmp_path / "recipe.json").read_text()) == RECIPE
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == [1, 2] and lines[0].keys() >= {"loss", "cross_entropy", "lr", "validation_loss"}
    cosine = [RECIPE.lr * (1 + math.cos(math.pi * step / 6)) / 2 for step in (2, 5)]
    assert [line["lr"] for line in lines] == pytest.approx(cosine)
    assert not model.training
    loaded = foveate.load(tmp_path)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_training_learns(tmp_path):
    quietly(tiny(), tmp_path, RECIPE.but(epochs=12, lr=1e-2), DataSets(load_data("digits").subset(range(300))))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.75 * lines[0]["loss"]


def test_a_limited_run_goes_on_and_a_finished_one_is_left_alone(tmp_path):
    whole, parts = tiny(), tiny()
    quietly(whole, tmp_path / "whole")
    quietly(parts, tmp_path / "parts", limit_steps=2)
    assert "test" not in json.loads((tmp_path / "parts" / "run.json").read_text())
    again = tiny()
    quietly(again, tmp_path / "parts", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    before = (tmp_path / "parts" / "run.json").stat().st_mtime_ns
    quietly(tiny(), tmp_path / "parts", resume=True)
    assert (tmp_path / "parts" / "run.json").stat().st_mtime_ns == before


def test_a_diverged_run_stops_and_keeps_its_last_good_state(tmp_path):
    class Breaking(VisionTransformer):
        passes = 0

        def forward(self, images):
            self.passes += self.training
            logits = super().forward(images)
            return logits * float("nan") if self.passes == 3 else logits

    torch.manual_seed(0)
    model = Breaking(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=10)
    with pytest.raises(FoveateError) as caught:
        quietly(model, tmp_path, checkpoint_steps=1)
    assert "diverged at step 3 (epoch 1)" in caught.value.given and "nan" in caught.value.given
    assert "lower lr (now 0.002)" in caught.value.do and "last.ckpt" in caught.value.do
    state = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert state["step"] == 2 and all(torch.isfinite(tensor).all() for tensor in state["model"].values())
    # The model in memory is the good state as well.
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in model.state_dict().items())
    quietly(tiny(), tmp_path, resume=True)


def test_a_non_finite_gradient_stops_too(tmp_path):
    model = tiny()
    model.head.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(FoveateError, match="gradient norm"):
        quietly(model, tmp_path)


def test_gradients_are_clipped(tmp_path):
    moved = []
    for limit in (1e-3, 1e-5):
        model = tiny()
        before = model.blocks[0].mlp.fc1.weight.detach().clone()
        recipe = RECIPE.but(optimizer="sgd", lr=100.0, weight_decay=0.0, clip_norm=limit)
        quietly(model, tmp_path / str(limit), recipe, limit_steps=1)
        moved.append(float((model.blocks[0].mlp.fc1.weight.detach() - before).norm()))
    assert moved[1] == pytest.approx(moved[0] / 100, rel=0.05)


@pytest.mark.parametrize("select", ["topk", "argmax"])
def test_an_adapted_model_learns_from_its_teacher_and_resumes(tmp_path, select):
    base = tiny(patch_size=2, depth=3)
    plan = foveate.Plan([foveate.SPViT(after=(1, 2), keep=(0.7, 0.4), select=select)])
    recipe = RECIPE.but(backbone_lr=1e-4, distill_weight=0.3)
    results = []
    for name, limits in (("whole", (None,)), ("parts", (4, None))):
        for limit in limits:
            torch.manual_seed(1)
            model = foveate.adapt(base, plan)
            first = {key: value.clone() for key, value in model.state_dict().items()}
            teacher = foveate.adapt(base, foveate.Plan([]))
            quietly(model, tmp_path / name, recipe, teacher=teacher, resume=True, limit_steps=limit)
        results.append(model.state_dict())
    assert all(torch.equal(tensor, results[1][key]) for key, tensor in results[0].items())
    lines = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert {"cross_entropy", "kl", "distillation", "loss"} < lines[0].keys()
    assert lines[0]["kl"] > 0 and lines[0]["distillation"] > 0
    methods = {name for name, _ in model.method_parameters()}
    moved = {key: float((tensor - first[key]).abs().max()) for key, tensor in results[0].items()}
    assert min(moved[name] for name in methods if name.endswith("weight")) > 5 * moved["patch_embed.proj.weight"] > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert foveate.load(tmp_path / "whole").plan == plan


def nan_model():
    model = tiny()
    model.blocks[1].mlp.fc1.weight.data[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (lambda: tiny(num_classes=7), {}, ["7 classes", "digits with 10", "num_classes=10"]),
        (nan_model, {}, ["blocks.1.mlp.fc1.weight", "NaN"]),
        (tiny, {"teacher": tiny(), "recipe": RECIPE.but(patch_drop=(0.5,))}, ["patch_drop", "teacher"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, model, options, words):
    with pytest.raises(FoveateError) as caught:
        quietly(model(), tmp_path / "run", **options)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "run").exists()


def test_a_used_folder_another_recipe_and_another_model_are_refused(tmp_path):
    quietly(tiny(), tmp_path, limit_steps=1)
    with pytest.raises(FoveateError, match="--resume"):
        quietly(tiny(), tmp_path)
    with pytest.raises(FoveateError) as caught:
        quietly(tiny(), tmp_path, RECIPE.but(lr=1e-3), resume=True)
    assert "lr=0.002" in caught.value.given
    with pytest.raises(FoveateError, match="another model"):
        quietly(tiny(embed_dim=8), tmp_path, resume=True)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    with pytest.raises(FoveateError, match="cannot be read"):
        quietly(tiny(), tmp_path, resume=True)


def test_small_sets_shrink_the_batch(tmp_path):
    quietly(tiny(), tmp_path, data=sets(11))
    assert Recipe.from_json((tmp_path / "recipe.json").read_text()).batch_size == 10


def test_a_base_by_name(tmp_path):
    settings = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    name = "vit_tiny_patch16_224"
    options = {"data": "digits", "settings": settings, "device": "cpu", "progress": False, "limit_steps": 1}
    train_base(name, tmp_path / "a", recipe=RECIPE, **options)
    train_base(name, tmp_path / "b", recipe=RECIPE, init=str(tmp_path / "a"), **options)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["model"] == name
    assert json.loads((tmp_path / "b" / "run.json").read_text())["init"] == str(tmp_path / "a")
    first, again, other = (create_base(name, 10, seed=seed, **settings) for seed in (0, 0, 1))
    assert torch.equal(first.pos_embed, again.pos_embed) and not torch.equal(first.pos_embed, other.pos_embed)
    with pytest.raises(FoveateError, match="vit_tinny"):
        create_base("vit_tinny", 10)
    with pytest.raises(FoveateError, match="img_size"):
        create_base(name, 10, img_size="large")


def test_own_images_with_a_damaged_file_train_in_a_worker_process(tmp_path):
    for part in ("train", "val"):
        for label in range(10):
            folder = tmp_path / part / str(label)
            folder.mkdir(parents=True)
            for index in range(2):
                Image.fromarray(np.full((9, 9, 3), 20 * label + index, np.uint8)).save(folder / f"{index}.png")
    (tmp_path / "train" / "3" / "1.png").write_bytes(b"no image")
    runs = []
    for workers in (0, 1):
        model, options = tiny(), {"data": "imagefolder", "data_dir": tmp_path, "workers": workers, "device": "cpu", "progress": False}
        with pytest.warns(UserWarning, match="3/1.png"):
            runs.append(fit(model, tmp_path / f"run{workers}", recipe=RECIPE.but(batch_size=8, augmentation="full"), **options))
    first, second = (load_file(run / "model.safetensors") for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    record = json.loads((runs[0] / "run.json").read_text())
    assert record["train_images"] == 18 and record["skipped"] == [str(tmp_path / "train" / "3" / "1.png")]
