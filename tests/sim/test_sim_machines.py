"""Machine files: what is shipped, what is refused and how, what a file is said to describe."""

import tomllib

import pytest

from foveate import sim
from foveate.sim.catalog import SHIPPED
from foveate.sim.explain import explain
from foveate.sim.read import read_machine

GOOD = """
kind = "accelerator"
about = "a small array"
clock_mhz = 200
precision_bits = 8
power_w = { value = 3, source = "data sheet" }

[[arrays]]
name = "pe"
rows = 8
columns = { value = 8, source = "guessed", fitted = true }
dataflow = "weight-stationary"

[[processors]]
name = "vector"
elements_per_cycle = 4

[[memories]]
name = "buffer"
holds = "weights"
size_kb = 2

[[mapping]]
unit = "pe"
kinds = ["gemm", "conv"]

[[mapping]]
unit = "vector"
"""


def refused(text: str) -> str:
    with pytest.raises(sim.SimError) as error:
        read_machine(text, "my.toml")
    assert error.value.allowed
    assert error.value.do
    return error.value.given


@pytest.mark.parametrize("name", sim.targets())
def test_every_number_that_is_shipped_names_its_source(name):
    machine = sim.load(name)
    assert machine.sources
    assert not explain(machine)["unsourced"]
    assert machine.about


def test_what_is_tuned_says_so():
    fitted = {name: explain(sim.load(name))["fitted"] for name in sim.targets()}
    assert {name for name, numbers in fitted.items() if numbers} >= {"zcu102", "zcu102-16bit"}
    assert fitted["zcu102"][0] == "processors.ps.ns_per_element = 12.687"
    for name in sim.targets():
        assert all(("[FIT]" in source.text) == source.fitted for source in sim.load(name).sources.values()), name


def test_all_machines_of_the_papers_and_for_planning_are_there():
    rooflines = {name for name in sim.targets() if sim.load(name).kind == "roofline"}
    assert rooflines >= {"xeon-6230", "2080ti", "tx2", "v100", "jetson-orin-nano", "raspberry-pi-4", "a100", "h100", "h200"}
    papers = {"zcu102", "zcu102-16bit", "galaxy-s20", "vitality", "vitality-gs", "vitality-extended", "sanger", "salo", "tx2-attention"}
    assert papers <= set(sim.targets())


def test_pivots_table_1_is_in_its_machine():
    machine = sim.load("zcu102")
    assert {m.name: m.size_kb for m in machine.memories if m.size_kb} == {"GB": 16, "IPMEM": 8, "WTMEM": 8, "OPMEM": 8}
    assert dict(machine.figures) == {"luts": 4566, "registers": 20668, "block_rams": 48, "dsps": 2304}
    assert machine.figures["dsps"] == machine.arrays[0].rows * machine.arrays[0].columns
    assert machine.peak == pytest.approx(64 * 36 * 0.125)
    assert any("OPMEM" in note.text for note in machine.notes)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(GOOD)
    machine = sim.load(str(path))
    assert (machine.arrays[0].rows, machine.arrays[0].columns, machine.peak) == (8, 8, 12.8)
    said = explain(machine)
    assert said["fitted"] == ["arrays.pe.columns = 8"]
    assert "arrays.pe.rows" in said["unsourced"]
    assert "power_w" not in said["unsourced"]
    assert any("inputs" in line for line in said["missing"])
    assert any("bandwidth" in line for line in said["missing"])
    assert not any("a rule for" in line for line in said["missing"])


def test_energy_and_rules_that_are_missing_are_named():
    text = GOOD.replace('power_w = { value = 3, source = "data sheet" }', "").replace('kinds = ["gemm", "conv"]', 'kinds = ["gemm"]')
    said = explain(read_machine(text.replace('\n[[mapping]]\nunit = "vector"\n', ""), "my.toml"))["missing"]
    assert any("no energy" in line for line in said)
    assert any("softmax" in line for line in said)


