"""Presets: named plans with the backbone and the cost they were fitted to, read from presets.toml."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from foveate.errors import FoveateError


@dataclass(frozen=True)
class Preset:
    """A named plan for one backbone.

    plan: as `Plan.from_dict` reads it. gmacs: the cost it reaches, in giga multiply-accumulates. source: what it was
    fitted to and where that is printed; `fitted` says that the papers do not state these keep ratios. recipe: of training.
    teacher: who teaches, where it is not the dense model itself.
    """

    name: str
    model: str
    plan: dict[str, Any]
    gmacs: float
    source: str
    recipe: str = "spvit"
    fitted: bool = True
    teacher: str | None = None


@cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    table = tomllib.loads(resources.files("foveate").joinpath("presets.toml").read_text(encoding="utf-8"))
    return {name: Preset(name=name, **{**entry, "plan": {"foveate_plan": 1, "methods": entry["plan"]}}) for name, entry in table.items()}


def preset(name: str) -> Preset:
    """The preset called `name`; raises FoveateError with the nearest names."""
    if name not in presets():
        near = difflib.get_close_matches(name, presets(), n=3, cutoff=0.4)
        raise FoveateError(f"preset {name!r}", ", ".join(presets()),
                           f"did you mean {' or '.join(near)}?" if near else "choose one of these, or write the plan inline: spvit(after=[3,6,9], keep=[0.7,0.49,0.343])")
    return presets()[name]
