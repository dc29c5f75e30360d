"""Backbones that foveate registers with timm: counts, shapes, equations, weights, messages."""

import socket

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import foveate.backbones  # noqa: F401  (registers)
from foveate.backbones import nano
from foveate.backbones.lvvit import LVViTBlock
from foveate.errors import FoveateError

PARAMS = {
    "lvvit_s": 26_151_824,
    "lvvit_m": 55_830_544,
    "deit_160_patch16_224": 4_027_400,
    "deit_256_patch16_224": 9_982_184,
    "deit_258_patch16_224": 10_134_466,
    "deit_288_patch16_224": 12_556_936,
    "deit_318_patch16_224": 15_238_606,
    "deit_320_patch16_224": 15_426_600,
    "foveate_nano": 1_363_498,
    "foveate_nano_p4": 1_352_842,
}
# Convolutions, linears and matrix products at the model's own image size (auxiliary head included).
GIGA_MACS = {
    "lvvit_s": 6.551,
    "lvvit_m": 12.678,
    "deit_160_patch16_224": 0.899,
    "deit_256_patch16_224": 2.136,
    "deit_258_patch16_224": 2.168,
    "deit_288_patch16_224": 2.665,
    "deit_318_patch16_224": 3.213,
    "deit_320_patch16_224": 3.251,
    "foveate_nano": 0.351,
    "foveate_nano_p4": 0.072,
}


def _macs(model, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", PARAMS)
def test_counts_and_shape_at_full_depth(name):
    model = timm.create_model(name, device="meta").eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMS[name]
    images = torch.empty(2, *model.default_cfg["input_size"], device="meta")
    assert _macs(model, images) / 2e9 == pytest.approx(GIGA_MACS[name], abs=6e-4)
    assert model(images).shape == (2, model.default_cfg["num_classes"])
    assert timm.list_models(name) == [name]


@pytest.mark.parametrize(("name", "without_aux"), [("lvvit_s", 6.476), ("lvvit_m", 12.578)])
def test_lvvit_macs_without_the_auxiliary_head(name, without_aux):
    model = timm.create_model(name, device="meta").eval()
    patches = torch.empty(1, 196, model.embed_dim, device="meta")
    macs = _macs(model, torch.empty(1, 3, 224, 224, device="meta")) - _macs(model.aux_head, patches)
    assert macs / 1e9 == pytest.approx(without_aux, abs=6e-4)


@pytest.mark.parametrize(
    ("name", "heads", "head_dim", "tokens"),
    [
        ("foveate_nano", 3, 32, 196),
        ("foveate_nano_p4", 3, 32, 49),
        ("deit_160_patch16_224", 2, 80, 196),
        ("deit_256_patch16_224", 4, 64, 196),
        ("deit_258_patch16_224", 6, 43, 196),
        ("deit_288_patch16_224", 4, 72, 196),
        ("deit_318_patch16_224", 6, 53, 196),
        ("deit_320_patch16_224", 5, 64, 196),
        ("lvvit_s", 6, 64, 196),
        ("lvvit_m", 8, 64, 196),
    ],
)
def test_anatomy(name, heads, head_dim, tokens):
    model = timm.create_model(name, device="meta")
    attention = model.blocks[0].attn
    assert (attention.num_heads, attention.head_dim, model.patch_embed.num_patches) == (heads, head_dim, tokens)
    assert model.num_prefix_tokens == 1 and model.pos_embed.shape == (1, tokens + 1, heads * head_dim)


@pytest.mark.parametrize("name", ["lvvit_s", "deit_160_patch16_224", "foveate_nano_p4"])
def test_every_parameter_gets_a_gradient(name):
    model = timm.create_model(name, depth=1, img_size=32, num_classes=5).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


# --- LV-ViT against its equations, written out in float64 ------------------------------------------------------------


def _naive_lvvit(w, images, depth, heads, skip_lam):
    def batch_norm(x, name):
        column = (1, -1, 1, 1)
        x = (x - w[f"{name}.running_mean"].view(column)) / (w[f"{name}.running_var"].view(column) + 1e-5).sqrt()
        return x * w[f"{name}.weight"].view(column) + w[f"{name}.bias"].view(column)

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    x = F.conv2d(images, w["patch_embed.conv1.weight"], stride=2, padding=3)
    x = batch_norm(x, "patch_embed.bn1").clamp(min=0)
    for layer in (2, 3):
        x = F.conv2d(x, w[f"patch_embed.conv{layer}.weight"], padding=1)
        x = batch_norm(x, f"patch_embed.bn{layer}").clamp(min=0)
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8)
    x = torch.stack([x[:, :, row, column] for row in range(x.shape[2]) for column in range(x.shape[3])], dim=1)
    x = torch.cat([w["cls_token"].expand(len(x), 1, -1), x], dim=1) + w["pos_embed"]
    for block in (f"blocks.{i}" for i in range(depth)):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        mixed = []
        for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            scores = (q_h @ k_h.transpose(1, 2) / q_h.shape[-1] ** 0.5).exp()
            mixed.append(scores / scores.sum(-1, keepdim=True) @ v_h)
        x = x + linear(torch.cat(mixed, -1), f"{block}.attn.proj") / skip_lam
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + linear(hidden, f"{block}.mlp.fc2") / skip_lam
    x = norm(x, "norm")
    return linear(x[:, 0], "head") + 0.5 * linear(x[:, 1:], "aux_head").max(dim=1).values


