"""EViT against loops: kept by the class token's attention, the rest one token."""

import pytest
import torch

import foveate as fv
import tiny
from foveate.methods.base import kept_count

STAGES = dict(after=(1, 3), keep=(0.7, 0.4))


def seen(fast, images):
    """What enters the MLP of block 1, and the block's own token features behind attention, with all tokens."""
    found = {}
    block = fast.blocks[0]
    handles = [block.norm2.register_forward_pre_hook(lambda _, given: found.update(mlp=given[0])),
               block.attn.qkv.register_forward_hook(lambda _, __, out: found.update(qkv=out))]
    with torch.no_grad():
        fast(images)
    for handle in handles:
        handle.remove()
    return found


def naive_row(qkv, heads):
    """Mean over heads of the class token's softmax over all tokens: qkv [n, 3 H d]."""
    q, k, _ = qkv.double().unflatten(-1, (3, heads, -1)).unbind(1)
    return torch.stack([((k[:, h] @ q[0, h]) * q.shape[-1] ** -0.5).softmax(0) for h in range(heads)]).mean(0)


@pytest.mark.parametrize("key", ["deit", "distilled", "one-head"])
def test_the_most_attended_patches_stay_and_the_rest_is_their_attended_mean(key):
    base, images = tiny.model(key, torch.float64), tiny.images(key, dtype=torch.float64)
    prefix = fv.adapt(base, fv.Plan([])).card.prefix_tokens
    whole = seen(fv.adapt(base, fv.Plan([fv.EViT((1,), (1.0,))])), images)
    few = seen(fv.adapt(base, fv.Plan([fv.EViT((1,), (0.4,))])), images)
    count = kept_count(0.4, 16)
    assert whole["mlp"].shape[1] == prefix + 16 and few["mlp"].shape[1] == prefix + count + 1
    for i in range(len(images)):
        row = naive_row(whole["qkv"][i], base.blocks[0].attn.num_heads)[prefix:]
        order = sorted(range(16), key=lambda j: -row[j])
        stay, gone = sorted(order[:count]), sorted(order[count:])
        patches = whole["mlp"][i, prefix:]
        torch.testing.assert_close(few["mlp"][i, :prefix], whole["mlp"][i, :prefix])
        torch.testing.assert_close(few["mlp"][i, prefix:-1], patches[stay])
        fused = sum(row[j] * patches[j] for j in gone) / sum(row[j] for j in gone)
        torch.testing.assert_close(few["mlp"][i, -1], fused)


@pytest.mark.parametrize("fuse", [True, False])
def test_counts_are_exact_for_every_image(fuse):
    fast = tiny.adapted(fv.Plan([fv.EViT(**STAGES, fuse=fuse)]))
    trace = fast.traced(tiny.images())[1]
    assert trace.tokens == [[1 + kept_count(k, 16) + (s + 1) * fuse] * 3 for s, k in enumerate(STAGES["keep"])]
    assert trace.block_tokens[0] == [17] * 3 and trace.block_tokens[1] == trace.tokens[0] == trace.block_tokens[2] and trace.block_tokens[3] == trace.tokens[1]
    assert not fast.plan.data_dependent


def test_a_skipped_attention_hands_on_the_last_one_before():
    fast = tiny.adapted(fv.Plan([fv.PIVOT(skip=(2, 3)), fv.EViT((1, 3), (0.7, 0.4))]))
    kept = fast.traced(tiny.images())[1].kept
    alone = tiny.adapted(fv.Plan([fv.EViT((1,), (0.4,))])).traced(tiny.images())[1].kept
    assert (kept[1] == alone[0]).all()


def test_training_decides_as_evaluation_does():
    fast, images = tiny.adapted(fv.Plan([fv.EViT(**STAGES)])), tiny.images()
    with torch.no_grad():
        trace = fast.traced(images)[1]
        live = fast.train().training_outputs(images).live
    assert ((live > 0).numpy() == trace.kept[-1]).all()


def test_the_papers_rate_is_ours_of_all_patches():
    """DeiT-S at a rate of 0.7 in blocks 4, 7, 10: 3.0 GMACs (Table 1 of EViT)."""
    assert fv.count("deit_small_patch16_224", "evit()").macs / 1e9 == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize(("key", "settings", "words"), [
    ("siglip", {}, "no class token"), ("swin", {}, "swin_tiny"), ("deit", dict(after=(4,)), "blocks 1...3"), ("pit", dict(after=(2,)), "stage ends"),
])
def test_backbones_that_do_not_fit_are_refused(key, settings, words):
    with pytest.raises(fv.FoveateError, match=f"(?s){words}"):
        fv.adapt(tiny.model(key), fv.Plan([fv.EViT(**dict(after=(1,), keep=(0.5,)) | settings)]))
