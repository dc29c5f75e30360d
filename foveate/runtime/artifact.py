"""Artifacts: folders that `export` writes; they run without foveate, and here through `load_artifact`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate import __version__
from foveate.errors import FoveateError
from foveate.gates import gate_from_dict
from foveate.runtime import onnx_backend, openvino_backend
from foveate.runtime.agreement import Agreement
from foveate.runtime.cascade import Regrouped
from foveate.runtime.engine import Engine
from foveate.runtime.exported import named, silent

FORMAT = 1
MANIFEST = "artifact.json"
BACKENDS = {"onnx": "onnxruntime", "ort": "onnxruntime", "openvino": "openvino", "torch": "torch"}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_KEYS = {"kind": str, "precision": str, "backbone": str, "plan": str, "input": dict, "output": dict, "graphs": list, "gates": list,
         "files": dict, "preprocessing": dict, "labels": list, "parity": dict}


@dataclass(frozen=True)
class Artifact:
    """What artifact.json says. folder: where it lies. data: its JSON object; "graphs" names one graph an effort, lowest first."""

    folder: Path
    data: dict[str, Any]

    @property
    def agreement(self) -> Agreement:
        """How far its logits lay from eager float32's when it was written."""
        return Agreement(**{key: self.data["parity"][key] for key in Agreement.__dataclass_fields__})


def is_artifact(folder: str | Path) -> bool:
    return (Path(folder) / MANIFEST).is_file()


def read_artifact(folder: str | Path) -> Artifact:
    """The artifact in `folder`, every file of it checked by its digest.

    Raises FoveateError for a folder without artifact.json, one of a newer format, and missing, truncated or changed files.
    """
    folder = Path(folder)
    if not is_artifact(folder):
        raise FoveateError(f"artifact {folder} without {MANIFEST}", "a folder that `foveate export` wrote", "check the path (`ls`)")
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(f"{path}, which is not JSON ({error})") from None
    version = data.get("foveate_artifact") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise FoveateError(f"{path} of format {version}, written by foveate {data.get('foveate')}", f"format {FORMAT}, which foveate {__version__} knows",
                           "pip install --upgrade foveate, or export the run again with this version")
    wrong = [key for key, kind in _KEYS.items() if version != FORMAT or not isinstance(data.get(key), kind)]
    if wrong or data["kind"] not in BACKENDS or not data["graphs"]:
        raise _damaged(f"{path} with a missing or wrong {'foveate_artifact' if version != FORMAT else (wrong or ['kind'])[0]!r}")
    for name, digest in data["files"].items():
        if Path(name).name != name or not (folder / name).is_file():
            raise _damaged(f"artifact {folder} without {name}, which {MANIFEST} names")
        if digest_of(folder / name) != digest:
            raise _damaged(f"{folder / name}, which is not the file that {MANIFEST} was written with (truncated or changed)")
    return Artifact(folder, data)


def load_artifact(folder: str | Path, threads: int | None = None) -> Engine:
    """The engine of an artifact: images [B, C, H, W] of its size -> logits, any number of images at once.

    threads: torch's own number by default. An artifact of a fixed batch size runs group by group, the last one filled up.
    Raises FoveateError as `read_artifact` does, and where its backend is not installed.
    """
    artifact = read_artifact(folder)
    data, backend = artifact.data, BACKENDS[artifact.data["kind"]]
    missing = {"onnxruntime": onnx_backend.onnxruntime, "openvino": openvino_backend.openvino}.get(backend, torch) is None
    if missing:
        raise FoveateError(f"an artifact for {backend}, which is not installed", "artifacts of an installed backend",
                           f"pip install 'foveate[{EXTRAS[backend]}]'")
    engines = [Engine(graph_runner(artifact.folder, data, graph, threads), backend, data["precision"], None, artifact.agreement)
               for graph in data["graphs"]]
    if len(engines) == 1:
        return engines[0]
    gates = [gate_from_dict(gate, str(artifact.folder / MANIFEST)) for gate in data["gates"]]
    return Engine(Regrouped(engines, gates), backend, data["precision"], None, artifact.agreement)


def graph_runner(folder: Path, data: dict[str, Any], graph: dict[str, Any], threads: int | None) -> Callable[[Tensor], Tensor]:
    """A call from images to logits through one graph of an artifact, whatever the number of images."""
    path, kind = folder / graph["file"], data["kind"]
    try:
        if kind == "openvino":
            model = openvino_backend.openvino.Core().read_model(path)
            run = openvino_backend.openvino_runner(model, data["precision"], threads, static=graph["static_shapes"])
        elif kind == "torch":
            run = _torch_runner(path)
        else:
            run = onnx_backend.onnx_runner(path, threads)
    except FoveateError:
        raise
    except Exception as error:  # every backend raises kinds of its own for a file that it does not understand
        raise FoveateError(f"{path}, which {BACKENDS[kind]} cannot load ({named(error)})", "a graph that this version of it reads",
                           "upgrade it to the version in artifact.json, or export the run again here") from error
    sized = _sized(run, tuple(data["input"]["shape"][1:]), folder)
    return sized if graph["batch"] is None else in_groups(sized, graph["batch"])


def in_groups(run: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """`run`, which takes exactly `size` images, for any number: the last group is filled up with its last image."""

    def grouped(images: Tensor) -> Tensor:
        groups = images.split(size)
        filler = images[-1:].expand(size - len(groups[-1]), -1, -1, -1)
        return torch.cat([run(group) for group in (*groups[:-1], torch.cat([groups[-1], filler]))])[: len(images)]

    return grouped


def digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _torch_runner(path: Path) -> Callable[[Tensor], Tensor]:
    with silent():
        module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return module(images.to("cpu", torch.float32)).to(images.device)

    return run


def _sized(run: Callable[[Tensor], Tensor], shape: tuple[int, ...], folder: Path) -> Callable[[Tensor], Tensor]:
    def checked(images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != shape or len(images) == 0:
            raise FoveateError(f"images of shape {list(images.shape)}", f"[batch, {', '.join(map(str, shape))}] for the artifact {folder}, at least one",
                               f"resize them to {shape[1]}x{shape[2]} pixels")
        return run(images)

    return checked


def _damaged(given: str) -> FoveateError:
    return FoveateError(given, "an artifact as `foveate export` wrote it", "copy it again, or export the run again")
