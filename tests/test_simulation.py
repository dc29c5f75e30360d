"""foveate.simulate: plans, traces, batches, cascades, bad input, the command line. The papers' numbers: tests/sim/test_sim_papers.py."""

import json

import pytest
from command import answer, python, run

import foveate as fv
from foveate.trace import Pass

DEIT = "deit_small_patch16_224"
ARGMAX = fv.Plan([fv.SPViT(after=(3, 6, 9), keep=(0.7, 0.49, 0.343), select="argmax")])


def test_a_plan_that_depends_on_the_image_is_an_upper_bound_without_a_trace():
    bound, given = fv.simulate(DEIT, ARGMAX), fv.simulate(DEIT, ARGMAX, tokens=(139, 98, 69))
    assert "upper bound" in bound.label
    assert "tokens 139, 98, 69" in given.label
    assert given.latency_ms < fv.simulate(DEIT).latency_ms < bound.latency_ms


def test_a_trace_gives_the_mean_of_costs_and_not_the_cost_of_means():
    tokens = [[197, 99, 99], [197, 50, 50], [197, 30, 30]]
    trace = fv.Trace(images=3, tokens=tokens, block_tokens=[], after=(3, 6, 9))
    found = fv.simulate(DEIT, ARGMAX, trace=trace)
    apart = [fv.simulate(DEIT, ARGMAX, tokens=[row[i] for row in tokens]) for i in range(3)]
    assert found.latency_ms == pytest.approx(sum(one.latency_ms for one in apart) / 3)
    assert found.energy_mj == pytest.approx(sum(one.energy_mj for one in apart) / 3)
    assert found.by_unit()["ps"] == pytest.approx(sum(one.by_unit()["ps"] for one in apart) / 3)
    assert found.latency_ms > 1.02 * fv.simulate(DEIT, ARGMAX, tokens=(132, 99, 86)).latency_ms
    assert found.label == "mean over 3 images on zcu102"
    assert sum(found.by_operation("latency_ms").values()) == pytest.approx(found.latency_ms)


def test_the_costs_of_units_add_up_to_the_ledger():
    for target in ("zcu102", "zcu102-16bit", "2080ti"):
        found = fv.simulate(DEIT, "spvit-deit-small", target)
        assert sum(found.by_unit().values()) == pytest.approx(found.latency_ms)
        assert sum(cost.latency_ms for cost in found.costs) == pytest.approx(found.latency_ms)
        assert found.macs == pytest.approx(fv.count(DEIT, "spvit-deit-small").macs)


def test_a_batch_fills_arrays_and_shares_weights():
    alone, many = fv.simulate(DEIT, batch=1), fv.simulate(DEIT, batch=16)
    assert many.by_unit()["ps"] == pytest.approx(alone.by_unit()["ps"])
    assert 0.8 * alone.by_unit()["array"] < many.by_unit()["array"] < alone.by_unit()["array"]
    assert many.by_operation("latency_ms")["qk"] == pytest.approx(alone.by_operation("latency_ms")["qk"])
    assert many.macs == alone.macs
    assert fv.simulate(DEIT, target="h100", batch=16).latency_ms < 0.8 * fv.simulate(DEIT, target="h100").latency_ms
    assert fv.simulate(DEIT, target="zcu102-16bit", batch=16).by_unit()["block"] == pytest.approx(12 * 0.172)


def test_a_cascade_of_plans_is_the_sum_of_its_passes():
    low, high = fv.Plan([fv.SPViT(after=(3,), keep=(0.5,))]), fv.Plan()
    plan = fv.Plan.cascade([low, high], gate=fv.Entropy(0.3), fractions=(0.8, 0.2))
    found, d_low, d_high = fv.simulate(DEIT, plan), fv.simulate(DEIT, low).latency_ms, fv.simulate(DEIT).latency_ms
    assert found.latency_ms == pytest.approx(d_low + 0.2 * d_high)
    assert found.edp_of_passes == pytest.approx(7.92 / 1000 * (d_low**2 + 0.2 * d_high**2))
    assert found.params == fv.count(DEIT, low).params + fv.count(DEIT).params
    other = fv.simulate(DEIT, plan, fractions=(0.5, 0.5))
    assert other.latency_ms == pytest.approx(d_low + 0.5 * d_high)
    assert [share for _, share in other.passes] == [1.0, 0.5]
    bound = fv.simulate(DEIT, fv.Plan.cascade([low, high], gate=fv.Entropy(0.3)))
    assert bound.latency_ms == pytest.approx(d_low + d_high)
    assert "upper bound" in bound.label
    assert "upper bound" not in found.label
    assert "upper bound" in fv.simulate(DEIT, fv.Plan.cascade([ARGMAX, high], gate=fv.Entropy(0.3), fractions=(0.8, 0.2))).label
    tiny = fv.simulate(("deit_tiny_patch16_224", DEIT), plan)
    assert tiny.latency_ms == pytest.approx(fv.simulate("deit_tiny_patch16_224", low).latency_ms + 0.2 * d_high)
    with pytest.raises(fv.FoveateError, match="3 models for 2 efforts"):
        fv.simulate((DEIT, DEIT, DEIT), plan)
    with pytest.raises(fv.FoveateError, match="for a cascade"):
        fv.simulate(DEIT, plan, tokens=(100,))


