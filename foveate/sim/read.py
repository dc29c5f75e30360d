"""Reads a machine file (TOML). Everything that is wrong with it is said at once, not one mistake a run.

A number is written plainly (`clock_mhz = 125`) or with its source (`clock_mhz = { value = 125, source = "PIVOT, Table 1" }`);
`fitted = true` marks one that was tuned until a printed result came out. Units stand in the names of the keys.
"""

import difflib
import tomllib
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, get_args

from foveate.sim.dataflow import DATAFLOWS, INPUT, WEIGHT
from foveate.sim.errors import SimError
from foveate.sim.machine import Array, Entry, Flow, Machine, Memory, Note, Overhead, Processor, Source
from foveate.sim.mapping import NOWHERE, Rule

KINDS = ("accelerator", "pipeline", "roofline", "table")
SECTIONS = {
    "arrays": Array, "memories": Memory, "processors": Processor, "overheads": Overhead, "entries": Entry, "mapping": Rule, "flows": Flow, "notes": Note,
}  # fmt: skip
OPERANDS = ("inputs", "weights", "outputs")
CHOICES = {
    "kind": KINDS, "dataflow": DATAFLOWS, "holds": (*OPERANDS, "all", "outside"), "per": ("block", "image"), "folds": ("apart", "joined"),
    "pairs": ("all", "masked", "window"), "tokens": ("m", "k"), "stays": OPERANDS, "wide": OPERANDS,
}  # fmt: skip
NEEDED = {
    "accelerator": ("precision_bits", "mapping"), "pipeline": ("precision_bits", "clock_mhz", "mapping", "flows"),
    "roofline": ("precision_bits", "peak_gmac_per_s", "bandwidth_gb_s"), "table": ("entries",),
}  # fmt: skip
COSTS = ("ns_per_element", "ns_per_row", "cycles_per_element", "elements_per_cycle", "cycles_per_row", "lanes", "gmac_per_s")
CLOCKED = ("cycles_per_element", "elements_per_cycle", "cycles_per_row", "lanes")
MAY_BE_ZERO = ("energy", "latency", "overhead", "area", "power", "fill", "gmacs")
TOP = {field.name: field for field in fields(Machine) if field.name not in (*SECTIONS, "name", "rules", "figures", "constants", "densities", "sources")}


def read_machine(text: str, name: str) -> Machine:
    """The machine that `text` describes; `name` is its file's. Raises SimError with every violation."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SimError(f"{name}, which is no TOML ({error})", "a machine file", "start from a shipped one: foveate targets zcu102 --toml") from None
    return read_table(table, name)


def read_table(table: dict[str, Any], name: str) -> Machine:
    """The machine that the tables of a TOML file describe. Raises SimError with every violation."""
    reader = Reader()
    machine = reader.machine(table, name)
    _refuse(reader.wrong + violations(machine, reader), name)
    return machine


def read_mapping(text: str, name: str, machine: Machine) -> tuple[Rule, ...]:
    """The `[[mapping]]` tables of a file, for this machine. Raises SimError with every violation."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SimError(f"{name}, which is no TOML ({error})", "[[mapping]] tables", 'write for instance [[mapping]] kinds = ["softmax"], unit = "ps"') from None
    reader = Reader()
    reader.unknown(table, ["mapping"], "")
    rules = reader.section(table, "mapping")
    if not table.get("mapping"):
        reader.wrong.append("[[mapping]] missing")
    _refuse(reader.wrong + _rules(rules, reader.mapped, [unit.name for unit in machine.units]), name)
    return rules


def _refuse(wrong: list[str], name: str) -> None:
    if wrong:
        count = "1 mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
        raise SimError(
            f"{name} with {count}: {'; '.join(wrong)}",
            "keys and units as in `foveate targets zcu102 --toml`, numbers without their units",
            "correct them all, then look again: foveate targets check FILE.toml",
        )


