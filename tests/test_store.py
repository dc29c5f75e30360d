"""Run folders: what `save` writes `load` gives back, and what is damaged, foreign or interrupted is refused by name."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import foveate as fv
import tiny
from foveate.backbones.blueprint import Blueprint
from foveate.store import BACKBONE, PLAN, PREPROCESSING, WEIGHTS, load_weights

ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])
TOPK = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))])
FILES = (PLAN, BACKBONE, PREPROCESSING, WEIGHTS)


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


def rewrite(path: Path, change) -> None:
    """Applies `change` to a JSON object in a file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder that no test changes."""
    return fv.save(tiny.adapted(ARGMAX), tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path):
    """A run folder to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


# round trips


@pytest.mark.parametrize("methods", [
    [], [fv.SPViT(after=(1, 3), keep=(0.7, 0.4), package_weight=0.5)], [fv.SPViT(after=1, keep=0.5, select="argmax")],
    [fv.Random(after=2, keep=0.5, seed=3)], [fv.Structure(keep=0.5)], [fv.Structure(keep=0.7, blocks=(2,)), fv.SPViT(after=1, keep=0.5)],
], ids=str)
def test_every_plan_comes_back(methods, tmp_path):
    fast, images = tiny.adapted(fv.Plan(methods)), tiny.images()
    assert fv.save(fast, tmp_path / "a" / "run") == tmp_path / "a" / "run"
    back = fv.load(tmp_path / "a" / "run")
    with torch.no_grad():
        assert torch.equal(back(images), fast(images))
    assert back.plan == fast.plan and not back.training and type(fv.restore(back)) is type(fv.restore(fast))
    assert list(back.state_dict()) == list(fast.state_dict())


