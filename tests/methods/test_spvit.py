"""SPViT on a whole tiny DeiT against one image at a time in float64, and semantics.md 1-6 line by line."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import foveate as fv
import tiny
from foveate.methods.base import kept_count
from foveate.methods.hooks import Run
from foveate.methods.stages import _mean_by_image
from foveate.nn.tokens import PREFIX
from naive import pruning, vit as naive

D = torch.float64
AFTER, KEEP = (1, 3), (0.7, 0.4)
COUNTS = [kept_count(k, 16) for k in KEEP]


def plan(**settings) -> fv.Plan:
    return fv.Plan([fv.SPViT(**dict(after=AFTER, keep=KEEP) | settings)])


def biased(shift: float, key: str = "deit", **settings) -> fv.AdaptiveModel:
    """Selectors that keep everything (shift > 0) or nothing (shift < 0), by the same order of scores."""
    fast = tiny.adapted(plan(**settings), key)
    with torch.no_grad():
        for selector in fast.spvit.selectors.values():
            selector.score.bias[:, 0] += shift
    return fast


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


# the whole model


@pytest.mark.parametrize("package", [True, False])
@pytest.mark.parametrize("select", ["topk", "argmax"])
def test_the_packed_model_is_the_naive_one(select, package):
    fast, images = tiny.adapted(plan(select=select, package=package), dtype=D), tiny.images(dtype=D)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        weights = weights_of(fast)
        for i, image in enumerate(images):
            expected, left = naive.packed(weights, image, 3, AFTER, COUNTS if select == "topk" else None, package)
            assert [np.flatnonzero(kept[i]).tolist() for kept in trace.kept] == left
            torch.testing.assert_close(logits[i], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("package", [True, False])
def test_training_and_every_gradient_are_the_naive_ones(package):
    """Gumbel decisions for the same noise; cross-entropy alone, then with the ratio loss; backbone and selectors."""
    fast, images = tiny.adapted(plan(package=package), dtype=D).train(), tiny.images(count=2, dtype=D)
    names, target = [n for n, _ in fast.named_parameters()], torch.tensor([1, 4])
    torch.manual_seed(11)
    outputs = fast.training_outputs(images)
    torch.manual_seed(11)
    noise = [-torch.empty(2, 16, 2, dtype=D).exponential_().log() for _ in AFTER]
    weights = weights_of(fast)
    each = [naive.masked(weights, image, 3, AFTER, [n[i] for n in noise], package) for i, image in enumerate(images)]
    logits, decisions = torch.stack([y for y, _ in each]), [torch.stack([d[s] for _, d in each]) for s in range(2)]
    ratio = 2.0 * pruning.ratio_loss(decisions, [1 - k for k in KEEP])
    assert 0 < decisions[1].detach().mean() < decisions[0].detach().mean() < 1, "nothing or everything was dropped: this test shows nothing"
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs.live, decisions[1], rtol=0, atol=0)
    torch.testing.assert_close(outputs.terms["spvit_ratio"], ratio, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(outputs.metrics["spvit_keep_after_1"], decisions[0].detach().mean())
    for ours, theirs in ((F.cross_entropy(outputs.logits, target), F.cross_entropy(logits, target)), (outputs.terms["spvit_ratio"], ratio)):
        mine = torch.autograd.grad(ours, list(fast.parameters()), retain_graph=True, allow_unused=True)
        other = torch.autograd.grad(theirs, list(weights.values()), retain_graph=True, allow_unused=True)
        for name, a, b in zip(names, mine, other, strict=True):
            a, b = (torch.zeros(()) if g is None else g for g in (a, b))
            torch.testing.assert_close(a, b.expand_as(a), rtol=1e-6, atol=1e-10 * max(1.0, b.abs().max().item()), msg=lambda m: f"{name}: {m}")


# semantics.md 1: the decision has a gradient


def test_decisions_are_sampled_in_training_and_fixed_in_evaluation():
    for select in ("topk", "argmax"):
        fast, images = tiny.adapted(plan(select=select)), tiny.images()
        with torch.no_grad():
            assert torch.equal(fast(images), fast(images))
            fast.train()
            assert not torch.equal(fast(images), fast(images))
            assert torch.equal(fast.traced(images)[0], fast.eval()(images))


def test_annealed_noise_fades_to_the_decisions_of_inference():
    images = tiny.images()
    _, trace = tiny.adapted(plan(select="argmax")).traced(images)
    kept = torch.from_numpy(trace.kept[1]).float()

    def lives(noise: str, progress: float) -> torch.Tensor:
        fast = tiny.adapted(plan(select="argmax", noise=noise)).train()
        fast.progress = progress
        with torch.no_grad():
            return torch.stack([fast.training_outputs(images).live for _ in range(12)])

    for progress in (0.8, 1.0):
        assert (lives("annealed", progress) == kept).all()
    away = [(lives("annealed", progress) != kept).float().mean() for progress in (0.0, 0.4, 0.7)]
    assert away[0] > away[1] > away[2] > 0
    assert (lives("constant", 1.0) != kept).float().mean() > away[1]


# semantics.md 4: who is never pruned, and the last survivor


@pytest.mark.parametrize("key", ["deit", "dinov2-registers", "siglip"])
def test_one_patch_survives_a_selector_that_keeps_nothing(key):
    fast, images = biased(-40, key, select="argmax"), tiny.images(key)
    prefix = fast.card.prefix_tokens
    with torch.no_grad():
        logits, trace = fast.traced(images)
        assert trace.tokens == [[prefix + 1 + 1] * 3] * 2, "prefix, one patch and the package of the first stage"
        assert [k.sum(1).tolist() for k in trace.kept] == [[1, 1, 1]] * 2
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(fast.masked(images, trace), logits, rtol=0, atol=1e-5)
        fast.train()
        for _ in range(3):
            assert (fast.training_outputs(images).live.sum(1) >= 1).all()


def test_the_survivor_is_the_best_scored_patch():
    nothing, images = biased(-40, select="argmax"), tiny.images()
    best = tiny.adapted(plan(keep=(0.01, 0.001), after=(1, 3)))
    with torch.no_grad():
        assert np.array_equal(nothing.traced(images)[1].kept[0], _best(nothing, images))
        assert best.traced(images)[1].tokens == [[3] * 3] * 2


def _best(fast, images) -> np.ndarray:
    seen = []
    hook = fast.spvit.selectors["1"].register_forward_hook(lambda _, __, out: seen.append(out))
    fast.traced(images)
    hook.remove()
    return F.one_hot(seen[0][..., 0].argmax(1), 16).bool().numpy()


def test_selectors_see_patches_only():
    """Neither class token nor registers nor package tokens are scored."""
    for key, form in (("dinov2-registers", "traced"), ("dinov2-registers", "training_outputs"), ("deit", "traced"), ("siglip", "traced")):
        fast, images, seen = tiny.adapted(plan(), key), tiny.images(key), []
        for selector in fast.spvit.selectors.values():
            selector.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
        getattr(fast, form)(images)
        assert seen == ([16, COUNTS[0]] if form == "traced" else [16, 16])


def test_prefix_tokens_are_always_there():
    fast, images = biased(-40, "dinov2-registers", select="argmax"), tiny.images("dinov2-registers")
    seen = []
    fast.blocks[-1].norm1.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    fast(images)
    assert seen == [torch.Size([3, 5 + 1 + 1, 24])]


# semantics.md 5: package tokens


@pytest.mark.parametrize("package", [True, False])
def test_argmax_appends_nothing_where_nothing_was_pruned(package):
    fast, images = biased(40, select="argmax", package=package), tiny.images()
    with torch.no_grad():
        logits, trace = fast.traced(images)
        assert trace.tokens == [[17] * 3] * 2 and all(k.all() for k in trace.kept)
        torch.testing.assert_close(logits, tiny.model()(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(fast.masked(images, trace), logits, rtol=0, atol=1e-5)


def test_topk_appends_a_package_at_every_stage_that_drops():
    images = tiny.images()
    tokens = lambda **settings: tiny.adapted(plan(**settings)).traced(images)[1].tokens
    assert tokens() == [[1 + COUNTS[0] + 1] * 3, [1 + COUNTS[1] + 2] * 3]
    assert tokens(package=False) == [[1 + COUNTS[0]] * 3, [1 + COUNTS[1]] * 3]
    assert tokens(keep=(1.0, 0.4)) == [[17] * 3, [1 + COUNTS[1] + 1] * 3]


@pytest.mark.parametrize("select", ["topk", "argmax"])
def test_package_weight_counts_in_pooling_only(select):
    images = tiny.images()
    results = {}
    for key in ("deit", "average", "siglip"):
        results[key] = [tiny.adapted(plan(select=select, package_weight=w), key)(images).detach() for w in (0.0, 1.0, 3.0)]
    one, two, three = results["deit"]
    assert torch.equal(one, two) and torch.equal(two, three), "a class token does not pool"
    for key in ("average", "siglip"):
        one, two, three = results[key]
        assert (one - two).abs().max() > 1e-4 and (two - three).abs().max() > 1e-4


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_average_pooling_is_a_weighted_mean_of_patches_and_packages(weight):
    fast, images, seen = tiny.adapted(plan(package_weight=weight), "no-class"), tiny.images(), []
    fast.norm.register_forward_hook(lambda _, __, out: seen.append(out))
    logits = fast(images)
    patches, packages = seen[0].split([COUNTS[1], 2], 1)
    pooled = (patches.sum(1) + weight * packages.sum(1)) / (COUNTS[1] + 2 * weight)
    torch.testing.assert_close(logits, fast.head(fast.fc_norm(pooled)), rtol=0, atol=1e-5)


def test_a_package_token_attends_and_is_attended():
    """Zeroing it behind the stage changes the class token, hence the logits."""
    fast, images = tiny.adapted(plan()), tiny.images()
    logits = fast(images)
    bare = tiny.adapted(plan(package=False))(images)
    assert (logits - bare).abs().max() > 1e-3


# semantics.md 6: the global feature


def test_the_global_feature_is_the_mean_over_kept_patches():
    """What was dropped before may be anything: the second selector's scores of kept patches do not change."""
    fast, images, seen = tiny.adapted(plan(package=False)), tiny.images(), []
    _, trace = fast.traced(images)
    selector = fast.spvit.selectors["3"]
    selector.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    fast.masked(images, trace)
    (x, scores), = seen
    kept = torch.from_numpy(trace.kept[0])
    for i in range(3):
        alone = selector(x[i : i + 1, kept[i]], lambda f: f.mean(-2, keepdim=True))
        torch.testing.assert_close(scores[i, kept[i]], alone[0], rtol=0, atol=1e-6)


