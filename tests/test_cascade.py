"""Cascades of models: the batch equals each image alone, what the trace says, replay, cost, and run folders."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import foveate as fv
import tiny
from foveate import store
from foveate.cascade_plan import EFFORT
from foveate.nn.gates import difficulty
from foveate.store import PLAN, WEIGHTS
from foveate.trace import Trace

ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])
TOPK = fv.Plan([fv.SPViT(after=(2,), keep=(0.5,))])
DENSE = fv.Plan()
PIVOT = fv.Plan([fv.PIVOT(skip=(2, 3))])
CHAINS = {"two": (ARGMAX, DENSE), "three": (ARGMAX, TOPK, DENSE), "dear first": (DENSE, TOPK), "pivot": (PIVOT, DENSE),
          "mixed": (fv.Plan([fv.PIVOT(skip=(2, 4)), fv.SPViT(after=1, keep=0.5)]), PIVOT)}
GATES = [fv.Entropy, fv.MaxProbability, fv.Margin]
COUNT = 10


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


def limits(models, images, kind, share: float = 0.6) -> list:
    """Gates that about `share` of the images stay at, with no image near a threshold."""
    gates = []
    for model in models[:-1]:
        with torch.no_grad():
            found = difficulty(kind(0), model(images)).double().sort().values
        gaps = found[1:] - found[:-1]
        at = max(range(3, len(found) - 3), key=lambda i: gaps[i].item() - abs(i - share * len(found)) * 1e-3)
        gates.append(kind(0).at((found[at] + found[at + 1]).item() / 2))
    return gates


def cascade(chain: str = "two", kind=fv.Entropy, key: str = "deit") -> fv.Cascade:
    models = [tiny.adapted(plan, key) for plan in CHAINS[chain]]
    return fv.Cascade(models, gate=limits(models, tiny.images(key, COUNT), kind))


# what it computes


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", GATES)
def test_the_batch_equals_every_image_alone(chain, kind):
    model, images = cascade(chain, kind), tiny.images(count=COUNT)
    with torch.no_grad():
        logits, trace = model.traced(images)
        assert torch.equal(model(images), logits)
        assert 1 < len(trace.passes) and len(set(trace.efforts)) > 1
        for i in range(COUNT):
            alone, seen = model.traced(images[i : i + 1])
            assert seen.efforts == [trace.efforts[i]]
            torch.testing.assert_close(alone[0], logits[i], atol=1e-5, rtol=1e-4)


def test_every_answer_comes_from_the_effort_the_gate_chose():
    model, images = cascade("three"), tiny.images(count=COUNT)
    with torch.no_grad():
        logits, trace = model.traced(images)
        answers = [effort(images) for effort in model.efforts]
    for i in range(COUNT):
        effort = 1
        while effort < 3 and float(difficulty(model.plan.gates[effort - 1], answers[effort - 1][i])) > model.plan.gates[effort - 1].limit:
            effort += 1
        assert trace.efforts[i] == effort
        torch.testing.assert_close(logits[i], answers[effort - 1][i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("key", ["siglip", "eva02", "lvvit", "swin"])
def test_every_family(key):
    model, images = cascade(key=key), tiny.images(key, COUNT)
    with torch.no_grad():
        logits, trace = model.traced(images)
        torch.testing.assert_close(model.masked(images, trace), logits, atol=1e-5, rtol=1e-4)
        assert torch.equal(model.traced(images, decisions=trace)[0], logits)


def test_a_group_without_images_does_not_run():
    low, high = tiny.adapted(TOPK), tiny.adapted(DENSE)
    ran = []
    high.register_forward_hook(lambda *_: ran.append("high"))
    stays, goes = fv.Cascade([low, high], fv.Entropy(1.0)), fv.Cascade([low, high], fv.Entropy(0.0))
    images = tiny.images(count=4)
    with torch.no_grad():
        assert torch.equal(stays(images), low(images)) and not ran
        logits, trace = stays.traced(images)
        assert trace.efforts == [1] * 4 and [one.effort for one in trace.passes] == [1]
        assert torch.equal(goes(images), high(images))
        assert [one.images for one in goes.traced(images)[1].passes] == [[0, 1, 2, 3]] * 2


def test_the_gate_sees_each_batch_anew():
    model, images = cascade("two"), tiny.images(count=COUNT)
    with torch.no_grad():
        order = torch.randperm(COUNT)
        torch.testing.assert_close(model(images)[order], model(images[order]), atol=1e-5, rtol=1e-4)


def test_efforts_of_other_backbones_may_meet():
    low, high = tiny.adapted(TOPK, "deit"), tiny.adapted(DENSE, "deit3")
    model = fv.Cascade([low, high], limits([low, high], tiny.images(count=COUNT), fv.Entropy))
    logits, trace = model.traced(tiny.images(count=COUNT))
    ledgers = [fv.count(low), fv.count(high)]
    share = sum(e == 2 for e in trace.efforts) / COUNT
    assert 0 < share < 1
    assert fv.count(model, trace=trace).macs == pytest.approx(ledgers[0].macs + share * ledgers[1].macs)
    assert fv.count(model, trace=trace).params == sum(p.numel() for p in model.parameters())


def test_half_precision_efforts():
    model = cascade("two").to(torch.bfloat16)
    assert model(tiny.images(count=4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    mixed = fv.Cascade([tiny.adapted(TOPK), tiny.adapted(DENSE, dtype=torch.bfloat16)], fv.Entropy(1.0))
    assert mixed(tiny.images(count=4)).dtype == torch.float32


# logits without probabilities


def test_nan_logits_are_hard_counted_and_reported():
    low, high = tiny.adapted(TOPK), tiny.adapted(DENSE)
    images = tiny.images(count=5)

    def spoil(module, inputs, logits):
        return logits.index_fill(0, torch.tensor([1, 3]), float("nan")) if len(logits) == 5 else logits

    low.register_forward_hook(spoil)
    with torch.no_grad():
        clean = high(images)
        model = fv.Cascade([low, high], fv.Entropy(1.0))
        logits = model(images)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[[1, 3]], clean[[1, 3]], atol=1e-5, rtol=1e-4)


def test_the_trace_counts_images_without_an_answer():
    model = fv.Cascade([tiny.adapted(TOPK), tiny.adapted(TOPK), tiny.adapted(DENSE)], fv.Entropy(1.0))
    with torch.no_grad():
        model.efforts[0].head.bias[2] = float("nan")
        model.efforts[1].head.bias[2] = float("inf")
        logits, trace = model.traced(tiny.images(count=3))
    assert trace.efforts == [3, 3, 3] and [one.nan for one in trace.passes] == [3, 3, 0] and torch.isfinite(logits).all()


# the trace


def test_traces_of_batches_join_to_the_trace_of_all():
    model, images = cascade("three"), tiny.images(count=COUNT)
    with torch.no_grad():
        whole = model.traced(images)[1]
        parts = [model.traced(images[a:b])[1] for a, b in ((0, 4), (4, 5), (5, COUNT))]
    assert Trace.concatenate(parts) == whole and Trace.concatenate([whole]) == whole
    read = Trace.from_json(whole.to_json())
    assert read.to_json() == whole.to_json() and read.passes[1].images == whole.passes[1].images
    assert read != whole  # decisions inside the efforts are not written
    spoiled = model.traced(images)[1]
    spoiled.passes[0].trace.kept[0][0] ^= True
    assert spoiled != whole


@pytest.mark.parametrize("change", [
    lambda d: d.update(efforts=[1] * 10), lambda d: d["passes"][1]["images"].append(0), lambda d: d["passes"][1]["images"].__setitem__(0, 99),
    lambda d: d["passes"].pop(0), lambda d: d["passes"].reverse(), lambda d: d["passes"][0].update(effort=2), lambda d: d["passes"][0].pop("trace"),
    lambda d: d["passes"][0].update(nan=11), lambda d: d["passes"][0]["trace"].update(images=3), lambda d: d.update(passes=3),
    lambda d: d["passes"][0].update(images="0123456789"), lambda d: d.update(passes=["x"])])
def test_wrong_passes_are_refused(change):
    data = json.loads(cascade("two").traced(tiny.images(count=COUNT))[1].to_json())
    change(data)
    with refused("trace"):
        Trace.from_json(json.dumps(data))


def test_costs_are_the_sum_of_each_images_passes():
    model, images = cascade("three"), tiny.images(count=COUNT)
    with torch.no_grad():
        trace = model.traced(images)[1]
        alone = [model.traced(images[i : i + 1])[1] for i in range(COUNT)]
    whole = fv.count(model, trace=trace)
    assert whole.macs == pytest.approx(sum(fv.count(model, trace=one).macs for one in alone) / COUNT)
    by_hand = sum(fv.count(effort, trace=one.trace).macs * len(one.images) for effort, one in zip(model.efforts, trace.passes)) / COUNT
    assert whole.macs == pytest.approx(by_hand)
    assert whole.params == sum(p.numel() for p in model.parameters())
    assert fv.count(model).macs == pytest.approx(sum(fv.count(effort).macs for effort in model.efforts)) and "upper bound" in fv.count(model).label


def test_decisions_of_other_images_or_cascades_are_refused():
    model, images = cascade("two"), tiny.images(count=COUNT)
    three = cascade("three").traced(images)[1]
    plain = tiny.adapted(TOPK).traced(images)[1]
    for decisions, given in ((three, images), (plain, images), (model.traced(images)[1], images[:3]), ("last", images), (Trace(COUNT), images)):
        with refused("decisions"):
            model.traced(given, decisions=decisions)
        with refused("decisions"):
            model.masked(given, decisions)


# models that do not belong together


def test_other_things_are_no_efforts():
    low, high = tiny.adapted(TOPK), tiny.adapted(DENSE)
    for efforts in ([], [low], [low, tiny.model()], [low, TOPK], [low, cascade("two")], [low, None], low, None):
        with refused("cascade", "adapted models"):
            fv.Cascade(efforts, gate=fv.Entropy(0.3))
    with refused("gate"):
        fv.Cascade([low, high], gate=0.3)
    with refused("gate"):
        fv.Cascade([low, high], gate=[fv.Entropy(0.3)] * 2)


def changed(**settings) -> fv.AdaptiveModel:
    model = tiny.adapted(DENSE)
    model.anatomy.model.pretrained_cfg = dict(model.pretrained_cfg) | settings
    return model


def reset(size: int = 32, classes: int = 7) -> fv.AdaptiveModel:
    model = tiny.model()
    model.reset_classifier(classes)
    model.set_input_size(img_size=size)
    return fv.adapt(model.eval(), DENSE)


@pytest.mark.parametrize("other, words", [
    (lambda: reset(classes=5), ("classes 7", "classes 5")), (lambda: reset(size=48), (r"\(32, 32\)", r"\(48, 48\)")),
    (lambda: changed(mean=[0.1, 0.2, 0.3]), ("mean", "0.1")), (lambda: changed(std=(0.1, 0.2, 0.3)), ("std", "0.1")),
    (lambda: changed(interpolation="nearest"), ("interpolation", "nearest")), (lambda: changed(crop_pct=0.5), ("crop_pct", "0.5")),
    (lambda: tiny.adapted(DENSE, "augreg"), ("mean",))])
def test_efforts_that_take_other_images_are_refused_naming_both(other, words):
    with refused("effort 1", *words[:1], "effort 2", *words[1:]):
        fv.Cascade([tiny.adapted(TOPK), other()], gate=fv.Entropy(0.3))


def test_other_class_names_are_refused():
    low = changed(label_names=list("abcdefg"))
    assert fv.Cascade([low, tiny.adapted(DENSE)], gate=fv.Entropy(0.3)).num_classes == 7
    with refused("effort 1", "class names", "effort 2"):
        fv.Cascade([low, changed(label_names=list("gfedcba"))], gate=fv.Entropy(0.3))


def test_one_class_is_refused():
    with refused("1 class"):
        fv.Cascade([reset(classes=1), reset(classes=1)], gate=fv.Entropy(0.3))


def test_a_cascade_is_no_plan_for_one_model():
    with refused("Plan"):
        fv.adapt(tiny.model(), fv.Plan.cascade([TOPK, DENSE], fv.Entropy(0.3)))


# run folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder that no test changes."""
    return fv.save(cascade("three"), tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path):
    """A run folder to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_cascades_come_back(saved):
    model, images = cascade("three"), tiny.images(count=COUNT)
    back = fv.load(saved)
    with torch.no_grad():
        assert torch.equal(back(images), model(images)) and back.traced(images)[1] == model.traced(images)[1]
    assert isinstance(back, fv.Cascade) and back.plan == model.plan == fv.Plan.parse(str(saved)) and not back.training
    assert sorted(path.name for path in saved.iterdir()) == ["effort-1", "effort-2", "effort-3", PLAN]
    assert [fv.load(folder).plan for folder in model.plan.folders(saved)] == list(model.plan.efforts)


def test_efforts_of_pivot_come_back_without_what_they_skip(tmp_path):
    model, images = cascade("mixed"), tiny.images(count=COUNT)
    back = fv.load(fv.save(model, tmp_path))
    with torch.no_grad():
        assert torch.equal(back(images), model(images))
    trace = model.traced(images)[1]
    assert [one.trace.skipped for one in trace.passes] == [(2, 4), (2, 3)] and fv.Trace.from_json(trace.to_json()).passes[1].trace.skipped == (2, 3)
    assert fv.count(model, trace=trace).params == sum(p.numel() for p in back.parameters())


def test_settings_of_the_save_reach_every_effort(tmp_path):
    settings = {"image_size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.95, "interpolation": "bilinear"}
    back = fv.load(fv.save(cascade("two"), tmp_path, preprocessing=settings, labels=list("abcdefg")))
    assert all(effort.pretrained_cfg["mean"] == [0.1, 0.2, 0.3] and effort.pretrained_cfg["label_names"] == list("abcdefg") for effort in back.efforts)


def test_saving_over_another_run_replaces_it(run):
    fv.save(cascade("two"), run)
    assert fv.load(run).plan == cascade("two").plan and sorted(path.name for path in run.iterdir()) == ["effort-1", "effort-2", PLAN]
    fv.save(tiny.adapted(TOPK), run)
    assert fv.load(run).plan == TOPK


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_sub_run_is_refused_by_name(run, number):
    sub = run / EFFORT.format(number)
    data = (sub / WEIGHTS).read_bytes()
    (sub / WEIGHTS).write_bytes(data[: len(data) // 2])
    with refused(str(sub)):
        fv.load(run)
    (sub / WEIGHTS).unlink()
    with refused(EFFORT.format(number), WEIGHTS):
        fv.load(run)
    shutil.rmtree(sub)
    with refused(EFFORT.format(number), "no folder"):
        fv.load(run)


def test_sub_runs_of_another_cascade_are_refused(run):
    os.rename(run / "effort-1", run / "kept")
    os.rename(run / "effort-2", run / "effort-1")
    os.rename(run / "kept", run / "effort-2")
    with refused("effort-1", "spvit", PLAN):
        fv.load(run)


def test_a_cascade_without_its_plan_or_with_a_damaged_one_is_refused(run):
    (run / PLAN).write_text((run / PLAN).read_text()[:50])
    with refused(PLAN, "JSON"):
        fv.load(run)
    (run / PLAN).unlink()
    with refused("without plan.json"):
        fv.load(run)


def test_an_interrupted_save_never_mixes_two_cascades(run, tmp_path, monkeypatch):
    """The save of another cascade of the same plan is stopped before each of its renames in turn."""
    other, images = cascade("three"), tiny.images(count=COUNT)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        new, old = other(images), cascade("three")(images)
    for number, effort in enumerate(other.efforts, 1):
        fv.save(effort, tmp_path / "written" / str(number))
    # Writing the sub-runs is another test's matter (and slow): here they are copied from a finished save.
    turn = iter(["1", "2", "3"] * 99)
    monkeypatch.setattr(store, "save", lambda effort, folder, *_: shutil.copytree(tmp_path / "written" / next(turn), folder))
    real, outcomes = os.replace, []
    while "new" not in outcomes:
        left = [len(outcomes)]

        def replace(*paths):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*paths)

        copy = Path(shutil.copytree(run, tmp_path / f"copy-{len(outcomes)}"))
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", replace)
            store._save_cascade(other, copy, None, None)
        try:
            found = fv.load(copy)(images).detach()
            outcomes.append("new" if torch.equal(found, new) else "old" if torch.equal(found, old) else "mixture")
        except fv.FoveateError:
            outcomes.append("refused")
    assert outcomes == ["refused"] * 4 + ["new"]


def test_a_save_that_fails_before_the_renames_leaves_the_old_cascade(run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save", full)
    with refused("run", "No space left"):
        store._save_cascade(cascade("two"), run, None, None)
    assert fv.load(run).plan == cascade("three").plan and not list(run.glob(".saving-*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with refused("file"):
        fv.save(cascade("two"), tmp_path / "file")