ARGUMENTS = {
    "depth": ("deit_tiny_patch16_224", dict(depth=2)),
    "width": ("deit_tiny_patch16_224", dict(embed_dim=30, num_heads=5)),
    "heads-only": ("deit_tiny_patch16_224", dict(num_heads=6)),  # no tensor's shape tells
    "img-size": ("deit_tiny_patch16_224", dict(img_size=40)),
    "oblong": ("deit_tiny_patch16_224", dict(img_size=(24, 40))),
    "patch-size": ("deit_tiny_patch16_224", dict(patch_size=4)),
    "classes": ("deit_tiny_patch16_224", dict(num_classes=3)),
    "no-classes": ("deit_tiny_patch16_224", dict(num_classes=0)),
    "gray": ("deit_tiny_patch16_224", dict(in_chans=1)),
    "registers": ("vit_tiny_patch16_224", dict(reg_tokens=3)),
    "no-class-token": ("vit_tiny_patch16_224", dict(class_token=False, global_pool="avg")),
    "no-class-token-no-fc-norm": ("vit_tiny_patch16_224", dict(class_token=False, global_pool="avg", fc_norm=False)),
    "average": ("vit_tiny_patch16_224", dict(global_pool="avg")),
    "average-all": ("vit_tiny_patch16_224", dict(global_pool="avg", pool_include_prefix=True)),
    "map": ("vit_tiny_patch16_224", dict(global_pool="map")),
    "distilled": ("deit_tiny_distilled_patch16_224", dict(depth=2)),
    "layer-scale": ("vit_tiny_patch16_224", dict(init_values=0.1)),
    "qk-norm": ("vit_tiny_patch16_224", dict(qk_norm=True)),
    "all-norms": ("vit_tiny_patch16_224", dict(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, pre_norm=True)),
    "no-biases": ("vit_tiny_patch16_224", dict(qkv_bias=False, proj_bias=False)),
    "no-positions": ("vit_tiny_patch16_224", dict(pos_embed="none")),
    "patch-positions": ("vit_tiny_patch16_224", dict(no_embed_class=True)),
    "narrow-mlp": ("vit_tiny_patch16_224", dict(mlp_ratio=1 / 3)),
    "dynamic": ("vit_tiny_patch16_224", dict(dynamic_img_size=True)),
    "two-attentions": ("vit_small_patch16_18x2_224", {}),
    "res-post": ("vit_base_patch16_rpn_224", {}),
    "differential": ("vit_dwee_patch16_reg1_gap_256", {}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "lvvit": ("lvvit_s", {}),
    "nano": ("foveate_nano_p4", dict(in_chans=1)),
    "pit": ("pit_ti_224", None),
    "swin": ("swin_tiny_patch4_window7_224", None),
}


def created(key: str) -> torch.nn.Module:
    name, arguments = ARGUMENTS[key]
    whole = (tiny.PIT if "pit" in name else tiny.SWIN) if arguments is None else tiny.VIT | arguments
    torch.manual_seed(2)
    return tiny.randomised(timm.create_model(name, **whole)).eval()


@pytest.mark.parametrize("key", ARGUMENTS)
def test_models_of_any_arguments_come_back(key, tmp_path):
    model = created(key)
    images = torch.randn(2, model.in_chans, *model.patch_embed.img_size)
    back = fv.load(fv.save(model, tmp_path))
    with torch.no_grad():
        assert torch.equal(back(images), model(images))
    assert list(back.state_dict()) == list(model.state_dict()) and back.plan == fv.Plan([])


@pytest.mark.parametrize("key", tiny.ATTENTION_ONLY)
def test_models_with_convolutions_come_back(key, tmp_path):
    model, images = tiny.model(key), tiny.images(key)
    back = fv.load(fv.save(model, tmp_path))
    with torch.no_grad():
        assert torch.equal(back(images), model(images)) and torch.equal(fv.restore(back)(images), model(images))
    assert list(back.state_dict()) == list(model.state_dict()) and back.card.image_size == tuple(images.shape[2:])


def test_training_settings_come_back(tmp_path):
    drops = dict(drop_rate=0.2, pos_drop_rate=0.1, proj_drop_rate=0.15, attn_drop_rate=0.05, drop_path_rate=0.3)
    model, images = timm.create_model("deit_tiny_patch16_224", **tiny.VIT, **drops), tiny.images()
    back = fv.load(fv.save(model, tmp_path)).train()
    torch.manual_seed(1)
    expected = model.train()(images)
    torch.manual_seed(1)
    assert torch.equal(back(images), expected)


def test_changes_after_creation_come_back(tmp_path):
    model = tiny.model()
    model.reset_classifier(3, "avg")
    model.set_input_size(img_size=48)
    images = torch.randn(2, 3, 48, 48)
    back = fv.load(fv.save(model, tmp_path))
    with torch.no_grad():
        assert torch.equal(back(images), model(images))


@pytest.mark.parametrize("change", [
    lambda m: setattr(m.blocks[1].mlp, "act", torch.nn.ReLU()),
    lambda m: setattr(m.blocks[1].attn, "scale", 0.5),
    lambda m: setattr(m.blocks[1].attn, "num_heads", 6),
    lambda m: setattr(m.blocks[2], "mlp", torch.nn.Linear(24, 24)),
    lambda m: setattr(m.norm, "eps", 0.1),
    lambda m: setattr(m, "head", torch.nn.Linear(24, 9)),
], ids=["activation", "scale", "heads", "mlp", "eps", "head"])
def test_what_cannot_be_built_anew_is_refused_when_saving(change, tmp_path):
    model = tiny.model()
    change(model)
    with refused("(cannot be rebuilt|no part of a known structure)"):
        fv.save(model, tmp_path / "run")
    assert not (tmp_path / "run" / PLAN).exists()


def test_bfloat16_and_other_devices(run, tmp_path):
    fast, images = tiny.adapted(TOPK, dtype=torch.bfloat16), tiny.images()
    back = fv.load(fv.save(fast, tmp_path / "half"))
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(fast.state_dict().values(), back.state_dict().values()))
    assert torch.isfinite(back(images)).all()
    assert {p.device.type for p in fv.load(run, device="meta").parameters()} == {"meta"}


