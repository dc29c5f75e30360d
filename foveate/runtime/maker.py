"""Makes engines of one model and holds each against eager float32 before it is handed out."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.quantised import quantised
from foveate.runtime.agreement import agreement, require
from foveate.runtime.engine import Engine
from foveate.runtime.exported import mirrored
from foveate.runtime.onnx_backend import onnx_graph, onnx_runner
from foveate.runtime.openvino_backend import openvino_graph, openvino_runner
from foveate.runtime.torch_backend import compiled, eager

CHECKED_SINGLY = 8


def precisions_of(backend: str, model: nn.Module) -> tuple[str, ...]:
    """What a backend computes this model in: OpenVINO runs 8-bit layers in integers, torch emulates them; ONNX Runtime has no bf16 here."""
    if backend == "onnxruntime":
        return ("fp32",)
    return ("int8",) if backend == "openvino" and quantised(model) else ("fp32", "bf16")


def check_precision(backend: str, precision: str, model: nn.Module) -> None:
    """Raises FoveateError for a precision that `backend` does not compute this model in."""
    allowed, eight = precisions_of(backend, model), bool(quantised(model))
    if precision not in allowed:
        raise FoveateError(
            given=f"precision={precision!r} in {backend} for a model {'trained' if eight else 'that was not trained'} with int8",
            allowed=" or ".join(allowed),
            do=f"load it with precision={allowed[0]!r}" if eight else 'take another precision, or train with the recipe\'s quantise="int8"',
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

    example: [B, C, H, W]. threads, tolerance: see `load_engine`. any_size: batches of many sizes will come.
    """

    model: nn.Module
    example: Tensor
    threads: int | None = None
    tolerance: float | None = None
    any_size: bool = False
    _expected: dict[int | None, Tensor] = field(default_factory=dict)
    _runners: dict[tuple[str, bool], Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def engine(self, backend: str, precision: str) -> Engine:
        """An engine with its agreement; raises FoveateError where it cannot be made or disagrees."""
        check_precision(backend, precision, self.model)
        if backend == "onnxruntime":
            return self._checked(Engine(self._onnx, backend, precision, self._limit), self.tolerance)
        if backend != "openvino":
            run = (compiled if backend == "torch-compile" else eager)(self.model, precision)
            return self._checked(Engine(run, backend, precision), self.tolerance)
        if precision == "bf16" and not self._static:
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
        if isinstance(self._graph, FoveateError):
            raise self._graph
        if (precision, static) not in self._runners:
            self._runners[precision, static] = openvino_runner(self._graph, precision, self.threads, static)
        return Engine(self._runners[precision, static], "openvino", precision, self._limit)

    @cached_property
    def _onnx(self) -> Callable[[Tensor], Tensor]:
        return onnx_runner(onnx_graph(self.model, mirrored(self.example), single=self._limit == 1), self.threads)

    @cached_property
    def _graph(self):
        """The OpenVINO graph or why there is none, so that a failed conversion is not tried again for another precision."""
        try:
            return openvino_graph(self.model, mirrored(self.example), single=self._limit == 1)
        except FoveateError as error:
            return error

    @cached_property
    def _limit(self) -> int | None:
        return images_at_once(self.model, self.example)

    @property
    def _plan(self):
        return getattr(self.model, "plan", None)

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
        found = agreement(logits, self._expected[limit])
        engine.agreement = require(found, engine.name, engine.precision, decides, tolerance)
        return engine

    def _answers(self, run: Callable[[Tensor], Tensor], limit: int | None) -> Tensor:
        """Logits image by image, or of the batch as it will be used and of one image alone.

        A batch size frozen into a graph shows in one of the two.
        """
        if limit == 1:
            return torch.cat([run(image[None]) for image in self.example[:CHECKED_SINGLY]])
        return torch.cat([run(self.example), run(self.example[:1])])
