"""foveate.simulate: the printed hardware numbers of PIVOT and SPViT, cascades, traces, batches, the command line."""

import json
from dataclasses import replace

import pytest
from command import answer, run

import foveate as fv
from foveate.card import Card, stored_card
from foveate.ledger import Operation
from foveate.simulation import charged, machine_of
from foveate.simulated import cascade
from foveate.workload import BlockWork, block_operations

DEIT, LVVIT = "deit_small_patch16_224", "lvvit_s"
ATTENTION_MACS = ("qkv", "qk", "av", "proj")


def wider(card: Card, ratio: int) -> Card:
    """The backbone with another MLP ratio."""
    def widened(block):
        hidden = ratio * block.dim
        first, second = block.mlp
        return replace(block, hidden=hidden, mlp=(replace(first, outputs=hidden), replace(second, inputs=hidden)))

    return replace(card, blocks=tuple(map(widened, card.blocks)))


LVVIT_4 = wider(stored_card(LVVIT), 4)


def effort(model, active: int) -> fv.Ledger:
    """A model with so many attentions: the other blocks run no attention (PIVOT, section 3.1), their MLPs stay."""
    ledger = fv.count(model)
    kept = tuple(o for o in ledger.operations if o.block is None or o.block <= active or ".attn." not in o.origin)
    return replace(ledger, operations=kept)


def pivot(model, low: int, high: int, high_share: float):
    """A cascade of two efforts on PIVOT's machine."""
    machine = machine_of("zcu102")
    return cascade([(charged(effort(model, low), machine), 1.0), (charged(effort(model, high), machine), high_share)])


def percent(found, *groups) -> float:
    return 100 * sum(found.shares()[group] for group in groups)


# PIVOT, Tables 2 and 3, section 4.2


@pytest.mark.parametrize(
    ("model", "delay", "energy", "edp", "fps_per_w"),
    [(DEIT, 59.66, 0.47, 28.19, 2.14), (LVVIT_4, 79.55, 0.63, 50.8, 1.57)],
    ids=["DeiT-S", "LV-ViT-S with an MLP ratio of 4"],
)
def test_pivots_baselines(model, delay, energy, edp, fps_per_w):
    found = fv.simulate(model, target="zcu102")
    assert found.latency_ms == pytest.approx(delay, rel=0.01)
    assert found.energy_mj == pytest.approx(1000 * energy, rel=0.01)
    assert found.edp == pytest.approx(edp, rel=0.015)
    assert found.edp_of_passes == found.edp
    assert found.fps_per_w == pytest.approx(fps_per_w, rel=0.05)


def test_the_true_lvvit_is_faster_than_pivot_prints_and_says_why():
    found = fv.simulate(LVVIT)
    assert found.latency_ms == pytest.approx(75.26, rel=0.001)
    assert any("MLP ratio of 4" in text for text in found.remarks)
    assert not any("LV-ViT" in text for text in fv.simulate(DEIT).remarks)


@pytest.mark.parametrize(("model", "softmax", "macs", "attention", "maps"), [(DEIT, 60, 18, 77.5, 7.3), (LVVIT, 63, 19, 81.9, 7.7)])
def test_pivots_shares_of_the_delay(model, softmax, macs, attention, maps):
    found = fv.simulate(model)
    assert percent(found, "softmax") == pytest.approx(softmax, abs=1)
    assert percent(found, *ATTENTION_MACS) == pytest.approx(macs, abs=1)
    assert percent(found, "softmax", *ATTENTION_MACS) == pytest.approx(attention, abs=1)
    assert percent(found, "qk", "av") == pytest.approx(maps, abs=1)
    assert sum(found.shares().values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("low", "delay", "energy", "edp", "fps_per_w"), [(6, 48.47, 0.38, 16.21, 2.7), (3, 36.9, 0.292, 10.5, 3.4)], ids=["PVDS-50", "PVDS-35"]
)
def test_pivots_cascades(low, delay, energy, edp, fps_per_w):
    found = pivot(DEIT, low, 12, 0.2)
    assert found.latency_ms == pytest.approx(delay, rel=0.001)
    assert found.energy_mj == pytest.approx(1000 * energy, rel=0.015)
    assert found.edp_of_passes == pytest.approx(edp, rel=0.01)
    assert found.edp == pytest.approx(7.92 / 1000 * found.latency_ms**2)
    assert found.edp > 1.01 * found.edp_of_passes  # the paper's own baselines use this larger one
    assert found.fps_per_w == pytest.approx(fps_per_w, rel=0.05)
    d_low, d_high = (charged(effort(DEIT, n), machine_of("zcu102")).latency_ms for n in (low, 12))
    assert found.edp_of_passes == pytest.approx(7.92 / 1000 * (d_low**2 + 0.2 * d_high**2))


