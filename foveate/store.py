"""Run folders: `save` writes a plan, its backbone and weights; `load` gives the model back on any machine. Never pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from foveate.adaptive import AdaptiveModel
from foveate.adoption import adapt, backbone_of, check_complete
from foveate.backbones.blueprint import Blueprint
from foveate.budgets import SegmentCosts
from foveate.cascade import Cascade
from foveate.cascade_plan import EFFORT, CascadePlan
from foveate.errors import FoveateError
from foveate.files import write_atomic
from foveate.plan import Plan
from foveate.quantised import RANGE, quantise, quantised, quantised_in

WEIGHTS, PLAN, BACKBONE, PREPROCESSING, COSTS = "model.safetensors", "plan.json", "backbone.json", "preprocessing.json", "segment_costs.json"


def save(model: nn.Module, folder: str | Path, preprocessing: dict[str, Any] | None = None, labels: list[str] | None = None) -> Path:
    """Writes plan.json, backbone.json, preprocessing.json and model.safetensors into `folder`.

    model: an AdaptiveModel, a timm model (saved under the empty plan), or a Cascade (plan.json and a sub-run effort-1, effort-2, ...).
    preprocessing: mean, std, crop_pct, interpolation, image_size; the backbone's own by default. labels: class names.
    Everything is written beside an older run first, so that a full disk leaves that as it was. Then plan.json is moved in
    last, and backbone.json names the digest of the weights: no mixture of two saves loads. What only training needs is left out.
    """
    folder = Path(folder)
    if isinstance(model, Cascade):
        return _save_cascade(model, folder, preprocessing, labels)
    model = model if isinstance(model, AdaptiveModel) else adapt(model, Plan())
    check_complete(model, model.missing, "another plan on")
    blueprint = Blueprint.of(backbone_of(model))
    backbone = {"architecture": blueprint.architecture, "arguments": blueprint.arguments,
                "labels": labels or list(model.pretrained_cfg.get("label_names") or ()), **({"quantise": "int8"} if quantised(model) else {})}
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in model.inference_state().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as fresh:
            fresh = Path(fresh)
            write_atomic(fresh / WEIGHTS, lambda path: save_file(tensors, path, metadata={"plan": model.plan.digest()}))
            _write(fresh / BACKBONE, backbone | {"weights": _digest(fresh / WEIGHTS)})
            _write(fresh / PREPROCESSING, preprocessing or own_preprocessing(model))
            (fresh / PLAN).write_text(model.plan.to_json() + "\n")
            for old in (PLAN, COSTS):
                (folder / old).unlink(missing_ok=True)
            for name in (WEIGHTS, BACKBONE, PREPROCESSING, PLAN):
                os.replace(fresh / name, folder / name)
    except (OSError, SafetensorError) as error:
        raise _unwritable(folder, error) from None
    return folder


def _save_cascade(model: Cascade, folder: Path, preprocessing: dict[str, Any] | None, labels: list[str] | None) -> Path:
    """Every sub-run is written beside those of an older run, then all change places while there is no plan.json that would load a mixture."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as fresh:
            fresh = Path(fresh)
            for number, effort in enumerate(model.efforts, 1):
                save(effort, fresh / EFFORT.format(number), preprocessing, labels)
            (fresh / PLAN).write_text(model.plan.to_json() + "\n")
            for old in (PLAN, COSTS):
                (folder / old).unlink(missing_ok=True)
            for old in folder.glob(EFFORT.format("*")):
                shutil.move(old, fresh / f"old-{old.name}")
            for number in range(1, len(model.efforts) + 1):
                os.replace(fresh / EFFORT.format(number), folder / EFFORT.format(number))
            os.replace(fresh / PLAN, folder / PLAN)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


def _unwritable(folder: Path, error: Exception) -> FoveateError:
    return FoveateError(f"run folder {folder} ({getattr(error, 'strerror', None) or error})", "a folder that can be written, with room for the weights",
                        "check the path, its permissions and the free space")


def _load_cascade(folder: Path, plan: CascadePlan, device: str | torch.device) -> Cascade:
    efforts = []
    for number, (own, sub) in enumerate(zip(plan.efforts, plan.folders(folder)), 1):
        efforts.append(load(sub, device))
        if efforts[-1].plan != own:
            raise FoveateError(f"{sub} with the plan {efforts[-1].plan} beside {folder / PLAN}, whose effort {number} is {own}",
                               "sub-runs and plan of the same save", "a file was exchanged or edited: save the cascade again")
    made = Cascade(efforts, plan.gates, plan.fractions)
    made.costs = stored_costs(folder)
    return made


def stored_costs(folder: str | Path) -> SegmentCosts | None:
    """What segments cost, as `foveate profile segments` wrote it into a run; None without. Raises FoveateError for a damaged file."""
    path = Path(folder) / COSTS
    return SegmentCosts.from_json(path.read_text(errors="replace"), str(path)) if path.is_file() else None


def store_costs(folder: str | Path, costs: SegmentCosts) -> Path:
    """Writes segment_costs.json into a run; `load` reads it, and a table of another machine is measured anew when it is needed."""
    path = Path(folder) / COSTS
    write_atomic(path, lambda file: file.write_text(costs.to_json() + "\n"))
    return path


