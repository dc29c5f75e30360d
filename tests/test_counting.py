"""count: published figures, SPViT's operations against a naive formula, traces and bounds (semantics.md 19-21)."""

import numpy as np
import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveate import ATS, AdaptiveModel, EViT, FoveateError, Plan, Random, SPViT, Structure, ToMe, Trace, adapt, count
from foveate.backbones.lvvit import LVViT
from foveate.card import Transition, stored_card
from foveate.counting import merged
from foveate.methods.spvit.cost import selector_operations, selector_params
from foveate.presets import presets

SMALL = dict(img_size=32, num_classes=5)
TINY = dict(patch_size=8, embed_dim=48, depth=3, num_heads=3, **SMALL)


@pytest.mark.parametrize(
    ("name", "gmacs", "digits"),
    [
        ("deit_tiny_patch16_224", 1.2537, 4),
        ("deit_small_patch16_224", 4.5989, 4),
        ("deit_base_patch16_224", 17.5638, 4),
        ("pit_ti_224", 0.699, 3),
        ("pit_xs_224", 1.395, 3),
        ("pit_s_224", 2.871, 3),
        ("swin_tiny_patch4_window7_224", 4.491, 3),
        ("swin_small_patch4_window7_224", 8.741, 3),
        ("deit_160_patch16_224", 0.899, 3),
        ("deit_256_patch16_224", 2.136, 3),
        ("deit_288_patch16_224", 2.665, 3),
        ("deit_320_patch16_224", 3.251, 3),
        ("levit_128s", 0.305, 3),
    ],
)
def test_published_costs_of_dense_models(name, gmacs, digits):
    assert round(count(name).macs / 1e9, digits) == gmacs


@pytest.mark.parametrize(("name", "without", "with_aux"), [("lvvit_s", 6.476, 6.551), ("lvvit_m", 12.578, 12.678)])
def test_the_auxiliary_head_of_lvvit_is_counted_apart(name, without, with_aux):
    ledger = count(name)
    assert round(ledger.macs / 1e9, 3) == with_aux
    assert round((ledger.macs - ledger.by_operation()["aux_head"]) / 1e9, 3) == without


@pytest.mark.parametrize(("size", "percent"), [("tiny", 43.1), ("small", 38.6), ("base", 36.1)])
def test_share_of_the_attention_module_in_the_blocks(size, percent):
    shares = count(f"deit_{size}_patch16_224", include="blocks").shares()
    assert round(100 * sum(shares[part] for part in ("qkv", "qk", "av", "proj")), 1) == percent


@pytest.mark.parametrize(
    ("name", "keep", "gmacs"),
    [("deit_small_patch16_224", (0.637, 0.406, 0.259), 2.65), ("deit_tiny_patch16_224", (0.788, 0.620, 0.489), 0.90)],
)
def test_published_costs_of_spvit(name, keep, gmacs):
    assert count(name, Plan([SPViT((3, 6, 9), keep)])).macs / 1e9 == pytest.approx(gmacs, rel=0.01)


PRINTED = {
    "spvit-deit-tiny": 0.90,
    "spvit-deit-small": 2.65,
    "spvit-deit-256": 1.3,
    "spvit-deit-320": 1.3,
    "spvit-pit-xs": 1.13,
    "spvit-pit-small": 2.22,
    "spvit-swin-tiny": 3.47,
    "spvit-swin-small": 6.35,
    "random-deit-tiny": 0.90,
    "random-deit-small": 2.64,
    "structure-deit-tiny": 0.90,
    "structure-deit-small": 2.64,
}


@pytest.mark.parametrize("name", presets())
def test_every_preset_costs_what_it_says_and_what_the_paper_prints(name):
    gmacs = count(presets()[name].model, name).macs / 1e9
    assert gmacs == pytest.approx(presets()[name].gmacs, rel=1e-3)
    assert gmacs == pytest.approx(PRINTED.get(name, gmacs), rel=0.02)


@pytest.mark.parametrize(("after", "params"), [((6, 9), 22_108_954), ((3, 6, 9), 22_138_099), ((3, 5, 7, 9), 22_167_244)])
def test_parameters_with_selectors_as_in_table_5(after, params):
    plan = Plan([SPViT(after, tuple(0.9 - 0.1 * i for i in range(len(after))))])
    assert count("deit_small_patch16_224", plan).params == params
    assert selector_params(384, 6) == 29_145


