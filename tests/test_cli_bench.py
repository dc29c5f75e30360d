"""bench --all: what takes part, what it is compared with, what it writes. No time is judged."""

import csv
import json

import pytest
from command import answer, run

import foveate as fv
from foveate.card import stored_card
from foveate.cli.bench_engines import Candidate
from foveate.cli.bench_table import TIMM_COLUMNS, percentiles, rows, verdicts
from foveate.measure import Timing, ceiling
from foveate.peers import peers_at

PLAN = "spvit(after=[3,6,9],keep=[0.6,0.4,0.25])"
FAST = ("--backend", "torch", "--precision", "fp32", "--batch", 1, 2, "--repetitions", 1, "--warmup", 0)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr("foveate.cli.timing.TIMED_IMAGES", 4)
    monkeypatch.setattr(ceiling, "SIZE", 64)
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))


def test_bench_all_holds_plans_and_peers_against_every_dense_model(capsys, tmp_path):
    found = answer(capsys, "bench", "foveate_nano_p4", "--plan", PLAN, "--peers", *FAST, "--csv", tmp_path / "rows.csv", "--out", tmp_path)
    assert [(row["kind"], row["backend"]) for row in found["results"]] == 2 * [("dense", "timm-eager"), ("dense", "torch"), ("plan", "torch"), *2 * [("peer", "torch")]]
    assert {row["batch"] for row in found["results"]} == {1, 2}
    plan = found["results"][2]
    assert found["plan"] == plan["plan"] == str(fv.Plan.parse(PLAN)) and plan["baseline"] == "dense, torch fp32"
    assert plan["macs"] == fv.count("foveate_nano_p4", PLAN).macs and plan["images_per_s"] == pytest.approx(1000 / plan["latency_ms"])
    for peer in found["results"][3:5]:
        assert peer["macs"] == pytest.approx(plan["macs"], rel=0.1)  # as near as a whole r comes
    assert set(found["verdicts"]) == {found["plan"]} and set(found["verdicts"][found["plan"]]) == {"1", "2"}
    assert found["gemm_gmac_per_s"]["fp32"] > 0 and plan["ceiling_percent"] > 0 and found["machine"]["cpu_cores"] >= 1
    with open(tmp_path / "rows.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10 and tuple(lines[0])[: len(TIMM_COLUMNS)] == TIMM_COLUMNS
    assert (lines[5]["model"], lines[5]["infer_batch_size"], lines[5]["infer_img_size"], lines[5]["param_count"]) == ("foveate_nano_p4", "2", "28", "1.35")
    assert float(lines[5]["infer_step_time"]) == pytest.approx(2 * float(lines[5]["latency_ms"]), abs=1e-3)
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]["rows"]) == 5


def made(kind: str, backend: str, milliseconds: float) -> tuple[Candidate, Timing]:
    class Planned:
        plan = "half"

    one = Candidate(kind, Planned, backend, "fp32", None)
    return one, Timing(one.name, 1, (milliseconds,) * 3, one.name, (milliseconds,) * 3)


@pytest.mark.parametrize(("against", "ms", "verdict", "speedup"), [
    ("all", 2.0, "no gain here: use dense quick fp32", 5.0), ("all", 0.5, "helps x2.00", 20.0), ("same", 2.0, "helps x5.00", 5.0),
    ("same", 10.0, "no gain here: use dense", 1.0), ("dense-best", 0.5, "helps x2.00", 2.0)])
def test_a_plan_is_judged_by_what_it_is_held_against(against, ms, verdict, speedup):
    pairs = [made("dense", "timm-eager", 20.0), made("dense", "slow", 10.0), made("dense", "quick", 1.0), made("plan", "slow", ms)]
    timings = {one.name: timing for one, timing in pairs}
    found = rows([one for one, _ in pairs], timings, {"dense": (4e9, 1), "half": (2e9, 1)}, {"fp32": 4000.0}, against, {"half, slow fp32": 7.5})
    assert [row["verdict"] for row in found[:3]] == ["dense", "dense", "best dense"]
    assert (found[3]["verdict"], found[3]["speedup"]) == (verdict, speedup)
    assert [row["peak_mib"] for row in found] == [None, None, None, 7.5]
    assert found[3]["ceiling_percent"] == pytest.approx(100 * 2 / ms * 1000 / 4000)
    assert verdicts(found) == {"half": {"1": f"{verdict} (slow fp32)"}}


def test_percentiles_are_rounds_that_were():
    assert percentiles(Timing("a", 1, tuple(map(float, range(1, 101))), "a", (1.0,) * 100)) == (51.0, 96.0, 100.0)
    assert percentiles(Timing("a", 1, (1.0, 5.0), "a", (1.0, 5.0))) == (5.0, 5.0, 5.0)


def test_peers_cost_what_the_plan_does():
    card = stored_card("deit_small_patch16_224")
    wanted = fv.count(card, "spvit(after=[3,6,9],keep=[0.637,0.406,0.259])").macs
    found = peers_at(card, wanted)
    assert found["tome"].methods[0].r == 13 and found["evit"].methods[0].after == (4, 7, 10)
    assert fv.count(card, found["evit"]).macs == pytest.approx(wanted, rel=0.005)
    assert peers_at(stored_card("swin_tiny_patch4_window7_224"), 3e9) == {}
    with pytest.raises(fv.FoveateError, match="4.60"):
        peers_at(card, 5e9)


def test_a_ceiling_is_the_most_that_was_ever_reached(monkeypatch):
    speeds = iter((100.0, 60.0, 130.0))
    monkeypatch.setattr(ceiling, "torch_gmacs", lambda size, dtype: next(speeds))
    assert [ceiling.gemm_ceilings(["fp32"])["fp32"] for _ in range(3)] == [100.0, 100.0, 130.0]


def test_products_are_measured_in_every_precision():
    found = ceiling.gemm_ceilings(kept=False)
    assert all(value > 0 for value in found.values()) and {"fp32", "bf16"} <= set(found)


@pytest.mark.parametrize(("words", "given", "do"), [
    (("--against", "nothing"), "--against nothing", "dense-best"), (("--all", "--breakdown"), "--breakdown", "leave one"),
    (("--peers", "--plan", "dense"), "--peers without a plan", "--plan"), (("--all", "--backend", "abacus"), "abacus", "choose"),
    (("--all", "--backend", "torch", "--precision", "int4", "--plan", PLAN), "int4", "leave out")])
def test_what_bench_all_refuses(capsys, words, given, do):
    code, out, err = run(capsys, "bench", "foveate_nano_p4", *words)
    assert (code, out) == (2, "") and given in err and do in err
