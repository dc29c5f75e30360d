"""IRET's backbone: figures of the paper, widening in every form of the token stream, settings, slices of a dense DeiT."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
import tiny
from foveate.backbones.describe import describe
from foveate.backbones.families import anatomy_of
from foveate.backbones.iret_focus import GROWTHS, Focus
from foveate.backbones.iret_init import slice_into
from foveate.card import stored_card
from foveate.counting import count
from foveate.nn.prune import prune_masked, prune_rows
from foveate.nn.tokens import with_all_live

KEEP = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1] * 16]).bool()
EVEN = torch.stack([KEEP[0], KEEP[0].flip(0), KEEP[0].roll(1)])
"""Which of 16 patches of three images live on: differently many, and equally many."""


def counted(model) -> float:
    with torch.device("meta"):
        images = torch.empty(1, model.in_chans, *model.img_size)
    with FlopCounterMode(display=False) as counter:
        model.eval().requires_grad_(False)(images)
    return counter.get_total_flops() / 2


def meta(name: str, **settings):
    with torch.device("meta"):
        return timm.create_model(name, **settings)


# figures


@pytest.mark.parametrize("name, settings, params", [
    ("iret_small", {}, 17_177_012),
    ("iret_small", dict(lifting_channels=8), 17_241_842),
    ("iret_tiny", {}, 4_538_867),
    ("iret_nano", {}, 1_036_283),
    ("iret_nano", dict(in_chans=1), 1_036_283 - 2 * (48 * 4 + 8 * 9)),
])
def test_parameters(name, settings, params):
    model = meta(name, **settings)
    assert sum(p.numel() for p in model.parameters()) == params
    assert model(torch.empty(2, model.in_chans, *model.img_size, device="meta")).shape == (2, model.num_classes)


def test_parameters_of_the_blocks_and_of_the_lifting_scheme():
    model = meta("iret_small")
    size = lambda part: sum(p.numel() for p in part.parameters())
    assert (size(model.blocks), size(model.sampler), size(meta("iret_small", lifting_channels=8).sampler)) == (16_254_666, 666, 4_056)
    grown = {growth: size(meta("iret_nano", prefix_growth=growth)) for growth in GROWTHS}
    assert grown["zeros"] == grown["mean"] == grown["learned"] - 2 * 2 * 48  # an embedding and a position for both tokens
    assert grown["projection"] - grown["zeros"] == 49 * 72 + 73 * 87 + 88 * 96


def test_widths_and_heads_of_every_block():
    card = stored_card("iret_small")
    assert [(b.dim, b.head_dim, b.heads, b.hidden) for b in card.blocks] == (
        [(192, 32, 6, 768)] * 3 + [(294, 49, 6, 1176), (348, 58, 6, 1392)] + [(384, 64, 6, 1536)] * 7)
    assert [n for n, b in enumerate(card.blocks, 1) if b.entry] == [4, 5, 6] and card.prefix_tokens == 2 and card.blocks[0].grid == (14, 14)
    assert [b.dim for b in stored_card("iret_tiny").blocks] == [96] * 3 + [147, 174] + [192] * 7
    assert [b.dim for b in stored_card("iret_nano").blocks] == [48] * 3 + [72, 87] + [96] * 7


def test_costs_of_the_paper_and_of_every_exit():
    ledger = count("iret_small", include="blocks")
    assert round(ledger.macs / 1e9, 5) == 3.51463
    by_block = ledger.by_block()
    upto = [sum(by_block[f"blocks.{b}"] for b in range(1, last + 1)) / 1e9 for last in range(4, 13)]
    assert [round(g, 4) for g in upto] == [0.5364, 0.8514, 1.2318, 1.6123, 1.9928, 2.3732, 2.7537, 3.1342, 3.5146]


@pytest.mark.parametrize("name", ["iret_small", "iret_tiny", "iret_nano"])
def test_shipped_cards_equal_live_models_and_torchs_counter(name):
    model = meta(name)
    assert stored_card(name) == describe(model)
    assert count(name).macs == counted(model)


@pytest.mark.parametrize("settings", [
    dict(lifting_channels=8, in_chans=1), dict(sampler="dwt", wavelet="db2"), dict(sampler="original", prefix_growth="projection"),
    dict(img_size=(28, 36), widen_at=(2,), embed_dims=(48, 96), prefix_growth="mean"),
], ids=str)
def test_every_setting_is_counted(settings):
    if settings.get("wavelet"):
        pytest.importorskip("pywt")
    model = meta("iret_nano", **settings)
    assert count(model).macs == counted(model) > count(model, include="blocks").macs
    assert count(model).params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("key", tiny.WIDENING)
def test_the_count_behind_the_widening_is_what_the_packed_run_multiplied(key):
    fast, images = tiny.adapted(fv.Plan([fv.Random(after=(3,), keep=(0.4,), package=False)]), key), tiny.images(key, 1)
    fast.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, trace = fast.traced(images)
    assert count(fast, trace=trace).macs == count(fast).macs == counter.get_total_flops() / 2


def test_cost_of_the_lifting_scheme():
    small, wide = count("iret_small"), count(meta("iret_small", lifting_channels=8))
    lifting = lambda ledger: sum(o.macs for o in ledger.operations if o.origin.startswith("embed.sampler")) / 1e9
    assert (round(lifting(small), 4), round(lifting(wide), 3)) == (0.0154, 0.091)


# widening


def naive_widened(layer: Focus, x: torch.Tensor, band: torch.Tensor) -> torch.Tensor:
    """One image's tokens x [2 + N, dim] and its sub-band [C, h, w], patch by patch; learned prefix growth."""
    (rows, columns), (height, width) = layer.grid, layer.patch
    grown = [torch.cat([x[i], layer.prefix_embed[0, i] + layer.pos_embed[0, i]]) for i in range(2)]
    for r in range(rows):
        for c in range(columns):
            patch = band[:, r * height : (r + 1) * height, c * width : (c + 1) * width]
            new = layer.embed.weight @ patch.reshape(-1) + layer.embed.bias
            token = r * columns + c + 2
            grown.append(torch.cat([x[token], new + layer.pos_embed[0, token]]))
    return torch.stack(grown)