def _randomised_lvvit(**kwargs):
    generator = torch.Generator().manual_seed(0)
    model = timm.create_model("lvvit_s", embed_dim=24, num_heads=3, depth=2, num_classes=7, **kwargs).double()
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(1 + noise.abs() if key.endswith("running_var") else 0.3 * noise)
    return model.eval()


def test_lvvit_equals_its_equations():
    model = _randomised_lvvit(img_size=(32, 48))
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)
        expected = _naive_lvvit(model.state_dict(), images, depth=2, heads=3, skip_lam=2.0)
        undivided = _naive_lvvit(model.state_dict(), images, depth=2, heads=3, skip_lam=1.0)
    assert (logits - expected).abs().max() < 1e-10
    assert (logits - undivided).abs().max() > 1e-2


def test_lvvit_training_returns_the_same_sum():
    model = _randomised_lvvit(img_size=32)
    for module in model.modules():
        module.training = not isinstance(module, torch.nn.BatchNorm2d)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    trained = model(images)
    assert torch.equal(trained, model.eval()(images))


def test_lvvit_head_takes_any_number_of_tokens():
    model = _randomised_lvvit(img_size=32)
    tokens = torch.randn(2, 1 + 3, 24, dtype=torch.float64)
    expected = model.head(tokens[:, 0]) + 0.5 * torch.stack([model.aux_head(tokens[:, i]) for i in (1, 2, 3)]).amax(0)
    assert torch.allclose(model.forward_head(tokens), expected, atol=1e-12)
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 0])


def test_lvvit_block_adopts_timms_children_and_is_not_taken_for_one():
    block = timm.create_model("lvvit_s", depth=1, device="meta").blocks[0]
    plain = timm.create_model("deit_small_patch16_224", depth=1, device="meta").blocks[0]
    assert [name for name, _ in block.named_children()] == [name for name, _ in plain.named_children()]
    assert block.skip_lam == 2.0 and block.attn.qkv.bias is None and block.mlp.fc1.out_features == 3 * 384
    assert isinstance(block, LVViTBlock) and not isinstance(block, type(plain))


def test_lvvit_surroundings_as_in_timm():
    model = timm.create_model("lvvit_s", depth=2, img_size=32)
    assert model.get_classifier() is model.head and model.no_weight_decay() >= {"pos_embed", "cls_token"}
    model.reset_classifier(4)
    images = torch.randn(1, 3, 32, 32)
    assert model(images).shape == (1, 4) and model.aux_head.out_features == 4
    model.eval()
    expected = model(images)
    model.set_grad_checkpointing()
    assert torch.equal(model(images), expected)
    model.set_input_size((64, 32))
    assert model(torch.randn(1, 3, 64, 32)).shape == (1, 4) and model.pos_embed.shape[1] == 1 + 8
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 64, 32)).shape == (1, 384)
    features = timm.create_model("lvvit_s", depth=4, img_size=32, features_only=True)
    assert [tuple(level.shape) for level in features(images)] == [(1, 384, 2, 2)] * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"global_pool": "avg"}, "global_pool='avg'"),
        ({"patch_size": 15}, "patch size 15"),
        ({"dynamic_img_pad": True}, "dynamic_img_pad=True"),
    ],
)
def test_lvvit_refuses(arguments, words):
    with pytest.raises(FoveateError) as caught:
        timm.create_model("lvvit_s", depth=1, device="meta", **arguments)
    assert words in caught.value.given and caught.value.do


