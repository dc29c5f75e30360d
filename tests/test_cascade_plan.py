"""Plans of plans: values, JSON, what they refuse, and what they cost."""

import json

import pytest

import foveate as fv
from foveate.cascade_plan import CascadePlan, passes
from foveate.counting import effort_ledgers
from foveate.trace import Pass, Trace

DEIT = "deit_small_patch16_224"
LOW, MIDDLE, HIGH = fv.Plan([fv.SPViT(after=(3, 6), keep=(0.5, 0.3))]), fv.Plan([fv.SPViT(after=(6,), keep=(0.5,))]), fv.Plan()
TWO = fv.Plan.cascade([LOW, HIGH], gate=fv.Entropy(0.3))
THREE = fv.Plan.cascade([LOW, MIDDLE, HIGH], gate=[fv.Entropy(0.3), fv.Margin(0.5)], fractions=(0.5, 0.3, 0.2))
MIXED = fv.Plan.cascade([fv.Plan([fv.SPViT(after=3, keep=0.5, select="argmax")]), HIGH], gate=fv.MaxProbability(0.7), fractions=[0.8, 0.2])


def refused(*words: str):
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


@pytest.mark.parametrize("plan", [TWO, THREE, MIXED], ids=str)
def test_cascades_survive_json(plan, tmp_path):
    again = fv.Plan.from_json(plan.to_json())
    assert again == plan and isinstance(again, CascadePlan) and again.digest() == plan.digest() and plan.data_dependent
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert fv.Plan.parse(str(tmp_path)) == fv.Plan.parse(str(tmp_path / "plan.json")) == plan
    form = json.loads(plan.to_json())
    assert form["foveate_plan"] == 1 and [fv.Plan.from_dict(effort) for effort in form["cascade"]] == list(plan.efforts)


def test_one_gate_stands_behind_each_effort_but_the_last():
    same = fv.Plan.cascade([LOW, MIDDLE, HIGH], gate=fv.Entropy(0.3))
    assert same.gates == (fv.Entropy(0.3), fv.Entropy(0.3)) and same == fv.Plan.cascade((LOW, MIDDLE, HIGH), gate=(fv.Entropy(0.3), fv.Entropy(0.3)))
    assert fv.Plan.cascade([[], [fv.SPViT(after=3, keep=0.5)]], fv.Entropy(0.3)).efforts[0] == fv.Plan()


def test_everything_counts_for_the_digest():
    changed = [TWO, THREE, MIXED, TWO.with_gates([fv.Entropy(0.31)]), TWO.with_gates([fv.Margin(0.3)]), TWO.with_gates(TWO.gates, (0.5, 0.5)),
               fv.Plan.cascade([HIGH, LOW], gate=fv.Entropy(0.3))]
    assert len({plan.digest() for plan in changed}) == len(set(changed)) == len(changed)
    assert all(len(plan.digest()) == 12 and int(plan.digest(), 16) >= 0 for plan in changed)


def test_words():
    assert str(TWO) == f"cascade: {LOW}; where entropy > 0.3: dense"
    assert str(THREE) == f"cascade: {LOW}; where entropy > 0.3: {MIDDLE}; where margin < 0.5: dense"


@pytest.mark.parametrize("efforts", [[], [LOW], LOW, [LOW, 3], [LOW, None], [LOW, "dense"], [LOW, TWO], "spvit"])
def test_other_things_are_no_efforts(efforts):
    with refused("cascade"):
        fv.Plan.cascade(efforts, gate=fv.Entropy(0.3))


@pytest.mark.parametrize("gate", [0.3, None, "entropy", [], [fv.Entropy(0.3)] * 2, [0.3]])
def test_other_things_are_no_gates(gate):
    with refused("gate"):
        fv.Plan.cascade([LOW, HIGH], gate=gate)


@pytest.mark.parametrize("fractions", [
    (0.8,), (0.8, 0.1), (0.8, 0.2, 0.0), (1.2, -0.2), (True, False), 0.8, "0.8,0.2", (0.8, None), (float("nan"), 0.2), (80, 20)])
def test_wrong_fractions_are_refused(fractions):
    with refused("fractions"):
        fv.Plan.cascade([LOW, HIGH], gate=fv.Entropy(0.3), fractions=fractions)
    with refused("fractions"):
        passes(TWO, fractions)


@pytest.mark.parametrize("change, words", [
    (lambda d: d.pop("gates"), "gates=None"), (lambda d: d.update(cascade={}), "cascade"), (lambda d: d.update(cascade=[]), "cascade"),
    (lambda d: d["cascade"].pop(), "1 effort"), (lambda d: d.update(methods=[]), "'methods'"), (lambda d: d.update(foveate_plan=2), "version 2"),
    (lambda d: d["cascade"][0].update(methods=[{"method": "spvti"}]), "'spvti'"), (lambda d: d["cascade"].__setitem__(0, 3), "effort 1 of"),
    (lambda d: d["cascade"].__setitem__(1, json.loads(MIXED.to_json())), "inside a cascade"), (lambda d: d["gates"][0].update(threshold=3), "threshold"),
    (lambda d: d["gates"].append(d["gates"][0]), "gate"), (lambda d: d.update(fractions=[0.5, 0.4]), "fractions"), (lambda d: d.update(gate=3), "'gate'")])
