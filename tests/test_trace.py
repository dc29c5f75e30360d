"""Traces: counts, decisions, concatenation, the fair random baseline, and JSON that does not lie."""

import json

import numpy as np
import pytest
import torch

import foveate as fv
import tiny
from foveate.trace import Trace

ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])


def refused(*words: str):
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


def traced(key: str = "deit", plan: fv.Plan = ARGMAX, count: int = 4) -> Trace:
    return tiny.adapted(plan, key).traced(tiny.images(key, count))[1]


@pytest.mark.parametrize("key", ["deit", "dinov2-registers", "siglip", "pit", "swin"])
def test_counts_are_those_of_the_masks(key):
    trace, prefix = traced(key), fv.adapt(tiny.model(key), fv.Plan()).card.prefix_tokens
    assert trace.images == 4 and trace.after == (1, 3) and len(trace.tokens) == len(trace.kept) == 2
    first = trace.kept[0].sum(1)
    packed = (~trace.kept[0].all(1)).astype(int)
    assert trace.tokens[0] == (prefix + first + packed).tolist()
    dense = fv.adapt(tiny.model(key), fv.Plan()).card
    assert trace.block_tokens[0] == [prefix + dense.blocks[0].patches] * 4 and trace.block_tokens[1] == trace.tokens[0]
    assert len(trace.block_tokens) == dense.depth and trace.block_tokens[-1] == trace.tokens[-1] or key == "swin"
    assert all(isinstance(n, int) for row in trace.tokens + trace.block_tokens for n in row)
    assert all(k.dtype == bool and k.shape == (4, dense.tokens_after(b)) for k, b in zip(trace.kept, trace.after))


def test_an_idle_trace_has_no_stages():
    trace = traced(plan=fv.Plan())
    assert trace.tokens == [] and trace.kept == [] and trace.after == () and trace.block_tokens == [[17] * 4] * 4
    assert trace.tokens_mean == () and trace.keep_rates == ()


def test_means():
    trace = Trace(images=2, tokens=[[10, 20], [5, 6]], kept=[np.array([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=bool)])
    assert trace.tokens_mean == (15.0, 5.5) and trace.keep_rates == (0.75,)


def test_traces_of_batches_join_to_the_trace_of_all():
    fast, images = tiny.adapted(ARGMAX), tiny.images(count=5)
    whole = fast.traced(images)[1]
    parts = [fast.traced(images[a:b])[1] for a, b in ((0, 2), (2, 3), (3, 5))]
    assert Trace.concatenate(parts) == whole
    assert Trace.concatenate([whole]) == whole


def test_equality_compares_counts_and_decisions():
    one, other = traced(), traced()
    assert one == other and one != 3 and not one == None  # noqa: E711
    other.kept[1][0, 0] ^= True
    assert one != other
    other = traced()
    other.tokens[0][0] += 1
    assert one != other


# the fair random baseline (semantics.md 26)


def test_shuffled_traces_keep_every_images_counts_elsewhere():
    trace = traced(count=6)
    shuffled = trace.shuffled(3)
    assert [k.sum(1).tolist() for k in shuffled.kept] == [k.sum(1).tolist() for k in trace.kept]
    assert (shuffled.kept[1] <= shuffled.kept[0]).all(), "later stages keep a part of what earlier ones kept"
    assert any((a != b).any() for a, b in zip(shuffled.kept, trace.kept))
    assert len({k.tobytes() for k in shuffled.kept[0]}) > 1, "every image has places of its own"
    again, other = trace.shuffled(3), trace.shuffled(4)
    assert again == shuffled and other != shuffled
    fast, images = tiny.adapted(ARGMAX), tiny.images(count=6)
    logits, ran = fast.traced(images, decisions=shuffled)
    assert ran.tokens == trace.tokens and not torch.allclose(logits, fast(images), atol=1e-4)


def test_every_place_is_as_likely_as_any_other():
    kept = np.zeros((4000, 16), dtype=bool)
    kept[:, :4] = True
    rate = Trace(images=4000, kept=[kept]).shuffled(0).kept[0].mean(0)
    assert abs(rate - 0.25).max() < 0.04


def test_shuffling_a_hierarchical_trace_is_refused():
    with refused("hierarchical"):
        traced("swin").shuffled(0)


# replay


def test_decisions_of_other_images_or_plans_are_refused():
    fast, images = tiny.adapted(ARGMAX), tiny.images()
    trace = fast.traced(images)[1]
    for wrong, given in ((trace, images[:2]), (traced(plan=fv.Plan(), count=3), images), (Trace.from_json(trace.to_json()), images)):
        with refused("decisions"):
            fast.traced(given, decisions=wrong)
        with refused("decisions"):
            fast.masked(given, wrong)
    with refused("decisions"):
        fast.traced(images, decisions="last time's")
    other = tiny.adapted(fv.Plan([fv.SPViT(after=(2, 3), keep=(0.7, 0.4))]), "oblong").traced(tiny.images("oblong"))[1]
    with refused("decisions", "patches"):
        fast.traced(images, decisions=other)


def test_decisions_that_leave_an_image_nothing_are_refused():
    fast, images = tiny.adapted(ARGMAX), tiny.images()
    trace = fast.traced(images)[1]
    trace.kept[1][2] = False
    with refused("after block 3"):
        fast.traced(images, decisions=trace)


# JSON


@pytest.mark.parametrize("key", ["deit", "swin"])
def test_json_keeps_the_counts(key):
    trace = traced(key)
    again = Trace.from_json(trace.to_json())
    assert again.kept == []
    again.kept = trace.kept
    assert again == trace


def test_json_keeps_exits_efforts_and_skipped_blocks():
    trace = Trace(images=2, exits=[4, 12], efforts=[1, 2], skipped=(3, 4))
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize("change", [
    lambda d: d.pop("tokens"), lambda d: d.update(images="four"), lambda d: d.update(images=None), lambda d: d.update(images=3),
    lambda d: d.update(images=4.0), lambda d: d.update(tokens=3), lambda d: d.update(tokens=[["a"]]), lambda d: d["tokens"][0].pop(),
    lambda d: d["tokens"][0].__setitem__(0, 2.5), lambda d: d["block_tokens"][0].append(3), lambda d: d.update(after="13"),
    lambda d: d.update(after=[1]), lambda d: d.update(exits=[1]), lambda d: d.update(efforts=None), lambda d: d.update(skipped=7)])
def test_wrong_json_is_refused(change):
    data = json.loads(traced().to_json())
    change(data)
    with refused("trace"):
        Trace.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "null", None, "[" * 100_000])
def test_texts_that_are_no_traces_are_refused(text):
    with refused("trace"):
        Trace.from_json(text)
