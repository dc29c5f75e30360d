"""Budgets: who can pay for the next segment, by tables of time and energy; clocks here are made up."""

import itertools
import json
import math

import pytest
import torch

import foveate as fv
import foveate.budgeting
import tiny
from foveate.budgeting import Ask, allowance, energies, machine_key
from foveate.budgets import Allowance, Energy, EnergyBudget, Latency, SegmentCosts, TimeBudget, begin, limits_of
from foveate.segments import Cut, cut_at_efforts, cut_at_exits, group_sizes, keep_some

EXITS = fv.Plan([fv.EarlyExit(after=(1, 2), threshold=1.0)])  # nobody is ever sure
PRUNED = fv.Plan([fv.EarlyExit(after=(1, 2), threshold=1.0), fv.SPViT(after=(1, 3), keep=(0.7, 0.4))])
ENDS, COUNT = (1, 2, 4), 5


def table(**changes) -> SegmentCosts:
    """Three segments: 1 + n milliseconds for a group of n, 2 mJ an image; twice as much with all of 50 tokens."""
    latency = tuple(Latency(n, tokens, 1.0 + n, (1.0 + n) * factor) for n in (1, 2, 4) for tokens, factor in ((25, 1), (50, 2)))
    given = dict(latency=(latency,) * 3, energy=((Energy(25, 2.0), Energy(50, 4.0)),) * 3, machine="here", runner="torch", target="zcu102")
    return SegmentCosts(ENDS, **given | changes)


def spent(milliseconds: float):
    return lambda: milliseconds / 1000


# the table


@pytest.mark.parametrize("images, tokens, expected", [
    (1, 25, 2.0), (1, 10, 2.0), (1, 26, 4.0), (3, 25, 5.0), (4, 50, 10.0), (5, 50, 20.0), (9, 50, 30.0), (1, 100, 16.0),
])
def test_a_cost_is_never_below_what_was_measured_for_less(images, tokens, expected):
    assert table().latency_ms(1, images, tokens) == pytest.approx(expected)


def test_costs_grow_with_images_and_tokens_whatever_was_measured():
    noisy = table(latency=((Latency(1, 25, 5.0, 9.0), Latency(2, 25, 5.0, 6.0), Latency(2, 50, 5.0, 5.0)),) * 3)
    costs = [[noisy.latency_ms(0, images, tokens) for tokens in (1, 25, 26, 50, 51)] for images in (1, 2, 3, 4)]
    assert all(row == sorted(row) for row in costs) and all(list(column) == sorted(column) for column in zip(*costs))
    assert noisy.latency_ms(0, 2, 50) == 9.0


def test_a_table_knows_the_groups_it_covers():
    assert table().covers(4) and not table().covers(5) and not SegmentCosts(ENDS).covers(1)


def test_a_table_comes_back_from_json():
    assert SegmentCosts.from_json(table().to_json()) == table()
    assert SegmentCosts.from_json(SegmentCosts((1, 4)).to_json()) == SegmentCosts((1, 4))


@pytest.mark.parametrize("change", [
    lambda data: data.pop("ends"), lambda data: data.update(foveate_segment_costs=2), lambda data: data["latency"].pop(),
    lambda data: data["latency"][0][0].update(high_ms=-1), lambda data: data["latency"][0][0].update(high_ms="5"),
    lambda data: data["energy"][1].clear(), lambda data: data["energy"][0][0].pop("tokens"), lambda data: data.update(latency=7),
])
def test_a_table_that_is_none_is_refused(change):
    data = table().to_dict()
    change(data)
    with pytest.raises(fv.FoveateError, match="segment costs"):
        SegmentCosts.from_json(json.dumps(data, default=list))


@pytest.mark.parametrize("text", ["", "[]", "null", '{"a": 1}', "[" * 100000])
def test_text_that_is_no_table_is_refused(text):
    with pytest.raises(fv.FoveateError, match="segment costs"):
        SegmentCosts.from_json(text)


# time


