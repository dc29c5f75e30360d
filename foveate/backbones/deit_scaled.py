"""DeiT at widths timm does not have (it has 192, 384, 768): the scaled baselines of SPViT, section 5.1, and those of Fig. 19 of IRET."""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from foveate.backbones.nano import check_weights_exist

__all__ = ["HEADS"]

# Width -> heads. DeiT's head dimension is 64; where 64 does not divide the width, the count that comes nearest to it:
# head dimensions 80, 64, 43, 72, 53, 64. Neither the parameters nor the MACs depend on it.
HEADS = {160: 2, 256: 4, 258: 6, 288: 4, 318: 6, 320: 5}


def _cfg() -> dict:
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "num_classes": 1000,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({f"deit_{width}_patch16_224": _cfg() for width in HEADS})


def _create_deit(width: int, pretrained: bool, kwargs: dict) -> VisionTransformer:
    variant = f"deit_{width}_patch16_224"
    if pretrained:
        check_weights_exist(variant, kwargs)
    shape = {"patch_size": 16, "embed_dim": width, "depth": 12, "num_heads": HEADS[width]}
    return build_model_with_cfg(
        VisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**shape, **kwargs},
    )


@register_model
def deit_160_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """DeiT of width 160 with 2 heads (head dimension 80): 0.899 GMACs at 224 px.

    pretrained: no weights are published for it; give your own by pretrained_cfg_overlay=dict(file=...).
    kwargs: as for timm's Vision Transformers. Raises FoveateError for pretrained=True without weights.
    """
    return _create_deit(160, pretrained, kwargs)


@register_model
def deit_256_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """DeiT of width 256 with 4 heads (head dimension 64): 2.136 GMACs at 224 px; otherwise as deit_160_patch16_224."""
    return _create_deit(256, pretrained, kwargs)


@register_model
def deit_258_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """DeiT of width 258 with 6 heads (head dimension 43): 2.168 GMACs at 224 px; otherwise as deit_160_patch16_224."""
    return _create_deit(258, pretrained, kwargs)


@register_model
def deit_288_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """DeiT of width 288 with 4 heads (head dimension 72): 2.665 GMACs at 224 px; otherwise as deit_160_patch16_224."""
    return _create_deit(288, pretrained, kwargs)


@register_model
def deit_318_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """DeiT of width 318 with 6 heads (head dimension 53): 3.213 GMACs at 224 px; otherwise as deit_160_patch16_224."""
    return _create_deit(318, pretrained, kwargs)


@register_model
def deit_320_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """DeiT of width 320 with 5 heads (head dimension 64): 3.251 GMACs at 224 px; otherwise as deit_160_patch16_224."""
    return _create_deit(320, pretrained, kwargs)