def test_weights_shared_by_two_names_are_saved(tmp_path):
    fast, images = tiny.adapted(TOPK), tiny.images()
    fast.blocks[1].mlp = fast.blocks[0].mlp
    back = fv.load(fv.save(fast, tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(back(images), fast(images))


# what the files hold


def test_the_folder_holds_four_readable_files(saved):
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)
    assert fv.Plan.from_json((saved / PLAN).read_text()) == ARGMAX
    backbone = json.loads((saved / BACKBONE).read_text())
    assert backbone["architecture"] == "deit_tiny_patch16_224" and backbone["arguments"]["depth"] == 4
    with safe_open(saved / WEIGHTS, "pt") as file:
        assert file.metadata()["plan"] == ARGMAX.digest()
    assert not any(pickle_like(p) for p in saved.iterdir())
    others = {p.stat().st_mode & 0o777 for p in saved.iterdir()}
    assert len(others) == 1, "all files follow the umask"


def pickle_like(path: Path) -> bool:
    data = path.read_bytes()
    return data[:2] in (b"\x80\x04", b"\x80\x05", b"\x80\x02", b"PK")


def test_preprocessing_and_labels_come_back(tmp_path):
    settings = {"image_size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.95, "interpolation": "bilinear"}
    fv.save(tiny.adapted(TOPK), tmp_path, preprocessing=settings, labels=["cat", "dög"])
    back = fv.load(tmp_path)
    cfg = back.pretrained_cfg
    assert cfg["input_size"] == (3, 32, 32) and cfg["mean"] == [0.1, 0.2, 0.3] and cfg["interpolation"] == "bilinear"
    assert cfg["label_names"] == ["cat", "dög"]
    again = fv.load(fv.save(back, tmp_path / "again"))
    assert json.loads((tmp_path / "again" / PREPROCESSING).read_text()) == settings and again.pretrained_cfg["label_names"] == ["cat", "dög"]


def test_the_backbones_own_preprocessing_is_the_default(saved):
    settings = json.loads((saved / PREPROCESSING).read_text())
    cfg = timm.models.get_pretrained_cfg("deit_tiny_patch16_224")
    assert settings == {"image_size": 32, "mean": list(cfg.mean), "std": list(cfg.std), "crop_pct": cfg.crop_pct, "interpolation": cfg.interpolation}


def test_saving_over_a_run_replaces_it(run):
    other = tiny.adapted(TOPK)
    fv.save(other, run)
    assert fv.load(run).plan == TOPK and sorted(p.name for p in run.iterdir()) == sorted(FILES)


# damage


@pytest.mark.parametrize("name", [PLAN, BACKBONE, WEIGHTS])
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with refused("run", name):
        fv.load(run)


def test_a_run_without_preprocessing_loads_with_the_models_own(run):
    (run / PREPROCESSING).unlink()
    assert fv.load(run).pretrained_cfg["architecture"] == "deit_tiny_patch16_224"


def test_no_folder_no_run(tmp_path):
    with refused("nowhere", "no folder"):
        fv.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with refused("file", "no folder"):
        fv.load(tmp_path / "file")
    with refused("without plan.json"):
        fv.load(tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "pickled", "deep"])
def test_a_damaged_file_is_named(run, name, damage):
    path = run / name
    data = path.read_bytes()
    path.write_bytes({
        "truncated": data[: len(data) * 2 // 3], "empty": b"", "garbage": os.urandom(400), "deep": b"[" * 100_000,
        "pickled": pickle.dumps({"weight": [1.0]})}[damage])
    with refused(str(path)):
        fv.load(run)


def test_one_flipped_byte_of_the_weights_is_noticed(run):
    data = bytearray((run / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 0x40
    (run / WEIGHTS).write_bytes(data)
    with refused(WEIGHTS):
        fv.load(run)


def test_a_torch_checkpoint_in_place_of_the_weights_is_refused(run):
    torch.save(tiny.model().state_dict(), run / WEIGHTS)
    with refused(WEIGHTS, "safetensors"):
        fv.load(run)


def test_a_plan_of_another_run_is_refused(run):
    rewrite(run / PLAN, lambda plan: plan["methods"][0].update(keep=[0.6, 0.3]))
    with refused(WEIGHTS, "plan"):
        fv.load(run)


def test_weights_or_backbone_of_another_run_are_refused(run, tmp_path):
    other = tiny.adapted(ARGMAX)
    with torch.no_grad():
        other.head.bias.add_(1)
    fv.save(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, run / WEIGHTS)
    with refused(WEIGHTS):
        fv.load(run)


def test_a_backbone_edited_where_no_shape_tells_is_not_loaded_silently(tmp_path):
    """The number of heads is in no tensor's shape."""
    fv.save(timm.create_model("deit_tiny_patch16_224", **tiny.VIT), tmp_path / "three")
    fv.save(timm.create_model("deit_tiny_patch16_224", **tiny.VIT | dict(num_heads=6)), tmp_path / "six")
    shutil.copy(tmp_path / "six" / BACKBONE, tmp_path / "three" / BACKBONE)
    with refused("three"):
        fv.load(tmp_path / "three")


@pytest.mark.parametrize("change, words", [
    (lambda b: b["arguments"].update(depth=6), ("blocks.4",)),
    (lambda b: b["arguments"].update(embed_dim=27), ("shape",)),
    (lambda b: b["arguments"].update(num_heads="many"), ("num_heads",)),
    (lambda b: b["arguments"].update(colour="red"), ("colour",)),
    (lambda b: b["arguments"].update(checkpoint_path="/tmp/evil.pth"), ("checkpoint_path",)),
    (lambda b: b["arguments"].update(pretrained=True), ("pretrained",)),
    (lambda b: b.update(arguments=[1]), ("arguments",)),
    (lambda b: b.update(architecture="deit_enormous"), ("deit_enormous",)),
    (lambda b: b.update(architecture="hf-hub:someone/model"), ("hf-hub",)),
    (lambda b: b.update(architecture="local-dir:/tmp/model"), ("local-dir",)),
    (lambda b: b.update(architecture="resnet18", arguments={}), ("resnet18",)),
    (lambda b: b.update(architecture=3), ("architecture",)),
    (lambda b: b.pop("architecture"), ("architecture",)),
])
def test_a_foreign_backbone_is_refused(run, change, words):
    rewrite(run / BACKBONE, change)
    with refused(*words):
        fv.load(run)


@pytest.mark.parametrize("change", [
    lambda p: p.update(image_size="32"), lambda p: p.update(mean=0.5), lambda p: p.pop("std"), lambda p: p.update(crop_pct=None),
    lambda p: p.update(interpolation=3)])
def test_wrong_preprocessing_is_refused(run, change):
    rewrite(run / PREPROCESSING, change)
    with refused(PREPROCESSING):
        fv.load(run)


def tampered(run: Path, change) -> None:
    """Rewrites the weights with the digest that belongs to them, so that only their content is wrong."""
    with safe_open(run / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(run / WEIGHTS)
    change(tensors)
    save_file(tensors, run / WEIGHTS, metadata)
    rewrite(run / BACKBONE, lambda b: b.update(weights=hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()))


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop("head.bias"), ("lacks", "head.bias")),
    (lambda t: t.update(extra=torch.zeros(1)), ("unknown", "extra")),
    (lambda t: t.update({"head.bias": torch.zeros(9)}), ("head.bias", "shape")),
    (lambda t: t["blocks.0.mlp.fc1.weight"].fill_(float("nan")), ("NaN", "blocks.0.mlp.fc1.weight")),
    (lambda t: t["spvit.selectors.1.score.bias"].fill_(float("inf")), ("infinite", "spvit.selectors.1.score.bias")),
])
def test_wrong_weights_are_named(run, change, words):
    tampered(run, change)
    with refused(*words):
        fv.load(run)


# checkpoints alone


def test_load_weights_takes_a_file_or_a_run(saved, tmp_path):
    save_file(tiny.model().state_dict(), tmp_path / "base.safetensors")
    model = timm.create_model("deit_tiny_patch16_224", **tiny.VIT).eval()
    load_weights(model, tmp_path / "base.safetensors")
    assert torch.equal(model(tiny.images()), tiny.model()(tiny.images()))
    fast = fv.adapt(model, ARGMAX)
    load_weights(fast, saved)
    assert torch.equal(fast(tiny.images()), fv.load(saved)(tiny.images()))


def test_load_weights_refuses_another_architecture(tmp_path):
    save_file(tiny.model("deit3").state_dict(), tmp_path / "other.safetensors")
    model = tiny.model()
    before = model.state_dict()["head.weight"].clone()
    with refused("other.safetensors", "pos_embed|blocks|norm"):
        load_weights(model, tmp_path / "other.safetensors")
    assert torch.equal(model.head.weight, before), "a refused checkpoint changes nothing"
    with refused("nowhere.safetensors"):
        load_weights(model, tmp_path / "nowhere.safetensors")


# interruptions


def another() -> fv.AdaptiveModel:
    """The same plan and shapes as the saved run, with other weights."""
    other = tiny.adapted(ARGMAX)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    return other


def save_another(run: Path) -> None:
    """Saves another run over the saved one: the same plan, other weights and preprocessing. A mixture would load if nothing stopped it."""
    fv.save(another(), run, preprocessing={"image_size": 32, "mean": [0.9] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bicubic"})


def consistent(run: Path) -> bool:
    """Whether the folder loads as one of the two runs; False if it is refused. A mixture fails the test."""
    images = tiny.images()
    try:
        back = fv.load(run)
    except fv.FoveateError:
        return False
    with torch.no_grad():
        logits = back(images)
        new = torch.equal(logits, another()(images))
        assert new or torch.equal(logits, tiny.adapted(ARGMAX)(images)), "a mixture of two saves loads"
    assert (back.pretrained_cfg["mean"][0] == 0.9) == new, "weights of one save with the preprocessing of the other"
    return True


@pytest.mark.parametrize("step", range(4))
def test_a_save_that_fails_half_way_never_loads_as_a_mixture(run, step, monkeypatch):
    calls, real = [], os.replace

    def failing(source, target):
        if ".saving-" not in str(target):
            calls.append(target)
        if len(calls) == step + 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with refused("run", "No space left"):
        save_another(run)
    monkeypatch.undo()
    consistent(run)
    assert not [p for p in run.iterdir() if p.name not in FILES], "nothing temporary stays behind"
    save_another(run)
    assert consistent(run)


def test_a_disk_too_full_for_the_new_run_leaves_the_old_one(run, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("foveate.store.save_file", full)
    with refused("run", "No space left"):
        save_another(run)
    monkeypatch.undo()
    assert torch.equal(fv.load(run)(tiny.images()), tiny.adapted(ARGMAX)(tiny.images()))


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
import test_store
real, left = os.replace, [int(sys.argv[2])]
def killed(source, target):
    if ".saving-" not in str(target):
        if left[0] == 0:
            os._exit(9)
        left[0] -= 1
    real(source, target)
os.replace = killed
test_store.save_another(test_store.Path(sys.argv[1]))
"""


@pytest.mark.parametrize("step", [1, 2])
def test_a_killed_save_never_loads_as_a_mixture(run, step):
    code = subprocess.run([sys.executable, "-c", KILLED.format(tests=str(Path(__file__).parent)), str(run), str(step)], timeout=300).returncode
    assert code == 9
    consistent(run)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with refused("file"):
        fv.save(tiny.model(), tmp_path / "file" / "run")


# the blueprint


def test_a_blueprint_holds_only_what_differs():
    assert Blueprint.of(timm.create_model("deit_tiny_patch16_224")).arguments == {}
    assert Blueprint.of(timm.create_model("deit_tiny_patch16_224", num_classes=5)).arguments == {"num_classes": 5}


def test_a_model_made_without_a_name_is_rebuilt_from_its_class(tmp_path):
    model = timm.models.VisionTransformer(**tiny.VIT).eval()
    back = fv.load(fv.save(model, tmp_path))
    assert torch.equal(back(tiny.images()), model(tiny.images()))
