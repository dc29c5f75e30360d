"""Where an attention's milliseconds go: which shapes are run, what each step computes, how steps add up. No wall-clock figure is judged."""

import pytest
import torch

import foveate as fv
from foveate.card import stored_card
from foveate.measure.attention import (
    AROUND,
    SOFTMAX,
    TAYLOR,
    WHOLE,
    Shape,
    added,
    around_runs,
    attention_runs,
    attention_shapes,
    check_precision,
    profile_attention,
)
from foveate.measure.clock import Timing
from foveate.nn.taylor import taylor_attention

NANO = stored_card("foveate_nano")


def test_shapes_are_those_of_all_blocks():
    assert attention_shapes(stored_card("deit_tiny_patch16_224")) == {Shape(1, 3, 197, 197, 64, 64): 12}
    swin = attention_shapes(stored_card("swin_tiny_patch4_window7_224"))
    assert list(swin.items())[:2] == [(Shape(64, 3, 49, 49, 32, 32), 2), (Shape(16, 6, 49, 49, 32, 32), 2)] and sum(swin.values()) == 12
    mobile = attention_shapes(stored_card("mobilevit_xs"))
    assert Shape(4, 4, 256, 256, 24, 24) in mobile, "four pixel groups attend on their own"
    levit = attention_shapes(stored_card("levit_128"))
    assert Shape(1, 8, 49, 196, 16, 64) in levit, "the attention that subsamples: fewer queries than keys, wider values"
    q, k, v = Shape(4, 2, 5, 7, 3, 6).tensors(3, torch.bfloat16, "cpu")
    assert (q.shape, k.shape, v.shape) == ((12, 2, 5, 3), (12, 2, 7, 3), (12, 2, 7, 6)) and q.dtype == v.dtype == torch.bfloat16
    assert not q.is_contiguous() and q.transpose(1, 2).is_contiguous(), "token by token, as a projection leaves them"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_computes_its_step_for_all_heads_and_layers(dtype, monkeypatch):
    """Each step is run alone; what it leaves is seen through the functions that the steps call."""
    shapes = {Shape(1, 2, 5, 9, 4, 6): 3, Shape(2, 1, 5, 5, 4, 4): 1}
    monkeypatch.setattr("foveate.measure.attention.attention_shapes", lambda card: shapes)
    seen = []
    monkeypatch.setattr("foveate.measure.attention.STEPS", {name: _recording(name, step, seen) for name, step in fv.nn.taylor.STEPS.items()})
    runs = attention_runs(NANO, 2, dtype, "cpu")
    assert set(runs) == {*TAYLOR, *SOFTMAX, *WHOLE}
    for name in TAYLOR:
        seen.clear()
        runs[name]()
        assert [one for one, _ in seen] == [name] * 4, "three layers of the first shape and one of the second"
        terms = seen[0][1]
        assert terms["q"].shape == (2, 2, 5, 4) and terms["q"].dtype == dtype
    z = taylor_attention(terms["q"], terms["k"], terms["v"], 0.5)
    torch.testing.assert_close(terms["z"], z, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    torch.testing.assert_close(terms["attention"], (0.5 * terms["q"] @ terms["k"].mT).softmax(-1), rtol=0, atol=1e-6 if dtype == torch.float32 else 0.02)
    for name in (*SOFTMAX, *WHOLE):
        runs[name]()


def _recording(name, step, seen):
    def run(terms):
        step(terms)
        seen.append((name, terms))

    return run


def test_what_stands_around_attention_is_run_with_its_own_shapes(monkeypatch):
    seen = []

    def linear(x, weight):
        seen.append(("linear", tuple(x.shape), tuple(weight.shape)))
        return x

    monkeypatch.setattr("torch.nn.functional.linear", linear)
    monkeypatch.setattr("torch.nn.functional.gelu", lambda x: seen.append(("gelu", tuple(x.shape))))
    runs = around_runs(stored_card("deit_tiny_patch16_224"), 2, torch.float32, "cpu")
    expected = {
        "qkv": [("linear", (2, 197, 192), (576, 192))], "proj": [("linear", (2, 197, 192), (192, 192))],
        "mlp": [("linear", (2, 197, 192), (768, 192)), ("gelu", (2, 197, 768)), ("linear", (2, 197, 768), (192, 768))],
    }  # fmt: skip
    for name in AROUND:
        seen.clear()
        runs[name]()
        assert seen == expected[name] * 12
    products = [o for o in fv.count(stored_card("levit_128"), include="blocks").operations if o.kind == "gemm"]
    macs = sum(o.macs for o in products if o.group not in ("qk", "av"))
    runs, total = around_runs(stored_card("levit_128"), 1, torch.float32, "cpu"), 0
    for name in AROUND:
        seen.clear()
        runs[name]()
        total += sum(x[1] * x[2] * w[0] for kind, x, w in (one for one in seen if one[0] == "linear"))
    assert total == macs


def test_a_profile_has_every_step_and_its_sums():
    card = fv.card.Card.from_json(NANO.to_json())
    profile = profile_attention(card, batch=2, repetitions=3, warmup=0)
    assert list(profile.taylor) == ["k_hat", "g", "sums", "t_d", "t_n", "z"] and list(profile.softmax) == ["qk", "softmax", "av"]
    assert list(profile.whole) == ["closed form", "fused softmax"] and list(profile.mha) == ["qkv", "map", "score", "proj", "mlp"]
    for timing in (t for part in (profile.taylor, profile.softmax, profile.whole, profile.mha) for t in part.values()):
        assert len(timing.samples_ms) == 3 and min(timing.samples_ms) > 0
    parts = zip(profile.softmax["qk"].samples_ms, profile.softmax["softmax"].samples_ms)
    assert profile.mha["map"].samples_ms == tuple(a + b for a, b in parts)
    assert profile.mha["score"] is profile.softmax["av"]


def test_steps_are_added_round_by_round():
    one, other = (Timing(name, 4, samples, "x", (1.0, 1.0)) for name, samples in (("a", (1.0, 5.0)), ("b", (2.0, 1.0))))
    assert added("both", one, other).samples_ms == (3.0, 6.0) and added("both", one, other).name == "both"


def test_what_cannot_be_measured_is_refused():
    check_precision("fp32", "bf16")
    with pytest.raises(fv.FoveateError, match="precision 'int8'"):
        profile_attention(NANO, precision="int8")
    with pytest.raises(fv.FoveateError, match="batch=0"):
        profile_attention(NANO, batch=0)