class Reader:
    """Turns TOML tables into the classes of machine.py.

    wrong: what could not be read. sources: by dotted path. units: names of arrays and processors, mapped: units that rules name, those
    of broken tables included. clocked: whether a unit counts cycles.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.units: list[str] = []
        self.mapped: list[str] = []
        self.clocked = False
        self.sources: dict[str, Source] = {}

    def machine(self, table: dict[str, Any], name: str) -> Machine:
        """The whole file; where `wrong` is not empty afterwards, the result is incomplete."""
        self.unknown(table, [*TOP, *SECTIONS, "figures", "constants"], "")
        kind = table.get("kind")
        needed = [key for key in NEEDED.get(kind, ()) if not table.get(key)] if isinstance(kind, str) else []
        self.wrong += [f"{key} missing" for key in needed]
        top = {key: self.value(table[key], field, key) for key, field in TOP.items() if key in table}
        self.wrong += [f"{key} missing" for key, field in TOP.items() if key not in table and _required(field)]
        parts = {section: self.section(table, section) for section in SECTIONS}
        free = {section: self.numbers(table.get(section, {}), section) for section in ("figures", "constants")}
        rules = parts.pop("mapping")
        top = {"kind": "", "about": ""} | top
        return Machine(name=name, **top, **parts, **free, rules=rules, sources=self.sources)

    def section(self, table: dict[str, Any], section: str) -> tuple:
        """The tables of `[[section]]`."""
        rows = table.get(section, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.wrong.append(f"{section} = {rows!r}: tables, each under [[{section}]]")
            return ()
        made = [self.part(row, SECTIONS[section], f"{section}[{index}]") for index, row in enumerate(rows)]
        return tuple(part for part in made if part is not None)

    def part(self, row: dict[str, Any], cls: type, path: str) -> Any:
        """One table as an object of `cls`, or None where a key is missing or wrong."""
        path = f"{path.partition('[')[0]}.{row['name']}" if isinstance(row.get("name"), str) else path
        if cls is Rule:
            then = row.get("then")
            self.mapped += [name for name in [row.get("unit"), *(then if isinstance(then, list) else [])] if isinstance(name, str)]
        if cls in (Array, Processor) and "name" in row:
            self.units.append(str(row["name"]))
            self.clocked |= cls is Array or any(key in row for key in CLOCKED)
        before, known = len(self.wrong), {field.name: field for field in fields(cls)}
        self.unknown(row, list(known), f"{path}.")
        self.wrong += [f"{path}.{name} missing" for name, field in known.items() if _required(field) and name not in row]
        values = {name: self.value(row[name], field, f"{path}.{name}") for name, field in known.items() if name in row}
        return cls(**values) if len(self.wrong) == before else None

    def unknown(self, table: dict[str, Any], known: list[str], path: str) -> None:
        """Notes every key that nothing reads; a key with another unit is the likely reason."""
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
                self.wrong.append(f"unknown key {path}{key}" + (f" (did you mean {near[0]}?)" if near else ""))

    def value(self, value: Any, field: Field, path: str) -> Any:
        """A key's value, checked against its field's type."""
        kind = _kind(field)
        if kind in (int, float):
            return self.number(value, kind, path)
        if kind is str:
            allowed = CHOICES.get(field.name)
            if not isinstance(value, str) or (allowed and value not in allowed):
                self.wrong.append(f"{path} = {value!r}: {' or '.join(allowed) if allowed else 'text'}")
            return value
        if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
            self.wrong.append(f"{path} = {value!r}: a list of texts")
            return ()
        allowed = CHOICES.get(field.name)
        if allowed and set(value) - set(allowed):
            self.wrong.append(f"{path} = {value!r}: some of {', '.join(allowed)}")
        return tuple(value)

    def number(self, value: Any, kind: type, path: str) -> Any:
        """A plain number or { value, source, fitted }."""
        source, fitted = "", False
        if isinstance(value, dict):
            self.unknown(value, ["value", "source", "fitted"], f"{path}.")
            source, fitted, value = value.get("source", ""), value.get("fitted", False), value.get("value")
            if not isinstance(fitted, bool) or not isinstance(source, str):
                self.wrong.append(f"{path}: source is a text, fitted true or false")
        least = "from 0" if any(word in path.rpartition(".")[2] for word in MAY_BE_ZERO) else "above 0"
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (kind is float and isinstance(value, float))) or not 0 <= value < float("inf") or (least == "above 0" and value == 0):
            self.wrong.append(f"{path} = {value!r}: {'a whole number from 1' if kind is int else f'a number {least}'}, without its unit")
            return 1
        self.sources[path] = Source(value, source, fitted)
        return value

    def numbers(self, table: Any, section: str) -> dict[str, float]:
        """`[figures]` or `[constants]`: any names, numbers only."""
        if not isinstance(table, dict):
            self.wrong.append(f"{section} = {table!r}: a table under [{section}]")
            return {}
        return {key: self.number(value, float, f"{section}.{key}") for key, value in table.items()}


def violations(machine: Machine, reader: Reader) -> list[str]:
    """What is wrong between the parts of a machine, beside what is wrong with each."""
    units = reader.units
    wrong = [f"two units called {name!r}" for name in dict.fromkeys(units) if units.count(name) > 1]
    wrong += [f"processors.{p.name} has no cost: give one of {', '.join(COSTS)}" for p in machine.processors if not any(getattr(p, key) for key in COSTS)]
    if reader.clocked and machine.clock_mhz is None:
        wrong.append("clock_mhz missing (a unit counts cycles)")
    if machine.kind in ("accelerator", "pipeline") and not units:
        wrong.append("no unit: give an [[arrays]] or a [[processors]] table")
    if machine.flows and machine.kind != "pipeline":
        wrong.append(f'flows in a machine of kind {machine.kind!r}: only kind = "pipeline" overlaps units')
    wrong += [f"{unit.name}.activity without rated_power_w" for unit in machine.units if unit.activity is not None and unit.rated_power_w is None]
    if any(rule.pairs == "window" for rule in machine.rules) and "window" not in machine.constants:
        wrong.append('constants.window missing (a mapping has pairs = "window")')
    if machine.constants.get("window", 1) < 1:
        wrong.append(f"constants.window = {machine.constants['window']:g}: keys for each query, from 1")
    shares = {key: machine.constants[key] for key in ("density", "pack_efficiency") if key in machine.constants}
    wrong += [f"constants.{key} = {value:g}: a share above 0, up to 1" for key, value in shares.items() if not 0 < value <= 1]
    return wrong + _rules(machine.rules, reader.mapped, units) + [line for array in machine.arrays for line in _too_large(array, machine)]


def _rules(rules: tuple[Rule, ...], mapped: list[str], units: list[str]) -> list[str]:
    known = ", ".join([*units, NOWHERE])
    wrong = [f"mapping to {unit!r}, which is none of {known}" for unit in dict.fromkeys(mapped) if unit not in (*units, NOWHERE)]
    wrong += [f"mapping to {NOWHERE} and then to units" for rule in rules if rule.then and NOWHERE in rule.units]
    return wrong + [f"mapping of {', '.join(rule.kinds)} to {NOWHERE} without why" for rule in rules if rule.unit == NOWHERE and not rule.why]


def _too_large(array: Array, machine: Machine) -> list[str]:
    """An array is filled from a buffer, its own or the shared one, that must hold what stays in it."""
    holds, bits = {INPUT: ("inputs", machine.precision_bits), WEIGHT: ("weights", machine.precision_bits)}.get(array.dataflow, ("outputs", array.sum_bits))
    memory = machine.memory(holds) or machine.memory("all")
    if bits is None or memory is None or memory.size_kb is None:
        return []
    need = array.rows * array.columns * bits / 8 / 1024
    held = f"{array.rows} x {array.columns} {holds} of {bits} bits are {need:g} KB"
    return [f"arrays.{array.name}: {held}, more than memories.{memory.name}.size_kb = {memory.size_kb:g}"] if need > memory.size_kb else []


def _kind(field: Field) -> type:
    return next(kind for kind in get_args(field.type) if kind is not type(None)) if isinstance(field.type, UnionType) else field.type


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
