"""describe: cards of live models, and dense counts equal to torch's own counter, exactly."""

import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import (
    DiffAttention,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tiny
from foveate.backbones.describe import describe, describe_name
from foveate.backbones.lvvit import LVViT
from foveate.card import shipped_names, stored_card
from foveate.counting import count
from foveate.errors import FoveateError

FLAT = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
STAGED = dict(img_size=32, num_classes=5)


def counted(model: nn.Module) -> int:
    """Multiply-accumulates by torch's counter for one image."""
    card = describe(model)
    model = model.eval().requires_grad_(False)
    image = torch.zeros(1, card.in_chans, *card.image_size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


MODELS = {
    "vit": lambda: VisionTransformer(**FLAT),
    "odd image": lambda: VisionTransformer(**FLAT | dict(img_size=(24, 40), patch_size=(8, 4), in_chans=1)),
    "no class token": lambda: VisionTransformer(**FLAT, class_token=False, global_pool="avg"),
    "registers": lambda: VisionTransformer(**FLAT, reg_tokens=4, init_values=1e-5, qk_norm=True),
    "map pooling": lambda: VisionTransformer(**FLAT, class_token=False, global_pool="map"),
    "prr pooling": lambda: VisionTransformer(**FLAT, global_pool="prr"),
    "no pooling": lambda: VisionTransformer(**FLAT, global_pool=""),
    "no classes": lambda: VisionTransformer(**FLAT | dict(num_classes=0)),
    "post norm": lambda: VisionTransformer(**FLAT, block_fn=ResPostBlock),
    "parallel scaling": lambda: VisionTransformer(**FLAT, block_fn=ParallelScalingBlock),
    "parallel things": lambda: VisionTransformer(**FLAT, block_fn=ParallelThingsBlock),
    "differential": lambda: VisionTransformer(**FLAT | dict(num_heads=2), attn_layer=DiffAttention),
    "eva": lambda: Eva(**FLAT, use_rot_pos_emb=True),
    "eva swiglu": lambda: Eva(**FLAT, swiglu_mlp=True, scale_mlp=True, qkv_fused=False, mlp_ratio=8 / 3),
    "eva packed swiglu": lambda: Eva(**FLAT, swiglu_mlp=True, class_token=False),
    "eva map pooling": lambda: Eva(**FLAT, global_pool="map", num_reg_tokens=2),
    "eva grouped queries": lambda: Eva(**FLAT, attn_type="rope", num_kv_heads=1, qkv_fused=False),
    "pit": lambda: PoolingVisionTransformer(**STAGED, patch_size=8, stride=4, base_dims=(16,) * 3, depth=(1, 2, 1), heads=(1, 2, 4)),
    "pit distilled": lambda: PoolingVisionTransformer(**STAGED, patch_size=8, stride=4, base_dims=(16,) * 3, depth=(1, 2, 1), heads=(1, 2, 4), distilled=True),
    "swin": lambda: SwinTransformer(**STAGED, patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4),
    "swin padded": lambda: SwinTransformer(**STAGED | dict(img_size=20), patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4),
    "lvvit": lambda: LVViT(**FLAT, mlp_ratio=3.0, qkv_bias=False),
    "levit": lambda: timm.create_model("levit_128s", **tiny.LEVIT),
    "levit odd": lambda: timm.create_model("levit_128s", **tiny.LEVIT | dict(img_size=(40, 56), stem_type="s8", distilled=False, in_chans=1)),
    "levit no classes": lambda: timm.create_model("levit_128s", **tiny.LEVIT | dict(num_classes=0, global_pool="")),
    "mobilevit": lambda: timm.create_model("mobilevit_xxs", **tiny.MOBILEVIT),
    "mobilevit no classes": lambda: timm.create_model("mobilevit_xxs", **tiny.MOBILEVIT | dict(num_classes=0, in_chans=1)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_dense_count_equals_torchs_counter(kind):
    with torch.device("meta"):
        model = MODELS[kind]()
    ledger = count(model)
    assert ledger.macs == counted(model) > 0
    assert ledger.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["vit", "pit", "swin"])
def test_the_dense_count_equals_fvcores_counter(kind):
    analysis = pytest.importorskip("fvcore.nn").FlopCountAnalysis
    model = MODELS[kind]().eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # fvcore does not know the fused product
    card = describe(model)
    by_operator = analysis(model, torch.zeros(1, 3, *card.image_size)).unsupported_ops_warnings(False).by_operator()
    assert count(model).macs == sum(by_operator[name] for name in ("linear", "matmul", "conv"))


@pytest.mark.parametrize("name", ["foveate_nano", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "pit_xs_224", "swin_tiny_patch4_window7_224", "lvvit_s",
                                  "levit_128s", "levit_192", "mobilevit_xxs", "mobilevit_s"])
def test_shipped_cards_equal_live_models(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert stored_card(name) == describe(model, name) == describe(model)
    assert count(name) == count(model)


@pytest.mark.parametrize("name", ["deit_base_distilled_patch16_224", "vit_base_patch16_siglip_224", "vit_small_patch16_dinov3", "pit_s_224", "swin_small_patch4_window7_224", "lvvit_m",
                                  "levit_128s", "levit_128", "levit_384_s8", "mobilevit_xs", "mobilevit_s"])
def test_full_size_counts_equal_torchs_counter(name):
    with torch.device("meta"):
        assert count(name).macs == counted(timm.create_model(name))


def test_every_shipped_name_is_a_model_of_timm():
    assert [name for name in shipped_names() if not timm.is_model(name)] == []


def test_what_cannot_be_counted_is_refused_by_name():
    with pytest.raises(FoveateError, match="ResNet"):
        describe(timm.create_model("resnet10t"))
    with pytest.raises(FoveateError, match="patch embedding"):
        describe_name("vit_small_r26_s32_224")
    model = VisionTransformer(**FLAT)
    model.blocks[1].adapter = nn.Linear(48, 48)
    with pytest.raises(FoveateError, match="blocks.1.adapter"):
        describe(model, "mine")
    model = VisionTransformer(**FLAT)
    model.blocks[0].attn = nn.Identity()
    with pytest.raises(FoveateError, match="Identity as its attention"):
        describe(model, "mine")


def test_an_unknown_name_gets_close_matches():
    with pytest.raises(FoveateError, match="did you mean.*deit_small_patch16_224"):
        count("deit_smal_patch16_224")
    with pytest.raises(FoveateError, match="check the spelling"):
        count("§§§")
    with pytest.raises(FoveateError, match="timm cannot build"):
        count("deit_small_patch16_224.no_such_tag")


def test_an_unknown_name_is_described_once_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    ledger = count("vit_tiny_patch16_224.augreg_in21k")
    assert ledger.macs == count("vit_tiny_patch16_224").macs + 192 * (21843 - 1000)
    monkeypatch.setattr("foveate.counting.import_module", None)
    assert count("vit_tiny_patch16_224.augreg_in21k") == ledger
