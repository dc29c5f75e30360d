"""Eva, LV-ViT, PiT and Swin through their anatomies: timm's own results with all tokens, one result in every form without."""

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from foveate.backbones.eva import rotary_rows
from foveate.backbones.families import FAMILIES, anatomy_of
from foveate.errors import FoveateError
from foveate.nn.prune import prune_masked, prune_rows, prune_top_k
from foveate.nn.tokens import PACKAGE, with_all_live
from naive.swin_block import swin_block
from tiny import randomised

FLAT = dict(img_size=20, patch_size=4, embed_dim=32, depth=3, num_heads=2)
PIT = dict(base_dims=(8, 8, 8), depth=(1, 2, 1), heads=(2, 2, 4))
SWIN = dict(window_size=4, embed_dim=8, depths=(2, 2, 2), num_heads=(2, 2, 4))
# name: (timm name, arguments, blocks behind which tokens are pruned)
MODELS = {
    "eva02": ("eva02_tiny_patch14_224", FLAT, (1, 2)),  # unfused qkv, SwiGLU, average pooling, rotary
    "eva02-fused": ("eva02_base_patch14_448", FLAT | dict(qkv_fused=True, scale_attn_inner=True), (1, 2)),
    "eva-giant": ("eva_giant_patch14_224", FLAT, (1, 2)),  # no rotary embeddings
    "dinov3": ("vit_small_patch16_dinov3", FLAT, (1, 2)),  # registers, LayerScale
    "dinov3-dynamic": ("vit_small_patch16_dinov3", FLAT | dict(dynamic_img_size=True), (1, 2)),
    "rope-mixed": ("vit_small_patch16_rope_mixed_224", FLAT, (1, 2)),  # rotary tables of each block and head
    "pe-map": ("vit_pe_core_tiny_patch16_384", FLAT, (1, 2)),  # AttentionRope, map pooling
    "grouped-query": ("vit_base_patch16_sapiens2", FLAT | dict(num_heads=4, num_kv_heads=2), (1, 2)),
    "lvvit": ("lvvit_s", dict(img_size=40, patch_size=8, embed_dim=32, depth=3, num_heads=2), (1, 2)),
    "pit": ("pit_ti_224", PIT | dict(img_size=48), (1, 2)),  # 5x5, 3x3, 2x2: first selector behind a transition
    "pit-distilled": ("pit_ti_distilled_224", PIT | dict(img_size=72, depth=(2, 1, 1)), (1, 2)),  # before and behind one
    "swin-odd": ("swin_tiny_patch4_window7_224", SWIN | dict(img_size=22, patch_size=2), (1, 2)),  # 11x11: padded, odd merging
    "swin-even": ("swin_tiny_patch4_window7_224", SWIN | dict(img_size=32, patch_size=4), (1, 3)),  # 8x8: one window at the end
    "swin-partitioned": ("swin_tiny_patch4_window7_224", SWIN | dict(img_size=12, patch_size=2, always_partition=True), (1, 2)),
    "swin-dynamic": ("swin_tiny_patch4_window7_224", SWIN | dict(img_size=22, patch_size=2, dynamic_img_size=True), (1, 2)),
}


@functools.cache
def built(key: str) -> nn.Module:
    """A tiny model whose every parameter matters."""
    name, arguments, _ = MODELS[key]
    torch.manual_seed(sum(map(ord, key)))
    return randomised(timm.create_model(name, num_classes=7, **arguments)).eval()