def test_wrong_json_is_refused(change, words):
    form = json.loads(MIXED.to_json())
    change(form)
    with refused(words):
        fv.Plan.from_json(json.dumps(form))


def test_efforts_must_fit_the_backbone():
    from foveate.card import stored_card

    TWO.validate(stored_card(DEIT))
    with refused("after"):
        fv.Plan.cascade([HIGH, fv.Plan([fv.SPViT(after=14, keep=0.5)])], fv.Entropy(0.3)).validate(stored_card(DEIT))


# what runs how often, and what it costs


def trace_of(groups: list[list[int]], images: int) -> Trace:
    """A trace without sub-traces' counts, of which image ran what."""
    efforts = [max(n for n, group in enumerate(groups, 1) if i in group) for i in range(images)]
    return Trace(images, efforts=efforts, passes=[Pass(n, group, Trace(len(group))) for n, group in enumerate(groups, 1)])


def test_every_effort_runs_for_what_no_lower_one_answered():
    assert passes(TWO, (0.8, 0.2)) == [(LOW, 1.0), (HIGH, 0.2)]
    assert passes(THREE) == [(LOW, 1.0), (MIDDLE, pytest.approx(0.5)), (HIGH, pytest.approx(0.2))]
    assert passes(THREE, (1.0, 0.0, 0.0)) == [(LOW, 1.0), (MIDDLE, 0.0), (HIGH, 0.0)]
    assert passes(TWO) == [(LOW, 1.0), (HIGH, 1.0)] and passes(LOW) == [(LOW, 1.0)]
    assert passes(THREE, trace=trace_of([[0, 1, 2, 3], [1, 2, 3], [2]], 4)) == [(LOW, 1.0), (MIDDLE, 0.75), (HIGH, 0.25)]
    assert passes(THREE, trace=trace_of([[0, 1]], 2)) == [(LOW, 1.0), (MIDDLE, 0.0), (HIGH, 0.0)]


def test_fractions_and_traces_of_something_else_are_refused():
    with refused("fractions", "dense"):
        passes(HIGH, (0.8, 0.2))
    with refused("fractions"):
        fv.count(DEIT, LOW, fractions=(0.8, 0.2))
    with refused("both"):
        passes(TWO, (0.8, 0.2), trace_of([[0]], 1))
    for trace in (Trace(images=3), trace_of([[0, 1], [0], [0]], 2)):
        with refused("trace"):
            passes(TWO, trace=trace)
    with refused("cascade"):
        fv.count(DEIT, HIGH, trace=trace_of([[0]], 1))
    with refused("tokens"):
        fv.count(DEIT, TWO, tokens=(100, 50))


def test_the_cost_is_the_sum_of_the_passes():
    low, middle, high = (fv.count(DEIT, plan) for plan in (LOW, MIDDLE, HIGH))
    two = fv.count(DEIT, TWO, fractions=(0.8, 0.2))
    assert two.macs == pytest.approx(low.macs + 0.2 * high.macs) and two.label == "fractions 0.8, 0.2"
    assert two.params == low.params + high.params
    assert fv.count(DEIT, THREE).macs == pytest.approx(low.macs + 0.5 * middle.macs + 0.2 * high.macs)
    assert fv.count(DEIT, TWO, fractions=(1.0, 0.0)).macs == low.macs
    bound = fv.count(DEIT, TWO)
    assert bound.macs == pytest.approx(low.macs + high.macs) and "upper bound" in bound.label
    assert "upper bound" in fv.count(DEIT, MIXED).label  # its low effort keeps another number of tokens in each image
    assert fv.count(DEIT, TWO, include="blocks").macs == pytest.approx(sum(fv.count(DEIT, plan, include="blocks").macs for plan in (LOW, HIGH)))


def test_a_trace_is_counted_pass_by_pass():
    low, high = (fv.count(DEIT, plan) for plan in (LOW, HIGH))
    tokens = dict(tokens=[[100] * 4, [60] * 4], after=(3, 6))
    trace = Trace(4, efforts=[1, 1, 2, 1], passes=[Pass(1, [0, 1, 2, 3], Trace(4, **tokens)), Pass(2, [2], Trace(1))])
    found = fv.count(DEIT, TWO, trace=trace)
    assert found.macs == pytest.approx(low.macs + high.macs / 4, rel=0.01) and found.label == "mean over 4 images"
    assert fv.count(DEIT, TWO, trace=Trace.from_json(trace.to_json())).macs == found.macs
    idle = Trace(2, efforts=[1, 1], passes=[Pass(1, [0, 1], Trace(2, tokens=[[100] * 2, [60] * 2], after=(3, 6)))])
    assert fv.count(DEIT, TWO, trace=idle).macs == pytest.approx(low.macs, rel=0.01) and fv.count(DEIT, TWO, trace=idle).params == found.params


def test_every_effort_may_have_a_backbone_of_its_own():
    names = ["deit_tiny_patch16_224", DEIT]
    plan = fv.Plan.cascade([HIGH, HIGH], fv.Entropy(0.3), fractions=(0.75, 0.25))
    tiny, small = map(fv.count, names)
    assert fv.count(names, plan).macs == pytest.approx(tiny.macs + 0.25 * small.macs) and fv.count(names, plan).params == tiny.params + small.params
    assert [ledger.macs for ledger in effort_ledgers(names, plan)] == [tiny.macs, small.macs]
    with refused("3 models for 2 efforts"):
        fv.count([*names, DEIT], plan)
