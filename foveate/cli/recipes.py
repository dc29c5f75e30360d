"""What --recipe, --set and their shorthands mean."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.cli.targets import Target
    from foveate.train.recipe import Recipe


def chosen_recipe(name: str, seed: int | None, epochs: int | None, batch_size: int | None, split: str | None, settings: list[str] | None) -> Recipe:
    """A recipe by name or file, with what the command line changes about it."""
    from foveate.train.recipe import Recipe, recipe_named

    path = Path(name)
    base = Recipe.from_json(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else recipe_named(name)
    given: dict[str, Any] = {"seed": seed, "epochs": epochs, "batch_size": batch_size, "split": split}
    # Where a setting is a word, none is one, too: augmentation=none, quantise=none.
    changes = {k: "none" if v is None and isinstance(getattr(base, k, None), str) else v for k, v in settings_of(settings, "--set").items()}
    return base.but(**{k: v for k, v in given.items() if v is not None} | changes)


def usual_recipe(target: Target, plan: str) -> str:
    """The recipe for a plan where none was named: the preset's, or that of its first method that has one, with -nano for the embedded images' models."""
    from foveate.cli.targets import single_plan_of
    from foveate.presets import presets
    from foveate.train.recipe import RECIPES

    if plan in presets():
        return presets()[plan].recipe
    name = next((m.name for m in single_plan_of(target, plan).methods if m.name in RECIPES), "spvit")
    return f"{name}-nano" if target.architecture().startswith(("foveate_nano", "iret_nano")) else name


def usual_teacher(plan: str) -> str | None:
    """Who teaches where nobody was named: the preset's teacher, or None for the dense model."""
    from foveate.presets import presets

    return presets()[plan].teacher if plan in presets() else None


def settings_of(pairs: list[str] | None, option: str) -> dict[str, Any]:
    """KEY=VALUE pairs as Python values: numbers, lists, true, false, none, or else text."""
    settings = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise FoveateError(f"{option} {pair}", "KEY=VALUE", f"write for instance {option} {'lr=1e-3' if option == '--set' else 'img_size=64'}")
        settings[key.strip()] = setting_value(value.strip())
    return settings


def check_patches(model: str, settings: dict[str, Any]) -> None:
    """Refuse an image size that the patch does not divide before hours of training ignore the last rows of every image."""
    if not settings:
        return
    import torch

    from foveate.backbones.anatomy import check_image_size
    from foveate.backbones.describe import describe
    from foveate.train.base import create_base

    with torch.device("meta"):
        empty = create_base(model, 10, **settings)
    try:
        card = describe(empty, model)
    except FoveateError:  # a family that can be trained here but not adapted
        return
    check_image_size(empty, card)


def setting_value(text: str) -> Any:
    """A word of the command line as a Python value."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
