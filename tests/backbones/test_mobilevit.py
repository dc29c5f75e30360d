"""MobileViT through its anatomy: timm's own results, pixel groups, what travels beside the tokens, and what it refuses."""

import copy

import pytest
import timm
import torch
from timm.models.byobnet import ByoBlockCfg, ByoModelCfg
from torch import nn

import foveate as fv
import tiny
from foveate.backbones.families import anatomy_of
from foveate.backbones.mobilevit import fold, unfold
from foveate.card import stored_card
from foveate.nn.attention import SKIP
from foveate.workload import workload


def unfused() -> nn.Module:
    """One MobileViT block without fusion in the middle of a small network, in patches of 2 x 1 pixels."""
    bottle = lambda width, stride: ByoBlockCfg(type="bottle", d=1, c=width, s=stride, gs=1, br=2.0, block_kwargs=dict(bottle_in=True, linear_out=True))
    unit = ByoBlockCfg(type="mobilevit", d=1, c=16, s=1, block_kwargs=dict(transformer_dim=24, transformer_depth=2, patch_size=(2, 1), no_fusion=True))
    cfg = ByoModelCfg(blocks=(bottle(12, 2), (bottle(16, 2), unit), bottle(20, 1)), stem_chs=8, stem_type="3x3", stem_pool="", downsample="", act_layer="silu")
    torch.manual_seed(0)
    model = timm.models.byobnet.ByobNet(cfg, num_classes=7)
    model.pretrained_cfg = dict(architecture="unfused", input_size=(3, 48, 32))
    return tiny.randomised(model).eval()


def through(anatomy, images, mix=None):
    tokens = anatomy.stem(images)
    for block in range(1, anatomy.card.depth + 1):
        tokens = anatomy.block(block, tokens, mix)
    return anatomy.head(tokens)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
@torch.no_grad()
def test_own_form_is_timm(dtype, bound, training):
    model, images = tiny.model("mobilevit", dtype).train(training), tiny.images("mobilevit", dtype=dtype)
    anatomy, expected = anatomy_of(copy.deepcopy(model)), model(images)
    logits = through(anatomy, images, anatomy.attend)
    assert logits.dtype == dtype and (logits - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_other_patches_no_fusion_and_a_convolution_at_the_end(training):
    model, images = unfused().train(training), torch.randn(3, 3, 48, 32)
    anatomy, expected = anatomy_of(copy.deepcopy(model)), model(images)
    assert torch.equal(through(anatomy, images), expected)
    torch.testing.assert_close(through(anatomy_of(copy.deepcopy(model)), images, anatomy.attend), expected)
    assert [(b.grid, b.groups) for b in anatomy.card.blocks] == [((6, 4), 2)] * 2


def test_unfolding_gathers_equal_places_of_all_patches():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    tokens = unfold(x, (2, 3))
    for b in range(2):
        rows = [x[b, :, 2 * i + p, 3 * j + q].tolist() for p in range(2) for q in range(3) for i in range(2) for j in range(2)]
        assert tokens[b].tolist() == rows
    assert torch.equal(fold(tokens, (4, 6), (2, 3)), x)


@torch.no_grad()
def test_what_flows_between_the_blocks():
    model, images = tiny.model("mobilevit"), tiny.images("mobilevit")
    anatomy = anatomy_of(model)
    tokens, grids = anatomy.stem(images), []
    for number, block in enumerate(anatomy.card.blocks, 1):
        assert tokens.x.shape == (3, block.patches, block.dim) and tokens.grid == block.grid and not tokens.pruned
        assert sorted(tokens.place.tolist()) == list(range(block.patches)) and tokens.place[:2].tolist() == [0, 2]
        assert tokens.beside.shape[2:] == block.grid and tokens.kept().all()
        grids.append(tokens.grid)
        tokens = anatomy.block(number, tokens)
    assert grids == [(8, 16)] * 2 + [(4, 8)] * 4 + [(2, 4)] * 3
    features, live = anatomy.features(tokens)
    host = model.stages[4][1]
    assert features.shape == (3, 8, 96) and (live == 1).all()
    torch.testing.assert_close(features[:, tokens.place], host.norm(tokens.x))


@torch.no_grad()
def test_each_pixel_group_attends_to_itself():
    model, images = tiny.model("mobilevit"), tiny.images("mobilevit", 2)
    anatomy, seen = anatomy_of(model), []

    def mix(q, k, v, tokens, *rest, **more):
        seen.append((tuple(q.shape), tokens.images, tokens.grid))
        return anatomy.attend(q, k, v, tokens, *rest, **more)

    tokens = anatomy.stem(images)
    x = tokens.x.clone()
    x[:, 32:42] = torch.randn(2, 10, 64, generator=torch.Generator().manual_seed(0)) * x.std()  # ten patches of the second group
    for run in (lambda t: anatomy.block(1, t), lambda t: anatomy.block(1, t, mix)):
        moved = (run(tokens.with_x(x)).x - run(tokens).x).abs().amax((0, 2)) > 1e-3
        assert moved[42:64].any() and not moved[:32].any() and not moved[64:].any()
    through(anatomy, images, mix)
    assert seen[2:] == [((8, 32, 4, 16), 8, (4, 8))] * 2 + [((8, 8, 4, 20), 8, (2, 4))] * 4 + [((8, 2, 4, 24), 8, (1, 2))] * 3


def test_maps_of_the_published_size():
    maps = [(work.maps, work.card.head_dim) for work in workload(stored_card("mobilevit_xs")).blocks]
    assert maps == [((256, 256, 16), 24)] * 2 + [((64, 64, 16), 30)] * 4 + [((16, 16, 16), 36)] * 3
    assert [stored_card("mobilevit_xs").stage_of(b) for b in (1, 2, 3, 6, 7, 9)] == [1, 1, 2, 2, 3, 3]
    # Table I of ViTALiTy counts one of the four pixel groups: 29.3 M multiplications and 0.59 M exponentials of softmax attention.
    figures = fv.Ledger(tuple(o for o in fv.count("mobilevit_xs").operations if o.group in ("qk", "softmax", "av"))).arithmetic()
    assert round(figures["mul"] / 4e6, 1) == 29.3 and round(figures["exp"] / 4e6, 2) == 0.59


@torch.no_grad()
def test_skipped_attention_leaves_the_mlp_only():
    model, images = tiny.model("mobilevit"), tiny.images("mobilevit")
    anatomy = anatomy_of(model)
    tokens, block = anatomy.stem(images), model.stages[2][1].transformer[0]
    torch.testing.assert_close(anatomy.block(1, tokens, SKIP).x, tokens.x + block.mlp(block.norm2(tokens.x)))


@torch.no_grad()
def test_structure_pruning_reaches_its_linears():
    fast, images = tiny.adapted(fv.Plan([fv.Structure(keep=0.5)]), "mobilevit"), tiny.images("mobilevit")
    logits, trace = fast.traced(images)
    torch.testing.assert_close(fast.masked(images, trace), logits)
    assert (logits - tiny.model("mobilevit")(images)).abs().max() > 1e-2
    dense, half = fv.count(fast, fv.Plan([])).by_operation(), fv.count(fast).by_operation()
    assert all(2 * half[group] == dense[group] for group in ("qkv", "proj", "mlp"))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_a_trace_serves_every_batch_size():
    fast, images = tiny.adapted(fv.Plan([fv.ViTALiTy(blocks=(1, 7))]), "mobilevit"), tiny.images("mobilevit", 5)
    traced = torch.jit.trace(fast, (images[:2],), check_trace=False)
    for count in (1, 5):
        with torch.jit.optimized_execution(False):
            logits = traced(images[:count])
        expected = fast(images[:count])
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def refused(*words: str, at: str = "allowed:.*do:"):
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words) + ".*" + at)


