"""Graphs of one effort, written, loaded back from their files and held against eager float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.adaptive import AdaptiveModel
from foveate.errors import FoveateError
from foveate.runtime.agreement import DECIDING_TOLERANCE, TOLERANCE, Agreement, agreement, require
from foveate.runtime.artifact_engine import graph_call, in_groups
from foveate.runtime.decisions import compared
from foveate.runtime.exported import mirrored
from foveate.runtime.graph_files import SUFFIX, rounded_rest, write_model, write_segment
from foveate.runtime.maker import images_at_once
from foveate.runtime.onnx_backend import INPUT
from foveate.runtime.segments import examples, segments_for_graphs
from foveate.runtime.staged import Call
from foveate.runtime.staged_maker import StagedMaker
from foveate.runtime.torch_backend import eager


@dataclass
class Written:
    """What is being written: the folder, artifact.json so far, and what `export` was asked for."""

    folder: Path
    data: dict[str, Any]
    images: Tensor
    answers: Tensor | None
    calibration: Tensor
    batch: int | None
    tolerance: float | None
    threads: int | None

    @property
    def kind(self) -> str:
        return self.data["kind"]

    @property
    def precision(self) -> str:
        return self.data["precision"]


def write_effort(to: Written, model: AdaptiveModel, number: int, efforts: int) -> list[dict[str, Any]]:
    """Write the graphs of effort `number` (1-based) and hold them against it; their entries in artifact.json.

    Raises FoveateError for a graph that cannot be made or run, and for logits beyond the tolerance.
    """
    limit = StagedMaker(model, to.images).limit if model.exit_blocks else images_at_once(model, to.images)
    if limit == 1 and to.batch not in (None, 1):
        raise FoveateError(f"batch={to.batch} for {model.plan}, which keeps another number of tokens in each image", "batch=1, or none",
                           'leave it out: graphs of such plans take one image (or use select="topk")')
    if model.exit_blocks and to.batch is not None and limit is None:
        raise FoveateError(f"batch={to.batch} for {model.plan}, from which images leave on the way", "a free batch size", "leave it out")
    name = "model" if efforts == 1 else f"effort-{number}"
    common = {"effort": number, "plan": str(model.plan), "batch": 1 if limit == 1 else to.batch, "rounded_rest": rounded_rest(to.kind, to.precision, model)}
    if model.exit_blocks:
        return _segments(to, model, name, common)
    entry = common | {"file": f"{name}.{SUFFIX[to.kind]}", "block": None, "inputs": [INPUT], "outputs": []}
    places = write_model(to.kind, model, to.folder / entry["file"], to.images, to.calibration, entry["batch"], to.precision)
    parity = _held(to, model, entry)
    if places:
        with torch.inference_mode():
            trace = model.traced(to.images.to(next(model.parameters())))[1]
        parity["decisions"] = compared(places, trace.kept, trace.after)
    return [entry | {"parity": parity}]


def _held(to: Written, model: AdaptiveModel, entry: dict[str, Any]) -> dict[str, Any]:
    """The parity record of a whole model. Says in `entry` whether OpenVINO is to make graphs of fixed shape."""
    expected, batch = eager(model, "fp32"), entry["batch"]
    for static in (True, False) if to.kind == "openvino" and batch is None else (True,):
        # OpenVINO's graphs of fixed shape were wrong for a tiny Swin, where the dynamic one was right.
        entry["static_shapes"] = static
        call = graph_call(to.folder, to.data, entry, to.threads)
        run = lambda images: call([images])[0].clone()
        try:
            return _required(to, model, _compared(run if batch is None else in_groups(run, batch), expected, to, batch))
        except FoveateError as error:
            refused = error
    raise refused


def _segments(to: Written, model: AdaptiveModel, name: str, common: dict[str, Any]) -> list[dict[str, Any]]:
    """A graph for each segment between two exits; the logits of every exit are held against eager float32, nobody leaving."""
    single, twin = common["batch"] == 1, eager(model, "fp32").model
    example = mirrored(to.images)[: common["batch"]].to("cpu", torch.float32)
    segments = segments_for_graphs(twin, example, single)
    entries, calls = [], []
    for segment, given, block in zip(segments, examples(segments, example), model.exit_blocks):
        entry = common | {"file": f"{name}-until-{block}.{SUFFIX[to.kind]}", "block": block, "inputs": list(segment.inputs),
                          "outputs": list(segment.outputs), "static_shapes": False}
        write_segment(to.kind, segment, to.folder / entry["file"], given, single, to.precision)
        calls.append(graph_call(to.folder, to.data, entry, to.threads))
        entries.append(entry)
    for place, entry in enumerate(entries):
        expected = lambda images: list(twin.exit_logits(images)[0].values())[place]
        found = _compared(lambda images: _straight(calls[: place + 1], images), expected, to, common["batch"])
        entry["parity"] = _required(to, model, found)
    return entries


@torch.inference_mode()
def _straight(calls: Sequence[Call], images: Tensor) -> Tensor:
    """The logits of the last of these segments where nobody leaves before it."""
    given: Sequence[Tensor] = [images]
    for call in calls:
        logits, *given = [tensor.clone() for tensor in call(given)]
    return logits


def _compared(run: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], to: Written, batch: int | None) -> Agreement:
    """All images at once and the first one alone: a batch size frozen into a graph shows in one of the two."""
    groups = to.images.split(1) if batch == 1 else (to.images, to.images[:1])
    answers = to.answers if to.answers is None or batch == 1 else torch.cat([to.answers, to.answers[:1]])
    try:
        with torch.inference_mode():
            return agreement(torch.cat([run(group) for group in groups]), torch.cat([expected(group) for group in groups]), answers)
    except FoveateError:
        raise
    except Exception as error:  # what runtimes raise for shapes that a graph does not take
        raise FoveateError(f"a graph that does not run ({str(error).strip().splitlines()[0][:200]}); nothing was written",
                           "models whose operations this backend has", "export it to another kind, such as torch") from error


def _required(to: Written, model: AdaptiveModel, found: Agreement) -> dict[str, Any]:
    decides = any(method.prunes for method in model.plan.methods)
    try:
        require(found, f"{to.kind} {to.precision}", to.precision, decides, to.tolerance)
    except FoveateError as error:
        raise FoveateError(f"{error.given}; nothing was written", error.allowed,
                           "export with --precision fp32 or --to torch, or allow more with --tolerance") from error
    usual = (DECIDING_TOLERANCE if decides else TOLERANCE)[to.precision]
    return asdict(found) | {
        "compared_with": "torch eager fp32", "tolerance": usual if to.tolerance is None else to.tolerance,
        "max_logit_difference": found.worst * found.scale, "same_answer_percent": 100 * found.same_top1,
    }
