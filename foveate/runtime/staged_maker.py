"""Makes staged engines of a model with exits, and holds each exit's logits against eager float32's before an engine is handed out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from foveate.adaptive import AdaptiveModel
from foveate.errors import FoveateError
from foveate.runtime.agreement import agreement, require
from foveate.runtime.engine import Engine
from foveate.runtime.exported import mirrored
from foveate.runtime.maker import CHECKED_SINGLY, Maker, check_precision, precisions_of
from foveate.runtime.onnx_backend import onnx_caller, onnx_graph
from foveate.runtime.openvino_backend import openvino_caller, openvino_graph
from foveate.runtime.segments import examples, segments_for_graphs
from foveate.runtime.staged import LARGEST, Call, Staged, gate_of, graph_segment
from foveate.runtime.torch_backend import compiled_segments, eager, tuned
from foveate.segments import Cut, Pictures, Segment, first_exit, first_tokens


def maker_of(model: torch.nn.Module, example: Tensor, threads: int | None = None, tolerance: float | None = None, any_size: bool = False):
    """What makes engines of one model: a StagedMaker where images may leave early, a Maker otherwise. Arguments as of `Maker`."""
    if getattr(model, "exit_blocks", ()):
        return StagedMaker(model, example, threads, tolerance)
    return Maker(model, example, threads, tolerance, any_size)


@dataclass
class StagedMaker:
    """One model with exits, and the images its engines are checked on; arguments as of `Maker`.

    An engine's agreement is that of the exit that agrees least, nobody leaving: at a gate a rounding may let an image go, so that single
    logits of the whole are no measure.
    """

    model: AdaptiveModel
    example: Tensor
    threads: int | None = None
    tolerance: float | None = None
    _graphs: dict[str, list] = field(default_factory=dict)

    def engine(self, backend: str, precision: str) -> Engine:
        """An engine with its agreement; raises FoveateError where it cannot be made or an exit disagrees."""
        check_precision(backend, precision, self.model)
        if backend == "torch":
            run = tuned(self.model, precision)
            return self._checked(Engine(run, backend, precision, staged=True), lambda images: list(run.model.exit_logits(run.taken(images))[0].values()))
        if backend == "openvino" and precision == "bf16":
            # The graphs are held to float32 first: what a precision changes afterwards is rounding, not a wrong graph.
            self._graph_engine(backend, "fp32")
        return self._graph_engine(backend, precision)

    def _graph_engine(self, backend: str, precision: str) -> Engine:
        segments = [graph_segment(call) for call in self._calls(backend, precision)]
        runner = f"{backend} {precision}, {self.threads or torch.get_num_threads()} threads"
        plan, card, ends = self.model.plan, self.model.card, self.model.exit_blocks
        tokens = first_tokens(card)
        cut = Cut(segments, ends, gate_of(plan, card), plan, (card,), lambda images, share: Pictures(images, tokens), runner, first_exit(card, ends), tokens)
        engine = self._checked(Engine(Staged(cut), backend, precision, self.limit, staged=True), lambda images: _straight(segments, images))
        if self.limit is None:
            self._warm(segments)
        return engine

    def _calls(self, backend: str, precision: str) -> list[Call]:
        """A graph of each segment. Converted ones are kept for the next precision, with the reason where there are none."""
        if backend == "torch-compile":
            return compiled_segments(self._segments, precision)
        if backend not in self._graphs:
            try:
                self._graphs[backend] = [self._graph(backend, segment, given) for segment, given in zip(self._segments, examples(self._segments, self._traced_with))]
            except FoveateError as error:
                self._graphs[backend] = [error]
        graphs = self._graphs[backend]
        if isinstance(graphs[0], FoveateError):
            raise graphs[0]
        if backend == "onnxruntime":
            return [onnx_caller(graph, self.threads, segment.inputs, segment.outputs) for graph, segment in zip(graphs, self._segments)]
        return [openvino_caller(graph, precision, self.threads, static=False) for graph in graphs]

    def _graph(self, backend: str, segment, given: Sequence[Tensor]):
        single = self.limit == 1
        if backend == "onnxruntime":
            return onnx_graph(segment, given, single, segment.inputs, segment.outputs)
        return openvino_graph(segment, given, single)

    @cached_property
    def limit(self) -> int | None:
        """Images that the graphs take at once: one where images keep different numbers of tokens."""
        if any(method.prunes and method.data_dependent for method in self.model.plan.methods):
            return 1
        with torch.no_grad():
            trace = self.model.exit_logits(torch.cat([self.example, self.example.flip(-1)]).to(next(self.model.parameters())))[1]
        return 1 if any(len(set(counts)) > 1 for counts in trace.block_tokens) else None

    @property
    def _traced_with(self) -> Tensor:
        return mirrored(self.example)[: self.limit].to("cpu", torch.float32)

    @cached_property
    def _segments(self):
        return segments_for_graphs(self._twin, self._traced_with, self.limit == 1)

    @cached_property
    def _twin(self) -> AdaptiveModel:
        return eager(self.model, "fp32").model

    @cached_property
    def _expected(self) -> list[Tensor]:
        return self._answers(lambda images: list(self._twin.exit_logits(images)[0].values()))

    def _checked(self, engine: Engine, logits_of) -> Engine:
        try:
            found = self._answers(logits_of)
        except RuntimeError as error:  # no kernel for that precision, or a graph that does not take these shapes
            raise FoveateError(f"a model that {engine.name} cannot run ({str(error).strip().splitlines()[0][:200]})",
                               "models whose operations this backend has in this precision", 'load it with backend="torch" and precision="fp32"') from error
        decides = any(method.prunes for method in self.model.plan.methods)
        each = [require(agreement(ours, theirs), f"{engine.name}, exit after block {end}", engine.precision, decides, self.tolerance)
                for end, ours, theirs in zip(self.model.exit_blocks, found, self._expected)]
        engine.agreement = max(each, key=lambda one: one.typical)
        return engine

    def _answers(self, logits_of) -> list[Tensor]:
        """The logits of each exit: image by image, or of the batch as it will be used and of one image alone."""
        groups = [image[None] for image in self.example[:CHECKED_SINGLY]] if self.limit == 1 else [self.example, self.example[:1]]
        with torch.inference_mode():
            return [torch.cat([logits.float().cpu() for logits in exits]) for exits in zip(*map(logits_of, groups))]

    def _warm(self, segments: Sequence[Segment]) -> None:
        """A size of group that a graph has not seen costs it milliseconds once."""
        for size in range(1, min(LARGEST, len(self.example)) + 1):
            _straight(segments, self.example[:size])


def _straight(segments: Sequence[Segment], images: Tensor) -> list[Tensor]:
    """The logits of each exit where nobody leaves."""
    group, found = Pictures(images), []
    for segment in segments:
        group, logits = segment(group)
        found.append(logits.clone())
    return found
