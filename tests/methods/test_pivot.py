"""PIVOT: what runs without the skipped attentions, which weights are left, what a saved run knows, and the entropy term."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
import tiny
from foveate.card import ATTENTION_BRANCH
from foveate.methods.pivot.losses import entropy_loss
from foveate.nn.tokens import dense
from foveate.train.objective import Objective

SKIP = fv.Plan([fv.PIVOT(skip=(2, 4))])
FAMILIES = tiny.MODELS | tiny.ATTENTION_ONLY


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


# what runs


def test_a_skipped_block_is_its_mlp_alone():
    base, images = tiny.model("deit3"), tiny.images("deit3")
    x = base.norm_pre(base.patch_drop(base._pos_embed(base.patch_embed(images))))
    for number, block in enumerate(base.blocks, 1):
        if number not in (2, 4):
            x = x + block.ls1(block.attn(block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    logits, trace = tiny.adapted(SKIP, "deit3").traced(images)
    torch.testing.assert_close(logits, base.forward_head(base.norm(x)), rtol=0, atol=1e-5)
    assert trace.skipped == (2, 4) and trace.block_tokens == [[17] * 3] * 4


@pytest.mark.parametrize("key", FAMILIES)
def test_in_every_family_the_token_stream_gets_the_mlps_output_only(key):
    fast, images = tiny.adapted(SKIP, key), tiny.images(key)
    block = fast.anatomy.blocks[1]
    seen = {}
    end = block.drop_path2.register_forward_hook(lambda _, __, output: seen.update(mlp=output))
    with torch.no_grad():
        tokens = fast.anatomy.block(1, fast.anatomy.stem(images))
        after = fast.anatomy.run(2, tokens, fast.pivot.attention(2, None))
    end.remove()
    moved = (after.x - tokens.x).reshape(seen["mlp"].shape) * getattr(block, "skip_lam", 1.0)
    torch.testing.assert_close(moved, seen["mlp"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("key", FAMILIES)
def test_the_count_is_what_ran_and_what_is_left(key):
    fast = tiny.adapted(SKIP, key).requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fast.traced(tiny.images(key, 1))
    ledger = fv.count(fast)
    assert ledger.macs == counter.get_total_flops() / 2
    assert ledger.params == sum(p.numel() for p in fast.parameters()) < fv.count(tiny.model(key)).params
    groups = {o.group for o in ledger.operations if o.block in (2, 4)}
    assert not groups & {"qkv", "qk", "softmax", "av", "proj"} and "mlp" in groups
    assert not any(o.origin in ("blocks.2.norm1", "blocks.4.norm1") for o in ledger.operations)


def test_what_the_papers_efforts_cost_without_torch():
    dense = fv.count("deit_small_patch16_224")
    low = fv.count("deit_small_patch16_224", "pivot(skip=[3,4,9,10])")
    attention = sum(dense.by_operation()[g] for g in ("qkv", "qk", "av", "proj")) / 12
    assert low.macs == pytest.approx(dense.macs - 4 * attention, rel=1e-12)
    assert dense.params - low.params == 4 * (2 * 384 + 384 * 3 * 384 + 3 * 384 + 384 * 384 + 384)


# the weights


@pytest.mark.parametrize("key", FAMILIES)
def test_what_is_left_is_what_learns(key):
    """No parameter of a skipped branch is carried, and none without a use: every one left gets a gradient."""
    fast, base = tiny.adapted(SKIP, key).train(), tiny.model(key)
    with torch.no_grad():
        for name, parameter in fast.named_parameters():
            if name.endswith(("q_bias", "v_bias")):
                parameter.normal_()
    out = fast.training_outputs(tiny.images(key))
    sum(logits.square().sum() for logits in out.heads).backward()
    unused = {n for n, p in fast.named_parameters() if p.grad is None}
    dense = base.train()
    for logits in (outputs if isinstance(outputs := dense(tiny.images(key)), tuple) else (outputs,)):
        logits.square().sum().backward(retain_graph=True)
    assert unused <= {n for n, p in dense.named_parameters() if p.grad is None}
    gone = set(dict(base.named_parameters())) - set(dict(fast.named_parameters()))
    assert gone and all(set(name.split(".")) & set(ATTENTION_BRANCH) for name in gone)
    assert not gone & set(fast.state_dict())


def test_the_stash_is_seen_by_nothing_but_copies():
    fast = tiny.adapted(SKIP)
    parts = [p for parts in fast.pivot.aside.values() for part in parts.values() for p in part.parameters()]
    assert parts and not {id(p) for p in parts} & {id(p) for p in fast.parameters()}
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        for part in twin.pivot.aside[2].values():
            for parameter in part.parameters():
                parameter.zero_()
    assert fv.restore(twin).blocks[1].attn.qkv.weight.abs().max() == 0
    assert torch.equal(fv.restore(fast).blocks[1].attn.qkv.weight, tiny.model().blocks[1].attn.qkv.weight)


@pytest.mark.parametrize("key", ["deit", "eva02", "levit"])
def test_restore_follows_type_and_mode(key):
    fast = tiny.adapted(SKIP, key).to(torch.bfloat16).train()
    back = fv.restore(fast)
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16} and all(m.training for m in back.modules())
    expected = tiny.model(key).to(torch.bfloat16).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in back.state_dict().items())
    assert all(p.requires_grad for p in back.parameters())


def test_training_leaves_what_is_skipped_as_it_was():
    fast = tiny.adapted(SKIP).train()
    optimizer = torch.optim.AdamW(fast.parameters(), lr=0.1)
    F.cross_entropy(fast(tiny.images()), torch.arange(3)).backward()
    optimizer.step()
    back, base = fv.restore(fast), tiny.model()
    assert torch.equal(back.blocks[1].attn.qkv.weight, base.blocks[1].attn.qkv.weight)
    assert not torch.equal(back.blocks[0].attn.qkv.weight, base.blocks[0].attn.qkv.weight)


# saved runs


@pytest.fixture
def loaded(tmp_path):
    fast = tiny.adapted(SKIP)
    return fast, fv.load(fv.save(fast, tmp_path / "run"))


def test_a_saved_run_gives_the_same_answers_with_fewer_weights(loaded, tmp_path):
    fast, again = loaded
    dense = fv.save(tiny.model(), tmp_path / "dense") / "model.safetensors"
    saved = 4 * sum(b.attention_params for b in (fast.card.block(2), fast.card.block(4)))
    assert dense.stat().st_size - (tmp_path / "run" / "model.safetensors").stat().st_size >= saved
    with torch.no_grad():
        assert torch.equal(again(tiny.images()), fast(tiny.images()))
    assert fv.count(again) == fv.count(fast)


def test_weights_that_were_not_saved_are_not_made_up(loaded, tmp_path):
    fast, again = loaded
    assert again.lost == (2, 4) and again.missing == () and fast.lost == ()
    with refused("blocks 2, 4", "not saved", "dense run"):
        fv.restore(again)
    dense = fv.replan(again, fv.Plan())
    assert dense.missing == (2, 4) and dense(tiny.images()).shape == (3, 7)
    one = fv.replan(again, fv.Plan([fv.PIVOT(skip=(1, 2))]))
    assert one.missing == (4,)
    for model in (dense, one, fv.replan(one, fv.Plan())):
        with refused("block", "4"):
            fv.restore(model)
        with refused("block", "4", "dense run"):
            fv.save(model, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_loaded_run_can_be_saved_copied_and_replanned(loaded, tmp_path):
    _, again = loaded
    third = fv.load(fv.save(copy.deepcopy(again), tmp_path / "third"))
    more = fv.replan(third, fv.Plan([fv.PIVOT(skip=(2, 4)), fv.Random(after=(1,), keep=(0.5,))]))
    assert more.missing == () and third.lost == (2, 4)
    with torch.no_grad():
        assert torch.equal(third(tiny.images()), again(tiny.images()))
    fv.save(more, tmp_path / "more")


def test_weights_for_skipped_attentions_are_refused_and_not_passed_over():
    fast = tiny.adapted(fv.Plan([fv.PIVOT(skip=(2, 3))]))
    with pytest.raises(fv.FoveateError, match=r"(?s)given:.*blocks\.1\.attn\.proj\.bias and .* more.*allowed:.*strict=False"):
        fast.load_state_dict(tiny.model().state_dict())
    fast.load_state_dict(tiny.model().state_dict(), strict=False)
    fast.load_state_dict(fast.state_dict())


def test_before_it_is_saved_a_model_has_all_its_weights():
    fast, images = tiny.adapted(SKIP), tiny.images()
    with torch.no_grad():
        assert torch.equal(fv.replan(fast, fv.Plan())(images), tiny.model()(images))
        back = fv.replan(fv.replan(fast, fv.Plan([fv.PIVOT(skip=(3,))])), SKIP)
        assert torch.equal(back(images), fast(images))


# settings


@pytest.mark.parametrize("field, value", [
    ("skip", (3, 3)), ("skip", (4, 3)), ("skip", (0, 3)), ("skip", (-1,)), ("skip", (3.0,)), ("skip", (True,)), ("skip", "34"), ("skip", None),
    ("skip", {3: 4}), ("entropy_weight", -1), ("entropy_weight", "1"), ("entropy_weight", float("nan")), ("entropy_weight", True)])
def test_wrong_values_are_refused_by_name(field, value):
    with refused(f"pivot\\({field}="):
        fv.PIVOT(**{"skip": (3, 4)} | {field: value})


@pytest.mark.parametrize("skip, word", [((1, 2, 3, 4), "effort 0"), ((2, 5), "blocks 1...4"), ((40,), "blocks 1...4")])
def test_skips_must_leave_an_attention_and_lie_inside(skip, word):
    with refused("pivot\\(skip="):
        fv.adapt(tiny.model(), fv.Plan([fv.PIVOT(skip=skip)]))
    with pytest.raises(fv.FoveateError, match=word.replace(".", r"\.")):
        fv.count(tiny.model(), fv.Plan([fv.PIVOT(skip=skip)]))


def test_blocks_without_a_residual_around_their_attention_are_refused():
    for call in (fv.adapt, fv.count):
        with refused("block 3 of levit_128s"):
            call(tiny.model("levit"), fv.Plan([fv.PIVOT(skip=(2, 3))]))


def test_efforts():
    card = fv.adapt(tiny.model(), fv.Plan()).card
    assert fv.PIVOT(skip=(2, 4)).effort(card) == 2 and fv.PIVOT(skip=()).effort(card) == 4 == card.depth
    highest = fv.Plan([fv.PIVOT(skip=[])])
    assert fv.Plan.parse(str(highest)) == highest and fv.Plan.parse("pivot(skip=4)").methods[0].skip == (4,)
    with torch.no_grad():
        assert torch.equal(tiny.adapted(highest)(tiny.images()), tiny.model()(tiny.images()))


def test_one_attention_belongs_to_one_method():
    with refused("pivot", "vitality", "block 2"):
        fv.adapt(tiny.model(), fv.Plan([fv.PIVOT(skip=(2,)), fv.ViTALiTy(blocks=(1, 2))]))
    fast = tiny.adapted(fv.Plan([fv.PIVOT(skip=(2,)), fv.ViTALiTy()]))
    _, trace = fast.traced(tiny.images())
    assert trace.skipped == (2,)


@pytest.mark.parametrize("methods", [lambda p, s: [p, s], lambda p, s: [s, p]])
def test_narrowed_linears_and_skipped_blocks_in_either_order(methods):
    plan = fv.Plan(methods(fv.PIVOT(skip=(1, 3)), fv.Structure(keep=0.5)))
    fast, images = tiny.adapted(plan), tiny.images()
    with torch.no_grad():
        _, trace = fast.traced(images)
        assert torch.equal(fv.restore(fast)(images), tiny.model()(images))
    assert trace.skipped == (1, 3)


# the entropy term


def naive_entropy_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    total, right = 0.0, 0
    for row, label in zip(logits.double().tolist(), labels.tolist()):
        exp = [math.exp(v - max(row)) for v in row]
        p = [e / sum(exp) for e in exp]
        if row.index(max(row)) == label:
            right += 1
            total -= sum(q * math.log(q) for q in p)
    return total / right if right else 0.0


def test_the_entropy_term_equals_its_sum_and_so_does_its_gradient():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = logits.argmax(-1)
    labels[[1, 4]] = (labels[[1, 4]] + 1) % 5
    float32 = logits.float().requires_grad_()
    loss = entropy_loss(float32, labels)
    assert loss.item() == pytest.approx(naive_entropy_loss(logits, labels), rel=1e-5)
    loss.backward()
    for i, j in ((0, 0), (1, 2), (3, 4)):
        step = torch.zeros_like(logits)
        step[i, j] = 1e-5
        slope = (naive_entropy_loss(logits + step, labels) - naive_entropy_loss(logits - step, labels)) / 2e-5
        assert float32.grad[i, j].item() == pytest.approx(slope, abs=1e-5)
    assert (float32.grad[[1, 4]] == 0).all() and float32.grad[0].abs().max() > 0


def test_the_entropy_term_is_zero_with_a_graph_where_no_image_is_right():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]], requires_grad=True)
    loss = entropy_loss(logits, torch.tensor([1, 0]))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    assert entropy_loss(torch.zeros(3, 8), torch.zeros(3, dtype=torch.long)).item() == pytest.approx(math.log(8), rel=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_the_objective_adds_the_term_for_labels_and_for_mixed_labels(weight):
    fast = tiny.adapted(fv.Plan([fv.PIVOT(skip=(2, 4), entropy_weight=weight)])).train()
    images = tiny.images(count=6)
    with torch.no_grad():
        logits = fast(images)
        labels = logits.argmax(-1)
        labels[0] = (labels[0] + 1) % 7
        plain = F.cross_entropy(logits, labels)
        term = weight * naive_entropy_loss(logits, labels)
        loss = Objective()(fast, images, labels)
        mixed = Objective()(fast, images, 0.3 / 7 + 0.7 * F.one_hot(labels, 7).float())
    assert loss.total.item() == pytest.approx(plain.item() + term, rel=1e-5)
    for parts in (loss.parts, mixed.parts):
        assert ("pivot_entropy" in parts) == (weight > 0)
        assert parts.get("pivot_entropy", torch.tensor(0.0)).item() == pytest.approx(term, rel=1e-5)


def test_the_meta_device_and_full_depth():
    with torch.device("meta"):
        base = timm.create_model("deit_small_patch16_224").eval()
        images = torch.empty(2, 3, 224, 224)
    fast = fv.adapt(base, fv.Plan.parse("pivot(skip=[3,4,9,10])"))
    assert fast(images).shape == (2, 1000) and isinstance(fv.restore(fast).blocks[2].attn, nn.Module)
    assert fast.anatomy.run(3, dense(torch.empty(2, 197, 384, device="meta"), 1, (14, 14)), fast.pivot.attention(3, None)).x.shape == (2, 197, 384)


def test_skipping_plans_export_with_a_dynamic_batch():
    fast, images = tiny.adapted(SKIP), tiny.images(count=5)
    exported = torch.export.export(fast, (images[:3],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    carried = sum(p.numel() for p in exported.parameters())
    with torch.no_grad():
        torch.testing.assert_close(exported(images), fast(images), rtol=0, atol=1e-5)
    assert carried == fv.count(fast).params, "the exported graph carries the skipped weights"