def test_the_model_is_what_its_parts_compute_one_after_the_other():
    model, images = tiny.model("iret", torch.float64), tiny.images("iret", dtype=torch.float64)
    with torch.no_grad():
        coarse, bands = model.sampler(images)
        assert coarse.shape == (3, 3, 16, 16) and bands.shape == (3, 3, 3, 16, 16)
        patches = model.patch_embed.proj(F.avg_pool2d(images, 2)).flatten(2).mT
        x = torch.cat([model.cls_token.expand(3, -1, -1), model.dist_token.expand(3, -1, -1), patches], 1) + model.pos_embed
        x = model.blocks[0](x)
        for number in (1, 2):
            x = torch.stack([naive_widened(model.focus[number - 1], one, band) for one, band in zip(x, bands[:, number - 1])])
            x = model.blocks[number](x)
        x = model.norm(model.blocks[3](x))
        torch.testing.assert_close(model(images), (model.head(x[:, 0]) + model.head_dist(x[:, 1])) / 2)


def test_an_embedding_is_the_convolution_whose_stride_is_its_kernel():
    layer = Focus(12, 19, 3, (4, 6), (2, 3), 2, "zeros").double()
    torch.nn.init.zeros_(layer.pos_embed)
    band = torch.randn(2, 3, 8, 18, dtype=torch.float64)
    convolved = F.conv2d(band, layer.embed.weight.unflatten(1, (3, 2, 3)), layer.embed.bias, stride=(2, 3)).flatten(2).mT
    torch.testing.assert_close(layer.patches(band), convolved)
    image, place = torch.tensor([1, 0, 1]), torch.tensor([7, 23, 0])
    torch.testing.assert_close(layer.patches(band, (image, place)), convolved[image, place])


def pruned(anatomy, tokens, keep, masked):
    """`tokens` behind block 1, of which `keep` live on."""
    if masked:
        return prune_masked(with_all_live(tokens), keep.to(tokens.x.dtype), torch.ones_like(keep, dtype=tokens.x.dtype), False)
    rows = F.pad(keep, (tokens.prefix, 0)).flatten()
    return prune_rows(tokens, rows, torch.ones_like(rows, dtype=tokens.x.dtype), False)


