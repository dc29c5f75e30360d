"""adapt, restore and replan: what they refuse, in words a user can act on, and what the adapted model tells of itself."""

import pytest
import timm
import torch

import foveate as fv
import tiny
from foveate.adaptive import TrainingOutputs

TOPK = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))])
ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


# what is given


@pytest.mark.parametrize("given", ["deit_small_patch16_224", None, 3, torch.nn.Linear(3, 3), lambda x: x])
def test_what_is_no_timm_model_is_refused(given):
    with refused("allowed:"):
        fv.adapt(given, TOPK)


@pytest.mark.parametrize("plan", [None, "spvit(after=1, keep=0.5)", 3, {"spvit": 1}, fv.SPViT])
def test_what_is_no_plan_is_refused(plan):
    with refused("plan|Plan"):
        fv.adapt(tiny.model(), plan)


def test_settings_alone_are_a_plan():
    method = fv.SPViT(after=1, keep=0.5)
    assert fv.adapt(tiny.model(), method).plan == fv.adapt(tiny.model(), [method]).plan == fv.Plan([method])


def test_nan_in_a_buffer_is_refused():
    base = tiny.model("lvvit")
    name, buffer = next((n, b) for n, b in base.named_buffers() if b.is_floating_point())
    buffer[0] = float("nan")
    with refused(name):
        fv.adapt(base, fv.Plan())


def test_a_name_can_be_given():
    base = timm.models.VisionTransformer(**tiny.VIT)
    assert fv.adapt(base, fv.Plan(), name="mine").card.name == "mine"
    base.blocks[1].extra = torch.nn.Identity()
    with refused("mine", "extra"):
        fv.adapt(base, fv.Plan(), name="mine")


@pytest.mark.parametrize("arguments, words", [
    (dict(patch_drop_rate=0.5), "patch_drop_rate"), (dict(global_pool="max"), "global_pool='max'"), (dict(global_pool="avgmax"), "avgmax"),
    (dict(global_pool=""), "global_pool=''"), (dict(global_pool="prr"), "AttentionPoolPrr")])
def test_what_has_no_meaning_over_a_part_of_the_tokens_is_refused_for_methods_only(arguments, words):
    base = timm.create_model("vit_tiny_patch16_224", **tiny.VIT | arguments).eval()
    images = tiny.images()
    assert torch.equal(fv.adapt(base, fv.Plan())(images), base(images))
    with refused("vit_tiny_patch16_224", words):
        fv.adapt(base, TOPK)


def test_a_block_that_computes_something_else_than_its_children_is_refused(monkeypatch):
    """A timm whose forward changed under the same class, or a forward replaced on one block, would be silently wrong."""
    base = tiny.model()
    attention = base.blocks[2].attn
    attention.forward = lambda x, **kwargs: type(attention).forward(attention, x) * 2
    with refused("block 3", "something else"):
        fv.adapt(base, TOPK)
    block = timm.models.vision_transformer.Block
    monkeypatch.setattr(block, "forward", lambda self, x: x + self.ls2(self.mlp(self.norm2(x))))
    with refused("block 1", "something else"):
        fv.adapt(tiny.model(), TOPK)


def test_restoring_what_was_not_adapted_is_refused():
    with refused("VisionTransformer"):
        fv.restore(tiny.model())


# images


@pytest.mark.parametrize("plan", [fv.Plan(), TOPK], ids=str)
@pytest.mark.parametrize("images, words", [
    (torch.zeros(3, 32, 32), ("3, 32, 32", r"images\[None\]")), (torch.zeros(2, 1, 32, 32), ("2, 1, 32, 32", "batch, 3")),
    (torch.zeros(2, 32, 32, 3), ("2, 32, 32, 3",)), (torch.zeros(2, 3, 33, 32), ("33x32", "32x32")), (torch.zeros(2, 3, 64, 64), ("64x64", "dynamic_img_size")),
    (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ("uint8", "normalised")), (torch.zeros(2, 3, 32, 32, dtype=torch.long), ("int64",)),
])
def test_wrong_images_are_refused(plan, images, words):
    fast = tiny.adapted(plan)
    for call in (fast, fast.traced, fast.training_outputs):
        with refused(*words):
            call(images)


@pytest.mark.parametrize("plan", [fv.Plan(), TOPK, ARGMAX], ids=str)
def test_dynamic_sizes_run_where_the_patch_divides_them(plan):
    fast, images = tiny.adapted(plan, "dynamic"), torch.randn(2, 3, 48, 24)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        torch.testing.assert_close(fast.masked(images, trace), logits, rtol=0, atol=1e-5)
    assert trace.block_tokens[0] == [1 + 6 * 3] * 2
    with refused("33x24", "divisible by the patch of 8x8"):
        fast(torch.randn(2, 3, 33, 24))


def test_dynamic_padding_takes_any_size():
    base = timm.create_model("vit_tiny_patch16_224", **tiny.VIT, dynamic_img_size=True, dynamic_img_pad=True).eval()
    images = torch.randn(2, 3, 33, 24)
    assert torch.equal(fv.adapt(base, fv.Plan())(images), base(images))
    fast = fv.adapt(base, ARGMAX)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        torch.testing.assert_close(fast.masked(images, trace), logits, rtol=0, atol=1e-5)


def test_an_empty_batch_gives_no_logits():
    for plan in (fv.Plan(), TOPK):
        assert tiny.adapted(plan)(torch.zeros(0, 3, 32, 32)).shape == (0, 7)


# what the model tells


def test_the_adapted_model_tells_what_it_is():
    fast = tiny.adapted(TOPK)
    assert fast.num_classes == 7 and fast.card.name == "deit_tiny_patch16_224" and fast.card.depth == 4
    assert fast.pretrained_cfg["architecture"] == "deit_tiny_patch16_224" and fast.plan == TOPK
    names = [n for n, _ in fast.method_parameters()]
    assert all(n.startswith("spvit.selectors.") for n in names) and {n.split(".")[2] for n in names} == {"1", "3"}
    assert list(fv.adapt(tiny.model(), fv.Plan()).method_parameters()) == []
    assert isinstance(fast.training_outputs(tiny.images()), TrainingOutputs)


def test_training_flags_follow_the_given_model():
    base = tiny.model()
    assert not fv.adapt(base, TOPK).training and not fv.adapt(base, TOPK).spvit.training
    base.train()
    fast = fv.adapt(base, TOPK)
    assert fast.training and fast.spvit.training and all(m.training for m in fast.modules())
    assert fv.restore(fast).training and fv.restore(fast.eval()).training is False


def test_dtype_follows_the_given_model():
    assert {p.dtype for p in fv.adapt(tiny.model(dtype=torch.bfloat16), TOPK).parameters()} == {torch.bfloat16}


# replan


def test_replan_switches_settings_over_the_same_weights():
    topk, images = tiny.adapted(TOPK), tiny.images()
    argmax = fv.replan(topk, ARGMAX)
    assert argmax.plan == ARGMAX and topk.plan == TOPK
    assert all(torch.equal(v, argmax.state_dict()[k]) for k, v in topk.state_dict().items())
    with torch.no_grad():
        trace = topk.traced(images)[1]
        torch.testing.assert_close(argmax.traced(images, decisions=trace)[0], topk(images), rtol=0, atol=1e-5)
        assert torch.equal(fv.replan(argmax, TOPK)(images), topk(images))
        assert torch.equal(fv.replan(topk, fv.Plan())(images), tiny.model()(images))
    assert fv.replan(topk.train(), ARGMAX).training
