"""torch as a backend: eager, tuned to this machine, or compiled when asked for."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from foveate.budgeting import Ask
from foveate.errors import FoveateError
from foveate.runtime.kernels import choose_softmax
from foveate.runtime.prepacked import prepack
from foveate.trace import Trace

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Eager:
    """images -> logits as float32, in the dtype and on the device of `like`. model: what runs, in evaluation mode."""

    def __init__(self, model: nn.Module, like: Tensor, call: Callable[[Tensor], Tensor] | None = None):
        self.model, self.call, self.device, self.dtype = model, call or model, like.device, like.dtype
        if hasattr(model, "costs"):
            model.costs = None  # measured on the model that this one is a copy of

    @torch.inference_mode()
    def __call__(self, images: Tensor, ask: Ask | None = None) -> Tensor:
        """ask: budgets, of a model with exits or efforts."""
        found = self.call(self.taken(images), **(ask.arguments() if ask else {}))
        return found.to(images.device, torch.float32)

    @torch.inference_mode()
    def traced(self, images: Tensor, ask: Ask | None = None) -> tuple[Tensor, Trace]:
        """The same with the Trace of an adapted model."""
        found, trace = self.model.traced(self.taken(images), **(ask.arguments() if ask else {}))
        return found.to(images.device, torch.float32), trace

    def taken(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype)


def eager(model: nn.Module, precision: str) -> Eager:
    """A copy of `model` in evaluation mode and in the dtype of `precision` ("fp32" or "bf16"); logits come back as float32."""
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    return Eager(twin, next(twin.parameters()))


def tuned(model: nn.Module, precision: str) -> Eager:
    """The same with linears packed for oneDNN where that is faster here, and with the faster form of attention at every length."""
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    like = next(twin.parameters())
    choose_softmax(twin)
    prepack(twin)
    return Eager(twin, like)


def compiled(model: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """The same through torch.compile, which spends up to minutes on the first call of each kind of shape."""
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    return _named(Eager(twin, next(twin.parameters()), torch.compile(twin)))


def compiled_segments(segments: Sequence[nn.Module], precision: str) -> list[Callable[[Sequence[Tensor]], Sequence[Tensor]]]:
    """Copies of segments that share one model, each a call from all of its inputs to all of its outputs through torch.compile."""
    return [_compiled_segment(twin, DTYPES[precision]) for twin in copy.deepcopy(list(segments))]


def _compiled_segment(twin: nn.Module, dtype: torch.dtype) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    like = next(twin.eval().requires_grad_(False).to(dtype).parameters())
    fast = torch.compile(twin, dynamic=True)

    @torch.inference_mode()
    def run(given: Sequence[Tensor]) -> Sequence[Tensor]:
        logits, *left = fast(*(tensor.to(like.device, dtype if tensor.is_floating_point() else tensor.dtype) for tensor in given))
        return [logits.float(), *left]

    return _named(run)


def _named(run: Callable) -> Callable:
    """`run`, whose complaints about compilation are FoveateErrors."""

    def call(given):
        try:
            return run(given)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise FoveateError(
                given=f"backend='torch-compile' for a model that torch cannot compile ({str(error).strip().splitlines()[0]})",
                allowed="a C++ compiler on the path and a model without unsupported operations",
                do='install g++, or load it with backend="torch"',
            ) from error

    return call