def test_a_cascades_trace_says_which_images_ran_what():
    low = fv.Plan([fv.SPViT(after=(3,), keep=(0.5,), select="argmax")])
    plan = fv.Plan.cascade([low, fv.Plan()], gate=fv.Entropy(0.3))
    first = fv.Trace(images=4, tokens=[[50, 60, 70, 197]], after=(3,))
    trace = fv.Trace(images=4, efforts=[1, 2, 1, 1], passes=[Pass(1, [0, 1, 2, 3], first), Pass(2, [1], fv.Trace(images=1))])
    found = fv.simulate(DEIT, plan, trace=trace)
    assert found.latency_ms == pytest.approx(fv.simulate(DEIT, low, trace=first).latency_ms + 0.25 * fv.simulate(DEIT).latency_ms)


def test_a_simulation_is_a_ledger():
    found = fv.simulate(DEIT)
    assert isinstance(found, fv.Ledger)
    assert found.images_per_s == pytest.approx(1000 / 59.66, rel=1e-3)
    assert "ms" in found.table()
    assert fv.Ledger.from_json(found.to_json()) == found.ledger
    assert type(found.only("blocks")) is fv.Ledger
    assert found.scaled(0.5).latency_ms == pytest.approx(found.latency_ms / 2)
    assert (found + found).latency_ms == pytest.approx(2 * found.latency_ms)


# bad input


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"target": "zcu-102"}, ("zcu-102", "did you mean zcu102")),
        ({"target": "galaxy-s20", "plan": "spvit(after=[3],keep=[0.1])"}, ("GMACs on galaxy-s20", "deit_small_patch16_224 dense")),
        ({"batch": 0}, ("batch=0", "from 1")),
        ({"batch": 2.0}, ("batch=2.0", "whole number")),
        ({"plan": "vitality()"}, ("zcu102", "blocks.1.attn.k_mean", "[[mapping]]")),
        ({"plan": "efficient()", "target": "sanger"}, ("blocks.1.attn.q_softmax", "of kind 'softmax' only blocks.*.attn.predictor.softmax, blocks.*.attn.softmax")),
        ({"fractions": (0.8, 0.2)}, ("fractions", "cascade")),
        ({"mapping": "nowhere.toml"}, ("nowhere.toml",)),
        ({"plan": ARGMAX, "tokens": (0, 0, 0)}, ("0 live tokens",)),
        ({"target": "galaxy-s20", "model": "pit_s_224"}, ("pit_s_224", "galaxy-s20")),
    ],
)
def test_what_is_refused(arguments, parts):
    with pytest.raises(fv.FoveateError) as error:
        fv.simulate(arguments.pop("model", DEIT), **arguments)
    for part in parts:
        assert part in str(error.value)


# the command line


def test_simulate_on_the_command_line(capsys):
    found = answer(capsys, "simulate", DEIT, "--target", "zcu102")
    assert found["latency_ms"] == pytest.approx(59.66, rel=0.01)
    assert found["energy_mj"] == pytest.approx(472.5, rel=0.01)
    assert found["edp"] == pytest.approx(28.19, rel=0.01)
    assert found["fps_per_w"] == pytest.approx(2.14, rel=0.05)
    assert found["shares"]["softmax"] == pytest.approx(0.6, abs=0.01)
    assert set(found["by_unit"]) == {"array", "ps", "nowhere"}
    assert {row["unit"] for row in found["operations"] if row["operation"].endswith("attn.qk")} == {"array"}
    assert sum(row["latency_ms"] for row in found["operations"]) == pytest.approx(found["latency_ms"])
    code, text, notes = run(capsys, "simulate", DEIT, "--plan", "spvit-deit-small", "--target", "zcu102")
    assert code == 0
    assert "times as fast as the dense 59.66 ms" in text
    assert "nothing is charged for" in notes


