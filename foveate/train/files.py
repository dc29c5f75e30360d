"""Files of a run folder, written so that an interruption never leaves half of one behind."""

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from foveate.errors import FoveateError

CHECKPOINT_FORMAT = 1
PACKAGES = ("foveate", "torch", "torchvision", "timm", "lightning", "numpy")


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_run in path.parent.glob(f".{path.name}.*.tmp"):
        left_by_a_killed_run.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {"versions": versions, "machine": machine}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