def test_lvvit_refuses_other_image_and_patch_sizes():
    model = timm.create_model("lvvit_s", depth=1, device="meta")
    with pytest.raises(FoveateError, match="200x224") as caught:
        model(torch.empty(1, 3, 200, 224, device="meta"))
    assert caught.value.allowed == "224x224"
    with pytest.raises(FoveateError, match="patch size 8"):
        model.set_input_size(patch_size=8)
    with pytest.raises(FoveateError, match="global_pool='max'"):
        model.reset_classifier(10, "max")


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def nano_file(tmp_path):
    """A float16 safetensors file of a two-block foveate_nano, and its rounded state_dict."""
    torch.manual_seed(0)
    state = {key: tensor.half() for key, tensor in timm.create_model("foveate_nano", depth=2).state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", {key: tensor.float() for key, tensor in state.items()}


def _load_nano(file, **kwargs):
    overlay = {"file": str(file)}
    return timm.create_model("foveate_nano", pretrained=True, depth=2, pretrained_cfg_overlay=overlay, **kwargs).eval()


def test_nano_reads_its_weights_from_the_package(no_network):
    for name in ("foveate_nano", "foveate_nano_p4"):
        file = nano.ASSETS / f"{name}.safetensors"
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.file == str(file) and file.parent.parent.name == "foveate"
        assert not cfg.url and not cfg.hf_hub_id


def test_nano_loads_a_local_file_exactly(no_network, nano_file):
    file, state = nano_file
    loaded = _load_nano(file).state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ({"num_classes": 7}, {"head.weight", "head.bias"}),
        ({"num_classes": 0}, set()),
        ({"img_size": 32}, {"pos_embed"}),
        ({"patch_size": 4}, {"pos_embed", "patch_embed.proj.weight"}),
        ({"in_chans": 1}, {"patch_embed.proj.weight"}),
    ],
)
def test_nano_weights_adapt_to_overrides(no_network, nano_file, override, changed):
    file, state = nano_file
    model = _load_nano(file, **override)
    loaded = model.state_dict()
    assert {key for key in loaded if not torch.equal(loaded[key], state[key])} == changed
    size, channels = override.get("img_size", 28), override.get("in_chans", 3)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, override.get("num_classes", 10) or 96) and logits.isfinite().all()


def test_nano_preprocessing_is_that_of_fashion_mnist():
    model = timm.create_model("foveate_nano", depth=1)
    config = timm.data.resolve_data_config({}, model=model)
    assert config["mean"] == (0.2860,) * 3 and config["std"] == (0.3530,) * 3
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 28, 28), 1.0, "bicubic")
    assert len(model.default_cfg["label_names"]) == 10 and model.default_cfg["label_names"][9] == "Ankle boot"


def test_missing_nano_weights_name_the_training_command(tmp_path):
    for name in ("foveate_nano", "foveate_nano_p4"):
        gone = str(tmp_path / f"{name}.safetensors")
        with pytest.raises(FoveateError) as caught:
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": gone})
        assert gone in caught.value.given and f"foveate train {name} --data fashion-mnist" in caught.value.do


def test_damaged_nano_weights_are_refused(nano_file):
    file, _ = nano_file
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(FoveateError, match="damaged"):
        _load_nano(file)


@pytest.mark.parametrize("name", [name for name in PARAMS if "nano" not in name])
def test_no_weights_is_said_in_three_parts(no_network, name):
    with pytest.raises(FoveateError) as caught:
        timm.create_model(name, pretrained=True)
    assert name in caught.value.given and "pretrained=False" in caught.value.allowed
    assert f"foveate train {name}" in caught.value.do


@pytest.mark.parametrize("name", ["lvvit_s", "deit_288_patch16_224"])
def test_own_weights_load_from_a_file(no_network, tmp_path, name):
    source = timm.create_model(name, depth=1, img_size=32)
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    overlay = {"file": str(tmp_path / "own.safetensors"), "input_size": (3, 32, 32)}
    loaded = timm.create_model(
        name, pretrained=True, depth=1, img_size=64, num_classes=3, in_chans=1, pretrained_cfg_overlay=overlay
    ).eval()
    assert torch.equal(loaded.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert loaded(torch.randn(1, 1, 64, 64)).shape == (1, 3)
