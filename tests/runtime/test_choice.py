"""What "auto" chose is remembered and explained, dense execution stands in where it is faster, and bad images are refused."""

import json
import warnings

import pytest
import tiny
import torch

import foveate as fv
from foveate.runtime import choice, chooser, loading, maker
from foveate.runtime.choice import Choice, Row, question, race, remember, remembered, today
from foveate.runtime.engine import Engine
from foveate.runtime.fallback import dense_form
from foveate.runtime.loading import load, load_engine

TOPK = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))])
ROWS = (Row("torch", "fp32", 2.0, "agrees", "2.00 ms an image against 1.00"), Row("openvino", "bf16", 1.0, "agrees", "fastest"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path):
    return fv.save(tiny.adapted(TOPK, "deit").eval(), tmp_path / "run")


@pytest.fixture
def raced(monkeypatch):
    """Every race is noted; engines take 1, 2, 3, ... ms in the order they are given."""
    races = []

    def order(engines, images):
        races.append(([engine.name for engine in engines], len(images)))
        return {engine.name: float(place) for place, engine in enumerate(engines, 1)}

    monkeypatch.setattr(chooser, "race", order)
    monkeypatch.setattr(loading, "installed_backends", lambda: ("torch", "torch-compile"))
    monkeypatch.setattr(loading, "AUTO", ("torch",))
    return races


def test_the_second_load_measures_nothing(run, raced):
    first = load(run, batch=3)
    assert raced == [(["torch fp32", "torch bf16"], 3)] and first.precision == "fp32"
    again = load(run, batch=3)
    assert len(raced) == 1 and again.name == first.name and again.passed_over == first.passed_over and again.choice == first.choice
    kept = json.loads((run / "engines.json").read_text())
    (entry,) = kept.values()
    assert entry["batch"] == 3 and entry["machine"]["cpu_cores"] and len(entry["rows"]) == 2


def test_another_batch_or_other_threads_are_measured_again(run, raced):
    load(run, batch=3)
    load(run, batch=4)
    load(run, batch=3, threads=1)
    assert len(raced) == 3 and len(json.loads((run / "engines.json").read_text())) == 3


def test_a_remembered_engine_that_fails_is_measured_again(run, raced, monkeypatch):
    load(run, batch=3)
    made = maker.Maker.engine

    def refused(self, backend, precision):
        if precision == "fp32":
            raise fv.FoveateError("fp32 today", "bf16", "wait")
        return made(self, backend, precision)

    monkeypatch.setattr(maker.Maker, "engine", refused)
    engine = load(run, batch=3)
    assert engine.precision == "bf16" and engine.passed_over["torch fp32"] == "fp32 today" and len(raced) == 2


def test_a_broken_file_is_written_anew_and_a_read_only_run_uses_the_users_cache(tmp_path, run):
    key = question(batch=1)
    made = Choice("openvino", "bf16", 1, ROWS, None, **today())
    (run / "engines.json").write_text("{")
    assert remembered(key, run) is None
    assert remember(key, made, run) == run / "engines.json" and remembered(key, run) == made
    missing = tmp_path / "file"
    missing.write_text("")
    elsewhere = remember(key, made, missing)
    assert elsewhere.is_relative_to(tmp_path / "cache") and remembered(key, missing) == made


def test_the_key_is_the_question_on_this_machine(monkeypatch):
    one = question(batch=1)
    assert one == question(batch=1) != question(batch=2)
    monkeypatch.setattr(choice, "processor", lambda: {"cpu_model": "another"})
    assert question(batch=1) != one


def test_the_table_names_every_candidate_with_its_figures(run, raced, capsys):
    load(run, batch=2, explain=True)
    said = capsys.readouterr().out
    assert "2 images a call" in said and "1000" in said and "fastest" in said and "2.00 ms an image against 1.00" in said
    assert Choice("a", "b", 1, (Row("torch", "bf16", None, "", "no kernel"),), None, {}, "now").table().splitlines()[-1].split()[:4] == ["torch", "bf16", "-", "-"]


def test_a_race_runs_all_engines_in_every_round():
    calls = []
    engines = [Engine(lambda x, name=name: calls.append(name) or x[:, 0, 0], name, "fp32") for name in "ab"]
    ms = race(engines, torch.zeros(2, 3, 4, 4))
    assert set(ms) == {"a fp32", "b fp32"} and all(value > 0 for value in ms.values())
    assert calls.count("a") == calls.count("b") == choice.ROUNDS + 1 and calls[:6] == ["a", "b", "a", "b", "b", "a"]


# dense execution


def test_the_dense_form_has_the_weights_and_drops_nothing():
    model, images = tiny.adapted(fv.Plan([fv.PIVOT(skip=(2,)), *TOPK.methods, fv.EarlyExit(after=(2,), threshold=0.5)]), "deit").eval(), tiny.images("deit", 3)
    dense = dense_form(model)
    assert dense.plan == fv.Plan([fv.PIVOT(skip=(2,))])
    _, trace = dense.traced(images)
    assert all(count == model.card.prefix_tokens + 16 for block in trace.block_tokens for count in block)
    assert torch.equal(dense.state_dict()["blocks.0.attn.qkv.weight"], model.state_dict()["blocks.0.attn.qkv.weight"])
    assert dense_form(tiny.adapted(fv.Plan([fv.ViTALiTy()]), "deit")) is None and dense_form(torch.nn.Linear(2, 2)) is None


def test_the_dense_form_is_the_masked_form_that_keeps_everything():
    model, images = tiny.adapted(TOPK, "deit").eval(), tiny.images("deit", 3)
    _, trace = model.traced(images)
    trace.kept = [kept | True for kept in trace.kept]
    with torch.no_grad():
        torch.testing.assert_close(dense_form(model)(images), model.masked(images, trace), atol=1e-5, rtol=1e-5)


def test_a_threshold_of_a_method_that_does_more_than_dropping_becomes_zero():
    model = tiny.adapted(fv.Plan([fv.IRET(threshold=0.05)]), "iret").eval()
    assert dense_form(model).plan == fv.Plan([fv.IRET(threshold=0.0)])


def times(monkeypatch, plan_ms, dense_ms):
    table = {"plan": plan_ms, "dense": dense_ms}
    monkeypatch.setattr(chooser, "race", lambda engines, images: {engine.name: table.get(engine.backend, 1.0) for engine in engines})


def test_dense_execution_runs_where_it_is_as_fast_and_says_so(run, monkeypatch):
    times(monkeypatch, 2.0, 1.5)
    monkeypatch.setattr(chooser, "AGREES", 0.0)
    images = tiny.images("deit", 5)
    for _ in range(2):  # measured, then remembered
        engine = load(run, "torch", "fp32", images, fallback=True)
        assert (engine.fallback.plan_ms, engine.fallback.dense_ms, engine.fallback.plan_engine) == (2.0, 1.5, "torch fp32")
        assert "2.00 ms" in str(engine.fallback) and engine.passed_over["torch fp32"] == "2.00 ms an image against 1.50 with nothing dropped"
        with torch.no_grad():
            torch.testing.assert_close(engine(images), dense_form(tiny.adapted(TOPK, "deit").eval())(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("plan_ms, dense_ms, agrees, word", [(1.5, 2.0, 0.0, "2.00 ms an image against 1.50 of the plan"), (2.0, 1.5, 1.1, "other answers")])
def test_the_plan_runs_where_it_is_faster_or_answers_otherwise(plan_ms, dense_ms, agrees, word, monkeypatch):
    times(monkeypatch, plan_ms, dense_ms)
    monkeypatch.setattr(chooser, "AGREES", agrees)
    engine = load_engine(tiny.adapted(TOPK, "deit").eval(), "torch", "fp32", tiny.images("deit", 5), fallback=True)
    assert engine.fallback is None and word in engine.passed_over["dense torch fp32"]


def test_labels_decide_whether_dense_execution_is_as_good(monkeypatch):
    times(monkeypatch, 2.0, 1.5)
    model, images = tiny.adapted(TOPK, "deit").eval(), tiny.images("deit", 32)
    with torch.no_grad():
        right, wrong = dense_form(model)(images).argmax(1), (dense_form(model)(images).argmax(1) + 1) % 7
        ours = model(images).argmax(1)
    assert load_engine(model, "torch", "fp32", images, fallback=True, labels=right).fallback is not None
    worse = torch.where(ours == right, ours, ours)
    monkeypatch.setattr(chooser, "eager", lambda model, precision: (lambda x: torch.nn.functional.one_hot(wrong if model.plan == fv.Plan() else worse, 7).float()))
    assert load_engine(model, "torch", "fp32", images, fallback=True, labels=worse).fallback is None


# what the machine lacks, and bad images


def test_bf16_on_a_cpu_without_it_runs_in_float32_and_says_so(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(loading, "fast_rest", lambda: "fp32")
    with pytest.warns(UserWarning, match="bfloat16"):
        engine = load_engine(tiny.model("deit"), "openvino", "bf16", tiny.images("deit", 4))
    assert engine.precision == "fp32" and "float32" in engine.passed_over["openvino bf16"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "openvino bf16" in load_engine(tiny.model("deit"), "openvino", "auto", tiny.images("deit", 4), batch=2).passed_over


BAD = {
    "three dimensions": (lambda x: x[0], "images[None]"),
    "no images": (lambda x: x[:0], "at least one"),
    "no tensor": (lambda x: x.tolist(), "list"),
    "whole numbers": (lambda x: (x * 9).to(torch.uint8), "torch.uint8"),
    "pixels": (lambda x: x.abs() * 100, "divide by 255"),
    "not a number": (lambda x: torch.where(torch.arange(4).view(4, 1, 1, 1) == 2, torch.nan, x), "in image 2"),
    "infinite": (lambda x: torch.where(torch.arange(4).view(4, 1, 1, 1) > 1, -torch.inf, x), "in image 2 and 1 more"),
    "another size": (lambda x: x[..., :24], "32x32"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_bad_images_are_refused_in_three_parts(kind, backend, engines):
    spoil, word = BAD[kind]
    with pytest.raises(fv.FoveateError) as caught:
        engines[backend](spoil(tiny.images("deit", 4)))
    assert word in str(caught.value) and caught.value.allowed and caught.value.do


@pytest.fixture(scope="module")
def engines():
    pytest.importorskip("openvino")
    return {backend: load_engine(tiny.adapted(TOPK, "deit").eval(), backend, "fp32", tiny.images("deit", 4)) for backend in ("torch", "openvino")}
