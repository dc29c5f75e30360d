"""measure/clock.py: order of the rounds, medians, ratios by round and the rule of the verdict. No wall-clock time is asserted."""

from collections import Counter
from itertools import pairwise

import pytest

from foveate import measure
from foveate.errors import FoveateError
from foveate.measure import Spread, Timing, clock, interleave, timing_ledger, verdict


@pytest.fixture
def hand_clock(monkeypatch):
    """A clock that only moves when a runner says so."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def runner(*milliseconds):
        turns = iter(milliseconds * 1000)

        def run():
            now[0] += next(turns) / 1000

        return run

    return runner


def test_medians_quartiles_and_ratios_per_image(hand_clock):
    timings = interleave({"dense": hand_clock(40.0, 80.0), "fast": hand_clock(20.0, 40.0)}, 4, warmup=0, images=4)
    assert timings["dense"].samples_ms == pytest.approx((10, 20, 10, 20))
    assert timings["dense"].latency_ms == pytest.approx((15, 10, 20))
    assert timings["fast"].images_per_s == pytest.approx(1000 / 7.5)
    # Both slow down in the same rounds, so the ratio of every round is 2 although the times are spread.
    assert timings["fast"].speedup == pytest.approx((2, 2, 2))
    assert timings["dense"].speedup == pytest.approx((1, 1, 1))
    assert (timings["fast"].baseline, timings["fast"].batch) == ("dense", 4)


def test_every_runner_takes_every_place_and_follows_every_other():
    names = ["a", "b", "c"]
    orders = [clock.turned(names, turn) for turn in range(6)]
    assert all(sorted(order) == names for order in orders)
    for place in range(3):
        assert Counter(order[place] for order in orders) == {"a": 2, "b": 2, "c": 2}
    assert {pair for order in orders for pair in pairwise(order)} == {(x, y) for x in names for y in names if x != y}


def test_warmup_runs_but_does_not_count():
    calls, seen = Counter(), []
    runners = {name: (lambda name=name: calls.update([name])) for name in "ab"}
    timings = interleave(runners, repetitions=5, warmup=2, progress=lambda done, total: seen.append((done, total)))
    assert calls == {"a": 7, "b": 7}
    assert len(timings["a"].samples_ms) == 5
    assert seen == [(i, 7) for i in range(1, 8)]


def test_a_time_budget_ends_after_whole_rounds(hand_clock):
    timings = interleave({"a": hand_clock(100.0), "b": hand_clock(100.0)}, 50, warmup=0, seconds=1.0)
    assert {len(t.samples_ms) for t in timings.values()} == {6}
    short = interleave({"a": hand_clock(100.0)}, 50, warmup=0, seconds=0.0)
    assert len(short["a"].samples_ms) == clock.FEWEST_ROUNDS


def test_the_device_is_waited_for_before_and_after_each_sample():
    events = []
    interleave({"a": lambda: events.append("run")}, 2, warmup=0, synchronize=lambda: events.append("wait"))
    assert events == ["wait", "run", "wait"] * 2


def test_the_collector_is_back_on_even_after_an_error():
    def broken():
        raise RuntimeError("out of memory")

    assert clock.gc.isenabled()
    with pytest.raises(RuntimeError, match="out of memory"):
        interleave({"a": broken}, 1, warmup=0)
    assert clock.gc.isenabled()


@pytest.mark.parametrize(
    "spread, expected",
    [
        (Spread(1.4, 1.3, 1.5), "helps"),
        (Spread(1.1, 1.0, 1.2), "no gain here"),
        (Spread(1.1, 0.9, 1.3), "no gain here"),
        (Spread(0.8, 0.7, 0.9), "no gain here"),
    ],
)
def test_it_helps_only_where_the_lower_quartile_is_above_one(spread, expected):
    assert verdict(spread) == expected


def test_the_timing_becomes_a_ledger():
    ledger = timing_ledger(Timing("spvit", 16, (2.0, 3.0, 4.0), "dense", (4.0, 6.0, 8.0)), params=7)
    assert ledger.latency_ms == 3.0
    assert ledger.by_operation("latency_ms") == {"model": 3.0}
    assert (ledger.macs, ledger.params) == (0, 7)
    assert "spvit, batch 16, median of 3 rounds" in ledger.label


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"runners": {}}, "no runner"),
        ({"repetitions": 0}, "repetitions=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"baseline": "dence"}, "'dence'"),
        ({"images": {}}, "'a'"),
        ({"images": 0}, "images=0"),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments, word):
    with pytest.raises(FoveateError) as caught:
        interleave(**{"runners": {"a": lambda: None}, "repetitions": 1, "warmup": 0} | arguments)
    assert word in caught.value.given


def test_public_names():
    assert all(hasattr(measure, name) for name in measure.__all__)