def passed(anatomy, images, keep=None, masked=False, bands=None):
    """The tokens behind every block when `keep` is what block 1 leaves."""
    tokens, seen = anatomy.stem(images), []
    tokens = replace(tokens, beside=tokens.beside[:, :bands])
    for block in range(1, 5):
        tokens = anatomy.block(block, tokens)
        if block == 1 and keep is not None:
            tokens = pruned(anatomy, tokens, keep, masked)
        seen.append(tokens)
    return seen


def anatomy(growth: str = "learned", **settings):
    torch.manual_seed(5)
    return anatomy_of(tiny.randomised(timm.create_model("iret_small", **tiny.IRET | dict(prefix_growth=growth) | settings)).eval().double())


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("keep", [KEEP, EVEN, KEEP[1:2].expand(3, -1)], ids=["ragged", "uniform", "one patch"])
@torch.no_grad()
def test_masked_equals_packed_equals_one_by_one(growth, keep):
    body, images = anatomy(growth), tiny.images("iret", dtype=torch.float64)
    packed, masked = passed(body, images, keep), passed(body, images, keep, masked=True)
    assert packed[0].ragged == (keep is KEEP)
    for index in range(4):
        for image in range(3):
            alone = passed(body, images[image : image + 1], keep[image : image + 1])[index].x[0]
            live = F.pad(keep[image], (2, 0), value=True)
            theirs = packed[index].x[packed[index].image_of_row() == image] if packed[index].ragged else packed[index].x[image]
            torch.testing.assert_close(theirs, alone)
            torch.testing.assert_close(masked[index].x[image][live], alone)
    torch.testing.assert_close(body.head(packed[-1]), body.head(masked[-1]))


@torch.no_grad()
def test_kept_patches_keep_their_places():
    """Widening alone, without attention between patches: a kept token is the one of the dense stream."""
    body, images = anatomy("zeros"), tiny.images("iret", dtype=torch.float64)
    tokens = body.block(1, body.stem(images))
    dense = body.widened(2, tokens).x
    for keep in (KEEP, EVEN):
        some = body.widened(2, pruned(body, tokens, keep, masked=False))
        live = F.pad(keep, (2, 0), value=True)
        torch.testing.assert_close(some.x.flatten(0, -2), dense[live])


@pytest.mark.parametrize("keep", [KEEP, EVEN], ids=["ragged", "uniform"])
@torch.no_grad()
def test_nothing_is_embedded_for_dropped_tokens(keep):
    body, rows = anatomy(), []
    for layer in body.model.focus:
        layer.embed.register_forward_hook(lambda _, __, out: rows.append(out.shape[:-1].numel()))
    passed(body, tiny.images("iret", dtype=torch.float64), keep)
    assert rows == [int(keep.sum())] * 2


@pytest.mark.parametrize("bands", [0, 1])
@torch.no_grad()
def test_an_omitted_sub_band_leaves_the_positions(bands):
    body, images = anatomy(), tiny.images("iret", dtype=torch.float64)
    seen = passed(body, images, bands=bands)
    for layer in body.model.focus[bands:]:
        layer.embed.weight.zero_(), layer.embed.bias.zero_()
    torch.testing.assert_close(seen[-1].x, passed(body, images)[-1].x)
    for keep in (KEEP, EVEN):
        packed, masked = passed(body, images, keep, bands=bands), passed(body, images, keep, masked=True, bands=bands)
        torch.testing.assert_close(body.head(packed[-1]), body.head(masked[-1]))
        torch.testing.assert_close(packed[-1].x, passed(body, images, keep)[-1].x)


@torch.no_grad()
def test_a_mean_grows_from_live_patches_only():
    body, images = anatomy("mean"), tiny.images("iret", dtype=torch.float64)
    tokens = pruned(body, body.block(1, body.stem(images)), KEEP, masked=False)
    wide = body.widened(2, tokens)
    rows = wide.x[wide.image_of_row() == 0]
    torch.testing.assert_close(rows[1, 12:], rows[2:, 12:].mean(0))


def test_gradients_reach_every_parameter_in_the_masked_form():
    for growth in GROWTHS:
        body = anatomy(growth)
        body.model.train()
        last = passed(body, tiny.images("iret", dtype=torch.float64), KEEP, masked=True)[-1]
        body.head(last).square().sum().backward()
        idle = ("sampler.conv1.bias", "sampler.conv2.bias", "sampler.vertical_high.predict")  # cancelled by BatchNorm; of HH, which two layers leave out
        for name, parameter in body.model.named_parameters():
            if not name.startswith(idle):
                assert parameter.grad.abs().max() > 0, (growth, name)


