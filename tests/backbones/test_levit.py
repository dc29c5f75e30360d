"""LeViT through its anatomy: timm's own results, what its attention is given, and what it refuses."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import foveate as fv
import tiny
from foveate.backbones.families import anatomy_of
from foveate.backbones.levit import attend
from foveate.card import stored_card
from foveate.nn.attention import SKIP
from foveate.train.preprocessing import Preprocessing
from foveate.workload import Effect, workload

KEYS = ("levit", "levit-plain")


def through(anatomy, images, mix=None, skipped=()):
    """Logits of a pass with `mix` as the attention of every block but the skipped ones."""
    tokens = anatomy.stem(images)
    for block in range(1, anatomy.card.depth + 1):
        tokens = anatomy.block(block, tokens, SKIP if block in skipped else mix)
    return anatomy.head(tokens)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.02)], ids=str)
@pytest.mark.parametrize("key", KEYS)
@torch.no_grad()
def test_own_form_is_timm(key, dtype, bound, training):
    model, images = tiny.model(key, dtype).train(training), tiny.images(key, dtype=dtype)
    anatomy, expected = anatomy_of(copy.deepcopy(model)), model(images)
    logits = through(anatomy, images, attend)
    assert logits.dtype == dtype and (logits - expected).abs().max() <= bound * expected.abs().max()
    ours, theirs = anatomy.model.state_dict(), model.state_dict()
    assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=2e-2) for name in theirs if "running" in name)


def test_blocks_are_numbered_through_the_stages_and_subsample_first():
    with torch.device("meta"):
        model = timm.create_model("levit_128s").eval()
    anatomy, shapes = anatomy_of(model), []

    def mix(q, k, v, tokens, scale, fused, dropout, weights=None, bias=None):
        shapes.append((*q.shape[1:], k.shape[1], *v.shape[2:], tuple(bias.shape), tokens.grid))
        return attend(q, k, v, tokens, scale, bias=bias)

    assert through(anatomy, torch.empty(2, 3, 224, 224, device="meta"), mix).shape == (2, 1000)
    plain = lambda side, heads: (side**2, heads, 16, side**2, heads, 32, (heads, side**2, side**2), (side, side))
    shrink = lambda side, to, heads: (to**2, heads, 16, side**2, heads, 64, (heads, to**2, side**2), (side, side))
    assert shapes == [plain(14, 4)] * 2 + [shrink(14, 7, 8)] + [plain(7, 6)] * 3 + [shrink(7, 4, 16)] + [plain(4, 8)] * 4
    names = [type(block).__name__ for block in anatomy.blocks]
    assert [number for number, name in enumerate(names, 1) if name == "LevitDownsample"] == [3, 7]
    maps = [work.maps for work in workload(stored_card("levit_128s")).blocks]
    assert maps == [(q, k, heads) for q, heads, _, k, *_ in shapes]


@pytest.mark.parametrize("number", [1, 3])
@torch.no_grad()
def test_attention_with_biases_equals_a_loop_over_places(number):
    """Score of a query at (y, x) for a key at (v, u): q k / sqrt(d) + b[|y - v|, |x - u|]; a subsampling block asks every second place."""
    model, images = tiny.model("levit", torch.float64), tiny.images("levit", 1, dtype=torch.float64)
    anatomy, seen = anatomy_of(model), {}

    def mix(q, k, v, tokens, scale, fused, dropout, weights=None, bias=None):
        seen.update(q=q, k=k, v=v, z=attend(q, k, v, tokens, scale, fused, dropout, weights, bias), grid=tokens.grid)
        return seen["z"]

    tokens = anatomy.stem(images)
    for block in range(1, number):
        tokens = anatomy.block(block, tokens)
    anatomy.block(number, tokens, mix)
    block = anatomy.blocks[number - 1]
    biases = (block.attn_downsample if number == 3 else block.attn).attention_biases
    (rows, columns), step = seen["grid"], 2 if number == 3 else 1
    places = [(y, x) for y in range(0, rows, step) for x in range(0, columns, step)]
    assert seen["q"].shape[1] == len(places) and biases.abs().min() > 0
    for i, (y, x) in enumerate(places):
        for head in range(seen["q"].shape[2]):
            scores = torch.stack([seen["q"][0, i, head] @ seen["k"][0, v * columns + u, head] / 4**0.5 + biases[head, abs(y - v) * columns + abs(x - u)]
                                  for v in range(rows) for u in range(columns)])
            expected = scores.softmax(0) @ seen["v"][0, :, head]
            assert (seen["z"][0, i, head] - expected).abs().max() < 1e-12


@torch.no_grad()
def test_skipped_attention_leaves_the_mlp_only():
    model, images = tiny.model("levit"), tiny.images("levit")
    anatomy = anatomy_of(model)
    tokens = anatomy.stem(images)
    got = anatomy.block(2, tokens, SKIP)
    assert torch.equal(got.x, tokens.x + model.stages[0].blocks[1].mlp(tokens.x)) and got.grid == tokens.grid
    model.stages[0].blocks[0].attn.proj.ln.bn.weight.zero_(), model.stages[0].blocks[0].attn.proj.ln.bn.bias.zero_()
    torch.testing.assert_close(through(anatomy, images, skipped=(1,)), model(images))


def test_the_attention_of_a_subsampling_block_cannot_be_skipped():
    anatomy, images = anatomy_of(tiny.model("levit")), tiny.images("levit")
    with pytest.raises(fv.FoveateError, match="block 3 of levit_128s.*\n.*blocks 1, 2, 4, 6"):
        through(anatomy, images, skipped=(3,))
    with pytest.raises(fv.FoveateError, match="block 7 of levit_128s.*\n.*blocks 1, 2, 4, 5, 6, 8"):
        stored_card("levit_128s").check_skippable((1, 7))
    stored_card("levit_128s").check_skippable((1, 2, 11)), stored_card("deit_tiny_patch16_224").check_skippable(range(1, 13))


def test_a_skipped_attention_costs_what_the_run_leaves_out():
    card = stored_card("levit_128s")
    skip = Effect(change=lambda work: setattr(work.blocks[3], "scores", None))
    dense, without = (fv.Ledger(workload(card, effects).operations()) for effects in ((), (skip,)))
    n, d, heads = 49, 256, 6
    assert dense.macs - without.macs == n * d * heads * 64 + n * n * heads * (16 + 32) + n * heads * 32 * d
    gone = {o.origin.removeprefix("blocks.4.") for o in dense.operations} - {o.origin.removeprefix("blocks.4.") for o in without.operations}
    assert gone == {"attn.qkv", "norm.attn.qkv", "attn.qk", "attn.softmax", "attn.av", "attn.proj.act", "attn.proj", "norm.attn.proj"}


@torch.no_grad()
def test_both_classifiers_are_heard():
    for key, count in (("levit", 2), ("levit-plain", 1)):
        anatomy, images = anatomy_of(tiny.model(key)), tiny.images(key)
        tokens = anatomy.stem(images)
        for block in range(1, anatomy.card.depth + 1):
            tokens = anatomy.block(block, tokens)
        heads = anatomy.heads(tokens)
        assert len(heads) == count and len({h.sum().item() for h in heads}) == count
        torch.testing.assert_close(sum(heads) / count, anatomy.head(tokens))
        features, live = anatomy.features(tokens)
        assert features.shape == (3, 4, 32) or key == "levit-plain" and features.shape[2] == 32
        assert (live == 1).all() and torch.equal(anatomy.final_norm(tokens.x), tokens.x)


@pytest.mark.parametrize("plan", [fv.Plan([]), fv.Plan([fv.ViTALiTy(mode="baseline")]), fv.Plan([fv.ViTALiTy(mode="sparse", threshold=1e-6)])], ids=str)
def test_weights_loaded_into_an_evaluated_model_count(plan):
    """timm caches score biases in evaluation; a cache that outlives its weights would be silently wrong."""
    images, other = tiny.images("levit"), copy.deepcopy(tiny.model("levit"))
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "attention_biases" in name:
                parameter.mul_(-2)
        fast = fv.adapt(tiny.model("levit"), plan)
        before = fast(images)
        fast.load_state_dict(other.state_dict(), strict=False)
        after, expected = fast(images), other(images)
        assert (before - expected).abs().max() > 1e-3
        torch.testing.assert_close(after, expected)
        torch.testing.assert_close(fv.restore(fast)(images), expected)


def test_gradients_and_copies_in_evaluation():
    base, images = tiny.model("levit"), tiny.images("levit")
    base(images)  # leaves score biases behind that hang on a graph, which deepcopy refuses
    for plan in (fv.Plan([]), fv.Plan([fv.ViTALiTy(mode="sparse", threshold=1e-6)])):
        fast = fv.adapt(base, plan)
        with torch.no_grad():
            expected = fast(images)
        for _ in range(2):
            fast.zero_grad()
            fast(images).square().sum().backward()
            grads = [p.grad.abs().max() for n, p in fast.named_parameters() if "attention_biases" in n]
            assert len(grads) == 6 and min(grads) > 0
        with torch.no_grad():
            for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), fv.adapt(fv.restore(fast), plan)):
                assert torch.equal(twin(images), expected)


def test_timms_dice_are_repeated_in_training():
    base = timm.create_model("levit_128s", **tiny.LEVIT, drop_rate=0.3, drop_path_rate=0.4).train()
    idle, images = fv.adapt(base, fv.Plan([])), tiny.images("levit")
    torch.manual_seed(5)
    expected = base(images)
    torch.manual_seed(5)
    assert torch.equal(idle(images), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_a_trace_serves_every_batch_size():
    fast, images = tiny.adapted(fv.Plan([fv.ViTALiTy(blocks=(1, 3))]), "levit"), tiny.images("levit", 5)
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
    with torch.device("meta"):
        conv = timm.create_model("levit_conv_128s")
    for ask in (lambda: fv.adapt(conv, fv.Plan([])), lambda: fv.count("levit_conv_128s")):
        with refused("levit_conv_128s", "use_conv=True"):
            ask()
    for parent in ("", "stages.1", "stages.1.downsample", "stages.2.blocks.0"):
        model = tiny.model("levit")
        model.get_submodule(parent).add_module("adapter", Extra())
        with refused("levit_128s", parent or "model", "adapter"):
            fv.adapt(model, fv.Plan([]))
    for replaced in ("stem", "stages.1.downsample", "stages.0.blocks.1", "stages.0.blocks.1.attn"):
        model = tiny.model("levit")
        model.set_submodule(replaced, Extra())
        with refused("levit_128s", replaced.removesuffix(".attn"), "Extra"):
            fv.adapt(model, fv.Plan([]))
    model = tiny.model("levit")
    model.__class__ = type("Mine", (type(model),), {})
    with refused("Mine", "subclass of LevitDistilled"):
        fv.adapt(model, fv.Plan([]))
    with refused("structure", at="allowed:.*plain linears.*levit_128s"):
        fv.adapt(tiny.model("levit"), fv.Plan([fv.Structure(keep=0.5)]))


def test_images_of_another_size_are_refused():
    idle = fv.adapt(tiny.model("levit"), fv.Plan([]))
    with refused("96x96 pixels for levit_128s", at="allowed: 80x80 pixels\n.*img_size"):
        idle(torch.zeros(1, 3, 96, 96))
    assert Preprocessing.of(idle.anatomy.model).image_size == Preprocessing.of(idle).image_size == 80
