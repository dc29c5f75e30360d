"""torch as a backend: eager, tuned to this machine, or compiled when asked for."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.runtime.kernels import choose_softmax
from foveate.runtime.prepacked import prepack

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def eager(model: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """A copy of `model` in evaluation mode and in the dtype of `precision` ("fp32" or "bf16"); logits come back as float32."""
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    return _caller(next(twin.parameters()), twin)


def tuned(model: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """The same with linears packed for oneDNN where that is faster here, and with the faster form of attention at every length."""
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    like = next(twin.parameters())
    choose_softmax(twin)
    prepack(twin)
    return _caller(like, twin)


def compiled(model: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """The same through torch.compile, which spends up to minutes on the first call of each kind of shape."""
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    run = _caller(next(twin.parameters()), torch.compile(twin))

    def named(images: Tensor) -> Tensor:
        try:
            return run(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise FoveateError(
                given=f"backend='torch-compile' for a model that torch cannot compile ({str(error).strip().splitlines()[0]})",
                allowed="a C++ compiler on the path and a model without unsupported operations",
                do='install g++, or load it with backend="torch"',
            ) from error

    return named


def _caller(like: Tensor, call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    device, dtype = like.device, like.dtype

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return call(images.to(device, dtype)).to(images.device, torch.float32)

    return run
