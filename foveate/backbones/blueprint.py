"""Blueprint: how to build a backbone again on another machine, as timm's name plus the arguments that differ."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Callable

import timm
import torch
from timm.layers import DropPath
from torch import nn

import foveate.backbones  # noqa: F401  registers the backbones that timm lacks
from foveate.errors import FoveateError


def _drop_path(model: nn.Module) -> float:
    return max((m.drop_prob or 0.0 for m in model.modules() if isinstance(m, DropPath)), default=0.0)


def _pair(size: Any) -> Any:
    return size[0] if isinstance(size, (tuple, list)) and len(set(size)) == 1 else tuple(size) if isinstance(size, (tuple, list)) else size


def _layer_scale(block: nn.Module) -> float | None:
    # The initial value is spent once trained; only whether LayerScale is there matters for a rebuilt model.
    return 1e-5 if getattr(block, "gamma_1", None) is not None or hasattr(getattr(block, "ls1", None), "gamma") else None


def _mlp_ratio(block: nn.Module) -> float:
    return round(block.mlp.fc1.out_features / block.mlp.fc1.in_features, 6)


_COMMON: dict[str, Callable[[nn.Module], Any]] = {
    "num_classes": lambda m: m.num_classes,
    "in_chans": lambda m: m.in_chans,
    "global_pool": lambda m: m.global_pool,
    "drop_path_rate": _drop_path,
    "img_size": lambda m: _pair(m.patch_embed.img_size),
}
_FLAT: dict[str, Callable[[nn.Module], Any]] = _COMMON | {
    "patch_size": lambda m: _pair(m.patch_embed.patch_size),
    "embed_dim": lambda m: m.embed_dim,
    "depth": lambda m: len(m.blocks),
    "num_heads": lambda m: m.blocks[0].attn.num_heads,
    "dynamic_img_size": lambda m: m.dynamic_img_size,
    "class_token": lambda m: m.cls_token is not None,
    "no_embed_class": lambda m: m.no_embed_class,
    "init_values": lambda m: _layer_scale(m.blocks[0]),
}
_VIT: dict[str, Callable[[nn.Module], Any]] = _FLAT | {
    "mlp_ratio": lambda m: _mlp_ratio(m.blocks[0]),
    "reg_tokens": lambda m: m.num_reg_tokens,
    "qkv_bias": lambda m: m.blocks[0].attn.qkv.bias is not None,
    "qk_norm": lambda m: not isinstance(m.blocks[0].attn.q_norm, nn.Identity),
    "pre_norm": lambda m: not isinstance(m.norm_pre, nn.Identity),
    "fc_norm": lambda m: not isinstance(m.fc_norm, nn.Identity),
}
_PIT: dict[str, Callable[[nn.Module], Any]] = _COMMON | {
    "base_dims": lambda m: tuple(m.base_dims),
    "heads": lambda m: tuple(m.heads),
    "depth": lambda m: tuple(len(t.blocks) for t in m.transformers),
    "mlp_ratio": lambda m: _mlp_ratio(m.transformers[0].blocks[0]),
    "patch_size": lambda m: _pair(m.patch_embed.patch_size),
}
_SWIN: dict[str, Callable[[nn.Module], Any]] = _COMMON | {
    "patch_size": lambda m: _pair(m.patch_embed.patch_size),
    "embed_dim": lambda m: m.embed_dim,
    "depths": lambda m: tuple(len(s.blocks) for s in m.layers),
    "num_heads": lambda m: tuple(s.blocks[0].attn.num_heads for s in m.layers),
    "window_size": lambda m: _pair(m.layers[0].blocks[0].window_size),
    "mlp_ratio": lambda m: _mlp_ratio(m.layers[0].blocks[0]),
}
# Class -> (timm name to start from where the model carries none, what to read off a live model)
_READERS: dict[str, tuple[str, dict[str, Callable[[nn.Module], Any]]]] = {
    "VisionTransformer": ("vit_base_patch16_224", _VIT),
    "VisionTransformerDistilled": ("deit_small_distilled_patch16_224", {k: v for k, v in _VIT.items() if k != "fc_norm"}),
    "LVViT": ("lvvit_s", {k: v for k, v in _VIT.items() if k != "fc_norm"}),
    "Eva": ("eva02_small_patch14_224", _FLAT | {"qkv_fused": lambda m: m.blocks[0].attn.qkv is not None}),
    "PoolingVisionTransformer": ("pit_s_224", _PIT),
    "SwinTransformer": ("swin_tiny_patch4_window7_224", _SWIN),
}


@dataclass(frozen=True)
class Blueprint:
    """timm's name of a backbone and the arguments in which it differs from that name's defaults."""

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> "Blueprint":
        """Reads the blueprint off a live model and proves it by building a twin; raises FoveateError if the twin differs."""
        start, readers = _READERS.get(type(model).__name__, (None, {}))
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or start
        if name is None or not timm.is_model(name):
            raise _unknown(model, f"it carries no timm name ({type(model).__name__})")
        default = _meta(name, {})
        arguments = {}
        for key, read in readers.items():
            try:
                value = read(model)
                if value != read(default):
                    arguments[key] = list(value) if isinstance(value, tuple) else value
            except (AttributeError, IndexError, TypeError):
                continue
        blueprint = cls(name, arguments)
        try:
            twin = _meta(name, arguments)
        except Exception as error:
            raise _unknown(model, f"{name} with {arguments} cannot be built ({type(error).__name__}: {error})") from None
        if difference := _difference(model, twin):
            raise _unknown(model, difference)
        return blueprint

    def build(self, device: str | torch.device = "cpu") -> nn.Module:
        """The backbone with fresh weights; raises FoveateError if this timm does not know it."""
        try:
            return timm.create_model(self.architecture, **_tuples(self.arguments)).to(device)
        except Exception as error:
            raise FoveateError(f"backbone {self.architecture!r} with {self.arguments} ({type(error).__name__}: {error})",
                               "backbones that the installed timm can build", "install the timm version named in the run's run.json") from None


def _tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}


def _meta(name: str, arguments: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **_tuples(arguments))


def _difference(model: nn.Module, twin: nn.Module) -> str | None:
    ours, theirs = ({n: tuple(p.shape) for n, p in m.state_dict().items()} for m in (model, twin))
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            return f"{name} is {ours.get(name)} here and {theirs.get(name)} in a model built anew"
    plain = lambda m: re.sub(r"(drop_prob|p)=[\d.e-]+", "", repr(m))
    for line, other in zip(plain(model).splitlines(), plain(twin).splitlines()):
        if line != other:
            return f"{line.strip()} would be built as {other.strip()}"
    return None


def _unknown(model: nn.Module, why: str) -> FoveateError:
    return FoveateError(f"a model that cannot be rebuilt from its settings: {why}",
                        "models from timm.create_model(name, ...), with its usual arguments",
                        "create the model through timm.create_model, load your weights into it and adapt that")