@pytest.mark.parametrize("limits, after_ms, going_on", [
    ([10, 10, 10, 10], 0, 4),  # four cost 5
    ([10, 10, 10, 10], 6, 2),  # 4 are left: not for four (5), and two cost 3
    ([10, 10, 10, 10], 7.5, 1),  # 2.5: one costs 2
    ([10, 10, 10, 10], 8.5, 0),
    ([8, 9, 20, 30], 5, 4 - 2),  # the tightest (3 left) leaves, then the next (4 left, three cost as four: 5), two are well off
    ([math.inf] * 4, 1e9, 4),
])
def test_the_tightest_leave_until_the_others_can_pay(limits, after_ms, going_on):
    budget = TimeBudget(table(), limits, spent(after_ms), started=0.0)
    broke = budget.cannot_pay(1, [0, 1, 2, 3], [25] * 4)
    assert broke.count(False) == going_on
    assert max([limits[i] for i in range(4) if broke[i]], default=0) <= min([limits[i] for i in range(4) if not broke[i]], default=math.inf)


def test_the_group_waits_for_its_fullest_image():
    """With 50 tokens two images cost 6; without the full one, which is the tightest, the other costs 2."""
    budget = TimeBudget(table(), [5.0, 5.5], spent(0), started=0.0)
    assert budget.cannot_pay(1, [0, 1], [50, 25]) == [True, False]
    assert budget.cannot_pay(1, [0, 1], [25, 25]) == [False, False]


def test_budgets_are_those_of_the_images_that_still_run():
    budget = TimeBudget(table(), [1.0, 50.0, 1.0, 50.0], spent(0), started=0.0)
    assert budget.cannot_pay(1, [1, 3], [25, 25]) == [False, False]
    assert budget.cannot_pay(1, [0, 3], [25, 25]) == [True, False]
    assert budget.cannot_pay(1, [], []) == []


# energy


def test_energies_add_up_to_exactly_the_budget():
    budget = EnergyBudget(table(), [2.0, 3.9, 4.0, 100.0])
    assert budget.cannot_begin([25] * 4) == [False] * 4
    assert budget.cannot_pay(1, [0, 1, 2, 3], [25] * 4) == [True, True, False, False]
    assert budget.cannot_pay(2, [2, 3], [25, 50]) == [True, False]


def test_both_budgets_count():
    allowed = Allowance([EnergyBudget(table(), [1.0, 9.0, 9.0]), TimeBudget(table(), [9.0, 9.0, 1.0], spent(0), started=0.0)])
    assert allowed.cannot_pay(1, [0, 1, 2], [25] * 3) == [True, False, True]


# the beginning


def test_budgets_below_the_first_answer_are_refused_or_noted():
    tokens = [25] * 4
    with pytest.raises(fv.FoveateError, match=r"budget_ms=4 for image 1\n.*at least 5 ms, which 4 images at once take up to the exit after block 1"):
        begin([TimeBudget(table(), [6, 4, 5, 9], spent(0), started=0.0)], tokens, "the exit after block 1")
    with pytest.raises(fv.FoveateError, match=r"budget_mj=1\n.*at least 2 mj, which one image takes"):
        begin([EnergyBudget(table(), [1] * 4)], tokens, "there")
    allowed = begin([TimeBudget(table(), [6, 4, 5, 9], spent(0), started=0.0), EnergyBudget(table(), [5, 5, 5, 1])], tokens, "there", strict=False)
    assert allowed.short == [1, 3]


@pytest.mark.parametrize("value, words", [
    (float("nan"), "nan"), (-1, "-1"), ("20", "'20'"), (True, "True"), ([1, 2], "2 budgets for 3 images"), ([1, 2, None], "None"), ([1, -2, 3], "-2"),
    (torch.tensor([1.0, float("nan"), 2.0]), "nan"), (torch.ones(3, 1), r"\[1.0\]"), ({}, "{}"),
])
def test_what_is_no_budget_is_refused(value, words):
    with pytest.raises(fv.FoveateError, match=words):
        limits_of(value, 3, "budget_ms")


