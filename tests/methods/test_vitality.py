"""ViTALiTy as a method: what each mode computes in training and inference, its counts (Tables I and IV), what it refuses."""

from dataclasses import replace

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
import tiny
from foveate.counting import card_of
from foveate.nn.sparse import sparse_attention, strong_mask
from naive import linear as naive

ALIVE = torch.ones(17)
MODES = ("vitality", "lowrank", "sparse", "lowrank+sparse", "baseline")


def adapted(key: str = "deit", **settings) -> fv.AdaptiveModel:
    return tiny.adapted(fv.Plan([fv.ViTALiTy(**settings)]), key)


def attention_inputs(key: str = "deit"):
    """q, k, v [B, H, n, d] in float64 of the first block, its scale, and what it made of them."""
    model, images = tiny.model(key).double(), tiny.images(key).double()
    attn = model.blocks[0].attn
    seen = {}
    attn.qkv.register_forward_hook(lambda _, __, out: seen.update(qkv=out))
    with torch.no_grad():
        model(images)
    q, k, v = seen["qkv"].unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v, attn.scale


def first_block(fast: fv.AdaptiveModel, images: torch.Tensor) -> torch.Tensor:
    """What stands between the projections and the output linear of block 1: [B, H, n, e]."""
    seen = {}
    handle = fast.blocks[0].attn.proj.register_forward_pre_hook(lambda _, inputs: seen.update(z=inputs[0]))
    fast(images)
    handle.remove()
    return seen["z"].unflatten(-1, (fast.blocks[0].attn.num_heads, -1)).transpose(1, 2)


def naive_sparse(q, k, v, scale, threshold, renormalised):
    mask = strong_mask(q, k, scale, threshold)
    attention = (q @ k.mT * scale).softmax(-1)
    return (sparse_attention(attention, mask) if renormalised else attention * mask) @ v


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [False, True])
def test_each_mode_computes_what_the_paper_says(mode, training):
    q, k, v, scale = attention_inputs()
    lowrank = torch.stack([torch.stack([naive.taylor(*head, scale, ALIVE) for head in zip(*image)]) for image in zip(q, k, v)])
    full = (q @ k.mT * scale).softmax(-1) @ v
    strong, alone = (naive_sparse(q, k, v, scale, 0.1, renormalised) for renormalised in (False, True))
    expected = {"vitality": lowrank + strong * training, "lowrank": lowrank, "sparse": alone, "lowrank+sparse": lowrank + strong, "baseline": full}[mode]
    assert strong.abs().max() > 0
    fast = adapted(mode=mode, threshold=0.1).double().train(training)
    with torch.no_grad():
        torch.testing.assert_close(first_block(fast, tiny.images().double()), expected, rtol=0, atol=1e-9)


def test_vitality_never_runs_its_helper_outside_of_training():
    fast, images = adapted(threshold=0.05).train(), tiny.images()
    with torch.no_grad():
        logits, trace = fast.traced(images)
        assert torch.equal(fast.masked(images, trace), logits)
        assert torch.equal(fast.eval()(images), logits)
        assert not torch.allclose(fast.train()(images), logits, atol=1e-3)


def test_the_baseline_mode_is_timm():
    base, images = tiny.model(), tiny.images()
    assert torch.equal(adapted(mode="baseline")(images), base(images))


def test_only_the_chosen_blocks_change():
    fast, images = adapted(blocks=(3,)), tiny.images()
    base = tiny.model()
    blocks = lambda model: [b.register_forward_hook(lambda *_: None) for b in model.blocks]
    assert blocks(fast)  # the blocks are the base's own
    tokens = fast.anatomy.stem(images)
    x = base.patch_embed(images)
    x = base.pos_drop(base._pos_embed(x))
    run = fast.traced(images)
    assert run[1].skipped == ()
    for number in (1, 2):
        tokens, x = fast.anatomy.block(number, tokens), base.blocks[number - 1](x)
        assert torch.equal(tokens.x, x)
    assert not torch.allclose(fast(images), base(images), atol=1e-3)


