"""Engines of artifacts: a graph, the segments between exits, or the efforts of a cascade, as artifact.json says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.errors import FoveateError
from foveate.gates import gate_from_dict
from foveate.nn.exits import sureness
from foveate.plan import Plan
from foveate.runtime import onnx_backend, openvino_backend
from foveate.runtime.artifact import BACKENDS, EXTRAS, MANIFEST, Artifact, damaged, read_artifact
from foveate.runtime.cascade import Regrouped
from foveate.runtime.engine import Engine
from foveate.runtime.exported import named, on_cpu, silent
from foveate.runtime.staged import Call, Staged, graph_segment
from foveate.segments import Cut, Pictures


def load_artifact(folder: str | Path, threads: int | None = None) -> Engine:
    """The engine of an artifact: images [B, C, H, W] of its size -> logits, any number of images at once.

    threads: torch's own number by default. Graphs of a fixed batch size run group by group, the last one filled up.
    Raises FoveateError as `read_artifact` does, and where its backend is not installed.
    """
    artifact = read_artifact(folder)
    data = artifact.data
    check_installed(data["kind"], f"the artifact {folder}")
    plan = Plan.from_dict(data["plan_form"], str(artifact.folder / MANIFEST))
    efforts: dict[int, list[dict[str, Any]]] = {}
    for graph in data["graphs"]:
        efforts.setdefault(graph["effort"], []).append(graph)
    engines = [_effort(artifact, graphs, own, threads) for graphs, own in zip(efforts.values(), getattr(plan, "efforts", [plan]), strict=True)]
    if len(engines) == 1:
        return engines[0]
    gates = [gate_from_dict(gate, str(artifact.folder / MANIFEST)) for gate in data["gates"]]
    return Engine(Regrouped(engines, gates, plan), engines[0].backend, data["precision"], None, artifact.agreement, staged=True)


def check_installed(kind: str, what: str) -> None:
    """Raises FoveateError where the backend of such artifacts is missing; the message names the command that installs it."""
    backend = BACKENDS[kind]
    if {"onnxruntime": onnx_backend.onnxruntime, "openvino": openvino_backend.openvino}.get(backend, torch) is None:
        raise FoveateError(f"{what} for {backend}, which is not installed", "torch, or an installed backend", f"pip install 'foveate[{EXTRAS[backend]}]'")


def graph_call(folder: Path, data: dict[str, Any], graph: dict[str, Any], threads: int | None) -> Call:
    """A call from all inputs of one graph of an artifact to its logits and what stands behind them.

    Raises FoveateError for a file that its backend does not read.
    """
    call = _graph_call(folder, data, graph, threads)
    shape = tuple(data["input"]["shape"][1:])
    if graph["inputs"] != [onnx_backend.INPUT]:
        return call

    def checked(given: Sequence[Tensor]) -> Sequence[Tensor]:
        if tuple(given[0].shape[1:]) != shape or len(given[0]) == 0:
            raise FoveateError(f"images of shape {list(given[0].shape)}", f"[batch, {', '.join(map(str, shape))}] for the artifact {folder}, at least one",
                               f"resize them to {shape[1]}x{shape[2]} pixels")
        return call(given)

    return checked


def _graph_call(folder: Path, data: dict[str, Any], graph: dict[str, Any], threads: int | None) -> Call:
    path, kind = folder / graph["file"], data["kind"]
    try:
        if kind == "openvino":
            model = openvino_backend.openvino.Core().read_model(path)
            return openvino_backend.openvino_caller(model, data["precision"], threads, graph["static_shapes"], rest_of(graph))
        if kind == "torch":
            return _torch_caller(path)
        return onnx_backend.onnx_caller(path, threads, graph["inputs"], graph["outputs"])
    except FoveateError:
        raise
    except Exception as error:  # every backend raises kinds of its own for a file that it does not understand
        raise FoveateError(f"{path}, which {BACKENDS[kind]} cannot load ({named(error)})", "a graph that this version of it reads",
                           f"install the version in {MANIFEST}, or export the run again here") from error


def rest_of(graph: dict[str, Any]) -> str | None:
    """What OpenVINO computes the layers beside 8-bit ones in: where they may be rounded, what is fastest on this CPU."""
    return openvino_backend.fast_rest() if graph["rounded_rest"] else None


def in_groups(run: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """`run`, which takes exactly `size` images, for any number: the last group is filled up with its last image."""

    def grouped(images: Tensor) -> Tensor:
        *whole, last = images.split(size)
        filled = torch.cat([last, last[-1:].expand(size - len(last), -1, -1, -1)])
        return torch.cat([run(group) for group in (*whole, filled)])[: len(images)]

    return grouped


def staged_of(calls: Sequence[Call], ends: Sequence[int], plan: Plan, runner: str) -> Staged:
    """Segments of a plan with exits, called one after the other; whoever is sure leaves between them."""
    method = next(one for one in plan.methods if hasattr(one, "sure"))
    sure = lambda number, answers: method.sure(sureness(method.gate, answers))
    start = lambda images, share: Pictures(images)
    return Staged(Cut([graph_segment(call) for call in calls], tuple(ends), sure, plan, (), start, runner, f"the exit after block {ends[0]}"))


def _effort(artifact: Artifact, graphs: list[dict[str, Any]], plan: Plan, threads: int | None) -> Engine:
    data, backend = artifact.data, BACKENDS[artifact.data["kind"]]
    calls = [graph_call(artifact.folder, data, graph, threads) for graph in graphs]
    batch, agreement = graphs[0]["batch"], artifact.agreement
    if len(graphs) == 1:
        run = lambda images: calls[0]([images])[0].clone().to(images.device)
    else:
        staged = staged_of(calls, [graph["block"] for graph in graphs], plan, f"{backend} {data['precision']}, {threads or torch.get_num_threads()} threads")
        if batch is None:
            return Engine(staged, backend, data["precision"], None, agreement, staged=True)
        run = staged
    return Engine(run if batch is None else in_groups(run, batch), backend, data["precision"], None, agreement)


def _torch_caller(path: Path) -> Call:
    with silent():
        module = torch.export.load(path).module()

    @torch.inference_mode()
    def call(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found = module(*map(on_cpu, given))
        return (found,) if isinstance(found, Tensor) else tuple(found)

    return call
