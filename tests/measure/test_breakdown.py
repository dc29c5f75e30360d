"""measure/breakdown.py: self times of nested parts, sums and shares by round, and what counts as overhead. No wall-clock time is asserted."""

import copy

import pytest
import torch

import foveate as fv
import tiny
from foveate.measure import breakdown as module
from foveate.measure.breakdown import Meter, breakdown, metered
from foveate.nn.gates import entropy

STAGES = dict(after=(1, 3), keep=(0.7, 0.4))


@pytest.fixture
def now(monkeypatch):
    """A clock that only moves when a test says so."""
    at = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: at[0])
    return at


def test_a_part_inside_another_counts_for_itself(now):
    def passing(seconds, inner=lambda: None):
        def run(result=None):
            now[0] += seconds
            inner()
            now[0] += seconds
            return result
        return run

    meter = Meter()
    selector = meter.timed("selector", passing(1))
    both = meter.timed("packaging", passing(10, selector))
    whole = meter.timed("rest", passing(100, lambda: (both(), selector())))
    assert whole("answer") == "answer" and selector(result="own") == "own"
    assert meter.take() == {"selector": 6, "packaging": 20, "rest": 200}
    assert meter.take() == {}


def test_a_part_that_fails_is_closed(now):
    def failing():
        now[0] += 1
        raise KeyError

    meter = Meter()
    outer = meter.timed("outer", lambda: pytest.raises(KeyError, meter.timed("inner", failing)))
    outer()
    assert meter.take() == {"inner": 1, "outer": 0}


def test_the_device_is_idle_at_both_ends(now):
    waits = []
    Meter(lambda: waits.append(now[0])).timed("part", lambda: now.__setitem__(0, 5.0))()
    assert waits == [0, 5]


def test_compute_and_overhead_are_the_whole_round_by_round(now):
    def runner(*rounds):
        turns = iter(rounds * 100)

        def run():
            compute, selector, gate = next(turns)
            now[0] += compute + selector + gate
            return {"selector": selector} | ({"gate": gate} if gate else {})

        return run

    found = breakdown({"dense": lambda: now.__setitem__(0, now[0] + 8.0) or {}, "plan": runner((3, 1, 0), (6, 1, 1), (3, 1, 4))}, 3, warmup=3, images=2)
    dense, plan = found["dense"], found["plan"]
    assert dense.parts_ms == {} and dense.overhead_percent == (0, 0, 0) and dense.compute_ms == dense.timing.latency_ms
    assert plan.parts_ms == {"selector": (500, 500, 500), "gate": (0, 500, 2000)}
    assert plan.timing.samples_ms == (2000, 4000, 4000)
    assert plan.compute_ms.median == 1500 and plan.overhead_ms == (1000, 750, 1750)
    assert plan.overhead_percent == (25, 25, pytest.approx(43.75)) and plan.percent("gate").median == 12.5
    assert plan.timing.speedup.median == 1
    figures = plan.to_dict()
    assert {f"{key}{end}" for key in ("compute_ms", "overhead_ms", "overhead_percent") for end in ("", "_low", "_high")} < set(figures)
    assert figures["overhead_ms"] == 1000 and figures["overhead_parts"] == [
        {"part": "selector", "overhead_ms": 500, "percent": 12.5}, {"part": "gate", "overhead_ms": 500, "percent": 12.5}]


def parts_of(model, images, precision: str = "fp32") -> dict[str, float]:
    spent = metered(model, precision)(images)
    assert all(seconds >= 0 for seconds in spent.values())
    return spent


@pytest.mark.parametrize("plan, parts", [
    ([], set()), ([fv.PIVOT(skip=(2,))], set()), ([fv.ViTCoD()], set()), ([fv.SPViT(**STAGES)], {"selector", "packaging and gathers"}),
    ([fv.SPViT(**STAGES, select="argmax"), fv.ViTALiTy()], {"selector", "packaging and gathers"}), ([fv.Random(**STAGES)], {"packaging and gathers"}),
])
def test_overhead_is_what_pruning_adds(plan, parts):
    fast = tiny.adapted(fv.Plan(plan))
    for precision in ("fp32", "bf16"):
        assert set(parts_of(fast, tiny.images(), precision)) == parts


def test_the_model_that_was_given_is_left_alone():
    fast = tiny.adapted(fv.Plan([fv.SPViT(**STAGES)])).train()
    before = copy.deepcopy(fast.state_dict())
    metered(fast, "bf16")(tiny.images())
    assert fast.training and "after" not in vars(fast.spvit) and "forward" not in vars(fast.spvit.selectors["1"])
    assert all(torch.equal(value, before[name]) and value.dtype == before[name].dtype for name, value in fast.state_dict().items())
    assert fast(tiny.images()).requires_grad


def cascade(share: float) -> tuple[fv.Cascade, torch.Tensor]:
    """A cascade that passes this share of ten images on, and the images."""
    low, images = tiny.adapted(fv.Plan([fv.SPViT(after=(1,), keep=(0.5,))])), tiny.images(count=10)
    with torch.no_grad():
        found = entropy(low(images)).sort().values
    going = round(share * 10)
    bounds = torch.cat([torch.zeros(1), (found[1:] + found[:-1]) / 2, torch.ones(1)])
    return fv.Cascade([low, tiny.adapted(fv.Plan([fv.PIVOT(skip=(2,))]))], fv.Entropy(float(bounds[10 - going]))), images


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_recomputation_is_the_cheap_pass_of_those_that_go_on(monkeypatch, share):
    """On a clock that every attention of a block moves by a second an image; the low effort has four blocks."""
    joined, images = cascade(share)
    at = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: at[0])
    for effort in joined.efforts:
        for block in effort.blocks:
            block.mlp.register_forward_hook(lambda _, __, out: at.__setitem__(0, at[0] + len(out)))
    spent = metered(joined)(images[:5], images[5:])
    assert spent.pop("recomputation") == pytest.approx(4 * 10 * share)
    assert spent == dict.fromkeys(["gate", "regrouping", "selector", "packaging and gathers"], 0)
    assert at[0] == pytest.approx(4 * 10 * (1 + share))


def test_another_precision_is_refused():
    with pytest.raises(fv.FoveateError, match="(?s)given:.*int8.*allowed:.*fp32, bf16"):
        metered(tiny.adapted(fv.Plan()), "int8")
