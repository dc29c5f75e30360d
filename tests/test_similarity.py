"""What softmax attention is given, before and after its keys are centred: against loops, with large means, in every family."""

import numpy as np
import pytest
import tiny
import torch
from naive import vit as naive
from naive.selector import layer_norm

import foveate as fv
from foveate.similarity import Record, attention_similarity, similarities, similarity_results

D = torch.float64


def naive_similarities(model, images, heads):
    """[block][before or after] -> all similarities of a DeiT, one query and one key at a time."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    found = [([], []) for _ in range(naive.depth_of(weights))]
    for image in images:
        x = naive.embed(weights, image)
        width = x.shape[1] // heads
        for number, (before, after) in enumerate(found):
            own = naive.under(weights, f"blocks.{number}.")
            normed = torch.stack([layer_norm(row, own["norm1.weight"], own["norm1.bias"], 1e-6) for row in x])
            q, k, _ = (normed @ own["attn.qkv.weight"].T + own["attn.qkv.bias"]).chunk(3, dim=1)
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                mean = k[:, part].mean(0)
                before += [float(a @ b) / width**0.5 for a in q[:, part] for b in k[:, part]]
                after += [float(a @ (b - mean)) / width**0.5 for a in q[:, part] for b in k[:, part]]
            x = naive.block(own, x, torch.ones(len(x), dtype=D), heads)
    return found


def weak(values):
    return sum(-1 <= value < 1 for value in values) / len(values)


def test_shares_and_quantiles_are_the_naive_ones():
    model, images = tiny.model("deit", D), tiny.images("deit", 1, dtype=D)
    del model.blocks[2:]
    with torch.no_grad():
        # Small enough scores lie all in [-1, 1); keys far from 0 make the two shares differ.
        for block in model.blocks:
            block.attn.qkv.weight[:48] *= 2
            block.attn.qkv.bias[24:48] += 1.5
    found = attention_similarity(model, images)
    assert [one.block for one in found] == [1, 2]
    for one, (before, after) in zip(found, naive_similarities(model, images, heads=3)):
        assert one.pairs == len(before) == 3 * 17 * 17
        assert (one.weak_before, one.weak_after) == (weak(before), weak(after)) and one.weak_after > one.weak_before + 0.1
        quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
        np.testing.assert_allclose([one.before, one.after], [np.quantile(values, quantiles) for values in (before, after)], rtol=1e-9, atol=1e-10)


def test_the_interval_holds_its_lower_end_only():
    q, k = torch.tensor([[[[1.0]]]]), torch.tensor([-1.0, 1.0, 0.5, -0.5]).view(1, 4, 1, 1)
    before, after = similarities(q, k, 1.0)
    assert before.tolist() == after.tolist() == [-1, 1, 0.5, -0.5]
    record = Record(10)
    record.add(before, after)
    assert record.weak == [3, 3]


def test_keys_with_a_large_mean_are_weak_once_they_are_centred():
    q, k = torch.randn(2, 9, 3, 8, dtype=D) * 0.1, torch.randn(2, 11, 3, 8, dtype=D) * 0.1
    mean = 1000 * torch.randn(2, 1, 3, 8, dtype=D)
    before, after = similarities(q, k + mean, 0.5)
    assert before.abs().median() > 10 and after.abs().max() < 1
    torch.testing.assert_close(after, similarities(q, k, 0.5)[1], rtol=0, atol=1e-10)
    rough = similarities(q.float(), (k + mean).float(), 0.5)[1]
    assert (rough - after).abs().max() < 1e-3, "keys of 1000 have three digits left behind the point in float32"
    half = similarities(q.half() * 100, k.half() * 6e4, 1.0)[0]
    assert torch.isfinite(half).all() and half.abs().max() > 7e4, "half precision would have overflowed"


def test_dead_keys_and_forbidden_pairs_are_neither_counted_nor_part_of_the_mean():
    q, k = torch.randn(2, 5, 3, 4, dtype=D), torch.randn(2, 6, 3, 4, dtype=D)
    live = torch.tensor([[1, 0, 1, 1, 0, 1.0], [1, 1, 0.5, 0, 1, 0]])
    bias = torch.randn(3, 5, 6, dtype=D)
    bias[:, 2, :3] = -100
    before, after = similarities(q, k, 0.5, live, bias)
    expected, centred = [], []
    for b in range(2):
        for h in range(3):
            for i in range(5):
                row = [0.5 * float(q[b, i, h] @ k[b, j, h]) for j in range(6) if live[b, j] > 0 and bias[h, i, j] > -100]
                expected += row
                centred += [value - np.mean(row) for value in row]
    np.testing.assert_allclose(before, expected, rtol=1e-12)
    np.testing.assert_allclose(after, centred, atol=1e-12)


PAIRS = {  # of one image, block by block
    "distilled": [3 * 18**2] * 4,
    "dinov3": [3 * 21**2] * 4,
    "swin": [2 * 32**2, 2 * 24**2, 2 * 16**2, 2 * 16**2, 4 * 4**2, 4 * 4**2],  # a shifted window has pairs that may not meet; small grids have one window
}


@pytest.mark.parametrize("key", [*tiny.OTHERS, *tiny.ATTENTION_ONLY, "distilled"])
def test_every_family(key):
    found = attention_similarity(tiny.model(key), tiny.images(key, 2))
    card = fv.adapt(tiny.model(key), fv.Plan()).card
    assert len(found) == card.depth
    for one, block in zip(found, card.blocks):
        assert 0 <= one.weak_before <= 1 and one.weak_after > 0 and one.before == tuple(sorted(one.before))
        if not block.window:
            tokens, patches = card.prefix_tokens + block.patches, block.patches if block.queries is None else block.queries
            assert one.pairs == 2 * block.heads * tokens * (card.prefix_tokens + patches) / block.groups
    if key in PAIRS:
        assert [one.pairs for one in found] == [2 * pairs for pairs in PAIRS[key]]


def test_many_images_are_looked_at_in_parts_and_sampled(monkeypatch):
    model, images = tiny.model("deit"), tiny.images("deit", 11)
    whole = attention_similarity(model, images)
    monkeypatch.setattr("foveate.similarity.SAMPLE", 6000)
    seen = []
    sampled = attention_similarity(model, images, lambda *done: seen.append(done))
    assert seen == [(8, 11), (11, 11)]
    for one, other in zip(whole, sampled):
        assert (one.pairs, one.weak_before, one.weak_after) == (other.pairs, other.weak_before, other.weak_after)
        assert one.before != other.before and abs(one.before[2] - other.before[2]) < 0.15 * (one.before[4] - one.before[0])


def test_a_plan_is_left_out():
    plan = fv.Plan([fv.ViTALiTy(blocks=(2,)), fv.SPViT(after=(1,), keep=(0.5,))])
    fast, images = tiny.adapted(plan), tiny.images()
    assert attention_similarity(fast, images) == attention_similarity(fv.restore(fast), images)


def test_what_has_no_similarities_is_refused():
    for key in ("differential", "parallel"):
        with pytest.raises(fv.FoveateError, match="the empty plan there"):
            attention_similarity(tiny.model(key), tiny.images(key))
    with pytest.raises(fv.FoveateError, match="block 1 .* not finite"):
        attention_similarity(tiny.model(), tiny.images() * torch.nan)


def test_the_report_has_a_row_and_a_point_a_block():
    found = attention_similarity(tiny.model(), tiny.images())
    results = similarity_results(found, 3, "deit")
    assert [row[0] for row in results.tables[0].rows] == ["1", "2", "3", "4"]
    assert [float(row[1]) for row in results.tables[0].rows] == [round(100 * one.weak_before, 1) for one in found]
    shares, values = results.charts
    assert [list(line.y) for line in shares.lines] == [[100 * one.weak_before for one in found], [100 * one.weak_after for one in found]]
    assert list(values.lines[1].low) == [one.after[1] for one in found]
    assert results.figures["blocks"][3]["weak_after"] == found[3].weak_after
