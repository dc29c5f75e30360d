"""Makes scale_sim.json anew: what SCALE-Sim says of the shapes below. Not a test; it needs `pip install scalesim==3.0.0 "numpy<2"`.

Run it with that interpreter and this repository on the path: PYTHONPATH=. python tests/sim/record_scale_sim.py
SCALE-Sim reads the files that foveate writes for it, so that the writer is checked as well.
"""

import csv
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from scalesim.scale_sim import scalesim

from foveate.sim.dataflow import DATAFLOWS
from foveate.sim.machine import Array, Machine, Memory
from foveate.sim.scalesim import read_report, write_scale_sim

ARRAYS = ((8, 6), (4, 4), (16, 3))
SHAPES = ((20, 15, 17), (6, 3, 8), (1, 1, 1), (8, 6, 8), (9, 7, 9), (33, 12, 5), (5, 40, 3), (2, 2, 50), (13, 1, 29), (1, 31, 4), (16, 16, 16), (7, 24, 33))
PIVOT = {"qkv": (197, 1152, 384), "qk": (197, 197, 64), "av": (197, 64, 197), "proj": (197, 384, 384), "fc1": (197, 1536, 384), "fc2": (197, 384, 1536)}


def ran(array: Array, shapes) -> list[dict]:
    buffers = tuple(Memory(holds, holds, size_kb=64) for holds in ("inputs", "weights", "outputs"))
    machine = Machine("recorded", "accelerator", "", precision_bits=8, clock_mhz=1, arrays=(array,), memories=buffers)
    work = [SimpleNamespace(kind="gemm", origin=f"blocks.{i}.gemm", m=m, n=n, k=k, times=1) for i, (m, n, k) in enumerate(shapes)]
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(path) for name, path in write_scale_sim(Path(folder), work, machine).items()}
        run = scalesim(save_disk_space=True, verbose=False, input_type_gemm=True, **paths)
        run.run_scale(top_path=f"{folder}/out")
        layers = read_report(Path(folder) / "out" / "recorded")
        with (Path(folder) / "out" / "recorded" / "DETAILED_ACCESS_REPORT.csv").open() as file:
            words = list(csv.DictReader(file, skipinitialspace=True))
    rows = [layer.compute_system.ofmap_demand_matrix.shape[0] for layer in run.runner.single_layer_sim_object_list]
    return [
        {"m": m, "n": n, "k": k, "demand_rows": row, "total_cycles": layer.last_cycle, "stall_cycles": layer.stall_cycles}
        | {name: int(float(word[f"SRAM {title}"])) for name, title in (("inputs", "IFMAP Reads"), ("weights", "Filter Reads"), ("outputs", "OFMAP Writes"))}
        for (m, n, k), row, layer, word in zip(shapes, rows, layers, words, strict=True)
    ]


def main() -> None:
    runs = [
        {"rows": rows, "columns": columns, "dataflow": dataflow, "layers": ran(Array("pe", rows, columns, dataflow), shapes)}
        for (rows, columns), shapes in [*((array, SHAPES) for array in ARRAYS), ((64, 36), tuple(PIVOT.values()))]
        for dataflow in DATAFLOWS
        if (rows, columns) != (64, 36) or dataflow == DATAFLOWS[0]
    ]
    made = {"scalesim": version("scalesim"), "mode": "gemm, InterfaceBandwidth CALC, 64 KB buffers", "runs": runs}
    text = json.dumps(made).replace('{"rows"', '\n{"rows"').replace('{"m"', '\n  {"m"')
    (Path(__file__).parent / "scale_sim.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
