"""Files of graphs: a model, or a segment of one, converted for a kind of artifact and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from foveate.adaptive import AdaptiveModel
from foveate.quantised import quantised
from foveate.runtime import onnx_backend, openvino_backend
from foveate.runtime.decisions import Deciding
from foveate.runtime.exported import exported_program, mirrored, silent
from foveate.runtime.int8 import quantised_graph
from foveate.runtime.onnx_int8 import quantised_onnx
from foveate.runtime.staged import Call

SUFFIX = {"onnx": "onnx", "ort": "ort", "openvino": "xml", "torch": "pt2"}


def write_model(
    kind: str, model: AdaptiveModel, path: Path, images: Tensor, calibration: Tensor, batch: int | None, precision: str
) -> list[list[np.ndarray]]:
    """Write a whole model as one graph; places[stage][group] of the tokens that it keeps of `images`, by the runtime that will run it.

    images: [B, C, H, W], all at once in one group, or one by one where batch is 1. The graph is converted with their mirror images.
    calibration: images that 8-bit ranges are taken from, where they are taken beforehand.
    """
    stages = [f"places_{block}" for block in model.pruning_blocks]
    given = [mirrored(images)]
    if not stages:
        _save(kind, _rounded(kind, model, _converted(kind, model, given, batch, precision), calibration, precision), path, batch, images)
        return []
    graph = _rounded(kind, model, _converted(kind, Deciding(model), given, batch, precision, outputs=stages), calibration, precision)
    call = _call(kind, graph, precision, stages, rounded_rest(kind, precision, model))
    with torch.inference_mode():
        groups = [[places.numpy().copy() for places in call([group])[1:]] for group in (images.split(1) if batch == 1 else [images])]
    places = [list(stage) for stage in zip(*groups, strict=True)]
    if kind == "openvino":
        graph = openvino_backend.only_first(graph)
    elif kind == "torch":  # whose graphs cannot give up an output
        graph = _converted(kind, model, given, batch, precision)
    else:
        graph = onnx_backend.only_logits(graph)
    _save(kind, graph, path, batch, images)
    return places


def write_segment(kind: str, segment: nn.Module, path: Path, given: Sequence[Tensor], single: bool, precision: str) -> None:
    """Write a segment between two exits; given: what it is converted with."""
    batch = 1 if single else None
    _save(kind, _converted(kind, segment, given, batch, precision, segment.inputs, segment.outputs), path, None, given[0])


def _converted(kind: str, module: nn.Module, given: Sequence[Tensor], batch: int | None, precision: str,
               inputs: Sequence[str] = (onnx_backend.INPUT,), outputs: Sequence[str] = ()):  # fmt: skip
    if kind == "torch":
        return exported_program(module, given, batch, precision)
    if kind == "openvino":
        return openvino_backend.openvino_graph(module, given, single=batch == 1)
    return onnx_backend.onnx_graph(module, given, batch == 1, inputs, outputs)


def _rounded(kind: str, model: AdaptiveModel, graph, calibration: Tensor, precision: str):
    """The graph in 8 bits, where that is asked for and the model was not trained so."""
    if precision != "int8" or quantised(model):
        return graph
    methods = [method.name for method in model.plan.methods]
    return quantised_graph(graph, calibration, methods) if kind == "openvino" else quantised_onnx(graph, methods)


def rounded_rest(kind: str, precision: str, model: AdaptiveModel) -> bool:
    """Whether layers beside 8-bit ones may be rounded, too: where the model was not trained in 8 bits."""
    return kind == "openvino" and precision == "int8" and not quantised(model)


def _call(kind: str, graph, precision: str, outputs: Sequence[str], rounded: bool) -> Call:
    if kind == "torch":
        module = graph.module()
        return lambda given: module(*given)
    if kind == "openvino":
        return openvino_backend.openvino_caller(graph, precision, None, static=False, rest=openvino_backend.fast_rest() if rounded else None)
    return onnx_backend.onnx_caller(graph, None, outputs=outputs)


def _save(kind: str, graph, path: Path, batch: int | None, images: Tensor) -> None:
    """Write a graph, for `batch` images only where that is given."""
    if kind == "torch":
        with silent():
            torch.export.save(graph, path)
    elif kind == "openvino":
        if batch is not None:
            graph.reshape([batch, *images.shape[1:]])
        openvino_backend.openvino.save_model(graph, path, compress_to_fp16=False)
    elif kind == "ort":
        onnx_backend.write_ort(onnx_backend.fixed(graph, batch), path)
    else:
        path.write_bytes(onnx_backend.fixed(graph, batch).SerializeToString())
