"""Linears whose weights lie in memory as oneDNN wants them, with the GELU behind them in the same pass.

On CPUs torch hands a float32 linear to MKL, which on AMD's reaches a third of what the machine can do; oneDNN with a weight it need not
rearrange at every call reaches nearly all of it, in bfloat16 too.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.runtime.kernels import fastest

SMALLEST = 4096
"""Weights with fewer entries stay as they are: their calls are too short to gain."""
ROWS = 256
"""Rows that the layout is chosen for and that the race is run at; it serves any number of them."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.03}


class PackedLinear(nn.Module):
    """x W^T + b, or GELU of it, with W packed for oneDNN; inference only.

    activation: None, or `approximate` of the nn.GELU that is taken along ("none" for the exact one, "tanh").
    """

    def __init__(self, linear: nn.Linear, activation: str | None = None):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = activation

    @property
    def weight(self) -> Tensor:
        """W, unpacked anew each time, for those who read it."""
        return self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        kind = ("none", "") if self.activation is None else ("gelu", self.activation)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, kind[0], [], kind[1])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, activation={self.activation}"


@torch.inference_mode()
def prepack(model: nn.Module) -> int:
    """Replaces the linears of `model` that gain by it, in place; how many did. Nothing where torch has no oneDNN here.

    A linear gains where a race of a few milliseconds says so. Left alone: subclasses, linears with hooks, small ones, accelerators.
    """
    parents = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children() if _packable(child)]
    packed: dict[nn.Module, nn.Module] = {}
    for parent, name, linear in parents:
        if linear not in packed:
            activation = _activation(parent) if name == "fc1" else None
            packed[linear] = PackedLinear(linear, activation) if _gains(linear, activation) else linear
        if packed[linear] is not linear:
            setattr(parent, name, packed[linear])
            if packed[linear].activation is not None:
                parent.act = nn.Identity()
    return sum(new is not old for old, new in packed.items())


def _packable(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and module.weight.numel() >= SMALLEST
        and module.weight.device.type == "cpu"
        and module.weight.dtype in ROUNDING
        and not (module._forward_hooks or module._forward_pre_hooks)
        and "forward" not in vars(module)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


def _activation(mlp: nn.Module) -> str | None:
    """`approximate` of the GELU behind `mlp.fc1`, where the MLP computes just that on random rows; None otherwise."""
    act, linear = getattr(mlp, "act", None), mlp.fc1
    if type(act) is not nn.GELU or act._forward_hooks or act._forward_pre_hooks:
        return None
    x = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(0)).to(linear.weight)
    try:
        expected = mlp(x)
        mlp.fc1, mlp.act = nn.Sequential(linear, act), nn.Identity()
        found = mlp(x)
    except (RuntimeError, TypeError, AttributeError, IndexError):  # no MLP that takes rows
        return None
    finally:
        mlp.fc1, mlp.act = linear, act
    alike = torch.allclose(found, expected, rtol=0, atol=ROUNDING[x.dtype] * float(expected.abs().max()))
    return act.approximate if alike and not mlp.training else None


def _gains(linear: nn.Linear, activation: str | None) -> bool:
    return _faster(linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype, activation, torch.get_num_threads())


@functools.cache
def _faster(inputs: int, outputs: int, bias: bool, dtype: torch.dtype, activation: str | None, threads: int) -> bool:
    """Whether a packed linear of this shape is right and faster here than the plain one."""
    dice = torch.Generator().manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias).to(dtype)
    x = torch.randn(ROWS, inputs, generator=dice).to(dtype)
    try:
        packed = PackedLinear(linear, activation)
        found = packed(x)
    except (RuntimeError, AttributeError, NotImplementedError):  # this torch, or this processor, has no such kernel
        return False
    plain = (lambda: F.gelu(linear(x), approximate=activation)) if activation else (lambda: linear(x))
    expected = plain()
    if not torch.allclose(found, expected, rtol=0, atol=ROUNDING[dtype] * float(expected.abs().max())):
        return False
    return fastest({"packed": lambda: packed(x), "plain": plain}) == "packed"
