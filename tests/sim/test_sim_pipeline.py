"""Units that overlap: blocks in time, flows, heads one behind the other, units behind units, masks and windows of pairs, lines of memory."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from foveate import sim
from foveate.sim.machine import Array, Flow, Machine, Memory, Processor
from foveate.sim.mapping import Rule


def work(kind, name, m=8, n=8, k=1, times=1, block=1):
    return SimpleNamespace(kind=kind, origin=f"blocks.{block}.attn.{name}" if block else name, m=m, n=n, k=k, times=times)


ARRAY = Array("pe", 8, 8, "weight-stationary")
FLOWS = (Flow("attn.mean", follows=("attn.qkv",)), Flow("attn.context", after=("attn.mean",)), Flow("attn.ratio", follows=("attn.context",)))


def machine(**changes) -> Machine:
    usual = {
        "precision_bits": 16, "clock_mhz": 1.0, "arrays": (ARRAY,), "processors": (Processor("sum", lanes=8), Processor("div", lanes=8)),
        "rules": (Rule("pe", ("gemm", "conv")), Rule("sum", ("sum",)), Rule("div", ("divide",)), Rule("nowhere", ("norm",), why="free")), "flows": FLOWS,
    }  # fmt: skip
    return Machine("mine", "pipeline", "", **usual | changes)


HEADS = [
    work("norm", "norm"), work("gemm", "qkv", m=8, n=24, k=8), work("sum", "mean", times=2), work("gemm", "context", k=8, times=2),
    work("divide", "ratio", times=2), work("gemm", "proj", k=8),
]  # fmt: skip
FOLD = 2 * 8 + 8 + 8 - 2


def cycles(costs):
    """Cycles of the clock of 1 MHz that each operation adds, by name."""
    return {cost.origin.rpartition(".")[2]: pytest.approx(1000 * cost.latency_ms) for cost in costs}


def test_heads_run_one_behind_the_other_and_the_rest_waits_for_all():
    (line,) = sim.timelines(HEADS, machine()).values()
    at = {event.task.name.removeprefix("attn."): (event.start, event.end) for event in line.events}
    # qkv is cut in two, a piece for each head; the sums end a cycle behind their piece.
    assert at["qkv@pe#1"] == (-3 * FOLD, -1.5 * FOLD)
    assert at["qkv@pe#2"] == (-1.5 * FOLD, 0)
    assert at["mean@sum#1"] == (-1.5 * FOLD + 1 - 8, -1.5 * FOLD + 1)
    assert at["mean@sum#2"] == (1 - 8, 1)
    assert at["context@pe#1"] == (0, FOLD)
    assert at["context@pe#2"] == (FOLD, 2 * FOLD)
    assert at["ratio@div#2"] == (2 * FOLD + 1 - 8, 2 * FOLD + 1)
    assert at["proj@pe#1"] == (2 * FOLD + 1, 3 * FOLD + 1)
    assert line.cycles < line.serial_cycles


def test_an_operation_adds_what_the_rest_waits_for_and_keeps_its_own_cycles():
    costs = sim.simulate(HEADS, machine())
    assert cycles(costs) == {"norm": 0, "qkv": 3 * FOLD, "mean": 0, "context": 2 * FOLD, "ratio": 1, "proj": FOLD}
    assert [cost.cycles for cost in costs] == [None, 3 * FOLD, 16, 2 * FOLD, 16, FOLD]
    assert [cost.operation for cost in costs] == list(range(6))


def test_without_flows_units_take_turns():
    alone = sim.simulate(HEADS, machine(flows=(Flow("none"),)))
    serial = sim.simulate(HEADS, replace(machine(flows=()), kind="accelerator"))
    assert [cost.latency_ms for cost in alone] == pytest.approx([cost.latency_ms for cost in serial])


def test_blocks_and_what_lies_outside_run_one_after_the_other():
    again = [SimpleNamespace(**vars(one) | {"origin": one.origin.replace("blocks.1", "blocks.2")}) for one in HEADS]
    costs = sim.simulate([work("conv", "embed.proj", block=None, k=8), *HEADS, *again, work("gemm", "head.fc", block=None, k=8)], machine())
    assert 1000 * sum(cost.latency_ms for cost in costs) == pytest.approx(2 * (6 * FOLD + 1) + 2 * FOLD)
    assert costs[7].origin == "blocks.2.attn.norm"
    assert costs[-1].operation == 13


def test_heads_that_repeat_differently_wait_for_each_other_as_a_whole():
    uneven = [*HEADS[:3], work("gemm", "context", k=8, times=4), *HEADS[4:]]
    (line,) = sim.timelines(uneven, machine()).values()
    assert {event.task.name for event in line.events} == {f"attn.{name}#1" for name in ("qkv@pe", "mean@sum", "context@pe", "ratio@div", "proj@pe")}


def test_a_mean_of_images_is_no_timeline():
    with pytest.raises(sim.SimError, match="run 1.5 times"):
        sim.simulate([work("gemm", "qk", k=8, times=1.5)], machine())
    with pytest.raises(sim.SimError, match="of kind 'accelerator'"):
        sim.timelines(HEADS, replace(machine(flows=()), kind="accelerator"))


def test_results_pass_through_further_units():
    rules = (Rule("pe", ("gemm",)), Rule("sum", ("softmax",), then=("div",)))
    soft = [work("gemm", "qk", n=16, k=8, times=2), work("softmax", "softmax", n=16, times=2)]
    piped = sim.simulate(soft, machine(rules=rules, flows=(Flow("attn.softmax"),)))
    assert [(cost.unit, cost.cycles) for cost in piped] == [("pe", 4 * FOLD), ("sum", 32), ("div", 32)]
    serial = sim.simulate(soft, replace(machine(rules=rules, flows=()), kind="accelerator"))
    assert 1000 * sum(cost.latency_ms for cost in serial) == pytest.approx(4 * FOLD + 64)
    assert 1000 * sum(cost.latency_ms for cost in piped) == pytest.approx(4 * FOLD)  # nothing says that it waits for qk


def test_lanes_take_a_row_of_all_heads_at_a_time():
    costs = sim.simulate([work("sum", "mean", m=5, n=3, times=4)], machine(flows=(Flow("none"),)))
    assert costs[0].cycles == pytest.approx(5 * 2)  # 12 elements a row on 8 lanes


def test_joined_folds_take_what_streams_and_fill_the_array_once_a_block():
    rules = (Rule("pe", ("gemm",), folds="joined"),)
    products = [work("gemm", "qk", m=20, n=16, k=17, times=3), work("gemm", "av", m=20, n=8, k=8, times=3)]
    for kind, flows in (("pipeline", (Flow("none"),)), ("accelerator", ())):
        costs = sim.simulate(products, replace(machine(rules=rules, flows=flows), kind=kind))
        assert [cost.cycles for cost in costs] == [3 * 6 * 20 + 14, 3 * 20]
    quick = sim.simulate(products, machine(rules=rules, flows=(Flow("none"),), arrays=(replace(ARRAY, fill_cycles=3),)))
    assert quick[0].cycles == 3 * 6 * 20 + 3


def test_masked_pairs_are_packed_into_full_folds():
    rules = (
        Rule("nowhere", ("gemm",), ("*.predictor",), why="not looked at here"),
        Rule("pe", ("gemm",), ("*.qk",), dataflow="output-stationary", folds="joined", pairs="masked"),
        Rule("pe", ("softmax",), pairs="masked", dataflow="output-stationary", cycles_per_fold=5, then=("sum",)),
        Rule("pe", ("gemm",), ("*.av",), dataflow="input-stationary", folds="joined", pairs="masked"),
    )
    scores = [
        work("gemm", "predictor", m=20, n=20, k=9), work("gemm", "qk", m=20, n=20, k=9), work("softmax", "softmax", m=20, n=20),
        work("gemm", "av", m=20, n=4, k=20),
    ]  # fmt: skip
    sparse = machine(rules=rules, flows=(Flow("none"),), constants={"density": 0.3, "pack_efficiency": 0.5}, arrays=(replace(ARRAY, fill_cycles=0),))
    folds = 4  # 0.3 x 400 pairs, half of 64 places filled
    assert [cost.cycles for cost in sim.simulate(scores, sparse)[1:]] == pytest.approx([folds * 9, folds * 5, 20 * 3 * 0.6, folds * 4])
    assert sim.simulate(scores[1:], sparse)[0].cycles == 9 * 9  # nothing says which pairs matter: 20 x 20 in pieces of 8 x 8
    assert any("upper bound" in text for text in sim.remarks(scores, replace(sparse, constants={"density": 1})))
    assert not any("upper bound" in text for text in [*sim.remarks(scores, sparse), *sim.remarks(scores[1:], replace(sparse, constants={}))])
    by_block = replace(sparse, densities=(0.3, 0.6))
    later = [SimpleNamespace(**vars(one) | {"origin": one.origin.replace("blocks.1", "blocks.2")}) for one in scores]
    assert sim.simulate([*scores, *later], by_block)[6].cycles == 8 * 9
    assert sim.simulate([*scores[1:], *later], by_block)[0].cycles == 9 * 9
    with pytest.raises(sim.SimError, match="2 densities for 1 blocks"):
        sim.simulate(scores, by_block)


def test_windows_limit_the_keys():
    rules = (
        Rule("pe", ("gemm",), ("*.qk",), dataflow="output-stationary", folds="joined", pairs="window"),
        Rule("pe", ("gemm",), ("*.av",), dataflow="input-stationary", folds="joined", pairs="window"),
    )
    near = machine(rules=rules, flows=(Flow("none"),), constants={"window": 10}, arrays=(replace(ARRAY, fill_cycles=0),))
    costs = sim.simulate([work("gemm", "qk", m=20, n=20, k=9), work("gemm", "av", m=20, n=4, k=20)], near)
    assert [cost.cycles for cost in costs] == [3 * 2 * 9, 3 * 2 * 4]


def test_energy_of_what_is_busy_and_of_lines_of_memory():
    array = replace(ARRAY, rated_power_w=0.64, activity=0.5, energy_pj_per_weight=3)
    adders = Processor("sum", lanes=8, rated_power_w=0.2, activity=0.25)
    memory = Memory("sram", "all", line_words=8, energy_pj_per_byte=2)
    rules = (Rule("pe", ("gemm",), stays=("outputs",), wide=("weights",)), Rule("sum", ("sum",)))
    busy = machine(arrays=(array,), processors=(adders,), memories=(memory,), rules=rules, flows=(Flow("none"),))
    product, moved, summed = sim.simulate([work("gemm", "qk", m=6, n=5, k=7, times=3), work("sum", "mean", m=6, n=5, times=3)], busy)
    assert product.energy_mj == pytest.approx(3 * (0.5 * 0.64 / 64 * 6 * 5 * 7 * 1e-3 + 3 * 35 * 1e-9))
    assert (moved.unit, moved.latency_ms) == ("sram", 0)
    assert moved.energy_mj == pytest.approx(2 * (6 * 24 * 2 + 3 * 35 * 4) * 1e-9)  # 21 words a row of all heads: 3 lines of 8
    assert summed.energy_mj == pytest.approx(0.25 * 0.2 * 6 * 2 * 1e-3)
    at_full = sim.simulate([work("gemm", "qk", m=6, n=5, k=7)], replace(busy, power_w=2.0))
    assert [cost.energy_mj for cost in at_full] == pytest.approx([2 * at_full[0].latency_ms])


def test_copies_share_the_time_and_not_the_energy():
    one = replace(machine(), arrays=(replace(ARRAY, energy_pj_per_mac=1),))
    alone, shared = sim.simulate(HEADS, one), sim.simulate(HEADS, replace(one, copies=2.5))
    assert [cost.latency_ms for cost in shared] == pytest.approx([cost.latency_ms / 2.5 for cost in alone])
    assert [cost.energy_mj for cost in shared] == [cost.energy_mj for cost in alone]
    assert replace(one, copies=2.5).peak == 2.5 * one.peak
