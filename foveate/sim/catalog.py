"""The machines that come with foveate, and those of a user's own file."""

import difflib
from pathlib import Path

from foveate.sim.errors import SimError
from foveate.sim.machine import Machine
from foveate.sim.mapping import Rule
from foveate.sim.read import read_machine, read_mapping

SHIPPED = Path(__file__).parent / "machines"


def targets() -> tuple[str, ...]:
    """Names of the shipped machines."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def load(target: str) -> Machine:
    """A shipped machine by its name, or the machine in a user's TOML file.

    Raises SimError with near names for an unknown target, and with every violation for a file that describes no machine.
    """
    if Path(target).name == target and (SHIPPED / f"{target}.toml").is_file():
        return read_machine((SHIPPED / f"{target}.toml").read_text(encoding="utf-8"), target)
    if Path(target).is_file():
        return read_machine(_text(target), Path(target).name)
    near = difflib.get_close_matches(target, targets(), n=3, cutoff=0.4)
    raise SimError(
        f"target {target!r}",
        f"a machine file, or one of {', '.join(targets())}",
        f"did you mean {' or '.join(near)}?" if near else "list them with `foveate targets`",
    )


def load_mapping(file: str, machine: Machine) -> tuple[Rule, ...]:
    """The rules of a user's mapping file for this machine; raises SimError where there is none or where they do not fit."""
    if not Path(file).is_file():
        raise SimError(f"mapping {file!r}, which is no file here", "a TOML file of [[mapping]] tables", "check the path (`ls`)")
    return read_mapping(_text(file), file, machine)


def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8", errors="replace")
