"""Machines that say what differs from another, and settings behind a machine's name."""

import json

import pytest

from foveate import sim
from foveate.sim.variants import changed, densities, merged, settings

OWN = """
kind = "pipeline"
base = "vitality"
about = "wider"
[[arrays]]
name = "SA-General"
columns = 128
[[processors]]
name = "exponentials"
lanes = 32
[[mapping]]
unit = "exponentials"
kinds = ["softmax"]
"""


def refused(target: str) -> str:
    with pytest.raises(sim.SimError) as error:
        sim.load(target)
    return str(error.value)


def test_a_file_says_only_what_differs_from_its_base(tmp_path):
    path = tmp_path / "wide.toml"
    path.write_text(OWN)
    base, machine = sim.load("vitality"), sim.load(str(path))
    array = machine.unit("SA-General")
    assert (array.rows, array.columns, array.area_mm2) == (64, 128, base.unit("SA-General").area_mm2)
    assert [unit.name for unit in machine.units] == [*(unit.name for unit in base.units), "exponentials"]
    assert machine.rules[0].unit == "exponentials"
    assert machine.rules[1:] == base.rules
    assert (machine.flows, machine.about, machine.name) == (base.flows, "wider", "wide.toml")
    path.write_text(OWN.replace('"vitality"', f'"{path}"'))
    assert "another target" in refused(str(path))
    path.write_text(OWN.replace('"vitality"', '"vitalty"'))
    assert "did you mean vitality" in refused(str(path))
    path.write_text(OWN.replace("columns = 128", "columns = -1"))
    assert "arrays.SA-General.columns = -1" in refused(str(path))


def test_merged_puts_own_rules_first_and_joins_free_numbers():
    tables = merged({"mapping": [1], "figures": {"a": 1, "b": 2}, "clock_mhz": 3}, {"mapping": [2], "figures": {"b": 4}, "base": "x"})
    assert tables == {"mapping": [2, 1], "figures": {"a": 1, "b": 4}, "clock_mhz": 3}


def test_settings_change_numbers_of_the_file():
    machine = sim.load("vitality@clock_mhz=250,arrays.SA-General.rows=32,processors.adders.activity=0.5")
    assert (machine.clock_mhz, machine.unit("SA-General").rows, machine.unit("adders").activity) == (250, 32, 0.5)
    assert machine.name.startswith("vitality@clock")
    assert sim.load("salo@window=96").constants["window"] == 96
    assert sim.load("sanger@density=0.25,constants.pack_efficiency=0.9").constants == {"density": 0.25, "pack_efficiency": 0.9}
    assert not sim.load("vitality@clock_mhz=250").sources["clock_mhz"].fitted


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("vitality@", "KEY=VALUE"), ("sanger@density=0.4,density=0.3", "each key once"), ("salo@window=0.5", "from 1"), ("vitality@peak", "KEY=VALUE"), ("vitality@clock_ghz=1", "clock_mhz, precision_bits, arrays.SA-General.rows"),
        ("vitality@clock_mhz=fast", "a number"), ("vitality@arrays.SA-General.dataflow=1", "a number of its machine file"),
        ("vitality@clock_mhz=-3", "clock_mhz = -3"), ("vitality@peak=nothing", "target 'nothing'"), ("vitality@peak=galaxy-s20", "no known peak"),
        ("sanger@density=1.5", "up to 1"), ("sanger@density=0", "density = 0"), ("sanger@density=0.5/2", "vitality(mode=sparse)"),
        ("sanger@density=no/run", "vitality(mode=sparse)"), ("vitality@density=0.5", "a number of its machine file"), ("vitalty@peak=tx2", "did you mean"),
    ],
)  # fmt: skip
def test_settings_that_fit_nothing_are_refused(target, said):
    assert said in refused(target)


def test_a_peak_is_reached_by_copies():
    machine, other = sim.load("vitality@peak=2080ti"), sim.load("2080ti")
    assert machine.peak == pytest.approx(other.peak)
    assert machine.copies == pytest.approx(other.peak / sim.load("vitality").peak)
    assert machine.sources["copies"].text


def test_densities_come_from_a_run_that_trained_sparse_attention(tmp_path):
    lines = [{"step": 1, "loss": 2.0}, *({"step": s, **{f"train/vitality_density_block_{b}": s / 10 + b / 100 for b in (2, 1)}} for s in (2, 3)), {"step": 4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert densities(str(tmp_path)) == densities(str(tmp_path / "metrics.jsonl")) == pytest.approx((0.31, 0.32))
    machine = sim.load(f"sanger@density={tmp_path}")
    assert machine.densities == pytest.approx((0.31, 0.32))
    assert machine.density("blocks.2.attn.qk") == pytest.approx(0.32)
    assert machine.constants["density"] == pytest.approx(0.315)
    assert densities("0.2/0.3") == (0.2, 0.3)
    assert densities("0.2") is None
    (tmp_path / "metrics.jsonl").write_text('{"vitality_density_block_2": 0.5}\n')
    with pytest.raises(sim.SimError, match="a run that trained"):
        densities(str(tmp_path))


def test_settings_are_pairs():
    assert settings("a=1, b.c=2") == {"a": "1", "b.c": "2"}
    assert changed({"clock_mhz": 3}, "clock_mhz", "4", "x")["clock_mhz"]["value"] == 4
