"""Training a dense base by its timm name: what `foveate train` does."""

from pathlib import Path

import timm
import torch
from torch import nn

import foveate.backbones  # noqa: F401  (registers this package's models with timm)
from foveate.errors import FoveateError
from foveate.train.data import DEFAULT_DATA, load_data
from foveate.train.fit import fit, load_sets
from foveate.train.preprocessing import Preprocessing
from foveate.train.recipe import Recipe, recipe_named


def create_base(name: str, classes: int, pretrained: bool = False, seed: int = 0, **settings) -> nn.Module:
    """Return a timm model with a head for `classes`; its random weights are a function of `seed` alone.

    settings: further arguments of timm.create_model (img_size, ...).
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:6]
        raise FoveateError(
            f"model {name!r}", f"a name that timm knows{', such as ' + ', '.join(close) if close else ''}", "see foveate models"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=classes, **settings)
        except FoveateError:
            raise
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            raise FoveateError(
                f"model {name!r} with num_classes={classes}, pretrained={pretrained}, {settings} ({error})",
                "settings the model takes, and weights that are on this machine or can be fetched",
                "leave out pretrained weights, or correct the settings",
            ) from error


def train_base(
    name: str,
    out: str | Path,
    data: str = DEFAULT_DATA,
    recipe: Recipe | str = "base-nano",
    *,
    data_dir: str | Path | None = None,
    pretrained: bool = False,
    init: str | None = None,
    settings: dict | None = None,
    strict: bool = False,
    **options,
) -> Path:
    """Create a dense model, train it and return the run folder.

    name: of timm, e.g. "foveate_nano". recipe: a value or a preset's name. init: "RUN" or "grow:RUN", starting weights.
    settings: further arguments of timm.create_model. options: as in `fit` (resume, device, devices, workers, ...).
    """
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    classes = len(load_data(data, "test", data_dir, strict=strict).classes)
    model = create_base(name, classes, pretrained, recipe.seed, **(settings or {}))
    sets = load_sets(data, recipe, data_dir, Preprocessing.of(model), strict)
    return fit(model, out, sets, recipe, init=init, strict=strict, **options)
