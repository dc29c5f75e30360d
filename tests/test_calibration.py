"""Thresholds from calibration images, and what every low effort constraint would give: exact, and equal to running the cascade."""

import dataclasses

import numpy as np
import pytest
import torch

import foveate as fv
import tiny
from foveate.calibration import calibrate, observe, threshold
from foveate.efforts import LECS, ROUNDING, Answered, Outcomes, Unreachable, break_even, calibrated
from foveate.ledger import Ledger, Operation
from foveate.nn.gates import entropy

ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])
TOPK = fv.Plan([fv.SPViT(after=(2,), keep=(0.5,))])
DENSE = fv.Plan()
COUNT = 40
NAN = float("nan")


def refused(*words: str):
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


def cascade(*plans: fv.Plan, gate: fv.Entropy = fv.Entropy(0.5)) -> fv.Cascade:
    return fv.Cascade([tiny.adapted(plan) for plan in plans or (ARGMAX, DENSE)], gate=gate)


def labelled(count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with labels that the dense model mostly gives."""
    images = tiny.images(count=count, seed=5)
    with torch.no_grad():
        labels = tiny.adapted(DENSE)(images).argmax(-1)
    labels[::4] = (labels[::4] + 1) % 7
    return images, labels


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return observe(cascade(ARGMAX, TOPK, DENSE), labelled(), batch_size=13)


# thresholds


GATE = fv.Entropy(0.5)


@pytest.mark.parametrize("lec", [0.05, 0.1, 0.3, 0.5, 0.7, 0.75, 0.9, 1e-9, 0.701])
@pytest.mark.parametrize("count", [10, 7, 256])
def test_the_constraint_is_met_by_the_fewest_images(lec, count):
    values = np.random.default_rng(count).permutation(np.arange(count, dtype=np.float32) / count)
    gate, share = calibrated(GATE, values, lec)
    stay = np.count_nonzero(values <= np.float32(gate.threshold))
    assert share == stay / count >= lec - 1e-9 and (stay - 1) / count < lec
    inside = values[values <= np.float32(gate.threshold)].max()
    assert gate.threshold == pytest.approx(inside + (ROUNDING if stay == count else 0.5 / count), abs=1e-6)


def test_the_whole_of_the_images_means_every_image():
    values = np.array([0.1, 0.2], dtype=np.float32)
    assert calibrated(GATE, values, 1.0) == (fv.Entropy(1.0), 1.0) and calibrated(GATE, values, 1) == (fv.Entropy(1.0), 1.0)
    assert calibrated(fv.Margin(0.5), -values, 1.0) == (fv.Margin(0.0), 1.0) and calibrated(fv.MaxProbability(0.5), -values, 1.0)[0].threshold == 0


def test_ties_stay_together():
    values = np.array([0.125, 0.25, 0.25, 0.25, 0.75], dtype=np.float32)
    assert calibrated(GATE, values, 0.2) == (fv.Entropy(0.1875), 0.2)
    assert calibrated(GATE, values, 0.4) == calibrated(GATE, values, 0.8) == (fv.Entropy(0.5), 0.8)
    assert calibrated(GATE, np.zeros(4, dtype=np.float32), 0.5) == (fv.Entropy(float(np.float32(ROUNDING))), 1.0)
    assert calibrated(GATE, np.ones(4, dtype=np.float32), 0.5) == (fv.Entropy(1.0), 1.0)
    assert calibrated(fv.Margin(0.5), np.zeros(4, dtype=np.float32), 0.5) == (fv.Margin(0.0), 1.0)
    neighbours = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1))], dtype=np.float32)
    assert calibrated(GATE, neighbours, 0.5) == (fv.Entropy(0.5), 0.5)


def test_a_constraint_out_of_reach_names_the_best_in_reach():
    values = np.array([0.1, NAN, 0.3, NAN, 0.2], dtype=np.float32)
    assert calibrated(GATE, values, 0.6)[1] == 0.6
    with refused("lec=0.7", "2 of 5", "0.6"):
        calibrated(GATE, values, 0.7)
    with pytest.raises(Unreachable):
        calibrated(GATE, np.full(3, NAN, dtype=np.float32), 0.1)


@pytest.mark.parametrize("lec", [0, -0.1, 1.1, 70, NAN, True, "0.7", None])
def test_other_constraints_are_refused(lec):
    with refused("lec"):
        calibrated(GATE, np.zeros(3, dtype=np.float32), lec)


@pytest.mark.parametrize("kind", [fv.Entropy, fv.MaxProbability, fv.Margin])
def test_thresholds_from_logits_alone(kind):
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(3)) * 2
    gate, share = threshold(kind(0.5), logits, 0.7)
    assert isinstance(gate, kind) and share == 0.7
    measure = {fv.Entropy: entropy, fv.MaxProbability: lambda z: z.softmax(-1).max(-1)[0]}.get(kind)
    if measure:
        around = measure(logits).sort(descending=kind is not fv.Entropy)[0][34:36]
        assert gate.threshold == pytest.approx(float(around.mean()), abs=1e-6)
    with refused("0 images"):
        threshold(kind(0.5), logits[:0])


# calibration of a cascade


@pytest.mark.parametrize("kind", [fv.Entropy, fv.MaxProbability, fv.Margin])
@pytest.mark.parametrize("lec", [0.25, 0.7, 1.0])
def test_the_calibrated_cascade_answers_that_share(kind, lec):
    model, (images, labels) = cascade(gate=kind(0.5)), labelled()
    found = calibrate(model, (images, labels), lec)
    with torch.no_grad():
        efforts = found.traced(images)[1].efforts
    assert sum(e == 1 for e in efforts) / COUNT == found.plan.fractions[0] == pytest.approx(lec, abs=0.5 / COUNT)
    assert found.efforts[0] is model.efforts[0] and model.plan.gates == (kind(0.5),) and model.plan.fractions is None
    assert fv.Plan.from_json(found.plan.to_json()) == found.plan
    assert fv.count(found).label.endswith(", ".join(f"{f:g}" for f in found.plan.fractions))


def test_stage_by_stage():
    model, data = cascade(ARGMAX, TOPK, DENSE), labelled()
    found = calibrate(model, data, 0.5)
    assert found.plan.fractions == (0.5, 0.25, 0.25)
    assert calibrate(model, data, (0.25, 0.8)).plan.fractions == pytest.approx((0.25, 0.6, 0.15))
    with torch.no_grad():
        efforts = found.traced(data[0])[1].efforts
    assert [efforts.count(n) / COUNT for n in (1, 2, 3)] == [0.5, 0.25, 0.25]
    all_low = calibrate(model, data, 1.0)
    assert all_low.plan.fractions == (1.0, 0.0, 0.0) and all_low.plan.gates == (fv.Entropy(1.0), fv.Entropy(0.5))
    with refused("2 efforts|3 efforts"):
        calibrate(model, data, (0.5, 0.5, 0.5))


def test_a_set_of_foveate_train_is_taken_as_it_is():
    images, labels = labelled(12)

    class Set:
        def __init__(self):
            self.labels = labels

        def batch(self, indices):
            return dataclasses.make_dataclass("Batch", ["images", "labels"])(images[indices], labels[indices])

    model, said = cascade(), []
    found = calibrate(model, Set(), 0.5, batch_size=5, progress=lambda *done: said.append(done))
    assert found.plan == calibrate(model, (images, labels), 0.5, batch_size=5).plan
    assert said == [(5, 12), (10, 12), (12, 12)]


def test_sets_that_say_nothing_are_refused():
    images, labels = labelled(6)
    for data, words in (((images[:0], labels[:0]), "0 images"), ((images, torch.zeros(6, dtype=torch.long)), "1 class")):
        with refused(words):
            calibrate(cascade(), data)


def test_other_things_are_refused():
    images, labels = labelled(6)
    for data, words in ((images, "Tensor"), ([images, labels], "list"), ((images, labels, labels), "tuple"), ((images, labels[:4]), "6 images with labels"),
                        ((images, labels[:, None].expand(6, 7)), "labels of shape")):  # fmt: skip
        with refused(words):
            calibrate(cascade(), data)
    with refused("batch_size=0"):
        calibrate(cascade(), (images, labels), batch_size=0)
    with refused("AdaptiveModel", "a Cascade"):
        calibrate(tiny.adapted(DENSE), (images, labels))


def test_modes_are_put_back():
    model = cascade()
    model.efforts[1].train()
    calibrate(model, labelled(6), 0.5)
    assert model.efforts[1].training and not model.efforts[0].training


def test_nan_logits_limit_what_can_be_asked():
    model, (images, labels) = cascade(), labelled(8)
    model.efforts[0].register_forward_hook(lambda *_: None)
    plain = model.efforts[0].traced

    def spoiled(images, *rest):
        logits, trace = plain(images, *rest)
        return logits.index_fill(0, torch.tensor([0, 2]), NAN), trace

    model.efforts[0].traced = spoiled
    outcomes = observe(model, (images, labels))
    assert outcomes.nan.sum(1).tolist() == [2, 0] and not outcomes.correct[0][[0, 2]].any()
    assert calibrate(model, outcomes, 0.75).plan.fractions == (0.75, 0.25)
    with refused("2 of 8", "F_L up to 0.75"):
        calibrate(model, outcomes, 0.8)
    assert [point.lec for point in outcomes.sweep()] == [lec for lec in LECS if lec <= 0.75]
    assert outcomes.answered(outcomes.gates_for(0.75)).nan == (2, 0)


# who answers what


def test_answers_of_a_trace():
    model, (images, labels) = calibrate(cascade(), labelled(), 0.7), labelled()
    with torch.no_grad():
        logits, trace = model.traced(images)
    correct = (logits.argmax(-1) == labels).numpy()
    found = Answered.of(trace, correct, 2)
    low = np.array(trace.efforts) == 1
    assert (found.F_L, found.F_H) == found.fractions == pytest.approx((low.mean(), 1 - low.mean()))
    assert (found.C_L, found.C_H) == (correct[low].sum() / COUNT, correct[~low].sum() / COUNT)
    assert found.C_L + found.I_L == pytest.approx(found.F_L) and found.C_H + found.I_H == pytest.approx(found.F_H)
    assert found.C_L + found.C_H == pytest.approx(correct.mean()) and found.images == COUNT
    form = found.to_dict()
    assert form["F_L"] == found.F_L and [row["answered_percent"] for row in form["efforts"]] == pytest.approx([100 * found.F_L, 100 * found.F_H])
    assert Answered((2, 1, 1), (1, 1, 0), (0, 0, 0)).F_H == 0.5 and Answered((2, 1, 1), (1, 1, 0), (0, 0, 0)).C_H == 0.25
    assert Answered.of(fv.Trace(1, efforts=[1]), np.array([True]), 3).answered == (1, 0, 0)


def test_outcomes_predict_what_the_cascade_does(outcomes):
    model, (images, labels) = cascade(ARGMAX, TOPK, DENSE), labelled()
    for lec in (0.3, 0.6, 0.9):
        gates = outcomes.gates_for(lec)
        with torch.no_grad():
            parts = [model.gated(gates).traced(images[start : start + 13]) for start in range(0, COUNT, 13)]
        trace = fv.Trace.concatenate([trace for _, trace in parts])
        correct = (torch.cat([logits for logits, _ in parts]).argmax(-1) == labels).numpy()
        point = outcomes.point(lec)
        assert outcomes.efforts(gates).tolist() == trace.efforts
        assert outcomes.answered(gates) == Answered.of(trace, correct, 3)
        assert point.accuracy_percent == pytest.approx(100 * correct.mean())
        assert point.macs == pytest.approx(fv.count(model, trace=trace).macs)
        assert point.thresholds == tuple(gate.threshold for gate in gates)


# the sweep


def test_delays_and_products_split_into_their_parts(outcomes):
    points = outcomes.sweep()
    assert [point.lec for point in points] == list(LECS) and outcomes.delay_unit == "GMAC"
    for point in points:
        assert point.delay == pytest.approx(point.macs / 1e9) == pytest.approx(point.delay_low + point.delay_high + point.delay_recomputation)
        assert point.edp == pytest.approx(point.delay * point.energy)
        assert point.edp_of_passes == pytest.approx(point.edp_low + point.edp_high + point.edp_recomputation)
    assert points[-1].delay_high == points[-1].delay_recomputation == points[-1].edp_high == 0
    assert all(a.delay_recomputation >= b.delay_recomputation for a, b in zip(points, points[1:]))


def test_pivots_own_figures():
    """PVDS-50: D_L + F_H D_H = 48.47 ms and, summed over passes, 7.92 W (D_L^2 + F_H D_H^2) = 16.21 J ms at F_H = 0.2."""
    delays, count = (36.538, 59.66), 100
    difficulty = np.linspace(0, 1, count, dtype=np.float32)[None]
    delay = np.array(delays)[:, None].repeat(count, 1)
    found = Outcomes((fv.Entropy(0.5),), difficulty, np.ones((2, count), bool), np.zeros((2, count), bool), delay, delay, 7.92e-3 * delay, "ms", "J").point(0.8)
    assert found.fractions == (0.8, 0.2)
    assert found.delay == pytest.approx(48.47, abs=0.005) and found.delay_recomputation == pytest.approx(0.2 * delays[0])
    assert found.edp_of_passes == pytest.approx(16.21, abs=0.01) and found.edp == pytest.approx(18.61, abs=0.01)
    assert found.edp_recomputation == pytest.approx(7.92e-3 * 0.2 * delays[0] ** 2) and found.edp_low == pytest.approx(7.92e-3 * 0.8 * delays[0] ** 2)


def test_delays_may_be_measured_or_simulated():
    model, data = cascade(TOPK, DENSE), labelled(12)
    timed = observe(model, data, cost=lambda effort, trace: 2.0 if effort is model.efforts[0] else 5.0).point(0.75)
    assert timed.delay == pytest.approx(2 + 0.25 * 5) and timed.edp == pytest.approx(timed.delay**2) and timed.delay_recomputation == pytest.approx(0.5)
    seen = []

    def simulated(effort, trace):
        seen.append(trace.images)
        return Ledger((Operation("gemm", "blocks.1.attn.qkv", latency_ms=3.0, energy_mj=24.0),))

    found = observe(model, data, cost=simulated, cost_name="a machine")
    assert seen == [12, 12] and (found.delay_unit, found.energy_unit, found.cost) == ("ms", "J", "a machine")
    assert found.point(1.0).energy == pytest.approx(0.024) and found.point(1.0).edp == pytest.approx(0.072)
    assert "unit power" in observe(model, data, cost=lambda *_: 1.0).cost
    for wrong in (0, -1.0, NAN, None, Ledger((Operation("gemm", "head.fc"),))):
        with refused("milliseconds"):
            observe(model, data, cost=lambda *_, wrong=wrong: wrong)


def test_break_even():
    assert break_even(1.0, 4.0) == 0.75 and break_even(4.0, 4.0) == 0 and break_even(5.0, 4.0) < 0
    low, high = 3.0, 7.0
    assert low + break_even(low, high) * high == pytest.approx(high)