class Extra(nn.Module):
    """A part that a user added."""


def test_what_is_not_known_is_refused_by_name():
    for name in ("mobilevitv2_050", "gernet_s"):
        with torch.device("meta"):
            model = timm.create_model(name)
        with refused(name, "ByobNet", "version 1"):
            fv.adapt(model, fv.Plan([]))
        with refused(name, "without MobileViT blocks"):
            fv.count(name)
    for parent in ("", "stages.3.1", "stages.3.1.transformer.2", "stages.3.1.transformer.2.attn"):
        model = tiny.model("mobilevit")
        model.get_submodule(parent).add_module("adapter", Extra())
        with refused("mobilevit_xxs", parent or "model", "adapter"):
            fv.adapt(model, fv.Plan([]))
    for replaced in ("stages.3.0", "stages.3.1.transformer.2", "stages.3.1.transformer.2.attn"):
        model = tiny.model("mobilevit")
        model.set_submodule(replaced, Extra())
        with refused("mobilevit_xxs", replaced.removesuffix(".attn")):
            fv.adapt(model, fv.Plan([]))
    model = tiny.model("mobilevit")
    model.stages[1][0].conv3_1x1.add_module("adapter", nn.Linear(2, 2))
    with refused("mobilevit_xxs", "stages.1.0.conv3_1x1.adapter"):
        fv.adapt(model, fv.Plan([]))


def test_image_sizes():
    model = timm.create_model("mobilevit_xxs", pretrained_cfg_overlay=dict(input_size=(3, 224, 224)))
    with refused("7x7 places for patches of 2x2", "multiple of 64"):
        fv.adapt(model, fv.Plan([]))
    idle = fv.adapt(tiny.model("mobilevit"), fv.Plan([]))
    with refused("128x128 pixels for mobilevit_xxs", at="allowed: 64x128 pixels\n.*pretrained_cfg_overlay"):
        idle(torch.zeros(1, 3, 128, 128))
    model.pretrained_cfg = None
    with refused("without a fixed image size"):
        fv.adapt(model, fv.Plan([]))
