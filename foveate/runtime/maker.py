"""Makes engines of one model and holds each against eager float32 before it is handed out."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.quantised import quantised
from foveate.runtime.agreement import agreement, require
from foveate.runtime.decisions import Deciding, compared
from foveate.runtime.engine import Engine
from foveate.runtime.exported import mirrored
from foveate.runtime.int8 import quantised_graph
from foveate.runtime.onnx_backend import onnx_graph, onnx_runner
from foveate.runtime.onnx_int8 import quantised_onnx
from foveate.runtime.openvino_backend import fast_rest, only_first, openvino_caller, openvino_graph, openvino_runner
from foveate.runtime.torch_backend import compiled, eager, tuned

CHECKED_SINGLY = 8


def precisions_of(backend: str, model: nn.Module) -> tuple[str, ...]:
    """What a backend computes this model in.

    OpenVINO runs layers that were trained in 8 bits in integers, which torch and ONNX Runtime emulate, and quantises others where NNCF is
    installed; ONNX Runtime quantises them as well. Neither does so for models that are cut at exits. ONNX Runtime has no bf16 here.
    """
    if backend == "openvino" and quantised(model):
        return ("int8",)
    cut = any(getattr(part, "exit_blocks", ()) for part in getattr(model, "efforts", [model]))
    able = (backend == "openvino" and find_spec("nncf")) or (backend == "onnxruntime" and not quantised(model))
    eight = ("int8",) if able and not cut else ()
    return ("fp32", *(() if backend == "onnxruntime" else ("bf16",)), *eight)


def check_precision(backend: str, precision: str, model: nn.Module) -> None:
    """Raises FoveateError for a precision that `backend` does not compute this model in."""
    allowed = precisions_of(backend, model)
    if precision in allowed:
        return
    if quantised(model):
        raise FoveateError(f"precision={precision!r} in {backend} for a model trained with int8", " or ".join(allowed), f"load it with precision={allowed[0]!r}")
    elsewhere = backend != "openvino" and precision in precisions_of("openvino", model)
    raise FoveateError(
        given=f"precision={precision!r} in {backend} for a model that was not trained with int8" if precision == "int8" else f"precision={precision!r} in {backend}",
        allowed=" or ".join(allowed),
        do='load it with backend="openvino"' if elsewhere else f"load it with precision={allowed[-1]!r}",
    )


def images_at_once(model: nn.Module, example: Tensor) -> int | None:
    """Images that a graph of `model` takes at once, None for any number: one where images keep different numbers of tokens.

    A plan of fixed counts is no promise, so that the example is looked at: where patches are merged behind a stage (Swin, PiT),
    a merged token lives if any of its parts did, and their number differs from image to image.
    """
    plan = getattr(model, "plan", None)
    if plan is None or not plan.methods:
        return None
    if plan.data_dependent:
        return 1
    twin = copy.deepcopy(model).eval()
    both = torch.cat([example, example.flip(-1)]).to(next(twin.parameters()))
    with torch.inference_mode():
        _, trace = twin.traced(both)
    return 1 if any(len(set(counts)) > 1 for counts in trace.block_tokens) else None


@dataclass
class Maker:
    """One model with the images its engines are checked on; what several engines share is made once.

    example: [B, C, H, W]. threads, tolerance: see `load_engine`. any_size: batches of many sizes will come. labels: of the example [B].
    calibration: images to take the ranges of 8-bit numbers from, by default the example.
    """

    model: nn.Module
    example: Tensor
    threads: int | None = None
    tolerance: float | None = None
    any_size: bool = False
    labels: Tensor | None = None
    calibration: Tensor | None = None
    _expected: dict[int | None, Tensor] = field(default_factory=dict)
    _runners: dict[tuple[str, bool], Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def engine(self, backend: str, precision: str) -> Engine:
        """An engine with its agreement; raises FoveateError where it cannot be made or disagrees."""
        check_precision(backend, precision, self.model)
        if backend == "onnxruntime":
            return self._checked(Engine(self._onnx(precision), backend, precision, self._limit, size=self._size), self.tolerance)
        if backend != "openvino":
            run = (compiled if backend == "torch-compile" else tuned)(self.model, precision)
            return self._checked(Engine(run, backend, precision), self.tolerance)
        if precision != "fp32" and not self._static and not quantised(self.model):
            # The graph is held to float32 first: what a precision changes afterwards is rounding, not a wrong graph.
            self._checked(self._openvino("fp32", static=False), None)
        return self._checked(self._openvino(precision, self._static), self.tolerance)

    @cached_property
    def _static(self) -> bool:
        """Whether graphs of fixed shape are wanted, and right in float32 (in int8 for a model trained with it).

        OpenVINO 2026.4 gave a tiny dense Swin (8 x 8 grid, windows of 4) logits off by a tenth in a graph of fixed shape, and
        right ones in the same graph with a dynamic batch; Swin-T at 224 pixels was right in fixed shapes, too.
        """
        if self.any_size:
            return False
        try:
            self._checked(self._openvino(precisions_of("openvino", self.model)[0], static=True), None)
        except FoveateError:
            return False
        return True

    def _openvino(self, precision: str, static: bool) -> Engine:
        if (precision, static) not in self._runners:
            graph, rest = self._graph_for(precision)
            self._runners[precision, static] = openvino_runner(only_first(graph), precision, self.threads, static, rest)
        return Engine(self._runners[precision, static], "openvino", precision, self._limit, size=self._size)

    def _graph_for(self, precision: str) -> tuple["openvino.Model", str | None]:
        """The graph with logits and kept places in that precision, and what its layers beside 8-bit ones compute in."""
        if precision != "int8" or quantised(self.model):
            return _given(self._graph), None
        return _given(self._eight_bit_graph), fast_rest()

    def _onnx(self, precision: str) -> Callable[[Tensor], Tensor]:
        graph = quantised_onnx(_given(self._onnx_graph), self._names) if precision == "int8" else _given(self._onnx_graph)
        return onnx_runner(graph, self.threads)

    @cached_property
    def _onnx_graph(self):
        try:
            return onnx_graph(self.model, mirrored(self.example), single=self._limit == 1)
        except FoveateError as error:
            return error

    @cached_property
    def _graph(self):
        """The OpenVINO graph or why there is none, so that a failed conversion is not tried again for another precision."""
        try:
            told = Deciding(self.model) if self._stages else self.model
            return openvino_graph(told, mirrored(self.example), single=self._limit == 1)
        except FoveateError as error:
            return error

    @cached_property
    def _eight_bit_graph(self):
        images = self.example if self.calibration is None else self.calibration
        try:
            return quantised_graph(_given(self._graph), images, self._names)
        except FoveateError as error:
            return error

    @cached_property
    def _limit(self) -> int | None:
        return images_at_once(self.model, self.example)

    @property
    def _size(self) -> tuple[int, ...]:
        return tuple(self.example.shape[1:])

    @property
    def _plan(self):
        return getattr(self.model, "plan", None)

    @property
    def _names(self) -> list[str]:
        """What modules of methods are called."""
        return [method.name for method in getattr(self._plan, "methods", ())]

    @property
    def _stages(self) -> tuple[int, ...]:
        """The blocks behind which patches leave."""
        return tuple(getattr(self.model, "pruning_blocks", ()))

    def _checked(self, engine: Engine, tolerance: float | None) -> Engine:
        limit = engine.max_batch
        if limit not in self._expected:
            self._expected[limit] = self._answers(eager(self.model, "fp32"), limit)
        try:
            logits = self._answers(engine, limit)
        except RuntimeError as error:  # no kernel for that precision, or a graph that does not take these shapes
            raise FoveateError(
                given=f"a model that {engine.name} cannot run ({str(error).strip().splitlines()[0][:200]})",
                allowed="models whose operations this backend has in this precision",
                do='load it with backend="torch" and precision="fp32"',
            ) from error
        decides = self._plan is not None and bool(self._plan.methods)
        found = agreement(logits, self._expected[limit], self._labels(limit))
        if engine.precision != "fp32":
            found = replace(found, overlap=self._overlap(engine))
        engine.agreement = require(found, engine.name, engine.precision, decides, tolerance)
        return engine

    def _answers(self, run: Callable[[Tensor], Tensor], limit: int | None) -> Tensor:
        """Logits image by image, or of the batch as it will be used and of one image alone.

        A batch size frozen into a graph shows in one of the two.
        """
        if limit == 1:
            return torch.cat([run(image[None]) for image in self._singles])
        return torch.cat([run(self.example), run(self.example[:1])])

    @property
    def _singles(self) -> Tensor:
        return self.example if self.labels is not None else self.example[:CHECKED_SINGLY]

    def _labels(self, limit: int | None) -> Tensor | None:
        """The right answers to what `_answers` asks."""
        return self.labels if self.labels is None or limit == 1 else torch.cat([self.labels, self.labels[:1]])

    def _overlap(self, engine: Engine) -> tuple[float, ...]:
        """How far the engine keeps the patches that float32 keeps, stage by stage, where it can tell."""
        groups = list(self._singles[:CHECKED_SINGLY].split(1)) if engine.max_batch == 1 else [self.example]
        if not self._stages:
            return ()
        if engine.backend == "openvino":
            graph, rest = self._graph_for(engine.precision)
            call = openvino_caller(graph, engine.precision, self.threads, static=False, rest=rest)
            places = list(zip(*([place.numpy().copy() for place in call([group])[1:]] for group in groups)))
        elif engine.backend == "torch":
            places = [[[np.flatnonzero(row) for row in kept]] for kept in _kept(engine.run, groups)]
        else:
            return ()
        return tuple(stage["overlap"] for stage in compared(places, _kept(eager(self.model, "fp32"), groups), self._stages)["stages"])


def _kept(run, groups: list[Tensor]) -> list[np.ndarray]:
    """Which patches are kept after each stage: bool [images, slots] each."""
    return [np.concatenate(stage) for stage in zip(*(run.traced(group)[1].kept for group in groups))]


def _given(graph):
    """The graph, where there is one; what stands in its place says why there is none."""
    if isinstance(graph, FoveateError):
        raise graph
    return graph
