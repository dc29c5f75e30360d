"""runtime.kernels: what is measured decides, once a machine; values stay what they are."""

import json

import pytest
import tiny
import torch
from torch import nn

import foveate as fv
from foveate.runtime import kernels
from foveate.runtime.kernels import Softmax, choose_softmax, fastest, softmax_table


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to."""
    now = [0.0]
    monkeypatch.setattr(kernels.time, "perf_counter", lambda: now[0])

    def spend(*seconds):
        left = list(seconds)

        def call():
            now[0] += left.pop(0) if len(left) > 1 else left[0]

        return call

    return spend


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    return tmp_path / "kernels"


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements, which take no time and find that only calls of several images gain by products spelled out."""
    seen = []

    def measure(heads, dim, lengths, images, dtype):
        seen.append((heads, dim, tuple(lengths), images, dtype))
        return tuple((n, images == 1) for n in lengths)

    monkeypatch.setattr(kernels, "_measured", measure)
    return seen


def q(tokens, images=1):
    return torch.zeros(images, 2, tokens, 4)


def test_the_least_median_wins_and_the_first_call_does_not_count(clock):
    assert fastest({"slow": clock(3), "quick": clock(99, 2)}, rounds=3) == "quick"
    assert fastest({"mostly": clock(0, 1, 1, 50), "steady": clock(2)}, rounds=3) == "mostly"


def test_the_nearest_length_answers_for_one_image_and_for_several():
    table = Softmax(((16, True), (64, False)), ((16, False), (64, True)))
    assert table(q(3), q(3)) and table(q(31), q(31)) and not table(q(33), q(33)) and not table(q(900), q(900))
    assert not table(q(20, 2), q(20, 2)) and table(q(60, 2), q(60, 2))
    assert table(q(5), q(20)) and not table(q(5), q(60)), "keys count"


def test_a_table_is_measured_once(cache, measured):
    first = softmax_table(2, 4, 50, torch.float32)
    assert [one[2:4] for one in measured] == [((16, 32, 48, 64), 1), ((16, 32, 48, 64), kernels.TOGETHER)]
    assert first == softmax_table(2, 4, 50, torch.float32) and len(measured) == 2
    softmax_table(2, 4, 50, torch.bfloat16), softmax_table(3, 4, 50, torch.float32)
    assert len(measured) == 6 and len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("content", ["", "[]", '{"one": 3}', '{"one": [[16]], "many": []}'])
def test_a_damaged_table_is_measured_anew(cache, measured, content):
    table = softmax_table(2, 4, 20, torch.float32)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert softmax_table(2, 4, 20, torch.float32) == table and len(measured) == 4
    assert json.loads(file.read_text())["one"] == [[16, True], [32, True]]


def test_a_cache_that_cannot_be_written_costs_only_time(monkeypatch, measured, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "file"))
    assert softmax_table(2, 4, 20, torch.float32) == softmax_table(2, 4, 20, torch.float32) and len(measured) == 4


def test_real_measurements_answer_for_every_length(cache):
    table = softmax_table(2, 8, 40, torch.float32)
    assert [n for n, _ in table.one] == [n for n, _ in table.many] == [16, 32, 48]


ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])


@pytest.mark.parametrize("key, plan", [(key, plan) for key in ("deit", "eva02", "lvvit", "pit") for plan in (fv.Plan(), ARGMAX)] + [("mobilevit", fv.Plan())])
def test_models_that_choose_answer_as_before(cache, measured, key, plan):
    model = tiny.adapted(plan, key).eval()
    images = tiny.images(key)
    with torch.inference_mode():
        expected = model(images)
        assert choose_softmax(model) == model.card.depth and len(measured) >= 2
        torch.testing.assert_close(model(images), expected, atol=5e-5, rtol=5e-5)
    assert not model.anatomy.natively and all(isinstance(block.attn.fused_attn, Softmax) for block in model.anatomy.blocks)


@pytest.mark.parametrize("key", ["swin", "parallel", "differential", "levit"])
def test_models_of_other_kinds_stay_as_they_are(measured, key):
    model = fv.adapt(tiny.model(key), fv.Plan()).eval()
    images = tiny.images(key)
    with torch.inference_mode():
        expected = model(images)
        assert choose_softmax(model) == 0 and not measured and model.anatomy.natively
        assert torch.equal(model(images), expected)
    assert choose_softmax(nn.Linear(2, 2)) == 0