# exports


@torch.no_grad()
def test_the_model_exports_with_a_dynamic_batch():
    model, images = tiny.model("iret"), tiny.images("iret", 5)
    exported = torch.export.export(model, (images[:3],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    for size in (1, 5):
        torch.testing.assert_close(exported(images[:size]), model(images[:size]))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("key", ["iret", "iret-dwt"])
@torch.no_grad()
def test_openvino_computes_the_same(key):
    openvino = pytest.importorskip("openvino")
    from foveate.runtime.openvino_backend import openvino_graph

    fast, images = fv.adapt(tiny.model(key), fv.Plan([])), tiny.images(key)
    compiled = openvino.Core().compile_model(openvino_graph(fast, images.flip(0), single=False), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    torch.testing.assert_close(torch.from_numpy(compiled(images.numpy())[0]), fast(images), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_per_image_counts_before_the_widening_trace_at_batch_one():
    class Pruned(torch.nn.Module):
        """Drops what a pixel says, so that counts differ from image to image."""

        def __init__(self):
            super().__init__()
            self.body = anatomy()
            self.model = self.body.model

        def forward(self, images):
            return self.body.head(passed(self.body, images, self.kept(images))[-1])

        def kept(self, images):
            return F.adaptive_avg_pool2d(images.mean(1), 4).flatten(1) > -0.03

    module, images = Pruned(), tiny.images("iret", 4, dtype=torch.float64)
    assert len(set(module.kept(images).sum(1).tolist())) > 2
    traced = torch.jit.trace(module, images[:1], check_trace=False)
    for image in images:
        torch.testing.assert_close(traced(image[None]), module(image[None]))


# settings, saved runs, timm's interface


@pytest.mark.parametrize("settings", [
    {}, dict(sampler="dwt", wavelet="db2", in_chans=1), dict(lifting_channels=5, drop_path_rate=0.1, prefix_growth="mean", num_classes=4),
    dict(sampler="original", img_size=(24, 40), widen_at=(3,), embed_dims=(12, 24), prefix_growth="projection", num_heads=4, mlp_ratio=2.5),
], ids=str)
def test_a_saved_run_brings_the_settings_back(settings, tmp_path):
    if settings.get("wavelet"):
        pytest.importorskip("pywt")
    fast = fv.adapt(tiny.randomised(timm.create_model("iret_small", **tiny.IRET | settings)).eval(), fv.Plan([]))
    fv.save(fast, tmp_path / "run")
    images = torch.randn(2, fast.card.in_chans, *fast.card.image_size)
    again = fv.load(tmp_path / "run")
    assert torch.equal(again(images), fast(images)) and again.card == fast.card


def test_timms_interface():
    model, images = tiny.model("iret"), tiny.images("iret")
    assert (model.num_features, model.num_prefix_tokens, model.get_classifier()) == (24, 2, (model.head, model.head_dist))
    features = model.forward_features(images)
    assert features.shape == (3, 18, 24) and torch.equal(model.forward_head(features), model(images))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features[:, :2].mean(1))
    assert {"pos_embed", "cls_token", "focus.0.pos_embed", "focus.1.prefix_embed"} <= model.no_weight_decay()
    model.set_distilled_training(True)
    assert model(images).shape == (3, 7) and [y.shape for y in model.train()(images)] == [(3, 7)] * 2
    model.set_distilled_training(False)
    assert model(images).shape == (3, 7)
    model.eval().reset_classifier(5)
    assert model(images).shape == (3, 5) and not model.head.training
    model.reset_classifier(0)
    assert model(images).shape == (3, 24)


def test_a_fresh_model_starts_as_timms_transformers_do():
    torch.manual_seed(0)
    model = timm.create_model("iret_nano")
    for name in ("pos_embed", "focus.2.pos_embed", "focus.1.prefix_embed", "focus.0.embed.weight", "blocks.4.attn.qkv.weight"):
        assert 0.015 < model.get_parameter(name).std() < 0.025, name
    assert model.blocks[4].mlp.fc1.bias.abs().max() == 0 and len(timm.list_models("iret_*")) == 3


def test_layers_get_their_learning_rate_from_their_block():
    from timm.models import group_parameters

    groups = group_parameters(timm.create_model("iret_nano"), timm.create_model("iret_nano").group_matcher())
    where = {name: key for key, names in groups.items() for name in names}
    assert where["focus.0.embed.weight"] == where["blocks.3.norm1.weight"] and where["sampler.conv1.weight"] == where["cls_token"]


@pytest.mark.parametrize("settings, words", [
    (dict(img_size=225), "225x225.*16 divides.*208 or 224|225x225.*224 or 240"),
    (dict(img_size=(224, 28)), "224x28.*16 or 32"),
    (dict(widen_at=(4, 4, 6)), r"widen_at=\(4, 4, 6\).*increasing numbers from 2 to 12"),
    (dict(widen_at=(5, 4, 6)), "increasing"),
    (dict(widen_at=(1, 4, 6)), "from 2 to 12: block 1"),
    (dict(widen_at=(4, 5, 13)), "12 blocks"),
    (dict(widen_at=(), embed_dims=(192,)), "one width more"),
    (dict(widen_at=(4, 5)), "one width more"),
    (dict(widen_at=(4.0, 5, 6)), "whole numbers"),
    (dict(embed_dims=(192, 192, 348, 384)), "widths that grow"),
    (dict(num_heads=0), "num_heads=0.*whole numbers > 0"),
    (dict(embed_dims=(192, 296, 348, 384)), "width of 296 for 6 heads.*294 or 300"),
    (dict(embed_dims=(192, 200, 348, 384), num_heads=4), None),
    (dict(sampler="fourier"), "sampler='fourier'"),
    (dict(widen_at=(4, 5, 6, 7), embed_dims=(192, 294, 348, 384, 390)), "4 IRET layers"),
    (dict(widen_at=(4, 5, 6, 7), embed_dims=(192, 294, 348, 384, 390), sampler="original"), None),
    (dict(prefix_growth="ones"), "prefix_growth='ones'.*'learned', 'zeros', 'mean', 'projection'"),
    (dict(global_pool="avg"), "global_pool='avg'"),
    (dict(pretrained=True), "iret_small with pretrained=True"),
], ids=str)
def test_settings_that_do_not_fit_are_refused(settings, words):
    if words is None:
        meta("iret_small", **settings)
        return
    with pytest.raises(fv.FoveateError, match=f"(?s){words}"):
        meta("iret_small", **settings)


def test_images_of_another_size_are_refused():
    for images in (torch.zeros(1, 3, 31, 32), torch.zeros(1, 3, 48, 48)):
        with pytest.raises(fv.FoveateError, match="32x32"):
            tiny.model("iret")(images)
        with pytest.raises(fv.FoveateError, match="(?s)32x32.*twice its patch"):
            fv.adapt(tiny.model("iret"), fv.Plan([]))(images)


def test_parts_that_are_not_known_are_refused():
    model = tiny.model("iret")
    model.focus[1].gate = torch.nn.Linear(2, 2)
    with pytest.raises(fv.FoveateError, match=r"(?s)iret_small.*focus\.1.*gate"):
        fv.adapt(model, fv.Plan([]))
    for part, kind in (("sampler", "sampler is a Identity"), ("focus", r"focus\.0 is a Linear")):
        model = tiny.model("iret")
        setattr(model, part, torch.nn.Identity() if part == "sampler" else torch.nn.ModuleList([torch.nn.Linear(2, 2)]))
        with pytest.raises(fv.FoveateError, match=f"(?s)iret_small.*{kind}"):
            fv.adapt(model, fv.Plan([]))


# from a dense model


def dense_twin(**settings):
    torch.manual_seed(3)
    shape = dict(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=7)
    return tiny.randomised(timm.create_model("deit_tiny_distilled_patch16_224", **shape | settings)).eval()


def test_slices_are_the_leading_channels_and_heads_of_the_dense_model():
    model, dense = tiny.model("iret"), dense_twin(embed_dim=40, num_heads=5)
    before = {name: p.clone() for name, p in model.named_parameters()}
    kept = slice_into(model, dense)
    assert all(torch.equal(before[name], p) == (name in kept) for name, p in model.named_parameters())
    assert {name.rpartition(".")[0].partition(".")[0] for name in kept} == {"sampler", "focus", "head", "head_dist"}
    ours, theirs = model.blocks[1], dense.blocks[1]
    query = theirs.attn.qkv.weight[40 + 8 : 40 + 8 + 6, :18]  # keys of the second of five heads of 8; here heads have 6 channels
    assert torch.equal(ours.attn.qkv.weight[18 + 6 : 18 + 12], query)
    assert torch.equal(ours.attn.qkv.bias[36:42], theirs.attn.qkv.bias[80:86])
    assert torch.equal(ours.attn.proj.weight[:, 6:12], theirs.attn.proj.weight[:18, 8:14])
    assert torch.equal(ours.mlp.fc2.weight, theirs.mlp.fc2.weight[:18, :72])
    assert torch.equal(ours.norm2.weight, theirs.norm2.weight[:18])
    whole = torch.cat([model.pos_embed, model.focus[0].pos_embed, model.focus[1].pos_embed], -1)
    assert torch.equal(whole, dense.pos_embed[..., :24])
    tokens = torch.cat([torch.cat([model.cls_token, model.dist_token], 1), model.focus[0].prefix_embed, model.focus[1].prefix_embed], -1)
    assert torch.equal(tokens, torch.cat([dense.cls_token, dense.dist_token], 1)[..., :24])


@torch.no_grad()
def test_the_first_embedding_sees_in_the_coarse_image_what_the_dense_model_sees():
    dense, blocky = dense_twin(), torch.randn(2, 3, 16, 16).repeat_interleave(2, -1).repeat_interleave(2, -2)
    for settings in ({}, dict(sampler="dwt")):
        model = timm.create_model("iret_small", **tiny.IRET | settings).eval()
        slice_into(model, dense)
        torch.testing.assert_close(model.embed(model.sample(blocky)[0]), dense._pos_embed(dense.patch_embed(blocky))[..., :12], rtol=1e-4, atol=1e-5)


def test_a_dense_model_without_a_distillation_token_gives_its_class_token_for_both():
    dense = tiny.model("deit")
    for growth in ("learned", "projection"):
        model = timm.create_model("iret_small", **tiny.IRET | dict(prefix_growth=growth))
        kept = slice_into(model, dense)
        assert torch.equal(model.dist_token, model.cls_token) and torch.equal(model.pos_embed[:, 0], model.pos_embed[:, 1])
        assert torch.equal(model.head_dist.weight, dense.head.weight) and torch.equal(model.norm.bias, dense.norm.bias)
        assert ("focus.0.prefix_proj.weight" in kept) == (growth == "projection") and "focus.0.embed.weight" in kept
    same = timm.create_model("iret_small", **tiny.IRET)
    slice_into(same, timm.create_model("deit_tiny_patch16_224", **tiny.VIT | dict(img_size=16, patch_size=4)))


@pytest.mark.parametrize("build, words", [
    (lambda: dense_twin(depth=3), "3 blocks for an IRET of 4"),
    (lambda: dense_twin(embed_dim=18), "18 channels for an IRET of 24"),
    (lambda: dense_twin(num_heads=2), "2 heads for an IRET of 3"),
    (lambda: dense_twin(num_heads=4), "6 channels a head for an IRET of 8"),
    (lambda: dense_twin(mlp_ratio=2), "48 channels in its MLPs for an IRET of 96"),
    (lambda: dense_twin(img_size=48), r"\(6, 6\) patches of \(8, 8\) pixels"),
    (lambda: dense_twin(img_size=64, patch_size=16), r"\(4, 4\) patches of \(16, 16\) pixels.*\(8, 8\) pixels"),
    (lambda: dense_twin(in_chans=1), "1 channels"),
    (lambda: tiny.model("deit3"), "LayerScale"),
    (lambda: tiny.model("pit"), "a PoolingVisionTransformer"),
    (lambda: tiny.model("dinov2-registers"), "registers"),
], ids=range(11))
def test_dense_models_that_do_not_fit_are_refused(build, words):
    with pytest.raises(fv.FoveateError, match=f"(?s){words}"):
        slice_into(tiny.model("iret"), build())
