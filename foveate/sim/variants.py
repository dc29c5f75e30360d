"""Variants of a machine: a file that says only what differs from another (`base`), and settings behind its name (`sanger@density=0.4`).

Both work on the tables of the TOML file, so that what they make is read and checked like any other.
"""

import json
from pathlib import Path
from typing import Any

from foveate.sim.errors import SimError

NAMED = ("arrays", "processors", "memories", "overheads")
LISTED = ("mapping", "flows", "notes", "entries")
FREE = ("figures", "constants")
DENSITY = "vitality_density_block_"


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The tables of `own` over those of `base`.

    Parts with names replace the keys of their namesakes and join the others. Rules, flows and notes come before the base's, so
    that the first that fits is one's own.
    """
    tables = base | {key: value for key, value in own.items() if key != "base"}
    for section in NAMED:
        parts = {part.get("name"): part for part in base.get(section, [])}
        for part in own.get(section, []):
            parts[part.get("name")] = parts.get(part.get("name"), {}) | part
        if parts:
            tables[section] = list(parts.values())
    for section in LISTED:
        if section in base or section in own:
            tables[section] = own.get(section, []) + base.get(section, [])
    for section in FREE:
        if section in base or section in own:
            tables[section] = base.get(section, {}) | own.get(section, {})
    return tables


def settings(text: str) -> dict[str, str]:
    """"peak=tx2,clock_mhz=400" as a dictionary; raises SimError for anything else."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key.strip() and sign and value.strip() for key, sign, value in pairs):
        raise SimError(f"settings {text!r}", "KEY=VALUE, several with commas between them", "write for instance vitality@peak=tx2 or sanger@density=0.4")
    found = {key.strip(): value.strip() for key, _, value in pairs}
    if len(found) < len(pairs):
        raise SimError(f"settings {text!r}", "each key once", "leave out one of its values")
    return found


def changed(tables: dict[str, Any], key: str, value: str, target: str) -> dict[str, Any]:
    """The tables with one number replaced: "clock_mhz", "constants.density" (or "density"), "arrays.SA-General.rows".

    Raises SimError for a place that the file does not have, and for a value that is no number.
    """
    new = {"value": _number(key, value, target), "source": f"set in {target}"}
    section, _, rest = key.partition(".")
    if key in tables.get("constants", {}) or (section == "constants" and rest in tables.get("constants", {})):
        name = rest if section == "constants" else key
        return tables | {"constants": tables["constants"] | {name: new}}
    if key in tables and _is_number(tables[key]):
        return tables | {key: new}
    name, _, field = rest.rpartition(".")
    for part in tables.get(section, []) if section in NAMED else []:
        if part.get("name") == name and _is_number(part.get(field)):
            parts = [one | {field: new} if one is part else one for one in tables[section]]
            return tables | {section: parts}
    raise SimError(f"setting {key}={value} of {target}", f"a number of its machine file: {', '.join(_places(tables))}", "see `foveate targets NAME --toml`")


def densities(value: str) -> tuple[float, ...] | None:
    """Shares of surviving pairs, one a block: "0.4/0.38/0.35", or those that the last epoch of a run logged; None for a single number.

    value: also a run's folder or its metrics.jsonl, with lines that hold "vitality_density_block_1", ... Raises SimError where there are none.
    """
    given = [_parsed(part) for part in value.split("/")]
    if len(given) == 1 and given[0] is not None:
        return None
    found = given if None not in given else _logged(value)
    if not found or not all(0 < share <= 1 for share in found):
        raise SimError(
            f"density={value}", "a share above 0, up to 1; one a block with / between them; or a run that trained vitality(mode=sparse)",
            "write for instance sanger@density=0.4, or sanger@density=runs/sparse",
        )  # fmt: skip
    return tuple(found)


def _logged(value: str) -> list[float]:
    """What the last line of a run's metrics says of every block, or nothing."""
    path = Path(value) / "metrics.jsonl" if Path(value).is_dir() else Path(value)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        logged = [{key: float(number) for key, number in line.items() if DENSITY in key} for line in lines]
    except (OSError, ValueError, AttributeError, TypeError):
        logged = []
    last = next((line for line in reversed(logged) if line), {})
    by_block = {int(key.rpartition("_")[2]): number for key, number in last.items()}
    return [by_block[block] for block in sorted(by_block)] if sorted(by_block) == list(range(1, len(by_block) + 1)) else []


def _number(key: str, value: str, target: str) -> float | int:
    number = _parsed(value)
    if number is None:
        raise SimError(f"setting {key}={value} of {target}", "a number", f"write for instance {key}=2")
    return int(number) if number == int(number) else number


def _parsed(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _is_number(value: Any) -> bool:
    return isinstance(value.get("value") if isinstance(value, dict) else value, (int, float))


def _places(tables: dict[str, Any]) -> list[str]:
    """Every number that can be set, as `changed` takes it."""
    top = [key for key, value in tables.items() if _is_number(value)]
    parts = [
        f"{section}.{part.get('name')}.{field}" for section in NAMED for part in tables.get(section, []) for field, value in part.items() if _is_number(value)
    ]
    return [*top, *tables.get("constants", {}), *parts]