def model_and_images(key: str, batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    size = MODELS[key][1]["img_size"]
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    return copy.deepcopy(built(key)).to(dtype), images.to(dtype)


def decisions(anatomy, images: int, points, even: bool = False) -> dict:
    """{block: (keep [B, slots], score [B, slots])} with slot 0 always kept; even: equally many patches of every image."""
    generator = torch.Generator().manual_seed(2)
    result, previous = {}, None
    for block in points:
        slots = anatomy.card.tokens_after(block)
        dice = torch.rand(images, slots, generator=generator)
        if previous is not None and previous.shape == dice.shape:
            dice = dice + 2 * (1 - previous)  # a dead slot stays dead
        dice[:, 0] = -1
        keep = dice < 0.55
        if even:
            count = max(2, slots * 3 // 5 - 4 * len(result))
            keep = torch.zeros(images, slots).scatter(1, dice.argsort(1)[:, :count], 1.0) > 0
        previous = keep.float()
        result[block] = (previous, torch.rand(images, slots, generator=generator) * 0.9 + 0.05)
    return result


def drive(anatomy, images, taken: dict, form: str, package: bool, package_weight: float = 1.0):
    """(logits, tokens behind each pruning stage) of one pass in the masked, rows or top-k form under given decisions."""
    tokens, seen = replace(anatomy.stem(images), package_weight=package_weight), []
    for block in range(1, anatomy.card.depth + 1):
        tokens = anatomy.block(block, tokens)
        if block not in taken:
            continue
        keep, score = taken[block]
        if form == "masked":
            tokens = prune_masked(tokens if tokens.masked else with_all_live(tokens), keep, score, package)
        elif form == "top-k" and not tokens.ragged:
            place = tokens.places()[:, tokens.patches]
            kept = keep.gather(1, place)
            tokens = prune_top_k(tokens, kept, int(kept[0].sum()), package, weight=score.gather(1, place))
        else:
            image, place = tokens.image_of_row(), tokens.places().flatten()
            at = (image, place.clamp_min(0))
            tokens = prune_rows(tokens, (keep[at] > 0) | (place < 0), score[at], package)
        seen.append(tokens)
    return anatomy.head(tokens), seen


def through(anatomy, images, change=lambda tokens: tokens):
    """Logits of a pass without decisions; `change` is applied to the tokens that enter block 1."""
    tokens = change(anatomy.stem(images))
    for block in range(1, anatomy.card.depth + 1):
        tokens = anatomy.block(block, tokens)
    return anatomy.head(tokens)


def with_places(tokens):
    """The uniform form in which patches may be missing, with none missing."""
    return replace(tokens, place=tokens.places().contiguous())


def as_ragged(tokens):
    images, length = tokens.x.shape[:2]
    return replace(tokens, x=tokens.x.flatten(0, 1), place=tokens.places().flatten(), lengths=(length,) * images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("key", MODELS)
@torch.no_grad()
def test_native_is_timm_bit_for_bit(key, dtype):
    model, images = model_and_images(key, dtype=dtype)
    for training in (False, True):
        twin = copy.deepcopy(model).train(training)
        anatomy = anatomy_of(model.train(training))
        torch.manual_seed(0)
        expected = twin(images)
        torch.manual_seed(0)
        assert torch.equal(through(anatomy, images), expected)


@pytest.mark.parametrize("key", MODELS)
@torch.no_grad()
def test_own_form_with_every_token_alive_is_timm(key):
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model, images = model_and_images(key, dtype=dtype)
        anatomy, expected = anatomy_of(model), model(images)
        for change in (with_all_live, with_places, as_ragged):
            logits = through(anatomy, images, change)
            assert logits.dtype == dtype
            assert (logits - expected).abs().max() < bound * expected.abs().max(), change.__name__


@pytest.mark.parametrize("package", [True, False], ids=["package", "no-package"])
@pytest.mark.parametrize("key", MODELS)
@torch.no_grad()
def test_every_form_gives_the_same_logits(key, package):
    model, images = model_and_images(key)
    anatomy, points = anatomy_of(model), MODELS[key][2]
    anatomy.check_attention(), anatomy.check_prunable()
    dense = model(images)
    for even in (False, True):
        taken = decisions(anatomy, len(images), points, even)
        masked, before = drive(anatomy, images, taken, "masked", package, package_weight=0.7)
        packed, after = drive(anatomy, images, taken, "top-k" if even else "rows", package, package_weight=0.7)
        assert after[0].ragged != even
        assert (masked - packed).abs().max() < 1e-5 * masked.abs().max()
        assert (masked - dense).abs().max() > 1e-2 * dense.abs().max(), "the decisions must matter"
        for ours, theirs in zip(before, after):
            assert torch.equal(ours.kept(), theirs.kept())
            assert ours.counts() == theirs.counts()
        for i in range(len(images)):
            own = {block: (keep[i:i + 1], score[i:i + 1]) for block, (keep, score) in taken.items()}
            alone, stages = drive(anatomy, images[i:i + 1], own, "rows", package, package_weight=0.7)
            assert not any(tokens.ragged for tokens in stages)
            assert (alone - packed[i:i + 1]).abs().max() < 1e-5 * masked.abs().max()


@pytest.mark.parametrize("key", MODELS)
def test_decisions_get_finite_gradients(key):
    model, images = model_and_images(key)
    anatomy = anatomy_of(model)
    for package in (True, False):
        taken = decisions(anatomy, len(images), MODELS[key][2])
        for keep, score in taken.values():
            keep.requires_grad_()
            score.requires_grad_()
        logits, _ = drive(anatomy, images, taken, "masked", package)
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
        for keep, score in taken.values():
            assert torch.isfinite(keep.grad).all()
            assert (keep.grad.abs().amax(1) > 1e-6).all(), "every image's decisions must be felt"
            # Dropping a live patch and reviving a dropped one must both be felt.
            assert keep.grad[keep > 0].abs().max() > 0 and keep.grad[keep == 0].abs().max() > 0
            assert not package or (torch.isfinite(score.grad).all() and score.grad.abs().max() > 0)


@pytest.mark.parametrize("key", ["eva02", "dinov3", "rope-mixed", "grouped-query"])
@torch.no_grad()
def test_every_kept_token_carries_its_own_rotary_row(key):
    """Against timm's block, which takes one rotary row a token as its patch dropout does."""
    model, images = model_and_images(key)
    anatomy = anatomy_of(model)
    taken = decisions(anatomy, len(images), (1,), even=True)
    _, (tokens,) = drive(anatomy, images, taken, "top-k", package=True)
    got = anatomy.block(2, tokens)
    table = tokens.rope[1] if key == "rope-mixed" else tokens.rope[None]
    unmoved = torch.cat([torch.zeros(table.shape[-1] // 2), torch.ones(table.shape[-1] // 2)])
    for i in range(len(images)):
        place = tokens.place[i, tokens.prefix:].tolist()
        assert place[-1] == PACKAGE and min(place[:-1]) >= 0 and place[:-1] != list(range(len(place) - 1))
        rope = torch.stack([torch.stack([head[p] if p >= 0 else unmoved for p in place]) for head in table])
        expected = model.blocks[1](tokens.x[i:i + 1], rope=rope[None])
        assert (got.x[i] - expected[0]).abs().max() < 1e-5 * expected.abs().max()
        assert torch.equal(rotary_rows(table, tokens.place[i])[: tokens.prefix], unmoved.expand(tokens.prefix, len(table), -1))


class Halved(nn.Linear):
    """A linear that a method put in another's place: only the first half of its inputs counts."""

    def forward(self, x):
        return super().forward(x * (torch.arange(x.shape[-1]) < x.shape[-1] // 2))


@pytest.mark.parametrize("key", ["eva02", "eva02-fused", "dinov3", "pe-map", "lvvit", "pit", "swin-odd"])
@torch.no_grad()
def test_linears_put_in_by_a_method_are_called(key):
    model, images = model_and_images(key)
    by_hand = copy.deepcopy(model)
    for name, linear in list(model.named_modules()):
        if name.endswith((".qkv", ".q_proj", ".k_proj", ".v_proj")):
            other = Halved(linear.in_features, linear.out_features, linear.bias is not None)
            other.weight, other.bias = linear.weight, linear.bias
            model.set_submodule(name, other)
            by_hand.get_submodule(name).weight[:, linear.in_features // 2:] = 0
    anatomy, expected = anatomy_of(model), by_hand(images)
    assert (expected - built(key)(images)).abs().max() > 1e-3
    for change in (lambda tokens: tokens, with_all_live, as_ragged):
        assert (through(anatomy, images, change) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("key", ["pit-distilled", "swin-odd"])
@torch.no_grad()
def test_packages_are_carried_through_transitions(key):
    model, images = model_and_images(key)
    anatomy = anatomy_of(model)
    points = [block for block in range(1, anatomy.card.depth) if block in (1, 2)]
    _, stages = drive(anatomy, images, decisions(anatomy, len(images), points), "rows", package=True)
    for number, tokens in enumerate(stages, 1):
        place, image = tokens.places().flatten(), tokens.image_of_row()
        assert torch.bincount(image[place == PACKAGE]).tolist() == [number] * len(images)
        assert tokens.grid == anatomy.card.grid_after(points[number - 1])
        assert tokens.x.shape[-1] == anatomy.card.dim_after(points[number - 1])


@pytest.mark.parametrize("key", ["eva02", "lvvit", "pit", "swin-odd"])
@torch.no_grad()
def test_features_belong_to_the_last_grid(key):
    model, images = model_and_images(key)
    anatomy = anatomy_of(model)
    slots = anatomy.card.blocks[-1].patches
    tokens = anatomy.stem(images)
    for block in range(1, anatomy.card.depth + 1):
        tokens = anatomy.block(block, tokens)
    features, live = anatomy.features(tokens)
    assert features.shape == (len(images), slots, anatomy.card.blocks[-1].dim) and (live == 1).all()
    block = anatomy.card.depth - 1
    taken = decisions(anatomy, len(images), [block])
    tokens = anatomy.stem(images)
    for number in range(1, anatomy.card.depth + 1):
        tokens = anatomy.block(number, tokens)
        if number == block:
            tokens = prune_masked(with_all_live(tokens), *taken[block], True)
    features, live = anatomy.features(tokens)
    assert features.shape[:2] == (len(images), slots) and torch.equal(live, taken[block][0])


@torch.no_grad()
def test_auxiliary_head_of_lvvit_hears_live_patches_only():
    model, images = model_and_images("lvvit")
    anatomy = anatomy_of(model)
    taken = decisions(anatomy, len(images), (2,))
    _, (tokens,) = drive(anatomy, images, taken, "rows", package=True)
    last = anatomy.block(3, tokens)
    # Packages that would win every class if they were asked.
    last = last.with_x(torch.where((last.place == PACKAGE)[:, None], 10 * model.aux_head.weight.sum(0), last.x))
    for i in range(len(images)):
        rows = last.image_of_row() == i
        x = model.norm(last.x[rows])
        expected = model.head(x[0]) + 0.5 * model.aux_head(x[last.place[rows] >= 0]).amax(0)
        assert (expected - anatomy.head(last)[i]).abs().max() < 1e-5


@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("key", ["swin-odd", "swin-even"])
@torch.no_grad()
def test_swin_block_equals_the_naive_one(key, shifted):
    model, images = model_and_images(key, batch=2, dtype=torch.float64)
    anatomy = anatomy_of(model)
    tokens = with_all_live(anatomy.stem(images))
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        keep = (torch.rand(2, tokens.grid[0] * tokens.grid[1], generator=generator) < 0.7).double()
        tokens = prune_masked(tokens, keep, torch.rand(keep.shape, generator=generator).double(), True)
    block = anatomy.blocks[int(shifted)]
    assert any(block.shift_size) == shifted
    got = anatomy.run(1 + int(shifted), tokens, anatomy.attend)
    parameters = {name: p.numpy() for name, p in block.named_parameters()}
    for i in range(2):
        alive = tokens.live[i, tokens.patches].numpy()
        new, packages = swin_block(tokens.x[i, tokens.patches].numpy(), alive, tokens.x[i, tokens.patches.stop:].numpy(), parameters,
                                   tokens.grid, block.window_size, block.shift_size, block.attn.num_heads)
        assert np.abs(got.x[i, tokens.patches].numpy() - new)[alive > 0].max() < 1e-10
        assert np.abs(got.x[i, tokens.patches.stop:].numpy() - packages).max() < 1e-10


@pytest.mark.parametrize("name", [
    "eva02_small_patch14_224", "eva02_large_patch14_clip_224", "vit_small_patch16_dinov3", "vit_base_patch16_rope_mixed_ape_224",
    "vit_pe_core_tiny_patch16_384", "lvvit_s", "lvvit_m", "pit_ti_224", "pit_s_distilled_224", "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224"])
def test_real_configurations_at_full_depth(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    anatomy = anatomy_of(model.eval())
    anatomy.check_attention(), anatomy.check_prunable()
    assert anatomy.card.name == name and len(anatomy.blocks) == anatomy.card.depth
    images = torch.empty(2, 3, *anatomy.card.image_size, device="meta")
    expected = model(images).shape
    tokens = anatomy.stem(images)
    for number, block in enumerate(anatomy.card.blocks, 1):
        assert tokens.x.shape == (2, block.patches + tokens.prefix, block.dim) and tokens.grid == block.grid
        tokens = anatomy.block(number, tokens)
    assert anatomy.head(tokens).shape == expected
    assert through(anatomy, images, with_all_live).shape == expected


class Extra(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("key, parent", [
    ("eva02", "blocks.1"), ("eva02", "blocks.1.attn"), ("eva02", ""), ("lvvit", "blocks.0"), ("pit", "transformers.1.pool"),
    ("pit", "transformers.1.blocks.0"), ("swin-odd", "layers.1.downsample"), ("swin-odd", "layers.0.blocks.1.attn"), ("swin-odd", "layers.2")])
def test_unknown_child_is_refused_by_name(key, parent):
    model, _ = model_and_images(key)
    model.get_submodule(parent).add_module("adapter", Extra())
    with pytest.raises(FoveateError) as error:
        anatomy_of(model, "my_model")
    assert "my_model" in error.value.given and "'adapter'" in error.value.given and (parent or "model") in error.value.given


@pytest.mark.parametrize("key, replaced", [("eva02", "blocks.1"), ("pit", "transformers.1.blocks.0"), ("swin-odd", "layers.1.blocks.0"),
                                           ("pit", "transformers.1.pool"), ("swin-odd", "layers.1.downsample"), ("eva02", "blocks.0.attn")])
def test_foreign_part_is_refused_by_name(key, replaced):
    model, _ = model_and_images(key)
    model.set_submodule(replaced, Extra())
    with pytest.raises(FoveateError) as error:
        anatomy_of(model)
    assert replaced in error.value.given and "Extra" in error.value.given and MODELS[key][0] in error.value.given


@pytest.mark.parametrize("name, word", [
    ("beit_base_patch16_224", "relative positions"), ("vit_relpos_small_patch16_224", "relative positions"),
    ("naflexvit_base_patch16_gap", "NaFlex"), ("swinv2_tiny_window8_256", "cosine"), ("resnet18", "ResNet")])
def test_other_models_are_refused_with_their_reason(name, word):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(FoveateError) as error:
        anatomy_of(model)
    assert name in error.value.given and type(model).__name__ in error.value.given and word in error.value.given
    assert all(supported in error.value.allowed for supported in ("VisionTransformer", "Eva", "LVViT", "PiT", "Swin"))


def test_subclasses_and_other_objects_are_refused():
    for key in ("eva02", "lvvit", "pit", "swin-odd"):
        model, _ = model_and_images(key)
        known = type(model).__name__
        model.__class__ = type("Mine", (type(model),), {})
        with pytest.raises(FoveateError, match=f"subclass of {known} that may compute something else"):
            anatomy_of(model)
    with pytest.raises(FoveateError, match="create_model"):
        anatomy_of("deit_small_patch16_224")


@pytest.mark.parametrize("key, change, word", [
    ("eva02", dict(patch_drop_rate=0.5), "patch_drop_rate"), ("eva02", dict(global_pool="max"), "global_pool='max'"),
    ("eva02", dict(use_post_norm=True), "EvaBlockPostNorm"), ("swin-odd", dict(global_pool="max"), "global_pool='max'")])
def test_what_runs_in_full_only_is_not_pruned(key, change, word):
    name, arguments, _ = MODELS[key]
    model = timm.create_model(name, num_classes=7, **arguments, **change).eval()
    _, images = model_and_images(key)
    anatomy = anatomy_of(model)
    with torch.no_grad():
        assert torch.equal(through(anatomy, images), model(images))
    with pytest.raises(FoveateError) as error:
        anatomy.check_attention(), anatomy.check_prunable()
    assert word in error.value.given and name in error.value.given


def test_families_do_not_overlap():
    for key in MODELS:
        assert sum(family.knows(built(key)) for family in FAMILIES) == 1
