"""export: a model as a folder that runs without foveate, written only where its logits are the model's."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate import __version__
from foveate.adaptive import AdaptiveModel
from foveate.adoption import adapt
from foveate.cascade import Cascade
from foveate.counting import count
from foveate.errors import FoveateError
from foveate.machine import package_versions
from foveate.plan import Plan
from foveate.quantised import quantised
from foveate.runtime import onnx_backend, openvino_backend
from foveate.runtime.agreement import DECIDING_TOLERANCE, TOLERANCE, Agreement, agreement, require
from foveate.runtime.artifact import BACKENDS, EXTRAS, FORMAT, MANIFEST, Artifact, digest_of, graph_runner, is_artifact
from foveate.runtime.decisions import Deciding, compared
from foveate.runtime.exported import exported_program, mirrored, silent
from foveate.runtime.loading import synthetic_images
from foveate.runtime.maker import images_at_once
from foveate.runtime.readme import readme
from foveate.runtime.torch_backend import eager
from foveate.store import own_preprocessing

SYNTHETIC = "synthetic images"
PRECISIONS = {"onnx": ("fp32",), "ort": ("fp32",), "openvino": ("fp32", "bf16"), "torch": ("fp32", "bf16")}
SUFFIX = {"onnx": "onnx", "ort": "ort", "openvino": "xml", "torch": "pt2"}


def export(
    model: nn.Module,
    folder: str | Path,
    to: str = "onnx",
    precision: str = "fp32",
    images: Tensor | None = None,
    *,
    source: str = SYNTHETIC,
    batch: int | None = None,
    tolerance: float | None = None,
    preprocessing: dict[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
    threads: int | None = None,
) -> Artifact:
    """Write `model` into `folder` as graphs with artifact.json and README.txt, if their logits are those of the model.

    model: an AdaptiveModel, a timm model, or a Cascade (one graph an effort, the gates in artifact.json); left untouched.
    to: "onnx", "openvino", "torch" (torch.export) or "ort" (ONNX Runtime's format for phones and boards).
    precision: "fp32"; "bf16" in openvino and torch; "int8" in openvino for models trained with it.
    images: normalised [B, C, H, W] to compare on, by default synthetic ones; source: what they are, in words.
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
            names = [f"effort-{number}" for number in range(1, len(efforts) + 1)] if gates else ["model"]
            data["graphs"] = [_graph(effort, made, name, data, images, batch, tolerance, threads) for effort, name in zip(efforts, names)]
            _complete(data, model, source, images, made)
            if folder.exists():
                os.replace(folder, Path(fresh) / "older")
            os.replace(made, folder)
    except OSError as error:
        raise FoveateError(f"artifact {folder} ({error.strerror or error})", "a folder that can be written, with room for the weights",
                           "check the path, its permissions and the free space") from None
    return Artifact(folder, data)


def _graph(model: AdaptiveModel, folder: Path, name: str, data: dict[str, Any], images: Tensor, batch: int | None, tolerance: float | None,
           threads: int | None) -> dict[str, Any]:
    """Write one graph, load it back from its file and hold it against eager float32; its entry in artifact.json."""
    to, precision = data["kind"], data["precision"]
    if images_at_once(model, images) == 1:
        if batch not in (None, 1):
            raise FoveateError(f"batch={batch} for {model.plan}, which keeps another number of tokens in each image", "batch=1, or none",
                               'leave it out: graphs of such plans take one image (or use select="topk")')
        batch = 1
    path = folder / f"{name}.{SUFFIX[to]}"
    places = _WRITERS[to](model, path, images, batch, precision)
    entry = {"file": path.name, "plan": str(model.plan), "batch": batch}
    expected = eager(model, "fp32")
    refused = None
    for static in (True, False) if to == "openvino" and batch is None else (True,):
        # OpenVINO's graphs of fixed shape were wrong for a tiny Swin, where the dynamic one was right.
        entry["static_shapes"] = static
        run = graph_runner(folder, data, entry, threads)
        try:
            found = require(_compared(run, expected, images, batch), f"{to} {precision}", precision, bool(model.plan.methods), tolerance)
        except FoveateError as error:
            refused = error
            continue
        return entry | {"parity": _record(found, precision, bool(model.plan.methods), tolerance) | _decisions(model, images, places)}
    raise FoveateError(f"{refused.given}; nothing was written", refused.allowed, "export with --precision fp32 or --to torch, or allow more with --tolerance") from refused


def _compared(run: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], images: Tensor, batch: int | None) -> Agreement:
    """All images at once and the first one alone: a batch size frozen into a graph shows in one of the two."""
    groups = images.split(1) if batch == 1 else (images, images[:1])
    try:
        return agreement(torch.cat([run(group) for group in groups]), torch.cat([expected(group) for group in groups]))
    except FoveateError:
        raise
    except Exception as error:  # what runtimes raise for shapes that a graph does not take
        raise FoveateError(f"a graph that does not run ({str(error).strip().splitlines()[0][:200]}); nothing was written",
                           "models whose operations this backend has", "export it with --to torch or --to openvino") from error


