"""Blueprint: how to build a backbone again on another machine, as timm's name plus the arguments that differ."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Callable

import timm
import torch
from timm.layers import DropPath
from torch import nn

import foveate.backbones  # noqa: F401  registers the backbones that timm lacks
from foveate.backbones.reader import image_size
from foveate.errors import FoveateError


def _drop_path(model: nn.Module) -> float:
    return max((m.drop_prob or 0.0 for m in model.modules() if isinstance(m, DropPath)), default=0.0)


def _pair(size: Any) -> Any:
    return size[0] if isinstance(size, (tuple, list)) and len(set(size)) == 1 else tuple(size) if isinstance(size, (tuple, list)) else size


def _layer_scale(block: nn.Module) -> float | None:
    # The initial value is spent once trained; only whether LayerScale is there matters for a rebuilt model.
    return 1e-5 if any(n.rpartition(".")[2] in ("gamma", "gamma_1") for n, _ in block.named_parameters()) else None


def _mlp_ratio(block: nn.Module) -> float:
    # Rounded up, because timm cuts the product with the width off.
    return math.ceil(block.mlp.fc1.out_features / block.mlp.fc1.in_features * 1e6) / 1e6


def _heads(block: nn.Module) -> int:
    return next(m.num_heads for m in block.modules() if hasattr(m, "num_heads"))


def _is_there(part: nn.Module) -> bool:
    return not isinstance(part, nn.Identity)


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
    "num_heads": lambda m: _heads(m.blocks[0]),
    "dynamic_img_size": lambda m: m.dynamic_img_size,
    "class_token": lambda m: m.cls_token is not None,
    "no_embed_class": lambda m: m.no_embed_class,
    "init_values": lambda m: _layer_scale(m.blocks[0]),
}
_VIT: dict[str, Callable[[nn.Module], Any]] = _FLAT | {
    "mlp_ratio": lambda m: _mlp_ratio(m.blocks[0]),
    "reg_tokens": lambda m: m.num_reg_tokens,
    "qkv_bias": lambda m: m.blocks[0].attn.qkv.bias is not None,
    "proj_bias": lambda m: m.blocks[0].attn.proj.bias is not None,
    "qk_norm": lambda m: _is_there(m.blocks[0].attn.q_norm),
    "scale_attn_norm": lambda m: _is_there(m.blocks[0].attn.norm),
    "scale_mlp_norm": lambda m: _is_there(m.blocks[0].mlp.norm),
    "pre_norm": lambda m: _is_there(m.norm_pre),
    "final_norm": lambda m: _is_there(m.norm) or _is_there(m.fc_norm),
    "fc_norm": lambda m: _is_there(m.fc_norm),
    "pos_embed": lambda m: "none" if m.pos_embed is None else "learn",
    "pool_include_prefix": lambda m: m.pool_include_prefix,
    "dynamic_img_pad": lambda m: m.patch_embed.dynamic_img_pad,
    "drop_rate": lambda m: m.head_drop.p,
    "pos_drop_rate": lambda m: m.pos_drop.p,
    "patch_drop_rate": lambda m: getattr(m.patch_drop, "prob", 0.0),
    "proj_drop_rate": lambda m: m.blocks[0].attn.proj_drop.p,
    "attn_drop_rate": lambda m: m.blocks[0].attn.attn_drop.p,
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
    "qkv_bias": lambda m: m.layers[0].blocks[0].attn.qkv.bias is not None,
    "always_partition": lambda m: m.layers[0].blocks[0].always_partition,
    "dynamic_img_size": lambda m: m.dynamic_img_size,
}
_IRET: dict[str, Callable[[nn.Module], Any]] = {key: _VIT[key] for key in (
    "num_classes", "in_chans", "global_pool", "drop_path_rate", "patch_size", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate")} | {
    "img_size": lambda m: _pair(m.img_size),
    "embed_dims": lambda m: m.embed_dims,
    "widen_at": lambda m: m.widen_at,
    "sampler": lambda m: m.sampler.kind,
    "lifting_channels": lambda m: m.sampler.conv2.out_channels,
    "wavelet": lambda m: m.sampler.wavelet,
    "prefix_growth": lambda m: m.prefix_growth,
}
_LEVIT: dict[str, Callable[[nn.Module], Any]] = {key: _COMMON[key] for key in ("num_classes", "in_chans", "global_pool", "drop_path_rate")} | {
    "img_size": lambda m: _pair(image_size(m)),
    "embed_dim": lambda m: tuple(m.embed_dim),
    "key_dim": lambda m: m.stages[0].blocks[0].attn.key_dim,
    "depth": lambda m: tuple(len(s.blocks) for s in m.stages),
    "num_heads": lambda m: tuple(s.blocks[0].attn.num_heads for s in m.stages),
    "attn_ratio": lambda m: tuple(s.blocks[0].attn.val_dim / s.blocks[0].attn.key_dim for s in m.stages),
    "mlp_ratio": lambda m: tuple(s.blocks[0].mlp.ln1.linear.out_features / s.blocks[0].mlp.ln1.linear.in_features for s in m.stages),
    "stem_type": lambda m: f"s{m.stem.stride}",
    "drop_rate": lambda m: m.drop_rate,
    "distilled": lambda m: hasattr(m, "head_dist"),
}
_MOBILEVIT: dict[str, Callable[[nn.Module], Any]] = {key: _COMMON[key] for key in ("num_classes", "in_chans", "global_pool", "drop_path_rate")} | {
    "drop_rate": lambda m: m.drop_rate,
    "input_size": lambda m: tuple(m.pretrained_cfg["input_size"]),
}
# Class -> (timm name to start from where the model carries none, what to read off a live model)
_READERS: dict[str, tuple[str, dict[str, Callable[[nn.Module], Any]]]] = {
    "VisionTransformer": ("vit_base_patch16_224", _VIT),
    "VisionTransformerDistilled": ("deit_small_distilled_patch16_224", {k: v for k, v in _VIT.items() if k != "fc_norm"}),
    "LVViT": ("lvvit_s", {k: v for k, v in _VIT.items() if k != "fc_norm"}),
    "IncrementalTransformer": ("iret_small", _IRET),
    "Eva": ("eva02_small_patch14_224", _FLAT | {"qkv_fused": lambda m: m.blocks[0].attn.qkv is not None}),
    "PoolingVisionTransformer": ("pit_s_224", _PIT),
    "SwinTransformer": ("swin_tiny_patch4_window7_224", _SWIN),
    "Levit": ("levit_512", _LEVIT),
    "LevitDistilled": ("levit_128s", _LEVIT),
    "ByobNet": (None, _MOBILEVIT),
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
        blueprint, twin = cls(name), _meta(name, {})
        while new := _deviations(model, twin, readers, blueprint.arguments):
            # Again, because one argument may move the default of another, as global_pool does that of fc_norm.
            blueprint = cls(name, blueprint.arguments | new)
            try:
                twin = _meta(name, blueprint.arguments)
            except Exception as error:
                raise _unknown(model, f"{name} with {blueprint.arguments} cannot be built ({type(error).__name__}: {error})") from None
        if difference := _difference(model, twin):
            raise _unknown(model, difference)
        return blueprint

    def build(self, device: str | torch.device = "cpu") -> nn.Module:
        """The backbone with fresh weights; raises FoveateError if this timm does not know it, or for other arguments than `of` writes."""
        known = {key for _, readers in _READERS.values() for key in readers}
        if foreign := sorted(set(self.arguments) - known):
            raise FoveateError(f"backbone {self.architecture!r} with the argument {foreign[0]!r}", ", ".join(sorted(known)),
                               "save the run again: fv.save writes nothing else, and loading must not fetch or unpickle anything")
        if not timm.is_model(self.architecture):
            raise FoveateError(f"backbone {self.architecture!r}", "a model of the installed timm or of foveate (`foveate models`)",
                               "install the timm version named in the run's run.json")
        try:
            return timm.create_model(self.architecture, **_keywords(self.arguments)).to(device)
        except Exception as error:
            raise FoveateError(f"backbone {self.architecture!r} with {self.arguments} ({type(error).__name__}: {error})",
                               "backbones that the installed timm can build", "install the timm version named in the run's run.json") from None


def _keywords(arguments: dict[str, Any]) -> dict[str, Any]:
    keywords = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    # Where no layer depends on the image's size, timm keeps it with the weights' description.
    return keywords | {"pretrained_cfg_overlay": {"input_size": keywords.pop("input_size")}} if "input_size" in keywords else keywords


def _meta(name: str, arguments: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **_keywords(arguments))


def _deviations(model: nn.Module, twin: nn.Module, readers: dict[str, Callable[[nn.Module], Any]], known: dict[str, Any]) -> dict[str, Any]:
    """The arguments beside `known` in which `model` differs from `twin`, as far as both have what they are read off."""
    found = {}
    for key, read in readers.items():
        try:
            value = read(model)
            if key not in known and value != read(twin):
                found[key] = list(value) if isinstance(value, tuple) else value
        except (AttributeError, IndexError, StopIteration, TypeError):
            continue
    return found


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module was told besides its weights and children, but for what only training or speed depend on."""
    passing = {"training", "p", "prob", "init_values", "fused_attn", "grad_checkpointing", "weight_init_mode", "fix_init", "distilled_training"}
    return {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple)) and k not in passing and "drop" not in k}


def _difference(model: nn.Module, twin: nn.Module) -> str | None:
    ours, theirs = ({n: tuple(p.shape) for n, p in m.state_dict().items()} for m in (model, twin))
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            return f"{name} is {ours.get(name)} here and {theirs.get(name)} in a model built anew"
    plain = lambda m: re.sub(r"(drop_prob|p)=[\d.e-]+", "", repr(m))
    for line, other in zip(plain(model).splitlines(), plain(twin).splitlines()):
        if line != other:
            return f"{line.strip()} would be built as {other.strip()}"
    for (path, module), (_, other) in zip(*(m.named_modules(remove_duplicate=False) for m in (model, twin))):
        ours, theirs = _settings(module), _settings(other)
        for name in ours:
            if ours[name] != theirs.get(name):
                return f"{path or 'model'}.{name} is {ours[name]} here and {theirs.get(name)} in a model built anew"
    return None


def _unknown(model: nn.Module, why: str) -> FoveateError:
    return FoveateError(f"a model that cannot be rebuilt from its settings: {why}",
                        "models from timm.create_model(name, ...), with its usual arguments",
                        "create the model through timm.create_model, load your weights into it and adapt that")
