"""Costs of single operations: arrays, processors, overheads, energy, waiting, rooflines, tables, and what is refused."""

from types import SimpleNamespace

import pytest

from foveate import sim
from foveate.sim.dataflow import Folding
from foveate.sim.explain import explain
from foveate.sim.machine import Array, Entry, Machine, Memory, Note, Overhead, Processor
from foveate.sim.mapping import Rule
from foveate.sim.timeline import Task, schedule


def work(kind="gemm", origin="blocks.1.attn.qk", m=10, n=20, k=30, times=1):
    return SimpleNamespace(kind=kind, origin=origin, m=m, n=n, k=1 if kind not in ("gemm", "conv") else k, times=times)


ARRAY = Array("pe", 8, 4, "input-stationary")
RULES = (Rule("pe", ("gemm", "conv")), Rule("ps", ("softmax", "norm")), Rule("nowhere", ("gather",), why="in the noise"))


def machine(**changes) -> Machine:
    usual = {"precision_bits": 8, "clock_mhz": 100.0, "arrays": (ARRAY,), "processors": (Processor("ps", ns_per_element=2.0),), "rules": RULES}
    return Machine("mine", "accelerator", "", **usual | changes)


def one(operation, **changes) -> sim.Cost:
    return sim.simulate([operation], machine(**changes))[0]


def test_a_product_takes_its_cycles_at_the_clock():
    cost = one(work(times=3))
    assert cost.cycles == 3 * Folding(10, 20, 30, 8, 4, "input-stationary").cycles
    assert cost.latency_ms == pytest.approx(cost.cycles / 100e6 * 1e3)
    assert (cost.unit, cost.operation, cost.energy_mj, cost.stall_cycles) == ("pe", 0, None, 0)


def test_a_mapping_may_choose_another_dataflow_than_the_array():
    rules = (Rule("pe", ("gemm",), dataflow="output-stationary"),)
    assert sim.simulate([work()], machine(), rules)[0].cycles == Folding(10, 20, 30, 8, 4, "output-stationary").cycles


@pytest.mark.parametrize(
    ("processor", "kind", "latency_ns", "cycles"),
    [
        (Processor("ps", ns_per_element=2), "softmax", 400, None),
        (Processor("ps", ns_per_row=7), "softmax", 70, None),
        (Processor("ps", ns_per_element=2, ns_per_row=7, ns_per_operation=11), "norm", 481, None),
        (Processor("ps", cycles_per_element=3), "norm", 6000, 600),
        (Processor("ps", elements_per_cycle=64), "norm", 40, 4),
        (Processor("ps", gmac_per_s=2), "gemm", 3000, None),
    ],
)
def test_costs_of_processors(processor, kind, latency_ns, cycles):
    cost = one(work(kind, times=5), processors=(processor,), rules=(Rule("ps"),))
    assert cost.latency_ms == pytest.approx(5 * latency_ns * 1e-6)
    assert cost.cycles == (None if cycles is None else 5 * cycles)


def test_the_power_of_everything_is_charged_for_the_whole_time():
    costs = sim.simulate([work(), work("softmax"), work("gather")], machine(power_w=5.0))
    for cost in costs:
        assert (cost.energy_mj or 0) == pytest.approx(5 * cost.latency_ms)
    assert [cost.unit for cost in costs] == ["pe", "ps", "nowhere"]
    assert costs[2].latency_ms == 0


