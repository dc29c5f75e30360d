"""export: a model as a folder that runs without foveate, written only where its logits are the model's."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate import __version__
from foveate.adoption import adapt
from foveate.cascade import Cascade
from foveate.counting import count
from foveate.errors import FoveateError
from foveate.machine import package_versions
from foveate.plan import Plan
from foveate.runtime import onnx_backend
from foveate.runtime.artifact import BACKENDS, FORMAT, MANIFEST, Artifact, digest_of, is_artifact
from foveate.runtime.artifact_engine import check_installed
from foveate.runtime.loading import synthetic_images
from foveate.runtime.maker import precisions_of
from foveate.runtime.readme import readme
from foveate.runtime.written import Written, write_effort
from foveate.store import own_preprocessing

SYNTHETIC = "synthetic images"


def export(
    model: nn.Module,
    folder: str | Path,
    to: str = "onnx",
    precision: str = "fp32",
    images: Tensor | None = None,
    *,
    source: str = SYNTHETIC,
    answers: Tensor | None = None,
    calibration: Tensor | None = None,
    batch: int | None = None,
    tolerance: float | None = None,
    preprocessing: dict[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
    threads: int | None = None,
) -> Artifact:
    """Write `model` into `folder` as graphs with artifact.json and README.txt, if their logits are those of the model.

    model: an AdaptiveModel (with exits, one graph a segment between them), a timm model, or a Cascade (one graph an effort, the gates in
        artifact.json); left untouched.
    to: "onnx", "openvino", "torch" (torch.export) or "ort" (ONNX Runtime's format for phones and boards).
    precision: "fp32"; "bf16" in openvino and torch; "int8" in onnx, ort and openvino, but for models with exits.
    images: normalised [B, C, H, W] to compare on, by default synthetic ones; source: what they are, in words. answers: the right classes
        [B]: then 8 bits are judged by the accuracy that they cost, too. calibration: other images, to take OpenVINO's 8-bit ranges from.
    batch: images a call of the graph; None leaves it free, but for plans that keep another number of tokens in each image, whose
        graphs take one. tolerance: as in `load_engine`. preprocessing, labels: see `foveate.save`. provenance: kept as it is.

    Raises FoveateError for what the backend cannot run, for logits beyond the tolerance and for a folder that is no artifact. Then
    nothing is written, and an older artifact there stays.
    """
    model = model if hasattr(model, "plan") else adapt(model, Plan())
    _check(model, to, precision, batch)
    folder = _checked_folder(Path(folder))
    images = synthetic_images(model.card) if images is None else images
    efforts, gates = (list(model.efforts), model.plan.gates) if isinstance(model, Cascade) else ([model], ())
    size = [model.card.in_chans, *model.card.image_size]
    data = {
        "foveate_artifact": FORMAT, "foveate": __version__, "kind": to, "backend": BACKENDS[to], "precision": precision,
        "backbone": model.card.name, "plan": str(model.plan), "plan_form": model.plan.to_dict(), "plan_digest": model.plan.digest(),
        "input": {"name": onnx_backend.INPUT, "dtype": "float32", "shape": ["batch", *size]},
        "output": {"name": onnx_backend.OUTPUT, "dtype": "float32", "shape": ["batch", model.num_classes]},
        "preprocessing": preprocessing or own_preprocessing(efforts[0]),
        "labels": list(labels or model.pretrained_cfg.get("label_names") or map(str, range(model.num_classes))),
        "gates": [gate.to_dict() for gate in gates], "versions": package_versions(), "provenance": provenance or {},
    }  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".exporting-") as fresh:
            made = Path(fresh) / "artifact"
            made.mkdir()
            writing = Written(made, data, images, answers, images if calibration is None else calibration, batch, tolerance, threads)
            data["graphs"] = [graph for number, effort in enumerate(efforts, 1) for graph in write_effort(writing, effort, number, len(efforts))]
            _complete(data, model, source, images, made)
            if folder.exists():
                os.replace(folder, Path(fresh) / "older")
            os.replace(made, folder)
    except OSError as error:
        raise FoveateError(f"artifact {folder} ({error.strerror or error})", "a folder that can be written, with room for the weights",
                           "check the path, its permissions and the free space") from None
    return Artifact(folder, data)


def _complete(data: dict[str, Any], model: nn.Module, source: str, images: Tensor, made: Path) -> None:
    """Counts, parity, digests and README.txt, and artifact.json last."""
    with torch.inference_mode():
        trace = model.traced(images.to(next(model.parameters())))[1]
    sizes = {graph["batch"] for graph in data["graphs"]}
    fixed = next(iter(sizes)) if len(sizes) == 1 else None
    for side in ("input", "output"):
        data[side]["shape"][0] = fixed or "batch"
    data |= {
        "batch": fixed or "dynamic", "macs": count(model, trace=trace).macs, "macs_dense": count(model.card).macs, "params": count(model, trace=trace).params,
        "tokens": _tokens(trace), "parity": max((graph["parity"] for graph in data["graphs"]), key=lambda one: one["typical"]) | {"source": source},
    }  # fmt: skip
    data["files"] = {path.name: digest_of(path) for path in sorted(made.iterdir())}
    (made / "README.txt").write_text(readme(data), encoding="utf-8")
    (made / MANIFEST).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _tokens(trace) -> dict[str, Any]:
    """Tokens that each block works on: one number where all images agree, else the mean and the range over the images compared on."""
    if trace.passes:
        return {f"effort_{one.effort}": _tokens(one.trace) for one in trace.passes}
    even = all(len(set(counts)) == 1 for counts in trace.block_tokens)
    if even:
        return {"fixed": True, "blocks": [counts[0] for counts in trace.block_tokens]}
    return {"fixed": False, "blocks_mean": [sum(counts) / len(counts) for counts in trace.block_tokens],
            "blocks_range": [[min(counts), max(counts)] for counts in trace.block_tokens]}


def _check(model: nn.Module, to: str, precision: str, batch: int | None) -> None:
    if to not in BACKENDS:
        raise FoveateError(f"to={to!r}", ", ".join(BACKENDS), "choose one of these, such as onnx")
    check_installed(to, f"to={to!r}")
    allowed = [set(precisions_of(BACKENDS[to], effort)) for effort in getattr(model, "efforts", [model])]
    allowed = [one for one in ("fp32", "bf16", "int8") if all(one in each for each in allowed)]
    if precision not in allowed:
        raise FoveateError(f"precision={precision!r} in {to} for {model.card.name}, {model.plan}", " or ".join(allowed) or "another kind",
                           f"export with --precision {allowed[0]}" if allowed else "export to onnx or torch with --precision fp32")
    if batch is not None and batch < 1:
        raise FoveateError(f"batch={batch}", "a number of images from 1 on", "leave it out for a graph that takes any number")


def _checked_folder(folder: Path) -> Path:
    """The folder, its parents there; refused where something else than an artifact would be replaced."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_artifact(folder)):
        raise FoveateError(f"{folder}, which holds something else", "a new folder, an empty one, or an older artifact", "choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
