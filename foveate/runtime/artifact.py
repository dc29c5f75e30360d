"""Artifacts: folders that `export` writes, with everything about them in artifact.json."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate import __version__
from foveate.errors import FoveateError
from foveate.runtime.agreement import Agreement

FORMAT = 1
MANIFEST = "artifact.json"
BACKENDS = {"onnx": "onnxruntime", "ort": "onnxruntime", "openvino": "openvino", "torch": "torch"}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_KEYS = {"kind": str, "precision": str, "backbone": str, "plan": str, "input": dict, "output": dict, "graphs": list, "gates": list,
         "files": dict, "preprocessing": dict, "labels": list, "parity": dict}


@dataclass(frozen=True)
class Artifact:
    """What artifact.json says. folder: where it lies. data: its JSON object; "graphs" lists one graph, or
    one for each segment between two exits, of every effort, in the order in which they run."""

    folder: Path
    data: dict[str, Any]

    @property
    def agreement(self) -> Agreement:
        """How far its logits lay from eager float32's when it was written."""
        return Agreement(**{key: self.data["parity"][key] for key in Agreement.__dataclass_fields__ if key in self.data["parity"]})


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
        raise damaged(f"{path}, which is not JSON ({error})") from None
    version = data.get("foveate_artifact") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise FoveateError(f"{path} of format {version}, written by foveate {data.get('foveate')}", f"format {FORMAT}, which foveate {__version__} knows",
                           "pip install --upgrade foveate, or export the run again with this version")
    wrong = [key for key, kind in _KEYS.items() if version != FORMAT or not isinstance(data.get(key), kind)]
    if wrong or data["kind"] not in BACKENDS or not data["graphs"]:
        raise damaged(f"{path} with a missing or wrong {'foveate_artifact' if version != FORMAT else (wrong or ['kind'])[0]!r}")
    for name, digest in data["files"].items():
        if Path(name).name != name or not (folder / name).is_file():
            raise damaged(f"artifact {folder} without {name}, which {MANIFEST} names")
        if digest_of(folder / name) != digest:
            raise damaged(f"{folder / name}, which is not the file that {MANIFEST} was written with (truncated or changed)")
    return Artifact(folder, data)


def digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(given: str) -> FoveateError:
    """For a file that is not as `export` left it."""
    return FoveateError(given, "an artifact as `foveate export` wrote it", "copy it again, or export the run again")
