"""The families of backbones that foveate knows, and which of them a given model is."""

from __future__ import annotations

import copy
from types import SimpleNamespace

from torch import nn

from foveate.backbones.anatomy import Anatomy
from foveate.backbones.describe import describe
from foveate.backbones.eva import Eva
from foveate.backbones.iret_anatomy import IRETAnatomy
from foveate.backbones.levit import LeViT
from foveate.backbones.lvvit_anatomy import LVViTAnatomy
from foveate.backbones.mobilevit import MobileViT
from foveate.backbones.pit import PiT
from foveate.backbones.swin import Swin
from foveate.backbones.vit import ViT
from foveate.errors import FoveateError

FAMILIES: tuple[type[Anatomy], ...] = (ViT, Eva, LVViTAnatomy, IRETAnatomy, PiT, Swin, LeViT, MobileViT)
SUPPORTED = ("timm's VisionTransformer (DeiT, DeiT-III, AugReg, DINOv2, CLIP, SigLIP), Eva (EVA-02, DINOv3, Perception Encoder), "
             "PoolingVisionTransformer (PiT), SwinTransformer, Levit (with linears), ByobNet with MobileViT blocks, and foveate's LVViT and IncrementalTransformer (IRET)")
# Near relatives that look supported: what sets them apart.
NEAR = {
    "Beit": "BEiT's blocks add relative positions to their scores; beit.Block shares only its name with vision_transformer.Block",
    "VisionTransformerRelPos": "its blocks add relative positions to their scores, which a pruned sequence no longer lines up with",
    "NaFlexVit": "NaFlex models pack images of several sizes into one sequence with masks of their own",
    "ByobNet": "of the networks of timm.models.byobnet, those with MobileViT blocks of version 1 are known: mobilevit_xxs, mobilevit_xs, mobilevit_s",
    "SwinTransformerV2": "Swin V2 has cosine attention and norms behind its branches",
    "SwinTransformerV2Cr": "Swin V2 has cosine attention and norms behind its branches",
}
_KNOWN = {"VisionTransformer", "VisionTransformerDistilled", "Eva", "PoolingVisionTransformer", "SwinTransformer", "LVViT", "IncrementalTransformer", "Levit", "LevitDistilled"}


def twin_of(model: nn.Module) -> nn.Module:
    """A deep copy of `model`.

    timm's LeViT keeps score biases of its last pass, which may hang on a graph and then cannot be copied: it forgets them first.
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if hasattr(module, "attention_bias_cache"):
            module.attention_bias_cache = {}
    return copy.deepcopy(model)


def anatomy_of(model: nn.Module, name: str | None = None) -> Anatomy:
    """The Anatomy of a live timm model, with its Card.

    name: how to call it in messages and on the card; timm's name by default.
    Raises FoveateError for a model of no known family, a subclass of a known class, and a part that is not known.
    """
    name = name or (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
    for family in FAMILIES:
        if family.knows(model):
            # The structure first: the card would stumble over an unknown part without being able to say what it is.
            family(model, SimpleNamespace(name=name))
            return family(model, describe(model, name))
    raise _unsupported(model, name)


def _unsupported(model: nn.Module, name: str) -> FoveateError:
    kind = type(model)
    ancestors = [c.__name__ for c in kind.__mro__[1:]]
    given = f"{name}: a {kind.__module__}.{kind.__name__}"
    parent = next((a for a in ancestors if a in _KNOWN), None)
    near = next((NEAR[c] for c in (kind.__name__, *ancestors) if c in NEAR), None)
    do = "use a supported backbone (`foveate models`)"
    if near:
        given += f" ({near})"
    elif parent:
        given += f", a subclass of {parent} that may compute something else"
        do = f"use {parent} itself, or open an issue naming this class"
    elif not isinstance(model, nn.Module):
        do = "pass the model itself: timm.create_model(name)"
    return FoveateError(given, SUPPORTED, do)
