"""Staged engines: every segment between two exits is a graph, and what they answer is what the model answers."""

import pytest
import torch

import foveate as fv
import foveate.budgeting
import tiny
from foveate.budgeting import machine_key
from foveate.budgets import Latency, SegmentCosts
from foveate.calibration import calibrate
from foveate.runtime import load, load_engine, staged, staged_maker
from foveate.runtime.segments import examples, row_needed, segments_for_graphs
from foveate.runtime.staged_maker import StagedMaker

STAGES = dict(after=(1, 3), keep=(0.7, 0.4))
TOPK = fv.Plan([fv.EarlyExit(after=(1, 2), threshold=0.55), fv.SPViT(**STAGES)])
ARGMAX = fv.Plan([fv.EarlyExit(after=(1, 2), threshold=0.55), fv.SPViT(**STAGES, select="argmax")])
PATIENT = fv.Plan([fv.EarlyExit(after=(1, 2, 3), gate="patience", threshold=2)])
NEVER = fv.Plan([fv.EarlyExit(after=(1, 2), threshold=1.0)])
COUNT = 12


def images(key: str = "deit") -> torch.Tensor:
    return tiny.images(key, count=COUNT, seed=4)


def half_leave(after: tuple[int, ...], *others, key: str = "deit") -> fv.Plan:
    """A plan with exits, of which the first lets half of the images go."""
    with torch.no_grad():
        answers, _ = tiny.adapted(fv.Plan([fv.EarlyExit(after=after), *others]), key).exit_logits(images(key))
    chances = answers[after[0]].softmax(-1).amax(-1).sort().values
    return fv.Plan([fv.EarlyExit(after=after, threshold=float(chances[COUNT // 2 - 1] + chances[COUNT // 2]) / 2), *others])


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def engines():
    """Engines that several tests use, made once: plan -> openvino."""
    return {plan: load_engine(tiny.adapted(plan), "openvino", "fp32", images()[:6]) for plan in (TOPK, NEVER)}


# answers


@pytest.mark.parametrize("plan", [TOPK, PATIENT])
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_engines_answer_as_the_model_does_whatever_the_group(backend, plan, engines):
    model = tiny.adapted(plan)
    engine = engines[TOPK] if (backend, plan) == ("openvino", TOPK) else load_engine(model, backend, "fp32", images()[:6])
    assert (engine.backend, engine.max_batch, engine.staged) == (backend, None, True) and engine.agreement.worst < 1e-3
    with torch.no_grad():
        for start, size in ((0, COUNT), (0, 1), (3, 5), (4, 8)):
            group = images()[start : start + size]
            expected, trace = model.traced(group)
            logits, ours = engine.traced(group)
            same(logits, expected)
            same(engine(group), expected)
            assert ours.exits == trace.exits and len(set(model.traced(images())[1].exits)) > 1


def test_every_segment_runs_the_images_that_are_left(engines):
    engine, model = engines[TOPK], tiny.adapted(TOPK)
    before = list(engine.run.ran)
    exits = engine.traced(images())[1].exits
    assert [now - then for now, then in zip(engine.run.ran, before)] == [sum(block > end for block in exits) for end in (0, 1, 2)]
    assert exits == model.traced(images())[1].exits


def test_more_images_than_a_graph_takes_come_in_groups(engines, monkeypatch):
    """16 at once at most, here 5: their outputs are the graph's own memory, which the next group overwrites."""
    monkeypatch.setattr(staged, "LARGEST", 5)
    with torch.no_grad():
        same(engines[TOPK](images()), tiny.adapted(TOPK)(images()))


def test_decisions_are_repeated(engines):
    engine, model = engines[NEVER], tiny.adapted(NEVER)
    wanted = [1, 2, 4, 4, 2, 1, 1, 1, 4, 2, 2, 1]
    logits, trace = engine.run.traced(images(), decisions=wanted)
    with torch.no_grad():
        same(logits, model.traced(images(), fv.Trace(images=COUNT, exits=wanted))[0])
    assert trace.exits == wanted and trace.short == []


@pytest.mark.parametrize("key, after, other", [
    ("iret", (2, 3), fv.SPViT(after=(3,), keep=(0.4,))),  # sub-bands beside the tokens
    ("eva02", (2,), fv.SPViT(after=(1,), keep=(0.4,))),  # rotary tables, with the places to read them at
    ("swin", (2,), fv.Structure(keep=0.7)),  # an exit behind a merging
    ("deit", (2,), fv.ToMe(r=3)),  # sizes of merged tokens
])
def test_whatever_flows_beside_the_tokens_reaches_the_next_segment(key, after, other):
    model = tiny.adapted(half_leave(after, other, key=key), key)
    engine = load_engine(model, "openvino", "fp32", images(key)[:4])
    with torch.no_grad():
        expected, trace = model.traced(images(key))
    logits, ours = engine.traced(images(key))
    same(logits, expected)
    assert engine.max_batch is None and ours.exits == trace.exits and len(set(ours.exits)) > 1


@pytest.mark.parametrize("key, plan", [("deit", ARGMAX), ("iret", fv.Plan([fv.IRET(threshold=0.05), fv.EarlyExit(after=(2, 3), threshold=0.6)]))])
def test_where_images_differ_in_tokens_graphs_take_one_and_torch_any(key, plan):
    model, whole = tiny.adapted(plan, key), images(key)
    with torch.no_grad():
        expected, trace = model.traced(whole)
    assert len(set(zip(*trace.block_tokens))) > 2
    same(load_engine(model, "torch", "fp32", whole[:4])(whole), expected)
    engine = load_engine(model, "openvino", "fp32", whole[:4])
    assert engine.max_batch == 1
    same(torch.cat([engine(image[None]) for image in whole]), expected)
    assert [engine.traced(image[None])[1].exits[0] for image in whole] == trace.exits
    with pytest.raises(fv.FoveateError, match="at most 1"):
        engine(whole[:2])


def test_onnx_runtime_runs_the_same_segments():
    model = tiny.adapted(half_leave((2,), fv.SPViT(after=(1,), keep=(0.4,))))
    engine = load_engine(model, "onnxruntime", "fp32", images()[:4])
    with torch.no_grad():
        expected, trace = model.traced(images())
    logits, ours = engine.traced(images())
    same(logits, expected)
    assert ours.exits == trace.exits and len(set(ours.exits)) == 2


def test_compiled_segments_are_segments(monkeypatch):
    """What torch.compile itself does takes minutes; here it is left out."""
    seen = []
    monkeypatch.setattr(torch, "compile", lambda module, **settings: seen.append(settings) or module)
    model = tiny.adapted(TOPK)
    for precision in ("fp32", "bf16"):
        engine = load_engine(model, "torch-compile", precision, images()[:4])
        assert engine(images()).dtype == torch.float32
    engine = load_engine(model, "torch-compile", "fp32", images()[:4])
    with torch.no_grad():
        same(engine(images()), model(images()))
    assert seen == [{"dynamic": True}] * 9


# how engines are made


def test_an_exit_that_disagrees_is_named(monkeypatch):
    model = tiny.adapted(NEVER)
    with pytest.raises(fv.FoveateError, match="torch bf16, exit after block 1, whose logits are not those of the model"):
        load_engine(model, "torch", "bf16", images()[:4], tolerance=1e-9)
    spoilt = staged_maker.graph_segment

    def graph_segment(call):
        return spoilt(lambda given: [tensor.flip(-1) if tensor.dim() == 3 else tensor for tensor in call(given)])

    monkeypatch.setattr(staged_maker, "graph_segment", graph_segment)
    with pytest.raises(fv.FoveateError, match="openvino fp32, exit after block 2"):
        load_engine(model, "openvino", "fp32", images()[:4])


def test_every_group_size_has_run_before_the_engine_is_handed_out(monkeypatch):
    sizes = []
    real = staged_maker.openvino_caller

    def caller(*given, **more):
        call = real(*given, **more)
        return lambda tensors: sizes.append(len(tensors[0])) or call(tensors)

    monkeypatch.setattr(staged_maker, "openvino_caller", caller)
    load_engine(tiny.adapted(fv.Plan([fv.EarlyExit(after=(2,))])), "openvino", "fp32", images()[:5])
    assert set(sizes) == {1, 2, 3, 4, 5} and sizes[-10:] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_segments_know_what_they_take():
    model = tiny.adapted(TOPK).eval()
    segments = segments_for_graphs(model, images()[:2], single=False)
    assert [one.inputs for one in segments] == [("images",), ("x",), ("x", "place")]
    assert [one.outputs for one in segments] == [("next_x",), ("next_x", "next_place"), ()]
    shapes = [[tuple(tensor.shape) for tensor in given] for given in examples(segments, images()[:2])]
    assert shapes == [[(2, 3, 32, 32)], [(2, 17, 24)], [(2, 13, 24), (2, 13)]]
    with pytest.raises(fv.FoveateError, match="different numbers of tokens"):
        segments_for_graphs(tiny.adapted(ARGMAX).eval(), images(), single=False)


def test_the_class_tokens_row_flows_only_where_it_is_read_again():
    exits = fv.EarlyExit(after=(1, 2, 3))
    for method, needed in ((fv.IRET(threshold=0.05), [True, True, False]), (fv.Structure(keep=0.5), [False] * 3)):
        model = tiny.adapted(fv.Plan([method, exits]), "iret")
        watched = {block for block in model.plan.watched(model.card)}
        assert [row_needed(model, end) for end in (1, 2, 3)] == [end in watched or (end < max(watched, default=0) and end in watched) for end in (1, 2, 3)]
    skipping = tiny.adapted(fv.Plan([fv.PIVOT(skip=(2,)), fv.IRET(threshold=0.05), exits]), "iret")
    assert row_needed(skipping, 1)


def test_a_run_with_exits_becomes_an_engine(tmp_path):
    engine = load(fv.save(tiny.adapted(TOPK), tmp_path / "run"), "torch", "fp32")
    assert engine.staged and engine(images()[:3]).shape == (3, 7)


# budgets


def test_energies_decide_in_engines_too(engines):
    model, engine = tiny.adapted(NEVER), engines[NEVER]
    limits = [10.0 ** power for power in torch.linspace(-3.0, 1.0, COUNT).tolist()]
    with torch.no_grad():
        expected, trace = model.traced(images(), budget_mj=limits, strict=False)
    logits, ours = engine.traced(images(), budget_mj=limits, strict=False)
    same(logits, expected)
    same(engine(images(), budget_mj=limits, strict=False), expected)
    assert (ours.exits, ours.short) == (trace.exits, trace.short) and len(set(ours.exits)) == 3
    with pytest.raises(fv.FoveateError, match="budget_mj=0"):
        engine(images(), budget_mj=0)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_deadlines_go_by_a_table_of_the_engine(backend, engines, monkeypatch):
    model = tiny.adapted(NEVER)
    model.costs = SegmentCosts((1, 2, 4), ((Latency(COUNT, 17, 1e6, 1e6),),) * 3, machine_key())
    engine = engines[NEVER] if backend == "openvino" else load_engine(model, backend, "fp32", images()[:4])
    latency = ((Latency(COUNT, 17, 10.0, 10.0),),) * 3
    monkeypatch.setattr("foveate.segments.Cut.measure", lambda self, given: latency)
    monkeypatch.setattr(foveate.budgeting, "clock", iter([0.0, 0.0, 0.010, 0.020]).__next__)
    _, trace = engine.traced(images(), budget_ms=[15.0, 20.0, 30.0] * 4)
    assert trace.exits == [1, 2, 4] * 4 and trace.short == [i for i in range(COUNT) if i % 3 < 2]
    costs = engine.run.costs if backend == "openvino" else engine.run.model.costs
    assert costs.latency == latency and costs.machine == machine_key() and backend in costs.runner


def test_budgets_need_an_engine_with_exits():
    engine = load_engine(tiny.adapted(fv.Plan([fv.SPViT(**STAGES)])), "torch", "fp32", images()[:4])
    for call in (lambda: engine(images(), budget_ms=20), lambda: engine.traced(images())):
        with pytest.raises(fv.FoveateError, match="fv.EarlyExit"):
            call()


def test_efforts_with_exits_and_budgets_of_a_cascade():
    low, high = tiny.adapted(fv.Plan([fv.PIVOT(skip=(2, 3))])), tiny.adapted(half_leave((2,)))
    both = calibrate(fv.Cascade([low, high], fv.Entropy(0.5)), (images(), torch.arange(COUNT) % 7), 0.5)
    engine = load_engine(both, "openvino", "fp32", images()[:4])
    with torch.no_grad():
        expected, trace = both.traced(images())
        same(engine(images()), expected)
        assert engine.traced(images())[1].efforts == trace.efforts and set(trace.efforts) == {1, 2}
        first, second = (fv.simulate(effort).energy_mj for effort in (low, high))
        limits = [first * 1.5, first + second * 1.01] * (COUNT // 2)
        expected, trace = both.traced(images(), budget_mj=limits)
        logits, ours = engine.traced(images(), budget_mj=limits)
    same(logits, expected)
    assert ours.efforts == trace.efforts and ours.short == trace.short != []


def test_what_a_maker_needs_is_made_once(monkeypatch):
    made = []
    real = staged_maker.openvino_graph
    monkeypatch.setattr(staged_maker, "openvino_graph", lambda *given: made.append(1) or real(*given))
    maker = StagedMaker(tiny.adapted(half_leave((2,))), images()[:1])
    maker.engine("openvino", "fp32"), maker.engine("openvino", "fp32")
    assert len(made) == 2
