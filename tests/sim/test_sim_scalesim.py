"""SCALE-Sim's files: what we write parses as its own parser reads it, what it writes we read. (It really ran: record_scale_sim.py.)"""

import configparser
from types import SimpleNamespace

import pytest

from foveate import count, sim
from foveate.sim.scalesim import config, read_report, write_scale_sim

REPORT = """LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, Compute Util %,
0, 634, 419, 0, 25.35799522673031, 59.02777777777778, 22.135416666666664,
1, 90, 22, 0, 13.636363636363637, 100.0, 10.714285714285714,
"""


def test_the_topology_has_a_row_for_every_product_that_runs(tmp_path):
    operations = count("deit_tiny_patch16_224", include="blocks").operations
    paths = write_scale_sim(tmp_path / "new", operations, sim.load("zcu102"))
    rows = [[cell.strip() for cell in line.split(",")] for line in paths["topology"].read_text().splitlines()]
    assert rows[0] == ["Layer", "M", "N", "K", ""]
    assert len(rows) == 1 + 12 * (1 + 3 + 3 + 1 + 2)
    assert rows[1] == ["blocks.1.attn.qkv", "197", "576", "192", ""]
    assert rows[2][0] == "blocks.1.attn.qk#1"
    assert len(paths["layout"].read_text().splitlines()) == len(rows)
    products = sum(int(m) * int(n) * int(k) for _, m, n, k, _ in rows[1:])
    assert products == sum(operation.macs for operation in operations)


def test_distinct_shapes_once(tmp_path):
    operations = count("deit_tiny_patch16_224", include="blocks").operations
    paths = write_scale_sim(tmp_path, operations, sim.load("zcu102"), distinct=True)
    assert len(paths["topology"].read_text().splitlines()) == 1 + 6


def test_the_configuration_is_the_machines():
    parser = configparser.ConfigParser()
    parser.read_string(config(sim.load("zcu102"), "array"))
    presets = parser["architecture_presets"]
    assert {key: presets[key] for key in ("arrayheight", "arraywidth", "dataflow", "ifmapsramszkb")} == {
        "arrayheight": "64", "arraywidth": "36", "dataflow": "is", "ifmapsramszkb": "8",
    }  # fmt: skip
    assert parser["general"]["run_name"] == "zcu102"
    assert parser["run_presets"]["interfacebandwidth"] == "CALC"
    assert parser.getboolean("layout", "ifmapcustomlayout") is False


def test_a_report_is_read(tmp_path):
    (tmp_path / "COMPUTE_REPORT.csv").write_text(REPORT)
    first, second = read_report(tmp_path)
    assert (first.cycles, first.stall_cycles, second.cycles) == (420, 0, 23)
    assert read_report(tmp_path / "COMPUTE_REPORT.csv") == [first, second]
    assert first.utilisation_percent == pytest.approx(25.358)
    assert second.mapping_percent == 100


def test_what_cannot_be_written_or_read_is_refused(tmp_path):
    gemm = SimpleNamespace(kind="gemm", origin="x", m=1, n=1, k=1, times=1)
    for operations, machine, said in (
        ([gemm], "2080ti", "an array|the array of 2080ti"),
        ([SimpleNamespace(kind="norm", origin="x", m=1, n=1, k=1, times=1)], "zcu102", "without products"),
        ([SimpleNamespace(kind="gemm", origin="x", m=1, n=1, k=1, times=2.5)], "zcu102", "2.5 times on average"),
    ):
        with pytest.raises(sim.SimError, match=said):
            write_scale_sim(tmp_path, operations, sim.load(machine))
    (tmp_path / "COMPUTE_REPORT.csv").write_text("a, b,\n1, 2,\n")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(sim.SimError, match="COMPUTE_REPORT"):
            read_report(path)
