"""What a machine file says: its peaks, its roofline, where its numbers come from and what it leaves out."""

from typing import Any

from foveate.sim.accelerator import buffer_room
from foveate.sim.dataflow import OUTPUT
from foveate.sim.machine import Array, Machine, Processor
from foveate.sim.read import COSTS


def explain(machine: Machine) -> dict[str, Any]:
    """A machine in words and figures.

    Keys: target, kind, about, peak_gmac_per_s, bandwidth_gb_s and knee_macs_per_byte (above it the peak limits, below it the
    bandwidth), power_w, area_mm2 and rated_power_w (sums over units and memories, None where none states it), copies, units (one
    dictionary each), rules, flows, missing (what is not modelled because it is not given), unsourced (numbers without a source),
    fitted (numbers tuned to a result), notes, figures.
    """
    outside = [memory.bandwidth_gb_s for memory in machine.memories if memory.bandwidth_gb_s]
    bandwidth = machine.bandwidth_gb_s or min(outside, default=None)
    return {
        "target": machine.name, "kind": machine.kind, "about": machine.about, "precision_bits": machine.precision_bits,
        "clock_mhz": machine.clock_mhz, "peak_gmac_per_s": machine.peak, "bandwidth_gb_s": bandwidth,
        "knee_macs_per_byte": machine.peak / bandwidth if machine.peak and bandwidth else None, "power_w": machine.power_w,
        "area_mm2": _sum(machine, "area_mm2"), "rated_power_w": _sum(machine, "rated_power_w"), "copies": machine.copies,
        "units": [_unit(unit, machine) for unit in machine.units],
        "rules": [{"kinds": list(r.kinds), "origins": list(r.origins), "unit": ", then ".join(r.units), "why": r.why} for r in machine.rules],
        "flows": [{"operation": f.operation, "after": list(f.after), "follows": list(f.follows)} for f in machine.flows],
        "missing": missing(machine),
        "unsourced": [path for path, source in machine.sources.items() if not source.text],
        "fitted": [f"{path} = {source.value:g}" for path, source in machine.sources.items() if source.fitted],
        "notes": [note.text for note in machine.notes], "figures": dict(machine.figures),
    }  # fmt: skip


def missing(machine: Machine) -> list[str]:
    """What the model leaves out because the file does not say it."""
    if machine.kind not in ("accelerator", "pipeline"):
        return [] if machine.power_w else ["power_w: no energy"]
    lines = []
    energies = ("power_w", "energy_pj_per_mac", "energy_pj_per_element", "activity")
    if not machine.power_w and not any(getattr(unit, key, None) for unit in machine.units for key in energies):
        lines.append("power_w, or power and energy of the units: no energy")
    if machine.arrays and not any(m.bandwidth_gb_s for m in machine.memories if m.holds in ("outside", "all")):
        lines.append("bandwidth_gb_s of a memory: no waiting for it")
    buffers = ("inputs", "weights", "outputs") if machine.arrays else ()
    lines += [f"a memory that holds {holds}: taken as large enough" for holds in buffers if not machine.memory(holds)]
    kinds = [kind for rule in machine.rules for kind in rule.kinds]
    usual = ("gemm", "conv", "softmax", "norm", "elementwise")
    lines += [f"a rule for {kind}: a model that has it is refused" for kind in usual if not {kind, "*"} & set(kinds)]
    return lines


def _sum(machine: Machine, figure: str) -> float | None:
    known = [value for part in (*machine.units, *machine.memories) if (value := getattr(part, figure)) is not None]
    return sum(known) if known else None


def _unit(unit: Array | Processor, machine: Machine) -> dict[str, Any]:
    if isinstance(unit, Processor):
        return {"unit": unit.name, "is": "processor"} | {key: getattr(unit, key) for key in COSTS if getattr(unit, key)}
    shown = {
        "unit": unit.name, "is": "array", "rows": unit.rows, "columns": unit.columns, "dataflow": unit.dataflow,
        "peak_gmac_per_s": unit.rows * unit.columns * machine.clock_mhz / 1000,
    }  # fmt: skip
    room = buffer_room(machine, unit).get("outputs")
    # A fold leaves a row of sums for every streamed vector: a column of the weights where inputs stay, a token where weights stay.
    return shown | ({"streamed_before_sums_spill": int(room // unit.columns)} if room and unit.dataflow != OUTPUT else {})