def test_the_mean_over_ragged_images_is_exact_in_bfloat16():
    """Rows are summed in float32: 196 bfloat16 numbers added one by one would lose most of their digits."""
    features = (torch.rand(2, 300, 4) + 1).bfloat16()
    image = torch.tensor([0] * 200 + [1] * 100)
    mean = _mean_by_image(features, image, torch.tensor([200, 100]))
    exact = torch.stack([features[:, :200].double().mean(1), features[:, 200:].double().mean(1)], 1)
    assert mean.dtype == torch.bfloat16 and (mean.double() - exact).abs().max() <= 2**-8


# hierarchy of stages, and the two modes


def test_both_modes_read_the_same_weights():
    topk, argmax = tiny.adapted(plan()), tiny.adapted(plan(select="argmax"))
    argmax.load_state_dict(topk.state_dict())
    images = tiny.images()
    with torch.no_grad():
        logits, trace = topk.traced(images)
        torch.testing.assert_close(argmax.traced(images, decisions=trace)[0], logits, rtol=0, atol=1e-5)


def test_a_dropped_patch_never_comes_back():
    for select in ("topk", "argmax"):
        _, trace = tiny.adapted(plan(select=select)).traced(tiny.images())
        assert (trace.kept[1] <= trace.kept[0]).all() and (trace.kept[1] < trace.kept[0]).any()


