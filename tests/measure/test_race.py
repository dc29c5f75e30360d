"""Taylor attention against softmax: every version is what it says, the baseline is the best of them, the crossover is found. No time is judged."""

from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate.measure.clock import Timing
from foveate.measure.race import VERSIONS, Race, Setting, against_best, crossover, forms, race

D = torch.float64


@pytest.mark.parametrize("tokens", [1, 255, 256, 300, 513])
def test_all_softmax_versions_are_softmax(tokens):
    q, k, v = torch.randn(3, 2, 2, tokens, 4, dtype=D)
    exact = (0.5 * q @ k.mT).softmax(-1) @ v
    for name in ("fused", "explicit", "chunked"):
        torch.testing.assert_close(VERSIONS[name](q, k, v, 0.5), exact)
    torch.testing.assert_close(VERSIONS["taylor"](q, k, v, 0.5), v.mean(2, keepdim=True) + 0.5 * q @ (k - k.mean(2, keepdim=True)).mT @ v / tokens)


def timings(**medians):
    return {name.replace("_", " "): Timing(name.replace("_", " "), 7, (ms, ms * 1.1, ms * 0.9), "?", (1.0, 1.0, 1.0)) for name, ms in medians.items()}


def test_the_baseline_is_the_fastest_softmax_version_and_ratios_are_those_of_its_rounds():
    compared = against_best(timings(taylor_eager=2.0, taylor_compiled=1.0, fused_eager=9.0, explicit_compiled=4.0, chunked_eager=4.5), batch=3)
    assert {t.baseline for t in compared.values()} == {"explicit compiled"} and {t.batch for t in compared.values()} == {3}
    assert compared["taylor eager"].speedup.median == pytest.approx(2) and compared["fused eager"].speedup.median == pytest.approx(4 / 9)
    one = Race(Setting(197), compared, {})
    assert one.best.name == "taylor compiled" and one.baseline.name == "explicit compiled"
    assert set(one.eager().timings) == {"taylor eager", "fused eager", "chunked eager"} and one.eager().baseline.name == "chunked eager"


@pytest.mark.parametrize("compiled", [False, True])
def test_a_race_runs_every_version_on_views_of_one_projection(compiled, monkeypatch):
    seen, made = [], []

    def watched(name):
        def version(q, k, v, scale):
            seen.append((name, q.shape, q.stride(), q.dtype, scale))
            return v

        return version

    monkeypatch.setattr("foveate.measure.race.VERSIONS", {name: watched(name) for name in VERSIONS})
    monkeypatch.setattr("foveate.measure.race.LEAST_MS", 0.0)
    monkeypatch.setattr("torch.compile", lambda function, dynamic: made.append(dynamic) or function)
    found = race(Setting(11, "bf16", heads=2, dim=4, batch=3, compiled=compiled), repetitions=3, warmup=1)
    kinds = ("eager", "compiled") if compiled else ("eager",)
    assert list(found.timings) == [f"{name} {kind}" for name in VERSIONS for kind in kinds] and made == [False] * 4 * compiled
    assert {one[1:] for one in seen} == {((3, 2, 11, 4), (11 * 24, 4, 24, 1), torch.bfloat16, 0.5)}
    assert all(len(t.samples_ms) == 3 and t.batch == 3 for t in found.timings.values())
    assert found.baseline.name in found.timings and not found.baseline.name.startswith("taylor")


def test_what_does_not_compile_is_left_out_with_its_reason(monkeypatch):
    def compile(function, dynamic):
        if function is float:
            return lambda *_: (_ for _ in ()).throw(RuntimeError("no g++\nand more"))
        return function

    monkeypatch.setattr("torch.compile", compile)
    runs, left_out = forms({"taylor": abs, "explicit": float}, (-3,), True)
    assert list(runs) == ["taylor eager", "taylor compiled", "explicit eager"] and left_out == {"explicit compiled": "no g++"}
    assert runs["taylor compiled"]() == 3


def measured(tokens, threshold):
    """A race in which Taylor attention helps from `threshold` tokens on."""
    return Race(Setting(tokens), against_best(timings(taylor_eager=threshold - 0.5, explicit_eager=float(tokens)), 1), {})


@pytest.mark.parametrize("threshold", [2, 17, 150, 197, 198, 400, 2000])
def test_the_crossover_is_found_within_a_tenth(threshold):
    lengths, asked = (197, 577, 1025, 2305), []

    def measure(setting):
        asked.append(setting.tokens)
        return measured(setting.tokens, threshold)

    found = crossover([measured(n, threshold) for n in lengths], measure)
    assert threshold <= found <= max(1.1 * threshold, threshold + 1) and len(asked) < 12
    assert not set(asked) & set(lengths)


def test_there_is_no_crossover_where_the_longest_does_not_help():
    assert crossover([measured(n, 5000) for n in (197, 577)], lambda setting: pytest.fail("nothing to search")) is None
    # A disturbed length in the middle: what counts is from where on it helps.
    races = [measured(197, 10), measured(577, 9000), measured(1025, 10)]
    assert 577 < crossover(races, lambda setting: measured(setting.tokens, 700)) <= 770


def test_one_token_may_be_enough():
    assert crossover([measured(4, 1)], lambda setting: measured(setting.tokens, 1)) == 2, "one token is where the search ends, not where it looks"


def test_bad_settings_are_refused():
    with pytest.raises(fv.FoveateError, match="precision 'fp8'"):
        race(Setting(5, "fp8"))
    for wrong in ({"tokens": 0}, {"heads": 0}, {"dim": 0}, {"batch": 0}):
        with pytest.raises(fv.FoveateError, match="whole numbers >= 1"):
            race(replace(Setting(5), **wrong))