def test_all_mistakes_are_said_at_once():
    given = refused("""
kind = "accelerator"
clock_ghz = 0.2
precision_bits = 7.5
power_w = "3 W"
[[arrays]]
name = "pe"
rows = -8
dataflow = "systolic"
[[processors]]
name = "ps"
ns_per_elemnt = 1
[[processors]]
name = "pe"
[[memories]]
name = "b"
holds = "weight"
size_mb = 2
bandwidth_gb_s = 0
[[mapping]]
unit = "npu"
kinds = "gemm"
[[mapping]]
unit = "nowhere"
[figures]
luts = true
""")
    for part in (
        "my.toml with 18 mistakes", "about missing", "unknown key clock_ghz (did you mean clock_mhz?)", "precision_bits = 7.5: a whole number from 1",
        "power_w = '3 W'", "without its unit", "arrays.pe.rows = -8", "arrays.pe.columns missing",
        "arrays.pe.dataflow = 'systolic': input-stationary or weight-stationary",
        "did you mean ns_per_element?", "two units called 'pe'", "has no cost", "memories.b.holds = 'weight'", "did you mean size_kb?",
        "bandwidth_gb_s = 0: a number above 0",
        "kinds = 'gemm': a list of texts", "without why", "mapping to 'npu', which is none of pe, ps, pe, nowhere", "figures.luts = True", "clock_mhz missing",
    ):  # fmt: skip
        assert part in given, part


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rows = 8", "rows = 64", "64 x 8 weights of 8 bits are 0.5 KB"),
        ('unit = "vector"', 'unit = "cpu"', "mapping to 'cpu', which is none of pe, vector, nowhere"),
        ("elements_per_cycle = 4", "power_w = 4", "processors.vector has no cost"),
        ("clock_mhz = 200", "", "clock_mhz missing"),
        ('kind = "accelerator"', 'kind = "fpga"', "kind = 'fpga': accelerator or pipeline or roofline or table"),
        ("precision_bits = 8", "", "precision_bits missing"),
        ("clock_mhz = 200", "clock_mhz = inf", "clock_mhz = inf"),
        ("clock_mhz = 200", "clock_mhz = { value = 200, unit = 'MHz' }", "unknown key clock_mhz.unit"),
        ("clock_mhz = 200", "clock_mhz = { source = 'x' }", "clock_mhz = None"),
        ("[[arrays]]", "[arrays]", "tables, each under [[arrays]]"),
        ('source = "data sheet"', "source = 3", "power_w: source is a text"),
        ('kind = "accelerator"', 'kind = "pipeline"', "flows missing"),
        ("size_kb = 2", 'size_kb = 2\n[[flows]]\noperation = "attn.qk"', "flows in a machine of kind 'accelerator'"),
        ("elements_per_cycle = 4", "lanes = 4\nactivity = 0.5", "vector.activity without rated_power_w"),
        ('kinds = ["gemm", "conv"]', 'pairs = "window"', "constants.window missing"),
        ('kinds = ["gemm", "conv"]', 'pairs = "some"', "pairs = 'some': all or masked or window"),
        ('kinds = ["gemm", "conv"]', 'stays = ["sums"]', "stays = ['sums']: some of inputs, weights, outputs"),
        ('kinds = ["gemm", "conv"]', 'then = ["cpu"]', "mapping to 'cpu', which is none of pe, vector, nowhere"),
        ('kinds = ["gemm", "conv"]', 'then = ["cpu"]\nkinds = 3', "mapping to 'cpu', which is none of pe, vector, nowhere"),
        ('name = "pe"', "name = 3", "arrays[0].name = 3: text"),
        ("size_kb = 2", "size_kb = 2\n[constants]\nwindow = 0.5", "constants.window = 0.5: keys for each query, from 1"),
        ('kinds = ["gemm", "conv"]', 'then = ["nowhere"]', "mapping to nowhere and then to units"),
        ("size_kb = 2", "size_kb = 2\n[constants]\ndensity = 1.5", "constants.density = 1.5: a share above 0, up to 1"),
    ],
)
def test_one_mistake_is_named(old, new, said):
    text = GOOD.replace(old, new).replace("size_kb = 2", "size_kb = 0.25") if "rows" in old else GOOD.replace(old, new)
    assert said in refused(text)


def test_kinds_need_what_they_compute_with():
    assert "peak_gmac_per_s missing; bandwidth_gb_s missing" in refused('kind = "roofline"\nabout = "x"\nprecision_bits = 8')
    assert "entries missing" in refused('kind = "table"\nabout = "x"')
    assert "mapping missing" in refused('kind = "accelerator"\nabout = "x"\nprecision_bits = 8')
    assert "which is no TOML" in refused("kind = ")


def test_the_buffer_that_limits_an_array_is_the_one_of_what_stays():
    for dataflow, holds, need in (("input-stationary", "inputs", 0.0625), ("weight-stationary", "weights", 0.0625), ("output-stationary", "outputs", 0.25)):
        text = GOOD.replace("weight-stationary", dataflow).replace('holds = "weights"', f'holds = "{holds}"')
        assert read_machine(text.replace("size_kb = 2", f"size_kb = {need}"), "x").arrays
        assert f"are {need:g} KB" in refused(text.replace("size_kb = 2", f"size_kb = {need - 0.01}"))


def test_a_shared_buffer_limits_an_array_without_one_of_its_own():
    text = GOOD.replace('holds = "weights"', 'holds = "all"')
    assert read_machine(text, "x").arrays
    assert "8 x 8 weights of 8 bits are 0.0625 KB, more than memories." in refused(text.replace("size_kb = 2", "size_kb = 0.05"))


def test_an_unknown_target_gets_near_names(tmp_path):
    with pytest.raises(sim.SimError, match="did you mean zcu102"):
        sim.load("zcu-102")
    with pytest.raises(sim.SimError, match="xeon-6230"):
        sim.load(str(tmp_path / "nothing.toml"))


def test_a_mapping_file_replaces_the_rules(tmp_path):
    machine, path = read_machine(GOOD, "my"), tmp_path / "mapping.toml"
    path.write_text('[[mapping]]\nunit = "pe"\nkinds = ["gemm"]\ndataflow = "output-stationary"\n')
    (rule,) = sim.load_mapping(str(path), machine)
    assert rule.dataflow == "output-stationary"
    for text, said in (
        ("clock_mhz = 3", "unknown key clock_mhz; [[mapping]] missing"), ('[[mapping]]\nunit = "ps"', "mapping to 'ps'"), ("x", "no TOML"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(sim.SimError, match="mapping.toml") as error:
            sim.load_mapping(str(path), machine)
        assert said in error.value.given
    with pytest.raises(sim.SimError, match="no file here"):
        sim.load_mapping(str(tmp_path / "none.toml"), machine)


def test_the_shipped_files_are_plain_toml():
    for name in sim.targets():
        assert tomllib.loads((SHIPPED / f"{name}.toml").read_text())["kind"] == sim.load(name).kind