def test_pivots_reductions_against_the_baseline():
    dense = fv.simulate(DEIT)
    for low, energy, edp in ((6, 1.23, 1.73), (3, 1.62, 2.6)):
        found = pivot(DEIT, low, 12, 0.2)
        assert dense.energy_mj / found.energy_mj == pytest.approx(energy, rel=0.03)
        assert dense.edp / found.edp_of_passes == pytest.approx(edp, rel=0.03)


@pytest.mark.parametrize(("model", "low", "softmax", "macs", "more_mlp"), [(DEIT, 3, 43, 13, 21), (LVVIT, 4, 48, 14, 19)], ids=["PVDS", "PVLS"])
def test_pivots_figure_6_is_that_of_the_cheaper_efforts(model, low, softmax, macs, more_mlp):
    """Fig. 6a calls them PVDS-50 and PVLS-50; its bars are those of efforts (3, 12) and (4, 16) at F_H = 0.2."""
    dense, found = fv.simulate(model), pivot(model, low, 12 if model == DEIT else 16, 0.2)
    assert percent(found, "softmax") == pytest.approx(softmax, abs=1)
    assert percent(found, *ATTENTION_MACS) == pytest.approx(macs, abs=1)
    assert percent(found, "mlp") - percent(dense, "mlp") == pytest.approx(more_mlp, abs=1)
    busy = {unit: ms / found.by_unit()[unit] for unit, ms in dense.by_unit().items() if ms}
    assert busy["ps"] == pytest.approx(2, rel=0.15)  # Fig. 6b: "around 2x" for the processing system, 1.6-1.8x for the logic (a trend)
    assert dense.latency_ms / found.latency_ms == pytest.approx(1.6, rel=0.08)


def test_pivots_entropy():
    found = charged(fv.Ledger((Operation("entropy", "gate.entropy", m=1, n=1000),)), machine_of("zcu102"))
    assert found.latency_ms == pytest.approx(0.03)


# SPViT, Tables 2 and 4


TABLE_2 = {"tiny": (0.689, 0.630, 0.587, 0.509, 0.468, 0.424), "small": (2.107, 1.891, 1.710, 1.503, 1.315, 1.121)}


@pytest.mark.parametrize(("size", "step", "published"), [(size, step, ms) for size, row in TABLE_2.items() for step, ms in enumerate(row)])
def test_spvits_latency_of_a_block(size, step, published):
    card = stored_card(f"deit_{size}_patch16_224")
    block = BlockWork(1, card.blocks[0], prefix=1, patches=round(197 * (1 - step / 10)) - 1)
    found = charged(fv.Ledger(tuple(block_operations(block, card.blocks[1]))), machine_of("zcu102-16bit"))
    assert found.latency_ms == pytest.approx(published, rel=0.03)


def test_spvits_whole_models_and_their_contradiction():
    tiny, small = (fv.simulate(f"deit_{size}_patch16_224", target="zcu102-16bit") for size in ("tiny", "small"))
    assert tiny.latency_ms == pytest.approx(8.81, rel=0.07)
    assert small.latency_ms == pytest.approx(12 * 2.107, rel=0.03)
    assert any("22.31" in text for text in small.remarks)
    assert any("5.60" in text for text in tiny.remarks)
    assert small.energy_mj is None
    assert small.edp is None
    assert small.fps_per_w is None


def test_attention_and_mlp_are_listed_apart():
    found = fv.simulate("deit_tiny_patch16_224", target="zcu102-16bit")
    parts = found.by_module()
    assert parts["mlp"] == pytest.approx(12 * 8 * 197 * 192**2 / 194.8e6)
    assert parts["attn"] == pytest.approx(12 * (4 * 197 * 192**2 + 2 * 197**2 * 192) / 194.8e6)
    assert parts["overhead"] == pytest.approx(12 * 0.172)
    assert sum(parts.values()) == pytest.approx(found.latency_ms)


@pytest.mark.parametrize(("model", "plan", "published"), [
    ("deit_tiny_patch16_224", "dense", 44), (DEIT, "dense", 113), (DEIT, "spvit(after=[3,6,9],keep=[0.637,0.406,0.259])", 60),
])  # fmt: skip
def test_the_phones_table(model, plan, published):
    assert fv.simulate(model, plan, "galaxy-s20").latency_ms == pytest.approx(published, rel=0.02)


# plans, traces, batches


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
    with pytest.raises(fv.FoveateError, match="for a cascade"):
        fv.simulate(DEIT, plan, tokens=(100,))


def test_a_cascades_trace_says_which_images_ran_what():
    from foveate.trace import Pass

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