def _record(found: Agreement, precision: str, decides: bool, tolerance: float | None) -> dict[str, Any]:
    usual = (DECIDING_TOLERANCE if decides else TOLERANCE)[precision]
    return asdict(found) | {
        "compared_with": "torch eager fp32", "tolerance": usual if tolerance is None else tolerance,
        "max_logit_difference": found.worst * found.scale, "same_answer_percent": 100 * found.same_top1,
    }


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


def _decisions(model: AdaptiveModel, images: Tensor, places: list[list[np.ndarray]]) -> dict[str, Any]:
    if not places:
        return {}
    with torch.inference_mode():
        trace = model.traced(images.to(next(model.parameters())))[1]
    return {"decisions": compared(places, trace.kept, trace.after)}


def _write_onnx(model: AdaptiveModel, path: Path, images: Tensor, batch: int | None, precision: str) -> list[list[np.ndarray]]:
    stages = [f"places_{block}" for block in model.pruning_blocks]
    graph = onnx_backend.onnx_graph(Deciding(model), mirrored(images), batch == 1, outputs=stages)
    session = onnx_backend.onnx_session(graph, None) if stages else None
    places = _places(lambda group: session.run(stages, {onnx_backend.INPUT: group.numpy()}), images, batch) if stages else []
    graph = onnx_backend.fixed(onnx_backend.only_logits(graph), batch)
    if path.suffix == ".ort":
        onnx_backend.write_ort(graph, path)
    else:
        path.write_bytes(graph.SerializeToString())
    return places


def _write_openvino(model: AdaptiveModel, path: Path, images: Tensor, batch: int | None, precision: str) -> list[list[np.ndarray]]:
    openvino = openvino_backend.openvino
    graph = openvino_backend.openvino_graph(Deciding(model), mirrored(images), single=batch == 1)
    places = []
    if model.pruning_blocks:
        compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": openvino_backend.HINTS[precision]})
        places = _places(lambda group: [compiled(group.numpy())[n] for n in range(1, len(graph.outputs))], images, batch)
    graph = openvino.Model(graph.get_results()[:1], graph.get_parameters(), "foveate")
    if batch is not None:
        graph.reshape([batch, *images.shape[1:]])
    openvino.save_model(graph, path, compress_to_fp16=False)
    return places


def _write_torch(model: AdaptiveModel, path: Path, images: Tensor, batch: int | None, precision: str) -> list[list[np.ndarray]]:
    with silent():
        torch.export.save(exported_program(model, mirrored(images), batch, precision), path)
    if not model.pruning_blocks:
        return []
    # An exported graph cannot give up an output, so that decisions are looked at in a second one.
    deciding = exported_program(Deciding(model), mirrored(images), 1 if batch == 1 else None, precision).module()
    return _places(lambda group: [places.numpy() for places in deciding(group)[1:]], images, batch)


def _places(run: Callable[[Tensor], list[np.ndarray]], images: Tensor, batch: int | None) -> list[list[np.ndarray]]:
    """[stage][group] of what a deciding graph says: all images at once, or one by one where it takes one."""
    with torch.inference_mode():
        return [list(stage) for stage in zip(*(run(group) for group in (images.split(1) if batch == 1 else [images])))]


_WRITERS = {"onnx": _write_onnx, "ort": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}


def _check(model: nn.Module, to: str, precision: str, batch: int | None) -> None:
    if to not in BACKENDS:
        raise FoveateError(f"to={to!r}", ", ".join(BACKENDS), "choose one of these, such as onnx")
    backend = BACKENDS[to]
    if {"onnxruntime": onnx_backend.onnxruntime, "openvino": openvino_backend.openvino}.get(backend, torch) is None:
        raise FoveateError(f"to={to!r} without {backend}, which is not installed", "torch, or an installed backend", f"pip install 'foveate[{EXTRAS[backend]}]'")
    allowed = _precisions(model, to)
    if precision not in allowed:
        raise FoveateError(f"precision={precision!r} in {to} for {model.card.name}, {model.plan}", " or ".join(allowed), f"export with --precision {allowed[0]}")
    if batch is not None and batch < 1:
        raise FoveateError(f"batch={batch}", "a number of images from 1 on", "leave it out for a graph that takes any number")


def _precisions(model: nn.Module, to: str) -> tuple[str, ...]:
    eight = quantised(getattr(model, "efforts", [model])[0])
    return ("int8",) if eight and to == "openvino" else PRECISIONS[to]


def _checked_folder(folder: Path) -> Path:
    """The folder, its parents there; refused where something else than an artifact would be replaced."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_artifact(folder)):
        raise FoveateError(f"{folder}, which holds something else", "a new folder, an empty one, or an older artifact", "choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
