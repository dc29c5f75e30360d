"""Cascades on engines: the logits of the cascade, whatever the size of the groups behind its gates."""

import pytest
import torch

import foveate as fv
import tiny
from foveate.calibration import calibrate
from foveate.quantised import observe, quantise
from foveate.runtime import load, load_engine

TOPK, DENSE = fv.Plan([fv.SPViT(after=(2,), keep=(0.5,))]), fv.Plan()
ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])
COUNT = 24


def cascade(*plans: fv.Plan, lec: float = 0.6) -> fv.Cascade:
    images = tiny.images(count=COUNT, seed=5)
    return calibrate(fv.Cascade([tiny.adapted(plan) for plan in plans], fv.Entropy(0.5)), (images, torch.arange(COUNT) % 7), lec)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_engines_answer_as_the_cascade_does(backend):
    model, images = cascade(TOPK, DENSE), tiny.images(count=COUNT, seed=5)
    engine = load_engine(model, backend, "fp32", images[:6])
    with torch.no_grad():
        for start, size in ((0, COUNT), (0, 1), (3, 5), (8, 6), (9, 7), (2, 11)):
            group = images[start : start + size]
            before = list(engine.run.ran)
            expected, trace = model.traced(group)
            torch.testing.assert_close(engine(group), expected, atol=1e-4, rtol=1e-3)
            assert [n - m for n, m in zip(engine.run.ran, before)] == [sum(e >= n for e in trace.efforts) for n in (1, 2)]
    assert engine.backend == backend and engine.max_batch is None and engine.agreement.worst < 1e-3


def test_three_efforts_of_which_none_runs_for_nothing():
    model, images = cascade(ARGMAX, TOPK, DENSE), tiny.images(count=COUNT, seed=5)
    engine = load_engine(model, "torch", "fp32", images[:6])
    with torch.no_grad():
        torch.testing.assert_close(engine(images), model(images), atol=1e-5, rtol=1e-4)
        counts = list(engine.run.ran)
        assert counts[0] == COUNT > counts[1] > counts[2] > 0
        engine(images[[i for i, effort in enumerate(model.traced(images)[1].efforts) if effort == 1][:3]])
    assert [n - m for n, m in zip(engine.run.ran, counts)] == [3, 0, 0]


def test_an_effort_that_takes_one_image_at_once_limits_the_cascade():
    model, images = cascade(ARGMAX, DENSE), tiny.images(count=COUNT, seed=5)
    engine = load_engine(model, "openvino", "fp32", images[:4])
    assert engine.max_batch == 1
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([engine(image[None]) for image in images[:6]]), model(images[:6]), atol=1e-4, rtol=1e-3)
    with pytest.raises(fv.FoveateError, match="at most 1"):
        engine(images[:2])


def test_an_effort_trained_in_8_bits_before_one_that_was_not():
    model, images = cascade(TOPK, DENSE), tiny.images(count=COUNT, seed=5)
    quantise(model.efforts[0], observe(model.efforts[0], [images]))
    engine = load_engine(model, "openvino", example=images[:6])
    assert engine.precision == "int8" and [one.precision for one in engine.run.engines] == ["int8", "fp32"]
    with torch.no_grad():
        high = model.traced(images)[1].efforts.index(2)
        torch.testing.assert_close(engine.run.engines[1](images[high : high + 1]), model(images[high : high + 1]), atol=1e-4, rtol=1e-3)
    with pytest.raises(fv.FoveateError, match="int8"):
        load_engine(model, "torch", "int8", images[:6])


def test_a_run_folder_becomes_an_engine(tmp_path):
    model, images = cascade(TOPK, DENSE), tiny.images(count=COUNT, seed=5)
    engine = load(fv.save(model, tmp_path / "run"), "torch", "auto")
    assert engine.precision in ("fp32", "bf16") and engine(images[:3]).shape == (3, 7)


def test_the_least_agreement_is_the_cascades(monkeypatch):
    model = cascade(TOPK, DENSE)
    with torch.no_grad():
        engine = load_engine(model, "torch", "bf16", tiny.images(count=8))
    singles = [load_engine(effort, "torch", "bf16", tiny.images(count=8)).agreement.typical for effort in model.efforts]
    assert engine.agreement.typical == max(singles)
    with pytest.raises(fv.FoveateError, match="differ"):
        load_engine(model, "torch", "bf16", tiny.images(count=8), tolerance=1e-9)
