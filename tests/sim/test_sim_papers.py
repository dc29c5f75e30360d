"""The printed hardware numbers of PIVOT and SPViT, from model names and plans. What the papers contradict themselves in is said."""

from dataclasses import replace

import pytest

import foveate as fv
from foveate.card import Card, stored_card
from foveate.ledger import Operation
from foveate.simulated import cascade
from foveate.simulation import charged, machine_of
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


def test_pivots_lvvit_cascades_as_far_as_the_paper_agrees_with_itself():
    """PVLS-50 needs the MLP ratio 4 of the printed baseline, PVLS-35 the true one; both assignments are choices, and the printed energies fit no 7.92 W."""
    fifty, thirty = pivot(LVVIT_4, 4, 16, 0.2), pivot(LVVIT, 4, 16, 0.1)
    assert fifty.latency_ms == pytest.approx(50, rel=0.02)
    assert 50.8 / fifty.edp_of_passes == pytest.approx(2.7, rel=0.01)
    assert fifty.energy_mj == pytest.approx(410, rel=0.05)
    assert thirty.latency_ms == pytest.approx(36.5, rel=0.002)
    assert thirty.edp == pytest.approx(10.57, rel=0.002)
    assert thirty.energy_mj == pytest.approx(312, rel=0.08)


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


def test_skipped_attention_by_a_plan_is_the_same_as_no_attention_operations():
    plan = fv.Plan([fv.PIVOT(skip=(7, 8, 9, 10, 11, 12))])
    assert fv.simulate(DEIT, plan).latency_ms == pytest.approx(charged(effort(DEIT, 6), machine_of("zcu102")).latency_ms)


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


def test_spvits_speed_up_of_deit_s():
    dense, pruned = (fv.simulate(DEIT, plan, "zcu102-16bit").latency_ms for plan in ("dense", "spvit-deit-small"))
    assert dense / pruned == pytest.approx(1.69, rel=0.05)


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