def test_energies_of_units_and_memories_add_up():
    array = Array("pe", 8, 4, "input-stationary", power_w=0.5, energy_pj_per_mac=0.3)
    memories = (
        Memory("in", "inputs", 64, energy_pj_per_byte=1), Memory("w", "weights", 0.25, energy_pj_per_byte=2), Memory("o", "outputs", 64),
        Memory("dram", "outside", energy_pj_per_byte=100),
    )  # fmt: skip
    cost, *moved = sim.simulate([work()], machine(arrays=(array,), memories=memories))
    inputs, weights = 10 * 30, 20 * 30 * 3  # weights stream once for every 4 of the 10 inputs; 600 bytes do not fit into 256
    outside = inputs + weights + 10 * 20
    assert cost.energy_mj == pytest.approx(0.5 * cost.latency_ms + 0.3 * 10 * 20 * 30 * 1e-9)
    assert {one.unit: one.energy_mj for one in moved} == pytest.approx({"in": inputs * 1e-9, "w": 2 * weights * 1e-9, "dram": 100 * outside * 1e-9})
    assert all(one.latency_ms == 0 for one in moved)
    lanes = Processor("ps", ns_per_element=2, power_w=0.1, energy_pj_per_element=4)
    assert one(work("softmax"), processors=(lanes,)).energy_mj == pytest.approx(0.1 * 400e-6 + 4 * 200e-9)


def test_waiting_for_memory_is_optional_and_takes_the_longer_of_the_two():
    slow = (Memory("dram", "outside", bandwidth_gb_s=0.01), Memory("w", "weights", 0.25))
    free, waiting = one(work(), memories=slow), sim.simulate([work()], machine(memories=slow), stalls=True)[0]
    outside = 10 * 30 + 3 * 600 + 200
    assert free.stall_cycles == 0
    assert waiting.latency_ms == pytest.approx(outside / 0.01e9 * 1e3)
    assert waiting.cycles == free.cycles
    assert waiting.cycles + waiting.stall_cycles == pytest.approx(outside / 0.01e9 * 100e6)
    fast = machine(memories=(Memory("dram", "outside", bandwidth_gb_s=1000),))
    assert sim.simulate([work()], fast, stalls=True)[0].latency_ms == free.latency_ms


def test_overheads_stand_behind_their_block_and_at_the_end():
    overheads = (Overhead("control", "block", 0.5), Overhead("start", "image", 2.0))
    names = ["embed.proj", "blocks.1.attn.qkv", "blocks.1.mlp.fc1", "blocks.2.attn.qkv", "head.fc"]
    costs = sim.simulate([work(origin=name) for name in names], machine(overheads=overheads, power_w=2.0))
    assert [cost.origin for cost in costs] == [*names[:3], "blocks.1.overhead", names[3], "blocks.2.overhead", names[4], "overhead"]
    assert [(c.unit, c.latency_ms, c.energy_mj) for c in costs if c.operation is None] == [("control", 0.5, 1.0), ("control", 0.5, 1.0), ("start", 2.0, 4.0)]
    assert [cost.operation for cost in costs if cost.operation is not None] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("operation", "rules", "parts"),
    [
        (work("fft", "blocks.3.attn.fft"), RULES, ("blocks.3.attn.fft", "'fft'", "mine", "gemm, conv, softmax")),
        (work("softmax"), (Rule("pe"),), ("blocks.1.attn.qk", "softmax", "pe of mine", "products of matrices")),
        (work("gemm"), (Rule("ps"),), ("blocks.1.attn.qk", "ps of mine", "not products of matrices")),
        (work(m=0), RULES, ("0, 20, 30", "mine", "at least one token")),
        (work(k=-1), RULES, ("10, 20, -1",)),
    ],
)
def test_what_cannot_run_is_named_with_its_target(operation, rules, parts):
    with pytest.raises(sim.SimError) as error:
        sim.simulate([operation], machine(rules=rules))
    for part in parts:
        assert part in str(error.value)


def test_an_empty_workload_is_refused():
    with pytest.raises(sim.SimError, match="no operations"):
        sim.simulate([], machine())


