"""torch as a backend: eager, or compiled when asked for."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def eager(model: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """A copy of `model` in evaluation mode and in the dtype of `precision` ("fp32" or "bf16"); logits come back as float32."""
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    return _caller(twin, twin)


def compiled(model: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """The same through torch.compile, which spends up to minutes on the first call of each kind of shape."""
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPES[precision])
    run = _caller(twin, torch.compile(twin))

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


def _caller(module: nn.Module, call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    like = next(module.parameters())

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return call(images.to(like.device, like.dtype)).to(images.device, torch.float32)

    return run
