"""The hardware numbers of ViTALiTy: its pipeline and both dataflows, Tables III, V and VI, Sanger, SALO, peaks of other machines, the TX2."""

from dataclasses import replace
from functools import cache

import pytest

import foveate as fv
from foveate import sim
from foveate.card import stored_card
from foveate.sim.explain import explain

DEIT_T, DEIT_S, DEIT_B = (f"deit_{size}_patch16_224" for size in ("tiny", "small", "base"))
SEVEN = (DEIT_T, DEIT_S, DEIT_B, "mobilevit_xxs", "mobilevit_xs", "levit_128s", "levit_128")
SPARSE = "vitality(mode=sparse)"


@cache
def simulated(model, plan="vitality", target="vitality"):
    return fv.simulate(model, plan, target)


def attention_cycles(found) -> float:
    return found.only("attention").latency_ms * 1000 * sim.load("vitality").clock_mhz


def folds(size: int) -> int:
    return -(-size // 64)


# The intra-layer pipeline (section IV-C, Fig. 7)


@pytest.mark.parametrize("model", SEVEN)
def test_the_attention_takes_its_two_products_and_little_more(model):
    """h (G + Q G) + 126 to fill, a layer; two or three cycles more for what leaves behind the last product."""
    products = [o for o in fv.count(model, "vitality").operations if o.origin.endswith(("attn.context", "attn.numerator"))]
    layers = len(products) / 2
    expected = sum(o.times * folds(o.k) * folds(o.n) * o.m for o in products) + 126 * layers
    assert 0 < attention_cycles(simulated(model)) - expected < 4 * layers
    assert attention_cycles(simulated(model)) < 0.35 * sum(c.cycles for c in mixing(simulated(model)))  # one after the other


def mixing(found):
    kept = {o.origin for o in found.only("attention").operations}
    return [cost for cost in found.costs if cost.origin in kept and cost.cycles]


def test_pre_and_post_processing_hide_behind_the_array():
    for model in SEVEN:
        found = simulated(model)
        added, busy = ({unit: 0.0 for unit in found.by_unit()} for _ in range(2))
        for cost in mixing(found):
            added[cost.unit] += cost.latency_ms * 500e3
            busy[cost.unit] += cost.cycles
        blocks = len({cost.origin.split(".")[1] for cost in mixing(found)})
        assert min(busy[unit] for unit in ("accumulators", "adders", "dividers")) > 2000
        for unit in ("accumulators", "adders", "dividers", "extra-adder", "SA-Diag"):
            assert added[unit] <= 3 * blocks, (model, unit)


def test_the_timeline_of_a_block_is_fig_7():
    line = sim.timelines(fv.count(DEIT_T, "vitality").operations, sim.load("vitality"))[1]
    at = {event.task.name.removeprefix("attn."): event for event in line.events}
    head = {name: at[f"{name}#2"] for name in (
        "k_mean.sum@accumulators", "k_mean@dividers", "k_centred@adders", "context@SA-General", "denominator@SA-Diag", "numerator@SA-General",
        "numerator.add@adders", "ratio@dividers",
    )}  # fmt: skip
    total, mean, centred, context, denominator, numerator, added, ratio = head.values()
    assert mean.start == total.end
    assert centred.start == mean.end
    assert context.start > centred.start  # takes the centred keys as they come
    assert denominator.start == numerator.start == context.end  # both sub-arrays at once
    assert added.start == numerator.start + 1
    assert (ratio.start, ratio.end) == (added.start + 1, added.end + 1)
    assert total.end < 0  # done while the projections run
    assert context.end - context.start == 4 * 64
    assert numerator.end - numerator.start == 197
    for unit in line.busy():
        events = sorted((e for e in line.events if e.task.unit == unit), key=lambda e: e.start)
        assert all(one.end <= other.start for one, other in zip(events, events[1:])), unit


def test_the_other_dataflow_is_a_choice_of_mapping():
    """G-stationary: G accumulates where it is, n cycles instead of ceil(n / 64) d_k; the machine's rules alone change the time."""
    work = fv.count(DEIT_T, "vitality").operations
    ours, rules = (sim.simulate(work, sim.load("vitality"), r) for r in (None, sim.load("vitality-gs").rules))
    cycles = [next(c.cycles for c in costs if c.origin == "blocks.2.attn.context") for costs in (ours, rules)]
    assert cycles == [3 * 4 * 64 + 126, 3 * 197 + 126]
    assert [c.unit for c in ours] == [c.unit for c in rules]
    assert simulated(DEIT_T, target="vitality-gs").latency_ms < simulated(DEIT_T).latency_ms


# Table III


def test_table_3_adds_up():
    ours, sanger = (explain(sim.load(name)) for name in ("vitality", "sanger"))
    assert ours["area_mm2"] == pytest.approx(5.223, abs=5e-4)
    assert 1000 * ours["rated_power_w"] == pytest.approx(1460.5, abs=0.05)
    assert sanger["area_mm2"] == pytest.approx(5.194, abs=1.1e-3)  # the parts print 5.193
    assert 1000 * sanger["rated_power_w"] == pytest.approx(1450, abs=1)
    assert ours["peak_gmac_per_s"] == (64 * 64 + 64) / 2


# Table V, in microjoules: (data access, other processors, systolic array, overall), ours and G-stationary

TABLE_5 = {
    DEIT_B: ((3.76, 3.92, 191, 198), (2.92, 3.92, 215, 222)), "mobilevit_xxs": ((0.15, 0.15, 10.3, 10.6), (0.12, 0.15, 13.2, 13.5)),
    "mobilevit_xs": ((0.28, 0.23, 20.1, 20.6), (0.23, 0.23, 23.3, 23.8)), "levit_128s": ((0.12, 0.12, 9.03, 9.27), (0.09, 0.12, 11.1, 11.3)),
    "levit_128": ((0.19, 0.19, 13.3, 13.7), (0.14, 0.19, 16.6, 16.9)),
}  # fmt: skip


def as_table_1_counts(card):
    """One of MobileViT's four pixel groups, values as narrow as keys: what two of the three rows need."""
    return replace(card, blocks=tuple(
        replace(b, value_dim=b.head_dim, groups=1, grid=(b.grid[0] // 2, b.grid[1] // 2) if b.groups > 1 else b.grid) for b in card.blocks
    ))  # fmt: skip


@cache
def energies(model, target):
    """Table V's rows: the array's from the true model; the others without LeViT's subsampling attentions."""
    true, counted = stored_card(model), as_table_1_counts(stored_card(model))
    mixes = {o.origin for o in fv.count(true, "vitality", include="attention").operations}
    array = sum(c.energy_mj or 0 for c in fv.simulate(true, "vitality", target).costs if c.origin in mixes and c.unit.startswith("SA-"))
    data = processors = 0.0
    for cost in fv.simulate(counted, "vitality", target).costs:
        if cost.origin in mixes and counted.block(int(cost.origin.split(".")[1])).queries is None and not cost.unit.startswith("SA-"):
            data += (cost.energy_mj or 0) * (cost.unit == "SRAM")
            processors += (cost.energy_mj or 0) * (cost.unit != "SRAM")
    return [1000 * energy for energy in (data, processors, array, data + processors + array)]


@pytest.mark.parametrize("model", TABLE_5)
@pytest.mark.parametrize("target", ["vitality", "vitality-gs"])
def test_table_5(model, target):
    printed = TABLE_5[model][target == "vitality-gs"]
    data, *others = energies(model, target)
    assert others == pytest.approx(printed[1:], rel=0.055)
    # MobileViT-xs lies 17 and 23 % below with the constant that fits the other four models.
    assert data == pytest.approx(printed[0], rel=0.24 if model == "mobilevit_xs" else 0.1)


@pytest.mark.parametrize("model", TABLE_5)
def test_the_own_dataflow_is_the_thriftier_one(model):
    ours, stationary = energies(model, "vitality"), energies(model, "vitality-gs")
    printed = TABLE_5[model][1][3] / TABLE_5[model][0][3]
    assert stationary[3] / ours[3] == pytest.approx(printed, rel=0.07)
    assert stationary[0] < ours[0]


# Table VI

PROCESSORS = {
    "linformer": {"exponentials", "accumulators", "dividers"}, "efficient": {"exponentials", "accumulators", "dividers"},
    "performer": {"exponentials", "accumulators", "dividers", "adders"}, "lineartransformer": {"exponentials", "accumulators", "dividers", "adders"},
    "vitality": {"accumulators", "dividers", "adders", "extra-adder"}, "dense": {"exponentials", "accumulators", "dividers"},
}  # fmt: skip


@pytest.mark.parametrize("method", PROCESSORS)
def test_the_processors_of_each_attention(method):
    """Table VI, and the accumulators that it leaves out where they only normalise."""
    found = simulated(DEIT_T, method, "vitality-extended")
    assert {cost.unit for cost in found.costs if ".attn." in cost.origin} - {"SA-General", "SA-Diag", "SRAM", "nowhere"} == PROCESSORS[method]
    assert found.latency_ms >= simulated(DEIT_T).latency_ms
    if method != "vitality":
        with pytest.raises(fv.FoveateError) as error:
            fv.simulate(DEIT_T, method, "vitality")
        assert "blocks.1.attn." in error.value.given
        assert "vitality" in error.value.given
        assert "exp" in error.value.given or "softmax" in error.value.given


def test_other_attentions_overlap_too():
    """The softmax of a head hides behind products; serially it would take three passes over its scores more."""
    for method in ("dense", "performer", "linformer"):
        found = simulated(DEIT_T, method, "vitality-extended")
        assert sum(c.latency_ms for c in mixing(found)) * 500e3 < 0.9 * sum(c.cycles for c in mixing(found))
        waiting = {unit: ms * 500e3 for unit, ms in found.by_unit().items() if unit not in ("SA-General", "nowhere")}
        assert sum(waiting.values()) < 0.06 * attention_cycles(found)


# Sanger, SALO


def over_sanger(density: float) -> tuple[float, float, float]:
    """Means over seven models: attention, end to end, energy end to end."""
    pairs = [(simulated(model, SPARSE, f"sanger@density={density}"), simulated(model)) for model in SEVEN]
    attention = sum(attention_cycles(theirs) / attention_cycles(ours) for theirs, ours in pairs) / 7
    return attention, *(sum(getattr(a, key) / getattr(b, key) for a, b in pairs) / 7 for key in ("latency_ms", "energy_mj"))


def test_vitality_over_sanger():
    """Printed: 7 x attention, 3 x end to end, in time and energy. The density of Sanger's masks is not: 0.41 gives 6.9 x."""
    attention, whole, energy = over_sanger(0.41)
    assert attention == pytest.approx(7, rel=0.05)
    assert 2.5 <= whole <= 4
    assert energy == pytest.approx(3, rel=0.1)
    sparser = over_sanger(0.1)
    assert 2 < sparser[0] < attention
    assert 2.5 <= sparser[1] <= whole


def test_sangers_cycles():
    """Predictor ceil(q / 64) ceil(k / 64) d, then ceil(rho q k / 1024) tiles of d + 94 + e; heads overlap."""
    costs = simulated(DEIT_T, SPARSE, "sanger@density=0.41").costs
    cycles = {c.origin.rpartition("attn.")[2]: c.cycles for c in costs if c.origin.startswith("blocks.1.attn.") and c.unit in ("RePE", "predictor")}
    tiles = -(-int(0.41 * 197 * 197) // 1024)
    assert tiles == 16
    assert (cycles["predictor"], cycles["qk"], cycles["softmax"], cycles["av"]) == (3 * 16 * 64, 3 * tiles * 64, 3 * tiles * 94, 3 * tiles * 64)
    found = simulated(DEIT_T, SPARSE, "sanger@density=0.41")
    assert attention_cycles(found) / 12 == pytest.approx(16 * 64 + 3 * tiles * (128 + 94), abs=4)
    assert any("upper bound" in text for text in simulated(DEIT_T, SPARSE, "sanger").remarks)


def test_vitality_over_salo():
    """SALO: ceil(n / 32) ceil(w / 32) h (2 d + 36) + tiles - 1 + 32 cycles a layer."""
    for model, heads, printed in ((DEIT_T, 3, 4.7), (DEIT_S, 6, 5.0)):
        theirs, tiles = simulated(model, "dense", "salo"), 7 * 2 * heads
        assert theirs.by_unit("cycles")["array"] == 12 * (tiles * (2 * 64 + 36) + tiles - 1 + 32)
        assert theirs.latency_ms * 500e3 / attention_cycles(simulated(model)) == pytest.approx(printed, rel=0.05)


# other machines' peaks, the TX2


@pytest.mark.parametrize("platform", ["xeon-6230", "tx2", "2080ti"])
def test_at_the_peak_of_a_platform_attention_is_faster_and_thriftier(platform):
    """Figs. 11 and 12. Against rooflines the printed factors (up to 239 x) cannot come out: the paper measured programs."""
    factors = []
    for model in SEVEN:
        ours, theirs = (simulated(model, *at).only("attention") for at in (("vitality", f"vitality@peak={platform}"), ("dense", platform)))
        factors.append((theirs.latency_ms / ours.latency_ms, theirs.energy_mj / ours.energy_mj))
    assert min(time for time, _ in factors) > 1.5
    assert min(energy for _, energy in factors) > 100


def test_the_tx2_as_measured():
    overall = {DEIT_T: (14.03, 11.65), "mobilevit_xs": (2.76, 1.79), "levit_128": (4.43, 2.76)}
    for model, (taylor, softmax) in overall.items():
        assert simulated(model, "vitality", "tx2-attention").latency_ms == pytest.approx(taylor, abs=0.011)
        assert simulated(model, "dense", "tx2-attention").latency_ms == pytest.approx(softmax, abs=0.011)
    found = simulated(DEIT_T, "dense", "tx2-attention")
    assert found.by_operation("latency_ms")["softmax"] == pytest.approx(4.43)
    assert {cost.unit for cost in found.costs} == {"measured", "not measured"}
    assert found.latency_ms / simulated(DEIT_T, "vitality", "vitality@peak=tx2").only("attention").latency_ms > 50


@pytest.mark.parametrize(("model", "plan", "said"), [
    (DEIT_S, "dense", "deit_small"), (DEIT_T, "performer", "Taylor attention"), ("levit_128s", "vitality", "levit_128s"),
    ("vit_tiny_patch16_224", "vitality", "vit_tiny"),
])  # fmt: skip
def test_what_was_not_measured_on_the_tx2_is_refused(model, plan, said):
    with pytest.raises(fv.FoveateError, match="table of measurements") as error:
        fv.simulate(model, plan, "tx2-attention")
    assert said in str(error.value)
    assert len(str(error.value)) < 700


def test_batches_run_on_the_pipeline():
    alone, many = simulated(DEIT_T), fv.simulate(DEIT_T, "vitality", "vitality", batch=8)
    assert many.latency_ms < alone.latency_ms
    assert many.only("attention").latency_ms == pytest.approx(alone.only("attention").latency_ms, rel=0.15)