@pytest.mark.parametrize("value", [2, 2.0, [2, 2, 2], (2.0, 2, 2), torch.full((3,), 2), torch.tensor(2.0), torch.full((3,), 2.0).numpy()])
def test_one_number_or_one_an_image(value):
    assert limits_of(value, 3, "budget_mj") == [2.0] * 3


# models


def model_and_images(plan: fv.Plan = EXITS, key: str = "deit"):
    return tiny.adapted(plan, key), tiny.images(key, count=COUNT, seed=3)


def sums(plan: fv.Plan, card) -> list[float]:
    return list(itertools.accumulate(points[0].energy_mj for points in energies(plan, (card,))))


@pytest.mark.parametrize("plan", [EXITS, PRUNED])
def test_energy_decides_how_far_each_image_runs(plan):
    model, images = model_and_images(plan)
    up_to = sums(plan, model.card)
    limits = [up_to[0], up_to[1] * 0.999, up_to[1], up_to[2] * 0.999, up_to[2]]
    logits, trace = model.traced(images, budget_mj=limits)
    assert trace.exits == [1, 1, 2, 2, 4] and trace.short == [0, 1, 2, 3]
    answers, _ = model.exit_logits(images)
    for image, block in enumerate(trace.exits):
        torch.testing.assert_close(logits[image], answers[block][image], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(images, budget_mj=torch.tensor(limits, dtype=torch.float64)), logits)
    for image, limit in enumerate(limits):
        torch.testing.assert_close(model(images[image : image + 1], budget_mj=limit)[0], logits[image], atol=1e-5, rtol=1e-4)


def test_a_sure_image_costs_nothing_more_and_is_not_short():
    model, images = model_and_images(fv.Plan([fv.EarlyExit(after=(1, 2), threshold=0.0)]))
    _, trace = model.traced(images, budget_mj=1e9)
    assert trace.exits == [1] * COUNT and trace.short == []


def test_images_with_less_than_the_first_answer_get_it_all_the_same():
    model, images = model_and_images()
    with pytest.raises(fv.FoveateError, match="budget_mj=0.*\n.*at least .* mj, which one image takes up to the exit after block 1"):
        model(images, budget_mj=0)
    _, trace = model.traced(images, budget_mj=[0, 1e9, 0, 1e9, 1e9], strict=False)
    assert trace.exits == [1, 4, 1, 4, 4] and trace.short == [0, 2]
    assert fv.Trace.from_json(trace.to_json()).short == [0, 2]


def test_no_gradients_are_recorded_under_a_budget():
    model, images = model_and_images()
    assert model(images).requires_grad and not model(images, budget_mj=1e9).requires_grad


@pytest.mark.parametrize("given, words", [
    (dict(budget_ms=float("nan")), "nan"), (dict(budget_mj=-3), "-3"), (dict(budget_mj=[1, 2]), "2 budgets for 5"), (dict(budget_ms="fast"), "'fast'"),
    (dict(budget_mj=1e9, target="tx3"), "tx3"), (dict(budget_mj=1e9, target="zcu102-16bit"), "target=.*xeon-6230"),
])
def test_wrong_budgets_are_refused(given, words):
    model, images = model_and_images()
    with pytest.raises(fv.FoveateError, match=words):
        model(images, **given)


def test_a_budget_needs_exits_and_evaluation_and_something_to_decide():
    model, images = model_and_images()
    plain = tiny.adapted(fv.Plan([fv.SPViT(after=(2,), keep=(0.5,))]))
    for name in ("budget_ms", "budget_mj"):
        with pytest.raises(fv.FoveateError, match="fv.EarlyExit"):
            plain(images, **{name: 20})
    with pytest.raises(fv.FoveateError, match="eval"):
        model.train()(images, budget_ms=20)
    model.eval()
    with pytest.raises(fv.FoveateError, match="one of the two"):
        model.traced(images, model.traced(images)[1], budget_mj=1e9)
    with pytest.raises(fv.FoveateError, match=r"images of shape \[3, 32, 32\]"):
        model(images[0], budget_mj=1e9)


# time of models


