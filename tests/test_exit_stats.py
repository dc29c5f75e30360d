"""What exits do with a labelled set: equal to running the model at each threshold, and to counting image by image."""

import numpy as np
import pytest
import torch

import foveate as fv
import tiny
from foveate.exit_calibration import calibrate_exits, exits_of, observe_exits
from foveate.exit_stats import ExitOutcomes, left_at

NAN = float("nan")
COUNT = 40


def refused(*words: str):
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Images with labels that the dense model mostly gives."""
    images = tiny.images(count=COUNT, seed=5)
    with torch.no_grad():
        labels = tiny.adapted(fv.Plan())(images).argmax(-1)
    labels[::4] = (labels[::4] + 1) % 7
    return images, labels


PLANS = {
    "confidence": [fv.EarlyExit(after=(1, 2, 3))],
    "entropy": [fv.EarlyExit(after=(1, 2, 3), gate="entropy")],
    "margin": [fv.EarlyExit(after=(1, 3), gate="margin")],
    "patience": [fv.EarlyExit(after=(1, 2, 3), gate="patience", threshold=1)],
    "argmax": [fv.EarlyExit(after=(1, 2, 3)), fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")],
}
THRESHOLDS = {"patience": (1, 2, 3), "entropy": (0.0, 0.2, 0.5, 0.8), "margin": (0.1, 0.5, 0.9)}


@pytest.fixture(scope="module", params=PLANS)
def studied(request) -> tuple[fv.AdaptiveModel, ExitOutcomes]:
    model = tiny.adapted(fv.Plan(PLANS[request.param]))
    return model, observe_exits(model, labelled(), batch_size=13)


def test_every_threshold_gives_what_running_the_model_with_it_gives(studied):
    model, outcomes = studied
    images, labels = labelled()
    taken = set()
    for threshold in THRESHOLDS.get(outcomes.config.gate, (0.3, 0.5, 0.7, 0.95, 1.0)):
        other = fv.replan(model, fv.Plan([outcomes.config.but(threshold=threshold), *model.plan.methods[1:]])).eval()
        with torch.no_grad():
            logits, trace = other.traced(images)
        right, point = (logits.argmax(-1) == labels).numpy(), outcomes.point(threshold)
        rows = left_at(trace, right, other.exit_blocks)
        assert point.leaving == pytest.approx([row["left_percent"] for row in rows])
        assert point.accuracy_percent == pytest.approx(100 * right.mean())
        assert point.macs == pytest.approx(fv.count(other, trace=trace).macs, rel=1e-9)
        parts = [a + b for a, b in zip(point.right, point.wrong)]
        assert sum(parts) + point.unclassified == pytest.approx(100) and 0 <= point.unclassified_right <= point.unclassified
        assert sum(point.right) + point.unclassified_right == pytest.approx(point.accuracy_percent)
        assert point.right[:-1] == pytest.approx([row["correct_percent"] for row in rows][:-1])
        taken.add(point.leaving)
    assert len(taken) > 1


def test_the_accuracy_of_each_exit_is_over_all_images(studied):
    model, outcomes = studied
    images, labels = labelled()
    with torch.no_grad():
        answers, _ = model.exit_logits(images)
    assert outcomes.accuracies == pytest.approx([100 * (a.argmax(-1) == labels).float().mean().item() for a in answers.values()])
    assert outcomes.blocks == tuple(answers) and (np.diff(outcomes.macs, axis=0) > 0).all()


# by hand: three exits, six images


def made(gate: str = "confidence", measure=None, correct=None) -> ExitOutcomes:
    measure = [[0.9, 0.6, 0.5, NAN, 0.3, 0.7], [0.2, 0.7, 0.5, 0.8, 0.4, 0.1], [0.9, 0.1, 0.5, NAN, 0.4, 0.95]] if measure is None else measure
    correct = [[1, 0, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1]] if correct is None else correct
    macs = np.repeat([[1e9], [2e9], [4e9]], 6, axis=1)
    return ExitOutcomes(fv.EarlyExit(after=(2, 5), gate=gate), (2, 5, 9), np.array(measure, dtype=np.float32), np.array(correct, dtype=bool), macs)


def test_unclassified_images_are_a_class_of_their_own():
    point = made().point(0.7)
    # leave: image 0 and 5 at the first, 1 and 3 at the second; 2 and 4 stay below 0.7 to the end
    sixth = 100 / 6
    assert point.right == pytest.approx((2 * sixth, 2 * sixth, 0)) and point.wrong == pytest.approx((0, 0, 0))
    assert point.unclassified == pytest.approx(2 * sixth) and point.unclassified_right == pytest.approx(sixth)
    assert point.accuracy_percent == pytest.approx(5 * sixth) and point.macs == pytest.approx((2 * 1 + 2 * 2 + 2 * 4) / 6 * 1e9)
    assert point.leaving == pytest.approx((2 * sixth, 2 * sixth, 2 * sixth))


def test_at_threshold_1_everybody_runs_to_the_end_unclassified():
    point = made(measure=np.ones((3, 6))).point(1.0)
    assert point.unclassified == 100 and point.macs == 4e9 and point.right == (0, 0, 0) and point.accuracy_percent == pytest.approx(100 * 4 / 6)


def test_thresholds_worth_a_row_are_the_papers():
    assert made().thresholds == (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
    assert [point.threshold for point in made().sweep()] == list(made().thresholds)
    entropy = made("entropy").thresholds
    assert entropy[0] == 0.4 and entropy[-1] == 0 and len(entropy) == 9
    assert made("patience", np.zeros((3, 6), dtype=int)).thresholds == (1, 2)


def test_calibration_finds_the_cheapest_threshold_for_an_accuracy():
    outcomes = made()
    points = [outcomes.point(step / 1000) for step in range(1001)]
    for floor in (50, 66, 83):
        found = outcomes.calibrated(accuracy_percent=floor)
        assert found.accuracy_percent >= floor and found.macs == min(p.macs for p in points if p.accuracy_percent >= floor)
    for budget in (1.2e9, 2e9, 3.9e9):
        found = outcomes.calibrated(macs=budget)
        assert found.macs <= budget and found.accuracy_percent == max(p.accuracy_percent for p in points if p.macs <= budget)


def test_what_no_threshold_reaches_names_the_best():
    with refused("accuracy of 99 %", "up to 83.33 %"):
        made().calibrated(accuracy_percent=99)
    with refused("0.5 GMACs", "1.167 and more"):
        made().calibrated(macs=0.5e9)
    for wrong in ({}, dict(accuracy_percent=50, macs=1e9)):
        with refused("calibrate", "one of the two"):
            made().calibrated(**wrong)


# models


def test_a_calibrated_model_has_the_threshold_and_nothing_else_changed():
    model, data = tiny.adapted(fv.Plan(PLANS["argmax"])), labelled()
    outcomes = observe_exits(model, data)
    floor = outcomes.accuracies[-1]
    tuned = calibrate_exits(model, outcomes, accuracy_percent=floor)
    assert exits_of(tuned) == exits_of(model).but(threshold=outcomes.calibrated(accuracy_percent=floor).threshold) != exits_of(model)
    assert tuned.plan.methods[1:] == model.plan.methods[1:] and not tuned.training
    assert all(torch.equal(a, b) for a, b in zip(tuned.state_dict().values(), model.state_dict().values(), strict=True))
    assert calibrate_exits(model, data, accuracy_percent=floor, batch_size=7).plan == tuned.plan


def test_observing_leaves_every_part_in_its_mode_and_reports_progress():
    model, done = tiny.adapted(fv.Plan(PLANS["confidence"])).train(), []
    model.blocks[1].eval()
    before = [m.training for m in model.modules()]
    observe_exits(model, labelled(), 16, lambda *now: done.append(now))
    assert [m.training for m in model.modules()] == before and done == [(16, COUNT), (32, COUNT), (COUNT, COUNT)]


def test_what_cannot_be_observed_is_refused():
    model, (images, labels) = tiny.adapted(fv.Plan(PLANS["confidence"])), labelled()
    with refused("no early exits", "EarlyExit"):
        observe_exits(tiny.adapted(fv.Plan()), (images, labels))
    with refused("a VisionTransformer", "no early exits"):
        calibrate_exits(tiny.model(), (images, labels), macs=1e9)
    with refused("batch_size"):
        observe_exits(model, (images, labels), 0)
    with refused("1 class"):
        observe_exits(model, (images, torch.zeros_like(labels)))


def test_answers_that_are_no_numbers_are_neither_sure_nor_right():
    model = tiny.adapted(fv.Plan(PLANS["confidence"]))
    with torch.no_grad():
        model.earlyexit.exits["2"].fc.bias[0] = NAN
    outcomes = observe_exits(model, labelled())
    assert np.isnan(outcomes.measure[1]).all() and outcomes.accuracies[1] == 0 and outcomes.point(0.0).leaving[1] == 0
