"""The machines that come with foveate, and those of a user's own file."""

import difflib
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.sim.errors import SimError
from foveate.sim.machine import Machine
from foveate.sim.mapping import Rule
from foveate.sim.read import read_mapping, read_table
from foveate.sim.variants import changed, densities, merged, settings

SHIPPED = Path(__file__).parent / "machines"


def targets() -> tuple[str, ...]:
    """Names of the shipped machines."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def load(target: str) -> Machine:
    """A shipped machine by its name, or the machine in a user's TOML file; settings may stand behind an @.

    Settings, with commas between them: peak=TARGET (as many copies of the machine, whole or not, as reach that target's peak),
    density=SHARE (see foveate.sim.variants.densities), and KEY=NUMBER for any number of the file.
    Raises SimError with near names for an unknown target, and with every violation for a file that describes no machine.
    """
    name, at, text = (target, "", "") if Path(target).is_file() else target.partition("@")
    tables, by_block = _tables(name), None
    for key, value in (settings(text) if at else {}).items():
        if key == "peak":
            tables = tables | {"copies": {"value": _copies(tables, value, target), "source": f"the peak of {value} over that of {name}"}}
        elif key in ("density", "constants.density") and (by_block := densities(value)):
            tables = changed(tables, key, str(sum(by_block) / len(by_block)), target)
        else:
            tables = changed(tables, key, value, target)
    machine = read_table(tables, target if at else Path(name).name)
    return replace(machine, densities=by_block) if by_block else machine


def load_mapping(file: str, machine: Machine) -> tuple[Rule, ...]:
    """The rules of a user's mapping file for this machine; raises SimError where there is none or where they do not fit."""
    if not Path(file).is_file():
        raise SimError(f"mapping {file!r}, which is no file here", "a TOML file of [[mapping]] tables", "check the path (`ls`)")
    return read_mapping(_text(file), file, machine)


def _tables(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tables of a machine file over those of its base."""
    try:
        tables = tomllib.loads(_file(name).read_text(encoding="utf-8", errors="replace"))
    except tomllib.TOMLDecodeError as error:
        raise SimError(f"{name}, which is no TOML ({error})", "a machine file", "start from a shipped one: foveate targets zcu102 --toml") from None
    base = tables.get("base")
    if base is None:
        return tables
    if not isinstance(base, str) or base in (*seen, name):
        raise SimError(f"{name} with base = {base!r}", "the name of another target, or another machine file", 'write for instance base = "vitality"')
    return merged(_tables(base, (*seen, name)), tables)


def _file(name: str) -> Path:
    if Path(name).name == name and (SHIPPED / f"{name}.toml").is_file():
        return SHIPPED / f"{name}.toml"
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, targets(), n=3, cutoff=0.4)
    raise SimError(
        f"target {name!r}",
        f"a machine file, or one of {', '.join(targets())}",
        f"did you mean {' or '.join(near)}?" if near else "list them with `foveate targets`",
    )


def _copies(tables: dict[str, Any], other: str, target: str) -> float:
    own, wanted = read_table({key: value for key, value in tables.items() if key != "copies"}, target).peak, load(other).peak
    if not own or not wanted:
        raise SimError(f"{target}, where {other if own else target} has no known peak", "two machines that multiply at known rates", "see `foveate targets`")
    return wanted / own


def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8", errors="replace")
