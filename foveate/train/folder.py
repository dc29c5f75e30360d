"""The run folder: taking it up again, opening it, and closing it with the trained model and its test result."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from torch import nn

from foveate.errors import FoveateError
from foveate.store import save
from foveate.train.evaluate import evaluate
from foveate.train.files import environment, read_checkpoint, write_json, write_text, write_weights
from foveate.train.images import PixelImages, ReadImages
from foveate.train.preprocessing import Preprocessing
from foveate.train.recipe import Recipe


def checkpoint_of(out: Path, resume: bool) -> dict | None:
    """The checkpoint that a run goes on from; None where it begins. Raises FoveateError for a used folder without `resume`."""
    path = out / "checkpoints" / "last.ckpt"
    if not path.exists():
        return None
    if not resume:
        raise FoveateError(
            f"{out}, which already holds a run",
            "a new folder, or an interrupted run with --resume",
            "add --resume or choose another --out",
        )
    return read_checkpoint(path)


def resume_run(out: Path, state: dict | None, model: nn.Module, recipe: Recipe) -> dict | None:
    """Load the checkpoint `state` into the model and return the rest of it; None where there is none."""
    if state is None:
        return None
    before = Recipe.from_json(state["recipe"])
    if before != recipe:
        changed = [name for name, value in vars(before).items() if getattr(recipe, name) != value]
        raise FoveateError(
            f"{out}, begun with another recipe ({', '.join(f'{name}={getattr(before, name)}' for name in changed)})",
            "the recipe the run was begun with",
            f"repeat {', '.join(changed)} as in {out / 'recipe.json'}, or choose another --out",
        )
    try:
        model.load_state_dict(state.pop("model"))
    except RuntimeError as error:
        raise FoveateError(
            f"{out / 'checkpoints' / 'last.ckpt'}, written for another model ({str(error).splitlines()[-1].strip()[:150]})",
            "the model the run was begun with",
            "repeat the command of run.json, or choose another --out",
        ) from error
    return state


def describe_run(
    model: nn.Module, images: PixelImages | ReadImages, recipe: Recipe, command: str | None, init: str | None
) -> dict:
    """Return what run.json says from the start: command, model, data, seed, versions, machine."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return {
        "command": command or " ".join(sys.argv),
        "model": config.get("architecture") or type(model).__name__,
        "init": init,
        "data": images.name,
        "train_images": len(images),
        "classes": list(images.classes),
        "seed": recipe.seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **environment(),
    }


def open_folder(out: Path, recipe: Recipe, preprocessing: Preprocessing, record: dict) -> None:
    """Write recipe.json, preprocessing.json and run.json before the first step."""
    write_text(out / "recipe.json", recipe.to_json())
    write_text(out / "preprocessing.json", preprocessing.to_json())
    record["started"] = read_record(out).get("started", record["started"])
    write_json(out / "run.json", record)


def read_record(out: Path) -> dict:
    """Return run.json; empty where there is none."""
    path = out / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def is_closed(out: Path, steps: int) -> bool:
    """Tell whether the folder already holds the result of this many steps."""
    return read_record(out).get("steps") == steps and (out / "model.safetensors").exists()


def close_folder(
    out: Path, model: nn.Module, images: PixelImages | ReadImages, test: PixelImages | ReadImages | None, record: dict
) -> None:
    """Save the model so that `foveate.load` gives it back; test it if the run is complete (`steps` == `of_steps`)."""
    preprocessing = Preprocessing.from_json((out / "preprocessing.json").read_text(encoding="utf-8"))
    try:
        save(model, out, asdict(preprocessing), list(images.classes))
    except FoveateError as error:
        # An architecture that foveate cannot rebuild still gets its weights.
        write_weights(out / "model.safetensors", model)
        record["not_loadable"] = error.given
    if record["steps"] == record["of_steps"] and test is not None:
        result = evaluate(model, test)
        record["test"] = {name: result[name] for name in ("accuracy_percent", "uncertainty_percent", "loss", "n", "skipped")}
    write_json(out / "run.json", record)