def test_simulate_takes_tokens_traces_and_fractions(capsys, tmp_path):
    trace = tmp_path / "trace.json"
    trace.write_text(fv.Trace(images=2, tokens=[[197, 99], [197, 50], [197, 30]], after=(3, 6, 9)).to_json())
    plan = tmp_path / "plan.json"
    plan.write_text(ARGMAX.to_json())
    by_trace = answer(capsys, "simulate", DEIT, "--plan", plan, "--trace", trace)
    by_tokens = answer(capsys, "simulate", DEIT, "--plan", plan, "--tokens", "99,50,30")
    assert by_trace["label"] == "mean over 2 images on zcu102"
    assert by_tokens["latency_ms"] < by_trace["latency_ms"]
    assert "--trace RUN" in run(capsys, "simulate", DEIT, "--plan", plan)[2]
    plan.write_text(fv.Plan.cascade([ARGMAX, fv.Plan()], gate=fv.Entropy(0.3)).to_json())
    found = answer(capsys, "simulate", DEIT, "--plan", plan, "--fractions", "0.8,0.2")
    assert [one["share"] for one in found["passes"]] == [1.0, pytest.approx(0.2)]
    assert found["edp_of_passes"] < found["edp"]
    for option, value in (("--fractions", "a,b"), ("--tokens", "x")):
        code, out, err = run(capsys, "simulate", DEIT, option, value)
        assert (code, out) == (2, "")
        assert option in err


def test_simulating_loads_no_torch_and_help_not_even_numpy():
    script = f"""
import json, sys
from foveate.cli import main
codes = [main(["simulate", "--help"]), main(["targets", "--help"])]
light = [name for name in ("torch", "timm", "numpy", "foveate.sim", "foveate.simulation") if name in sys.modules]
lines = ("targets", "targets zcu102", "simulate {DEIT}", "simulate spvit-nano --target tx2 --json", "simulate {DEIT} --target no")
codes += [main(line.split()) for line in lines]
heavy = [name for name in ("torch", "timm", "lightning", "matplotlib") if name in sys.modules]
print("\\n" + json.dumps([codes, light, heavy]))
"""
    done = python("-c", script)
    codes, light, heavy = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * 6 + [2], done.stderr
    assert not light
    assert not heavy


def test_targets_on_the_command_line(capsys, tmp_path):
    listed = {one["target"]: one for one in answer(capsys, "targets")["targets"]}
    assert listed["zcu102"]["peak_gmac_per_s"] == 288
    assert listed["h200"]["kind"] == "roofline"
    assert answer(capsys, "targets", "zcu102")["fitted"] == ["processors.ps.ns_per_element = 12.687", "processors.ps-entropy.ns_per_element = 30"]
    mine = tmp_path / "my.toml"
    mine.write_text(run(capsys, "targets", "zcu102", "--toml")[1])
    assert answer(capsys, "targets", "check", mine)["units"] == answer(capsys, "targets", "zcu102")["units"]
    assert answer(capsys, "simulate", DEIT, "--target", mine)["latency_ms"] == pytest.approx(59.66, rel=0.01)
    mine.write_text(mine.read_text().replace("value = 64", "value = -64").replace("clock_mhz", "clock_ghz"))
    code, out, err = run(capsys, "targets", "check", mine)
    assert (code, out) == (2, "")
    assert "arrays.array.rows = -64" in err
    assert "did you mean clock_mhz" in err
    for words in (("check",), ("zcu102", "x.toml"), ("zcu",)):
        code, out, err = run(capsys, "targets", *words)
        assert (code, out) == (2, "")
        assert err.startswith("given:")


def test_files_for_scale_sim(capsys, tmp_path):
    found = answer(capsys, "simulate", DEIT, "--scale-sim", tmp_path / "s")
    assert (tmp_path / "s" / "scale.cfg").read_text().startswith("[general]")
    assert json.dumps(found["scale_sim"])
    assert run(capsys, "simulate", DEIT, "--target", "h200", "--scale-sim", tmp_path / "s")[0] == 2