def test_a_selector_multiplies_27840_times_a_token_and_36_for_the_branch():
    operations = selector_operations("blocks.3.selector", 196, 384, 6)
    assert sum(o.macs for o in operations) == 196 * (27_840 + 36)
    branch = [o for o in operations if o.origin.endswith(("squeeze", "excite"))]
    assert sum(o.macs for o in branch) == 196 * 36


def naive_spvit_macs(width, depth, patches, kept, after, package=True):
    """Table 1 of SPViT, block by block, with one more token for each package made."""
    total, live, packages = 196 * width * 768 + width * 1000, patches, 0
    for block in range(1, depth + 1):
        n = 1 + live + packages
        total += 12 * n * width**2 + 2 * n**2 * width
        if block in after:
            keep = kept[after.index(block)]
            total += live * sum(o.macs for o in selector_operations("s", 1, width, width // 64))
            if keep < live and package:
                total += live * width
                packages += 1
            live = keep
    return total


@pytest.mark.parametrize("package", [True, False])
def test_spvit_costs_what_the_formula_of_the_paper_says(package):
    plan = Plan([SPViT((2, 7, 11), (1.0, 0.5, 0.2), package=package)])
    kept = [196, 98, 39]
    assert count("deit_small_patch16_224", plan).macs == naive_spvit_macs(384, 12, 196, kept, (2, 7, 11), package)


def test_random_pruning_costs_what_spvit_does_without_selectors():
    settings = dict(after=(3, 6), keep=(0.7, 0.3))
    spvit = count("deit_tiny_patch16_224", Plan([SPViT(**settings)]))
    random = count("deit_tiny_patch16_224", Plan([Random(**settings)]))
    assert random.macs == spvit.macs - spvit.by_operation()["selector"]
    assert random.params == count("deit_tiny_patch16_224").params


def test_structure_pruning_narrows_the_linears_only():
    dense = count("deit_small_patch16_224").by_operation()
    half = count("deit_small_patch16_224", Plan([Structure(0.5)])).by_operation()
    assert {g for g in dense if half[g] != dense[g]} == {"qkv", "proj", "mlp"}
    assert all(half[g] * 2 == dense[g] for g in ("qkv", "proj", "mlp"))
    one = count("deit_small_patch16_224", Plan([Structure(0.5, blocks=(2,))])).by_block()
    assert one["blocks.2"] < one["blocks.1"] == one["blocks.3"]


def test_a_plan_that_depends_on_the_image_is_a_dense_upper_bound_and_says_so():
    plan = Plan([SPViT((3,), (0.5,), select="argmax")])
    ledger = count("deit_tiny_patch16_224", plan)
    selector = 196 * sum(o.macs for o in selector_operations("s", 1, 192, 3))
    assert ledger.label == "dense upper bound"
    assert ledger.macs == count("deit_tiny_patch16_224").macs + selector
    assert count("deit_tiny_patch16_224").label == "one image"


def test_given_token_counts_replace_the_bound():
    topk = Plan([SPViT((3, 6), (0.5, 0.25))])
    argmax = Plan([SPViT((3, 6), (0.5, 0.25), select="argmax")])
    exact = count("deit_tiny_patch16_224", topk)
    ledger = count("deit_tiny_patch16_224", argmax, tokens=(1 + 98 + 1, 1 + 49 + 2))
    assert (ledger.macs, ledger.label) == (exact.macs, "tokens 100, 52")
    unpruned = count("deit_tiny_patch16_224", argmax, tokens=(197, 197))
    assert unpruned.macs == count("deit_tiny_patch16_224", argmax).macs


@pytest.mark.parametrize("tokens", [(100,), (100, 52, 20), (100, 52.5), (300, 52), (2, 2), (100, 110), ()])
def test_token_counts_that_do_not_fit_are_refused(tokens):
    plan = Plan([SPViT((3, 6), (0.5, 0.25), select="argmax")])
    with pytest.raises(FoveateError, match="tokens"):
        count("deit_tiny_patch16_224", plan, tokens=tokens)


def test_tokens_without_a_stage_and_tokens_with_a_trace_are_refused():
    with pytest.raises(FoveateError, match="leave tokens out"):
        count("deit_tiny_patch16_224", tokens=(100,))
    with pytest.raises(FoveateError, match="one of the two"):
        count("deit_tiny_patch16_224", tokens=(100,), trace=Trace(images=1))


def trace_of(*images):
    """A trace of one stage after block 3 of DeiT-T with these numbers of kept patches."""
    kept = np.zeros((len(images), 196), dtype=bool)
    for row, patches in enumerate(images):
        kept[row, :patches] = True
    tokens = [1 + p + (p < 196) for p in images]
    block_tokens = [[197] * len(images)] * 3 + [tokens] * 9
    return Trace(images=len(images), tokens=[tokens], block_tokens=block_tokens, kept=[kept], after=(3,))


def test_a_trace_gives_the_mean_of_costs_and_not_the_cost_of_the_mean():
    plan = Plan([SPViT((3,), (0.5,), select="argmax")])
    alone = {p: count("deit_tiny_patch16_224", plan, trace_of(p)).macs for p in (196, 100, 50)}
    ledger = count("deit_tiny_patch16_224", plan, trace_of(50, 196, 100, 50))
    assert ledger.macs == pytest.approx((alone[196] + alone[100] + 2 * alone[50]) / 4, rel=1e-12)
    assert ledger.label == "mean over 4 images"
    assert ledger.macs > count("deit_tiny_patch16_224", plan, trace_of(99)).macs
    assert alone[196] == count("deit_tiny_patch16_224", plan).macs
    from_counts = count("deit_tiny_patch16_224", plan, Trace.from_json(trace_of(50, 196, 100, 50).to_json()))
    assert from_counts.macs == ledger.macs


def test_a_trace_of_another_plan_is_refused():
    with pytest.raises(FoveateError, match="the plan that the trace was made with"):
        count("deit_tiny_patch16_224", Plan([SPViT((4,), (0.5,))]), trace_of(50))
    with pytest.raises(FoveateError, match="at least one image"):
        count("deit_tiny_patch16_224", trace=Trace(images=0))


def test_plans_are_checked_against_the_card():
    with pytest.raises(FoveateError, match="deit_tiny_patch16_224"):
        count("deit_tiny_patch16_224", "spvit(after=[13], keep=[0.5])")
    with pytest.raises(FoveateError, match="'all', 'blocks'"):
        count("deit_tiny_patch16_224", include="heads")


def test_a_live_model_and_an_adapted_one_are_counted_like_their_name():
    plan = Plan([SPViT((3, 6, 9), (0.7, 0.5, 0.3))])
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_patch16_224")
    assert count(model, plan) == count("deit_tiny_patch16_224", plan)
    fast = adapt(VisionTransformer(**TINY), Plan([SPViT((1,), (0.5,))]))
    assert count(fast) == count(fast, fast.plan) == count(VisionTransformer(**TINY), fast.plan)
    assert count(fast).params == sum(p.numel() for p in fast.parameters())
    assert count(fast, Plan()) == count(VisionTransformer(**TINY))


def test_what_lives_after_merging():
    mask = np.zeros((2, 16), dtype=bool)
    mask[0, 5] = mask[1, [0, 15]] = True
    swin = merged(mask, (4, 4), Transition(kernel=2, stride=2, padding=0, parts=()))
    assert swin.tolist() == [[True, False, False, False], [True, False, False, True]]
    pit = merged(mask, (4, 4), Transition(kernel=3, stride=2, padding=1, parts=()))
    assert pit.tolist() == [[True, True, True, True], [True, False, False, True]]
    odd = merged(np.array([[False] * 8 + [True]]), (3, 3), Transition(2, 2, 0, ()))
    assert odd.tolist() == [[False, False, False, True]]


def test_hierarchical_plans_are_labelled_as_bounds():
    name = "swin_tiny_patch4_window7_224"
    assert stored_card(name).tokens_after(2) == 784
    late = count(name, Plan([SPViT((10,), (0.5,))]))
    early = count(name, Plan([SPViT((2,), (0.5,))]))
    assert (late.label, early.label) == ("one image", "upper bound")
    assert late.macs < count(name).macs


def ran(model: AdaptiveModel, images: torch.Tensor) -> tuple[float, Trace]:
    """Multiply-accumulates that torch saw in the packed run of `images`, and its trace."""
    model.eval().requires_grad_(False)
    # The fused CPU kernel is unknown to torch's counter; the spelled-out one multiplies the same.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, trace = model.traced(images)
    return counter.get_total_flops() / 2, trace


PLANS = {
    "spvit": Plan([SPViT((1, 2), (0.6, 0.3))]),
    "spvit without package": Plan([SPViT((1, 2), (0.6, 0.3), package=False)]),
    "argmax": Plan([SPViT((1, 2), (0.6, 0.3), select="argmax")]),
    "random": Plan([Random((1, 2), (0.6, 0.3))]),
    "structure": Plan([Structure(0.5)]),
    "spvit and structure": Plan([SPViT((1,), (0.6,)), Structure(0.7, blocks=(2,))]),
    "evit": Plan([EViT((1, 2), (0.6, 0.3))]),
    "evit without fusion": Plan([EViT((1,), (0.6,), fuse=False)]),
    "tome": Plan([ToMe(3)]),
    "ats": Plan([ATS((1, 3), 6)]),
}
BACKBONES = {
    "class token": lambda: VisionTransformer(**TINY),
    "registers": lambda: VisionTransformer(**TINY, reg_tokens=2),
    "average pooling": lambda: VisionTransformer(**TINY, class_token=False, global_pool="avg"),
    "map pooling": lambda: VisionTransformer(**TINY, global_pool="map"),
    "eva": lambda: Eva(**TINY, use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, qkv_fused=False),
    "lvvit": lambda: LVViT(**TINY, mlp_ratio=3.0),
    "pit": lambda: PoolingVisionTransformer(patch_size=8, stride=4, base_dims=(16,) * 2, depth=(2, 2), heads=(2, 4), **SMALL),
    "swin": lambda: SwinTransformer(patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, **SMALL),
    "swin padded": lambda: SwinTransformer(patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=5, **SMALL),
}
STAGED = {"pit", "swin", "swin padded"}
# Structure pruning refuses Eva, whose attention reads the weight of its linear and not its forward.
PAIRS = [(kind, backbone) for kind in PLANS for backbone in BACKBONES if (backbone != "eva" or "structure" not in kind)]
# Windows are in the way of all that prunes inside a block, ends of stages of some, and some look for a class token.
REFUSED = {(kind, backbone) for kind in ("evit", "evit without fusion", "tome", "ats") for backbone in ("swin", "swin padded")}
REFUSED |= {("evit", "pit"), ("tome", "pit")} | {(kind, "average pooling") for kind in ("evit", "evit without fusion", "ats")}
PAIRS = [pair for pair in PAIRS if pair not in REFUSED]


@pytest.mark.parametrize(("kind", "backbone"), PAIRS)
def test_the_count_is_what_the_packed_run_multiplied(kind, backbone):
    torch.manual_seed(0)
    model = adapt(BACKBONES[backbone](), PLANS[kind])
    macs, trace = ran(model, torch.randn(1, 3, 32, 32))
    ledger = count(model, trace=trace)
    if kind == "argmax":
        # With counts that differ from image to image the package is summed by scattered addition, not by a product.
        macs += ledger.by_operation().get("package", 0)
    assert ledger.macs == macs
    if kind in ("argmax", "ats") or (backbone in STAGED and kind != "structure"):
        assert count(model).macs >= macs
    else:
        assert count(model).macs == macs


@pytest.mark.parametrize("backbone", ["class token", "pit", "swin"])
def test_the_mean_of_a_batch_is_the_mean_of_its_images(backbone):
    torch.manual_seed(1)
    model = adapt(BACKBONES[backbone](), PLANS["argmax"]).eval()
    images = torch.randn(4, 3, 32, 32)
    alone = [count(model, trace=model.traced(image[None])[1]).macs for image in images]
    assert count(model, trace=model.traced(images)[1]).macs == pytest.approx(sum(alone) / 4, rel=1e-9)


def test_counts_alone_bound_what_masks_tell_in_hierarchical_models():
    torch.manual_seed(0)
    model = adapt(BACKBONES["swin"](), PLANS["argmax"]).eval()
    trace = model.traced(torch.randn(2, 3, 32, 32))[1]
    from_counts = count(model, trace=Trace.from_json(trace.to_json()))
    assert from_counts.macs >= count(model, trace=trace).macs