def test_densities_are_logged_for_every_block_that_has_a_mask():
    outputs = adapted(threshold=0.1, blocks=(1, 3)).train().training_outputs(tiny.images())
    assert sorted(outputs.metrics) == ["vitality_density_block_1", "vitality_density_block_3"]
    assert all(0 < float(density) < 1 for density in outputs.metrics.values())
    q, k, _, scale = attention_inputs()
    mask = strong_mask(q, k, scale, 0.1)
    assert float(outputs.metrics["vitality_density_block_1"]) == pytest.approx(mask.float().mean().item(), abs=1e-3)
    assert adapted(mode="lowrank").train().training_outputs(tiny.images()).metrics == {}


def test_higher_thresholds_leave_fewer_pairs():
    density = lambda t: float(adapted(threshold=t, blocks=(1,)).train().training_outputs(tiny.images()).metrics["vitality_density_block_1"])
    densities = [density(t) for t in (0.002, 0.02, 0.2, 0.5, 0.9)]
    assert densities == sorted(densities, reverse=True) and densities[0] > densities[-1]


def test_tensor_ranges_freeze_in_evaluation():
    fast, images = adapted(mode="sparse", threshold=0.1, range="tensor"), tiny.images(count=6)
    assert not fast.vitality.running_ranges.any()
    fast.train()(images)
    frozen = fast.vitality.running_ranges.clone()
    assert frozen.all()
    with torch.no_grad():
        together = fast.eval()(images)
        torch.testing.assert_close(torch.cat([fast(image[None]) for image in images]), together, rtol=0, atol=5e-6)
    assert torch.equal(fast.vitality.running_ranges, frozen)
    fast.train()(images * 3)
    assert not torch.equal(fast.vitality.running_ranges, frozen)


@pytest.mark.parametrize("trained", [False, True])
def test_tensor_ranges_export_with_a_dynamic_batch(trained):
    fast, images = adapted(mode="sparse", threshold=0.1, range="tensor"), tiny.images()
    if trained:
        fast.train()(tiny.images(seed=2) * 2)
    fast.eval()
    with torch.no_grad():
        graph = torch.export.export(fast, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
        for batch in (images, tiny.images(count=5)):
            torch.testing.assert_close(graph(batch), fast(batch), rtol=0, atol=5e-6)


@pytest.mark.parametrize("settings", [{}, dict(mode="lowrank+sparse", range="tensor")], ids=["vitality", "tensor"])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "levit_128s", "mobilevit_xxs"])
def test_real_configurations_run_on_the_meta_device(name, settings):
    with torch.device("meta"):
        base = timm.create_model(name, num_classes=10).eval()
    fast = fv.adapt(base, fv.Plan([fv.ViTALiTy(**settings)]))
    images = torch.empty(2, 3, *fast.card.image_size, device="meta")
    assert fast(images).shape == (2, 10) and fast.train()(images).shape == (2, 10)


# distillation token


def test_a_fresh_distillation_token_only_halves_the_logits():
    base, images = tiny.model(), tiny.images()
    fast = fv.adapt(base, fv.Plan([fv.ViTALiTy(mode="baseline+kd")]))
    assert fast.traced(images)[1].block_tokens[0] == [18] * len(images)
    with torch.no_grad():
        fast.vitality.dist_token.mul_(0)
        heads = fast.training_outputs(images).heads
    assert len(heads) == 2 and not heads[1].any()
    torch.testing.assert_close(fast(images), heads[0] / 2, rtol=0, atol=1e-6)


def test_the_auxiliary_head_of_lvvit_does_not_ask_the_distillation_token():
    base, images = tiny.model("lvvit"), tiny.images("lvvit")
    fast = fv.adapt(base, fv.Plan([fv.ViTALiTy(mode="sparse+kd")]))
    asked = []
    fast.aux_head.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].shape[1]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fast(images)
    assert asked == [16]
    assert counter.get_total_flops() / 2 / len(images) == pytest.approx(fv.count(fast).macs)


