"""The registry: one word a method. Settings are torch-free; `layers(name)` loads a room's modules when a model needs them."""

from __future__ import annotations

import difflib
from importlib import import_module

from foveate.errors import FoveateError
from foveate.methods.ats.config import ATS
from foveate.methods.base import Method
from foveate.methods.earlyexit.config import EarlyExit
from foveate.methods.efficient.config import Efficient
from foveate.methods.evit.config import EViT
from foveate.methods.iret.config import IRET
from foveate.methods.linformer.config import Linformer
from foveate.methods.lineartransformer.config import LinearTransformer
from foveate.methods.performer.config import Performer
from foveate.methods.pivot.config import PIVOT
from foveate.methods.random.config import Random
from foveate.methods.spvit.config import SPViT
from foveate.methods.structure.config import Structure
from foveate.methods.tome.config import ToMe
from foveate.methods.vitality.config import ViTALiTy
from foveate.methods.vitcod.config import ViTCoD

METHODS: dict[str, type[Method]] = {m.name: m for m in (
    SPViT, Random, Structure, ViTALiTy, Linformer, Performer, LinearTransformer, Efficient, PIVOT, IRET, ViTCoD, EarlyExit,
    EViT, ToMe, ATS)}


def method_class(name: str) -> type[Method]:
    """The settings class called `name`; an unknown name raises FoveateError with the nearest known ones."""
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        raise FoveateError(
            given=f"method {name!r}",
            allowed=", ".join(METHODS),
            do=f"did you mean {near[0]!r}?" if near else "choose one of these (`foveate methods` explains them)",
        )
    return METHODS[name]


def layers(name: str):
    """The room's `layers` module, whose `build(config, card)` makes the method's nn.Module."""
    return import_module(f"foveate.methods.{method_class(name).name}.layers")


def cost(name: str):
    """The room's `cost` module."""
    return import_module(f"foveate.methods.{method_class(name).name}.cost")