def test_a_roofline_takes_the_longer_of_computing_and_moving():
    peak = Machine("gpu", "roofline", "", precision_bits=16, peak_gmac_per_s=1000, bandwidth_gb_s=100, power_w=50, overhead_us=3)
    big, thin, norm = sim.simulate([work(m=1000, n=1000, k=1000, times=2), work(m=1, n=1000, k=1000), work("norm", m=100, n=100)], peak)
    assert big.latency_ms == pytest.approx(2 * (1.0 + 0.003))
    assert thin.latency_ms == pytest.approx((1000 + 1_000_000 + 1000) * 2 / 100e6 + 0.003)
    assert norm.latency_ms == pytest.approx(2 * 10_000 * 2 / 100e6 + 0.003)
    assert big.energy_mj == pytest.approx(50 * big.latency_ms)
    assert explain(peak)["knee_macs_per_byte"] == 10
    assert "roofline" in sim.remarks([work()], peak)[0]


def test_a_table_draws_a_line_between_its_measurements_and_not_beyond():
    phone = Machine("phone", "table", "", entries=(Entry("deit", "dense", 2.0, 40.0), Entry("deit", "pruned", 1.0, 25.0)))

    def latency(gmacs, model="deit"):
        work_of = [work(m=1000, n=1000, k=round(gmacs * 750)), work("norm"), work(m=1000, n=1000, k=round(gmacs * 250))]
        costs = sim.simulate(work_of, phone, model=model)
        assert [cost.latency_ms > 0 for cost in costs] == [True, False, True]
        return sum(cost.latency_ms for cost in costs)

    assert (latency(2), latency(1), latency(1.5)) == (pytest.approx(40), pytest.approx(25), pytest.approx(32.5))
    assert latency(0.988) == pytest.approx(25)
    for gmacs, model in ((0.9, "deit"), (2.2, "deit"), (1.5, "pit")):
        with pytest.raises(sim.SimError, match="deit dense at 2 GMACs"):
            latency(gmacs, model)


def test_remarks_name_what_is_free_what_contradicts_and_what_does_not_fit():
    notes = (Note("always"), Note("only small", ("deit_small*",)))
    target = machine(notes=notes, memories=(Memory("OUT", "outputs", 0.125),))
    said = sim.remarks([work(), work(n=400), work("gather")], target, model="deit_tiny")
    assert said[:2] == ["always", "nothing is charged for gather: in the noise"]
    assert said[2].startswith("OUT (0.125 KB) cannot hold a tile of partial sums: blocks.1.attn.qk leaves 1,600 partial sums")
    assert len(said) == 3
    assert "only small" in sim.remarks([work(n=2)], target, model="deit_small_patch16_224")


# timelines


def test_a_pipeline_is_shorter_than_its_serial_sum_and_no_unit_does_two_things_at_once():
    tasks = [
        Task("mean", "accumulator", 10), Task("centre", "adder", 10, after=("mean",)), Task("context", "array", 100, follows=("centre",)),
        Task("sum", "accumulator", 10, follows=("centre",)), Task("numerator", "array", 80, after=("context", "sum")),
        Task("ratio", "divider", 5, follows=("numerator",)),
    ]  # fmt: skip
    line = schedule(tasks)
    at = {event.task.name: (event.start, event.end) for event in line.events}
    assert at["centre"] == (10, 20)
    assert at["context"] == (11, 111)
    assert at["sum"] == (11, 21)
    assert at["numerator"] == (111, 191)
    assert at["ratio"] == (187, 192)  # done one step after the last numerator, however quick it is
    assert (line.cycles, line.serial_cycles) == (192, 215)
    assert line.busy()["array"] == 180
    assert sum(line.exposed().values()) == line.cycles
    assert line.exposed()["sum"] == 0


def test_a_busy_unit_makes_a_task_wait():
    line = schedule([Task("a", "x", 5), Task("b", "x", 5), Task("c", "y", 1, after=("a",), step=3), Task("d", "y", 1, follows=("a",), step=3)])
    assert [(event.start, event.end) for event in line.events] == [(0, 5), (5, 10), (5, 6), (7, 8)]


@pytest.mark.parametrize("tasks", [[Task("a", "x", 1, after=("b",))], [Task("a", "x", 1), Task("a", "y", 1)], [Task("a", "x", -1)]])
def test_impossible_tasks_are_refused(tasks):
    with pytest.raises(sim.SimError, match="'a'"):
        schedule(tasks)