def test_a_model_without_classes_gets_no_distillation_token():
    base = timm.create_model("deit_tiny_patch16_224", **tiny.VIT | dict(num_classes=0))
    with pytest.raises(fv.FoveateError, match="(?s)given:.*kd.*allowed:.*classifier.*do:"):
        fv.adapt(base, fv.Plan([fv.ViTALiTy(mode="vitality+kd")]))
    assert fv.adapt(base, fv.Plan([fv.ViTALiTy()])).eval()(tiny.images()).shape == (3, 24)


def test_a_base_with_a_distillation_token_keeps_its_own():
    fast = adapted("distilled", mode="vitality+kd")
    assert list(fast.method_parameters()) == []
    outputs = fast.training_outputs(tiny.images("distilled"))
    assert len(outputs.heads) == 2
    torch.testing.assert_close(outputs.logits, fast(tiny.images("distilled")), rtol=0, atol=5e-6)


# counts


def scores(model, plan) -> dict[str, float]:
    """Operations between the projections and the output linear."""
    ledger = fv.count(model, plan)
    inner = [o for o in ledger.operations if ".attn." in o.origin and not o.origin.endswith((".qkv", ".proj"))]
    return {name: count / 1e6 for name, count in replace(ledger, operations=tuple(inner)).arithmetic().items()}


def test_table_1_deit_tiny():
    card = card_of("deit_tiny_patch16_224")
    alone = replace(card, prefix_tokens=0)  # the paper leaves the class token out of the Taylor column only
    taylor = scores(alone, "vitality()")
    assert [round(taylor[name], 1) for name in ("mul", "add", "div", "exp")] == [58.3, 61.0, 0.5, 0.0]
    assert taylor["mul"] == pytest.approx(36 * 196 * (2 * 64**2 + 64) / 1e6)
    softmax = scores(card, fv.Plan([]))
    assert [round(softmax[name], 1) for name in ("mul", "add", "exp", "div")] == [178.8, 180.2, 1.4, 1.4]
    assert scores(card, "vitality()")["mul"] == pytest.approx(58.55, abs=0.01)


def test_table_4_all_four_linear_layers():
    def macs(plan, *, projection):
        ledger = fv.count("deit_tiny_patch16_224", plan)
        kept = [o for o in ledger.operations if ".attn." in o.origin and (projection or not o.origin.endswith(".proj"))]
        return round(sum(o.macs for o in kept) / 1e9, 3)

    assert (macs("dense", projection=True), macs("vitality()", projection=True)) == (0.527, 0.407)
    assert (macs("dense", projection=False), macs("vitality()", projection=False)) == (0.44, 0.32)


@pytest.mark.parametrize("plan", ["vitality()", "vitality(mode=lowrank+sparse)", "vitality(mode=sparse)", "vitality(mode=vitality+kd)",
                                  "vitality() + spvit(after=[1,3], keep=[0.7,0.4])"])
def test_counts_are_what_runs_but_for_steps_that_algorithm_1_could_skip(plan):
    fast, images = tiny.adapted(fv.Plan.parse(plan)), tiny.images()
    with torch.no_grad():
        _, trace = fast.traced(images)
        with FlopCounterMode(display=False) as counter:
            fast(images)
    ledger = fv.count(fast, trace=trace)
    written = sum(o.macs for o in ledger.operations if o.origin.endswith("attn.denominator"))
    assert (written > 0) == ("mode=sparse" not in plan)
    assert counter.get_total_flops() / 2 / len(images) == pytest.approx(ledger.macs - written)
    assert ledger.params == sum(p.numel() for p in fast.parameters())


# settings