def test_the_stream_keeps_prefix_patches_packages_in_order():
    fast, images = tiny.adapted(plan(select="argmax"), "dinov2-registers"), tiny.images("dinov2-registers")
    run = Run(masked=False)
    fast._pass(images, run)
    tokens = run.stages[-1].tokens
    for i in range(3):
        place = tokens.places().flatten()[tokens.image_of_row() == i].tolist()
        patches = [p for p in place if p >= 0]
        assert place[:5] == [PREFIX] * 5 and patches == sorted(patches)
        assert all(p >= 0 for p in place[5 : 5 + len(patches)]) and len(place) - 5 - len(patches) <= 2


# training outputs


def test_training_outputs_of_the_empty_plan_are_the_teachers():
    teacher, images = fv.adapt(tiny.model(), fv.Plan([])), tiny.images()
    out = teacher.training_outputs(images)
    assert torch.equal(out.logits, tiny.model()(images)) and out.tokens.shape == (3, 16, 24)
    assert (out.live == 1).all() and out.live.shape == (3, 16) and out.terms == {} and out.metrics == {}
    expected = tiny.model().forward_features(images)[:, 1:]
    torch.testing.assert_close(out.tokens, expected)


def test_training_outputs_keep_every_patch_at_its_place():
    fast, images = tiny.adapted(plan(package=True)).train(), tiny.images()
    out = fast.training_outputs(images)
    assert out.tokens.shape == (3, 16, 24) and set(out.live.detach().unique().tolist()) == {0.0, 1.0}
    assert list(out.terms) == ["spvit_ratio"] and list(out.metrics) == ["spvit_keep_after_1", "spvit_keep_after_3"]


def test_ratio_weight_scales_the_term_and_names_the_targets():
    images = tiny.images()
    terms = {}
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(5)
        fast = tiny.adapted(plan(ratio_weight=weight)).train()
        torch.manual_seed(6)
        terms[weight] = fast.training_outputs(images).terms["spvit_ratio"]
    assert terms[0.0] == 0 and terms[1.0] > 0
    torch.testing.assert_close(terms[2.0], 2 * terms[1.0])
