"""ATS against loops: which patches are drawn, in every form of the stream."""

import pytest
import torch

import foveate as fv
import tiny
from foveate.methods.ats.layers import sampled, significance
from naive.merging import drawn
from naive.merging import significance as naive_significance


@pytest.mark.parametrize("samples", [1, 2, 7, 40, 300])
def test_drawn_as_by_points_on_the_cumulative_distribution(samples):
    torch.manual_seed(samples)
    weight = torch.rand(5, 33, dtype=torch.float64) ** 4
    weight[:, 4:9] = 0
    kept = sampled(weight, samples)
    for row, mine in zip(weight, kept):
        share = (row / row.sum()).tolist()
        assert set(mine.nonzero()[:, 0].tolist()) == drawn(share, samples)
    assert (kept.sum(1) >= 1).all() and (kept.sum(1) <= min(samples, 28)).all() and (kept[:, 4:9] == 0).all()


def test_a_narrow_attention_keeps_fewer():
    flat, narrow = torch.ones(1, 20), torch.tensor([[1.0] * 19 + [500.0]])
    assert sampled(flat, 20).sum() == 20 and sampled(narrow, 20).sum() < 4


def test_significance_is_attention_times_the_length_of_the_value():
    torch.manual_seed(0)
    rows, v = torch.rand(9, 3, dtype=torch.float64), torch.randn(9, 3, 4, dtype=torch.float64)
    found = significance(rows, v)
    assert (found / found.sum()).tolist() == pytest.approx(naive_significance(rows, v))


def naive_kept(fast, images, samples):
    """What block 1 draws, from its projections: bool [B, 16]."""
    attn, rows = fast.blocks[0].attn, []
    qkv, _ = tiny.watched(attn, lambda: fast(images))
    for image in qkv.double().unflatten(-1, (3, attn.num_heads, -1)):
        q, k, v = image.unbind(1)
        row = torch.stack([((k[:, h] @ q[0, h]) * attn.scale).softmax(0) for h in range(attn.num_heads)], 1)
        chosen = drawn(naive_significance(row[1:], v[1:]), samples)
        rows.append([j in chosen for j in range(len(row) - 1)])
    return rows


@pytest.mark.parametrize(("tokens", "samples"), [(5, 5), (0.5, 8), (64, 64)])
def test_a_block_keeps_what_the_loops_draw(tokens, samples):
    fast, images = tiny.adapted(fv.Plan([fv.ATS((1,), tokens)]), dtype=torch.float64), tiny.images(count=6, dtype=torch.float64)
    trace = fast.traced(images)[1]
    assert trace.kept[0].tolist() == naive_kept(fast, images, samples)
    assert fast.plan.data_dependent


def test_images_keep_other_numbers_of_patches_and_later_blocks_draw_from_them():
    fast, images = tiny.adapted(fv.Plan([fv.ATS((1, 2, 4), 9)])), tiny.images(count=8)
    trace = fast.traced(images)[1]
    assert len(set(trace.tokens[-1])) > 1 and min(map(min, trace.tokens)) >= 2
    for early, late in zip(trace.kept, trace.kept[1:]):
        assert (late <= early).all()
    assert trace.block_tokens[1] == trace.tokens[0] and trace.block_tokens[3] == trace.tokens[1]


def test_the_pruned_block_gives_what_its_own_attention_gives_the_kept():
    """In the paper the rows of A that are drawn replace A; here their tokens go on: the same values."""
    fast, images = tiny.adapted(fv.Plan([fv.ATS((4,), 6)]), dtype=torch.float64), tiny.images(dtype=torch.float64)
    base = tiny.model(dtype=torch.float64)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        torch.testing.assert_close(logits, base(images))  # the class token's own row is always there
    assert max(trace.tokens[0]) < 17


def test_one_patch_stays_at_least():
    fast = tiny.adapted(fv.Plan([fv.ATS((1, 2, 3, 4), 1)]))
    assert fast.traced(tiny.images())[1].tokens == [[2] * 3] * 4


def test_the_default_stands_in_every_block_behind_the_third():
    assert fv.ATS().after == tuple(range(4, 13)) and fv.Plan.parse("ats()") == fv.Plan([fv.ATS()])
    assert str(fv.Plan([fv.ATS(tokens=108)])) == "ats(tokens=108)"
    assert fv.count("deit_small_patch16_224", "ats()").label == "dense upper bound"


@pytest.mark.parametrize("value", [0, -1, 0.0, 1.5, True, "5", None, float("nan"), [5]])
def test_numbers_of_samples_that_are_none_are_refused(value):
    with pytest.raises(fv.FoveateError, match="(?s)tokens.*allowed.*do"):
        fv.ATS(tokens=value)


@pytest.mark.parametrize(("key", "after", "words"), [("siglip", (1,), "no class token"), ("deit", (4, 5), "blocks 1...4"), ("pit", (2,), "stage ends")])
def test_backbones_that_do_not_fit_are_refused(key, after, words):
    with pytest.raises(fv.FoveateError, match=f"(?s){words}"):
        fv.adapt(tiny.model(key), fv.Plan([fv.ATS(after)]))


def test_iret_and_ats_are_one_plan():
    """What section VI of IRET names as future work: its layers forget before they widen, later blocks draw from what is left."""
    plan = fv.Plan([fv.IRET(threshold=0.055), fv.ATS((3, 4), 9)])
    fast, images = tiny.adapted(plan, "iret"), tiny.images("iret", 6)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        torch.testing.assert_close(fast.masked(images, trace), logits, atol=5e-6, rtol=0)
        for i, image in enumerate(images):
            torch.testing.assert_close(fast(image[None])[0], logits[i], atol=5e-6, rtol=0)
    assert trace.after == (1, 2, 3, 4) and len(set(trace.tokens[1])) > 1
    assert all((late <= early).all() for early, late in zip(trace.kept, trace.kept[1:]))
    assert (trace.kept[-1].sum(1) < trace.kept[1].sum(1)).any(), "ATS dropped nothing: this test shows nothing"
