"""SCALE-Sim's files: we write its configuration, topology and layout for a workload, and read its compute report.

Checked with the package scalesim 3.0.0 in its GEMM mode (`-i gemm`). It wants a layout file even where no custom layout is used.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.sim.cost import Work
from foveate.sim.dataflow import INPUT, OUTPUT, WEIGHT
from foveate.sim.errors import SimError
from foveate.sim.machine import PRODUCTS, Machine

LETTERS = {INPUT: "is", WEIGHT: "ws", OUTPUT: "os"}
FILES = {"config": "scale.cfg", "topology": "topology.csv", "layout": "layout.csv"}
_LAYOUT_COLUMNS = 20
_UNKNOWN_KB = 64


@dataclass(frozen=True)
class Layer:
    """A row of COMPUTE_REPORT.csv. last_cycle: the index that it prints as "Total Cycles"; `cycles` is the number of cycles."""

    index: int
    last_cycle: int
    stall_cycles: int
    utilisation_percent: float
    mapping_percent: float

    @property
    def cycles(self) -> int:
        """Cycles of the layer: one more than the index of the last."""
        return self.last_cycle + 1


def write_scale_sim(folder: Path, operations: Sequence[Work], machine: Machine, array: str | None = None, distinct: bool = False) -> dict[str, Path]:
    """Writes scale.cfg, topology.csv and layout.csv into `folder`, which is made; returns their paths.

    operations: the products of matrices among them are written, each as often as it runs. array: which array of the machine
    (the first). distinct: every shape once instead. Run with: python -m scalesim.scale -c scale.cfg -t topology.csv
    -l layout.csv -i gemm -p OUT.
    Raises SimError where the machine has no array, nothing is a product, or the workload is a mean over images.
    """
    chosen = [one for one in machine.arrays if array in (None, one.name)]
    if not chosen:
        names = ", ".join(one.name for one in machine.arrays) or "none"
        raise SimError(f"{array or 'the array'} of {machine.name} for SCALE-Sim", f"a systolic array; it has {names}", "take another target, such as zcu102")
    rows = _rows([work for work in operations if work.kind in PRODUCTS], distinct)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / file for name, file in FILES.items()}
    paths["config"].write_text(config(machine, chosen[0].name), encoding="utf-8")
    paths["topology"].write_text("Layer, M, N, K,\n" + "".join(f"{name}, {m}, {n}, {k},\n" for name, m, n, k in rows), encoding="utf-8")
    ones = " 1," * _LAYOUT_COLUMNS
    paths["layout"].write_text("Layer," * (_LAYOUT_COLUMNS + 1) + "\n" + "".join(f"{name},{ones}\n" for name, *_ in rows), encoding="utf-8")
    return paths


def config(machine: Machine, array: str) -> str:
    """The text of SCALE-Sim's configuration: array, dataflow, buffers; bandwidth is calculated, so that nothing stalls."""
    unit = machine.unit(array)
    sizes = {holds: machine.memory(holds) for holds in ("inputs", "weights", "outputs")}
    kb = {holds: max(1, round(memory.size_kb)) if memory and memory.size_kb else _UNKNOWN_KB for holds, memory in sizes.items()}
    sections = {
        "general": {"run_name": machine.name.replace("/", "-")},
        "architecture_presets": {
            "ArrayHeight": unit.rows, "ArrayWidth": unit.columns, "IfmapSramSzkB": kb["inputs"], "FilterSramSzkB": kb["weights"],
            "OfmapSramSzkB": kb["outputs"], "IfmapOffset": 0, "FilterOffset": 10000000, "OfmapOffset": 20000000,
            "Bandwidth": 10, "Dataflow": LETTERS[unit.dataflow], "MemoryBanks": 1, "ReadRequestBuffer": 32, "WriteRequestBuffer": 32,
        },
        "layout": {f"{side}{key}": value for side in ("Ifmap", "Filter") for key, value in _LAYOUT.items()},
        "sparsity": {"SparsitySupport": False},
        "run_presets": {"InterfaceBandwidth": "CALC", "UseRamulatorTrace": False},
    }  # fmt: skip
    return "\n".join(f"[{title}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) for title, keys in sections.items())


_LAYOUT = {"CustomLayout": False, "SRAMBankBandwidth": 10, "SRAMBankNum": 10, "SRAMBankPort": 2}


def read_report(path: Path) -> list[Layer]:
    """The layers of a COMPUTE_REPORT.csv, or of the one in a folder. Raises SimError where there is none or it is another file."""
    path = Path(path)
    path = path / "COMPUTE_REPORT.csv" if path.is_dir() else path
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
        return [
            Layer(
                int(row["LayerID"]), int(float(row["Total Cycles"])), int(float(row["Stall Cycles"])),
                float(row["Overall Util %"]), float(row["Mapping Efficiency %"]),
            )
            for row in rows
        ]  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as error:
        given = f"{path}, not read as a report ({type(error).__name__}: {error})"
        raise SimError(given, "SCALE-Sim's COMPUTE_REPORT.csv", "give the folder of its run") from None


def _rows(products: list[Work], distinct: bool) -> list[tuple[str, int, int, int]]:
    rows: dict[tuple, str] = {}
    for work in products:
        if work.times != int(work.times):
            given = f"{work.origin}, run {work.times:g} times on average"
            raise SimError(given, "whole layers of one image", "write the workload of one image or of fixed tokens")
        for repeat in range(int(work.times)):
            name = work.origin if work.times == 1 else f"{work.origin}#{repeat + 1}"
            shape = (work.m, work.n, work.k)
            rows.setdefault(shape if distinct else (name, *shape), name)
    if not rows:
        raise SimError("a workload without products of matrices for SCALE-Sim", "at least one gemm or conv", "write a model's whole workload")
    return [(name, *key[-3:]) for key, name in rows.items()]
