"""Files of a run folder, written so that an interruption never leaves half of one behind."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from foveate.errors import FoveateError
from foveate.files import write_atomic
from foveate.machine import machine

CHECKPOINT_FORMAT = 1


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8"))


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1))


def write_weights(path: Path, model: nn.Module) -> None:
    """Write a model's state_dict as safetensors; floating tensors as float32."""
    state = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    write_atomic(path, lambda temporary: save_file(state, temporary))


def write_checkpoint(path: Path, state: dict) -> None:
    write_atomic(path, lambda temporary: torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary))


def read_checkpoint(path: Path) -> dict:
    """Return what write_checkpoint wrote. Raises FoveateError for a damaged or foreign file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise FoveateError(
            f"{path}, which cannot be read ({type(error).__name__})",
            "a checkpoint that `foveate train` or `adapt` wrote",
            "delete it to start again from the beginning",
        ) from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT or "step" not in state:
        raise FoveateError(
            f"{path}, which is not a checkpoint of format {CHECKPOINT_FORMAT}",
            "a checkpoint that this version's `foveate train` or `adapt` wrote",
            "delete it to start again from the beginning",
        )
    return state


def read_lines(path: Path) -> list[dict]:
    """Return the records of a JSON-lines file; a half-written last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def environment() -> dict:
    """Return versions and machine, for run.json."""
    card = machine()
    return {"versions": card.pop("versions"), "machine": card | {"torch_threads": torch.get_num_threads()}}