def load(folder: str | Path, device: str | torch.device = "cpu") -> AdaptiveModel | Cascade:
    """The model or the cascade that `save` wrote, in evaluation mode.

    Raises FoveateError for a missing, truncated, corrupt or foreign file, or weights of another plan or backbone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FoveateError(f"run {str(folder)!r}, which is no folder", "a run folder written by fv.save or `foveate adapt`", "check the path (`ls`)")
    _check_there(folder, PLAN)
    plan = Plan.from_json((folder / PLAN).read_text(errors="replace"), str(folder / PLAN))
    if isinstance(plan, CascadePlan):
        return _load_cascade(folder, plan, device)
    _check_there(folder, BACKBONE, WEIGHTS)
    backbone = _read(folder / BACKBONE, {"architecture": str, "arguments": dict})
    state, metadata = _weights(folder / WEIGHTS)
    if metadata.get("plan") not in (None, plan.digest()):
        raise FoveateError(f"{folder / WEIGHTS} of plan {metadata['plan']} beside {PLAN} of plan {plan.digest()}", "weights and plan of the same save",
                           "a file was exchanged or edited: save the run again")
    if backbone.get("weights") not in (None, _digest(folder / WEIGHTS)):
        raise FoveateError(f"{folder / WEIGHTS}, which is not the file that {BACKBONE} was written with", "weights and backbone of the same save, unchanged",
                           "a file was exchanged or damaged: save or copy the run again")
    model = adapt(Blueprint(backbone["architecture"], backbone["arguments"]).build(), plan)
    _quantise_like(model, state, str(folder / WEIGHTS))
    _load_state(model, state, str(folder / WEIGHTS))
    model.forget()
    model.costs = stored_costs(folder)
    model.anatomy.model.pretrained_cfg = dict(model.pretrained_cfg) | preprocessing_of(folder) | (
        {"label_names": backbone["labels"]} if backbone.get("labels") else {})
    return model.to(device).eval()


def _quantise_like(model: AdaptiveModel, state: dict[str, torch.Tensor], source: str) -> None:
    """Lets the layers compute in 8 bits whose ranges are in `state`; the ranges themselves come with the other weights."""
    try:
        quantise(model, {name: RANGE for name in quantised_in(state)})
    except FoveateError as error:
        raise FoveateError(f"{source} with {error.given}", error.allowed, "use the checkpoint that belongs to this model and plan") from None


def _check_there(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise FoveateError(f"run {str(folder)!r} without {name}", f"a folder with {PLAN}, {BACKBONE} and {WEIGHTS}",
                               "the save was interrupted or the folder is not a run: save it again")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a safetensors checkpoint into a model; raises FoveateError for one of another architecture."""
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise FoveateError(f"checkpoint {str(path)!r}, which is no file", "a .safetensors file or a run folder", "check the path (`ls`)")
    _load_state(model, _weights(path)[0], str(path))


def preprocessing_of(folder: str | Path) -> dict[str, Any]:
    """The preprocessing saved with a run, under timm's names; empty where the run has none."""
    path = Path(folder) / PREPROCESSING
    if not path.is_file():
        return {}
    settings = _read(path, {"image_size": int, "mean": list, "std": list, "crop_pct": (int, float), "interpolation": str})
    size = settings.pop("image_size")
    return settings | {"input_size": (3, size, size)}


def own_preprocessing(model: AdaptiveModel) -> dict[str, Any]:
    """How the backbone's own weights take their images: image_size, mean, std, crop_pct and interpolation."""
    cfg = model.pretrained_cfg
    return {"image_size": int(model.card.image_size[0]), "mean": list(cfg.get("mean", (0.5,) * 3)), "std": list(cfg.get("std", (0.5,) * 3)),
            "crop_pct": cfg.get("crop_pct") or 1.0, "interpolation": cfg.get("interpolation") or "bicubic"}


def _weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise FoveateError(f"{path}, which is not readable as safetensors ({error})", "an intact .safetensors file",
                           "the file is truncated, corrupt or of another format: save or copy it again (pickled .pt files are never loaded)") from None


def _load_state(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    own, needed = model.state_dict(), model.inference_state() if isinstance(model, AdaptiveModel) else model.state_dict()
    problems = [f"lacks {k}" for k in needed if k not in state] + [f"has an unknown {k}" for k in state if k not in own]
    problems += [f"has {k} of shape {tuple(state[k].shape)} instead of {tuple(own[k].shape)}" for k in own if k in state and state[k].shape != own[k].shape]
    if problems:
        more = f" and {len(problems) - 1} more such differences" if len(problems) > 1 else ""
        raise FoveateError(f"{source}: it {problems[0]}{more}", f"weights of this architecture ({len(own)} tensors)",
                           "use the checkpoint that belongs to this model and plan")
    bad = next((k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)
    if bad:
        raise FoveateError(f"{source} with NaN or infinite values in {bad}", "finite weights", "use the last good checkpoint of that training")
    model.load_state_dict(own | state)


def _read(path: Path, shape: dict[str, Any]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise FoveateError(f"{path}, which is not JSON ({error})", "the file as fv.save wrote it", "save the run again") from None
    wrong = [k for k, t in shape.items() if not isinstance(data, dict) or not isinstance(data.get(k), t)]
    if wrong:
        raise FoveateError(f"{path} with a missing or wrong {wrong[0]!r}", f"an object with {', '.join(shape)}", "save the run again")
    return data


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