def test_defaults_follow_the_paper():
    assert fv.ViTALiTy().threshold == 0.5 and fv.ViTALiTy(mode="sparse").threshold == 0.02
    assert fv.ViTALiTy(mode="sparse", threshold=0.3).threshold == 0.3
    assert fv.ViTALiTy().but(mode="sparse").threshold == 0.02 and fv.ViTALiTy(threshold=0.3).but(mode="sparse").threshold == 0.3
    assert str(fv.Plan([fv.ViTALiTy(threshold=0.5), fv.SPViT(after=3, keep=0.5)])) == "vitality() + spvit(after=[3], keep=[0.5])"
    assert fv.Plan.parse("vitality(mode=lowrank+sparse+kd)") == fv.Plan([fv.ViTALiTy(mode="lowrank+sparse+kd")])


@pytest.mark.parametrize("settings, words", [
    (dict(threshold=0), "threshold=0"), (dict(threshold=1.5), "1.5"), (dict(threshold=-0.1), "-0.1"), (dict(threshold="high"), "high"),
    (dict(threshold=float("nan")), "nan"), (dict(threshold=True), "True"), (dict(mode="softmax"), "softmax"), (dict(mode="kd"), "kd"),
    (dict(blocks="some"), "some"), (dict(blocks=(3, 2)), "3"), (dict(blocks=(0,)), "0"), (dict(blocks=()), "blocks"), (dict(range="row"), "row"),
])
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(fv.FoveateError, match="(?s)given:.*" + words + ".*allowed:.*do:"):
        fv.ViTALiTy(**settings)


@pytest.mark.parametrize("key, settings, words", [
    ("deit", dict(blocks=(5,)), "blocks 1...4"), ("swin", dict(), "shifted windows"), ("siglip", dict(mode="vitality+kd"), "class token"),
    ("average", dict(mode="vitality+kd"), "class token"), ("pit", dict(mode="vitality+kd"), "class token"), ("differential", dict(), "softmax|blocks"),
])
def test_backbones_that_do_not_fit_are_refused(key, settings, words):
    with pytest.raises(fv.FoveateError, match="(?s)given:.*(" + words + ").*do:"):
        fv.adapt(tiny.model(key), fv.Plan([fv.ViTALiTy(**settings)]))


def test_a_tokens_softmax_is_untouched_by_centring_so_weak_attention_may_be_negative():
    """1 + x is negative for a query far from a centred key: legitimate, and rows still sum to 1."""
    q, k, _, scale = attention_inputs()
    weights = torch.tensor(naive.taylor_rows(q[0, 0] * 5, k[0, 0], scale, ALIVE))
    assert weights.min() < 0
    torch.testing.assert_close(weights.sum(-1), torch.full_like(weights[:, 0], weights[0].sum()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_activations_do_not_overflow_in_half_precision(dtype):
    fast, images = adapted(), tiny.images()
    with torch.no_grad():
        for block in fast.blocks:
            block.attn.qkv.weight.mul_(12)
        wide, half = fast(images), fast.to(dtype)(images.to(dtype))
    assert torch.isfinite(half).all()
    assert (half.float() - wide).abs().max() < 0.2 * wide.abs().max()


class Shapes(TorchDispatchMode):
    """Remembers the shape of everything that is computed."""

    def __init__(self):
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        self.seen |= {tuple(t.shape) for t in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(t, torch.Tensor)}
        return result


@pytest.mark.parametrize("plan, quadratic", [
    ("vitality()", False), ("vitality(mode=vitality+kd)", False), ("vitality() + spvit(after=[1,3], keep=[0.7,0.4])", False),
    ("vitality() + spvit(after=[1,3], keep=[0.7,0.4], select=argmax)", False), ("dense", True), ("vitality(mode=sparse)", True),
])
def test_inference_never_holds_a_map_of_all_pairs(plan, quadratic):
    fast, images = tiny.adapted(fv.Plan.parse(plan)), tiny.images()
    for module in fast.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with torch.no_grad():
        lengths = {n for block in fast.traced(images)[1].block_tokens for n in block} - {24}  # 24 is the width
        with Shapes() as shapes:
            fast(images)
    assert {17, 18} & lengths
    assert any(shape[-2:] == (n, n) for shape in shapes.seen for n in lengths) == quadratic