def known(model, images, high_ms: float, sizes=(1, COUNT), **changes) -> SegmentCosts:
    """A table of this machine: every segment takes `high_ms`, whatever the group."""
    latency = ((tuple(Latency(size, 99, high_ms, high_ms) for size in sizes)),) * len(model.exit_blocks)
    return SegmentCosts(model.exit_blocks, latency, **dict(machine=machine_key(), runner=cut_at_exits(model, images).runner) | changes)


@pytest.mark.parametrize("budget, block", [(10, 1), (24, 1), (25, 2), (39, 2), (40, 4), (math.inf, 4)])
def test_a_deadline_stops_before_the_segment_that_would_miss_it(monkeypatch, budget, block):
    """The clock runs 5 ms from question to question, each segment is said to take 10: it is asked at 0 (start), 0 (first), 5 and 10."""
    model, images = model_and_images()
    model.costs = known(model, images, 10.0)
    monkeypatch.setattr(foveate.budgeting, "clock", iter([0.0, 0.0, 0.015, 0.030, 1.0]).__next__)
    _, trace = model.traced(images, budget_ms=budget)
    assert trace.exits == [block] * COUNT and trace.short == ([] if block == 4 else list(range(COUNT)))


def test_one_deadline_an_image(monkeypatch):
    model, images = model_and_images()
    model.costs = known(model, images, 10.0)
    monkeypatch.setattr(foveate.budgeting, "clock", iter([0.0, 0.0, 0.010, 0.020]).__next__)
    logits, trace = model.traced(images, budget_ms=torch.tensor([15.0, 20.0, 30.0, 100.0, 12.0]))
    assert trace.exits == [1, 2, 4, 4, 1]
    answers, _ = model.exit_logits(images)
    torch.testing.assert_close(logits, torch.stack([answers[block][image] for image, block in enumerate(trace.exits)]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes, used", [({}, True), (dict(machine="another"), False), (dict(runner="torch bfloat16"), False), (dict(sizes=(1, 2)), False)])
def test_a_table_of_another_machine_runner_or_group_is_measured_anew(monkeypatch, changes, used):
    model, images = model_and_images()
    model.costs = before = known(model, images, 10.0, **changes)
    fresh = before.latency[0], before.latency[1], (Latency(COUNT, 99, 7.0, 7.0),)
    monkeypatch.setattr(Cut, "measure", lambda self, images: fresh)
    model(images, budget_ms=1e9)
    assert (model.costs == before) is used
    assert used or (model.costs.latency, model.costs.machine) == (fresh, machine_key())


def test_every_group_size_and_segment_is_measured(monkeypatch):
    """Each reading of the clock is a millisecond later than the one before, so that every segment takes one."""
    model, images = model_and_images(PRUNED)
    ticks = itertools.count()
    found = cut_at_exits(model, images).measure(images, 0, lambda: next(ticks) / 1000)
    assert [[point.images for point in points] for points in found] == [[1, 2, 3, 5]] * 3 and group_sizes(COUNT) == [5, 3, 2, 1]
    assert [{point.tokens for point in points} for points in found] == [{17}, {17}, {13}]
    assert all(point.median_ms == pytest.approx(1.0) and point.high_ms == pytest.approx(1.05) for points in found for point in points)


def test_plans_of_uneven_counts_are_measured_at_several_of_them():
    plan = fv.Plan([fv.EarlyExit(after=(2, 3), threshold=1.0), fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])
    model, images = model_and_images(plan)
    ticks = itertools.count()
    found = cut_at_exits(model, images).measure(images, 0, lambda: next(ticks) / 1000)
    assert [{point.tokens for point in points} for points in found] == [{17}, {17, 12, 7}, {17, 12, 7}]
    assert [{point.tokens for point in points} for points in energies(plan, (model.card,))] == [{17}, {17, 12, 7}, {17, 12, 7}]
    assert model(images, budget_mj=1e9).shape == (COUNT, 7)
    kept = keep_some(model, 4, 0.5)
    assert kept.exits == [4] * 4 and [mask.sum(1).tolist() for mask in kept.kept] == [[8, 7, 8, 7]] * 2


def test_measuring_lets_nobody_leave():
    model, images = model_and_images(fv.Plan([fv.EarlyExit(after=(1, 2), threshold=0.0)]))
    ticks = itertools.count()
    found = cut_at_exits(model, images).measure(images, 0, lambda: next(ticks) / 1000)
    assert all({point.images for point in points} == {1, 2, 3, 5} for points in found)


@pytest.mark.parametrize("plan", [EXITS, PRUNED])
def test_energies_of_segments_add_up_to_those_of_images_that_leave_there(plan):
    """The sum up to an exit is the simulated energy of an image that left there; the last one that of one that never left."""
    model, images = model_and_images(plan)
    whole = model.traced(images[:1])[1]
    for total, block in zip(sums(plan, model.card), ENDS):
        seen = fv.Trace(images=1, tokens=whole.tokens, after=whole.after, exits=[block])
        assert total == pytest.approx(fv.simulate(model.card, plan, "zcu102", trace=seen).energy_mj)
    assert sums(plan, model.card)[-1] == pytest.approx(fv.simulate(model.card, plan).energy_mj)


def test_energies_on_another_machine():
    model, images = model_and_images()
    ours, theirs = (energies(EXITS, (model.card,), target)[0][0].energy_mj for target in ("zcu102", "xeon-6230"))
    assert ours != theirs
    model(images, budget_mj=1e9, target="xeon-6230")
    assert model.costs.target == "xeon-6230" and model.costs.energy[0][0].energy_mj == theirs


# cascades


def cascade() -> fv.Cascade:
    low, high = tiny.adapted(fv.Plan([fv.PIVOT(skip=(2, 3))])), tiny.adapted(EXITS)
    return fv.Cascade([low, high], fv.Entropy(0.0))  # everybody goes on


def test_an_effort_starts_for_those_who_can_pay():
    both, images = cascade(), tiny.images(count=COUNT, seed=3)
    low, high = (fv.simulate(effort).energy_mj for effort in both.efforts)
    logits, trace = both.traced(images, budget_mj=[low, low + high * 0.99, low + high, 1e9, 0.0], strict=False)
    assert trace.efforts == [1, 1, 2, 2, 1] and trace.short == [0, 1, 4] and [one.images for one in trace.passes] == [[0, 1, 2, 3, 4], [2, 3]]
    expected = [both.efforts[effort - 1](images[i : i + 1])[0] for i, effort in enumerate(trace.efforts)]
    torch.testing.assert_close(logits, torch.stack(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both(images, budget_mj=1e9), both(images))
    with pytest.raises(fv.FoveateError, match="the first effort"):
        both(images, budget_mj=0)


def test_a_deadline_of_a_cascade(monkeypatch):
    both, images = cascade(), tiny.images(count=COUNT, seed=3)
    latency = ((Latency(COUNT, 1, 10.0, 10.0),), (Latency(2, 1, 20.0, 20.0), Latency(COUNT, 1, 40.0, 40.0)))
    both.costs = SegmentCosts((1, 2), latency, machine_key(), cut_at_efforts(both, images).runner)
    monkeypatch.setattr(foveate.budgeting, "clock", iter([0.0, 0.0, *[0.010] * 9]).__next__)
    _, trace = both.traced(images, budget_ms=[10.0, 35.0, 40.0, 45.0, 29.0])
    assert trace.efforts == [1, 1, 2, 2, 1] and trace.short == [0, 1, 4]


def test_efforts_are_measured_with_all_their_blocks():
    both, images = cascade(), tiny.images(count=2, seed=3)
    both.efforts[1].sure = None  # would be asked if anybody could leave
    ticks = itertools.count()
    found = cut_at_efforts(both, images).measure(images, 0, lambda: next(ticks) / 1000)
    assert [[point.images for point in points] for points in found] == [[1, 2]] * 2


def test_an_empty_batch_needs_no_budget():
    model, images = model_and_images()
    allowed, _ = allowance(cut_at_exits(model, images), None, images[:0], Ask(budget_mj=0.0))
    assert allowed.short == ()
