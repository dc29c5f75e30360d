"""The embedded dense bases: DeiT-shaped Vision Transformers for 28x28 images, small enough to train on two cores."""

from pathlib import Path

from safetensors import SafetensorError
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from foveate.errors import FoveateError

__all__ = ["ASSETS", "FASHION_MNIST_LABELS", "check_weights_exist"]

ASSETS = Path(__file__).resolve().parent.parent / "assets"

FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def _cfg(variant: str) -> dict:
    return {
        "file": str(ASSETS / f"{variant}.safetensors"),
        "input_size": (3, 28, 28),
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.2860,) * 3,
        "std": (0.3530,) * 3,
        "num_classes": 10,
        "label_names": FASHION_MNIST_LABELS,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "description": "DeiT-shaped base for Fashion-MNIST, embedded in foveate",
    }


default_cfgs = generate_default_cfgs({variant: _cfg(variant) for variant in ("foveate_nano", "foveate_nano_p4")})


def _to_model(state_dict: dict, model: VisionTransformer) -> dict:
    # In float32 before timm resamples or adapts anything: the file may be float16.
    return checkpoint_filter_fn({key: tensor.float() for key, tensor in state_dict.items()}, model)


def check_weights_exist(variant: str, kwargs: dict) -> None:
    """Raises FoveateError where `pretrained=True` would find no weights: no file, and none named by timm.

    variant: registered name. kwargs: as timm's create_model hands them on (pretrained_cfg, pretrained_cfg_overlay).
    """
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    missing_file = bool(cfg.file) and not Path(cfg.file).is_file()
    if cfg.state_dict or (cfg.has_weights and not missing_file):
        return
    reason = f"{cfg.file} does not exist" if missing_file else "no weights of it come with timm or foveate"
    data = "--data fashion-mnist" if tuple(cfg.input_size[1:]) == (28, 28) else "--data-dir DIR"
    raise FoveateError(
        given=f"{variant} with pretrained=True, but {reason}",
        allowed='pretrained=False, or weights of your own: pretrained_cfg_overlay=dict(file="FILE.safetensors")',
        do=f"train them: foveate train {variant} {data}",
    )


def _create_nano(variant: str, pretrained: bool, kwargs: dict) -> VisionTransformer:
    if pretrained:
        check_weights_exist(variant, kwargs)
    shape = {"embed_dim": 96, "depth": 12, "num_heads": 3, "qkv_bias": True, "class_token": True}
    try:
        return build_model_with_cfg(
            VisionTransformer,
            variant,
            pretrained,
            pretrained_filter_fn=_to_model,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            **{**shape, **kwargs},
        )
    except SafetensorError as error:
        raise FoveateError(
            given=f"{variant} with pretrained=True, but its weights are damaged ({error})",
            allowed="a complete safetensors file",
            do=f"install foveate again, or train them: foveate train {variant} --data fashion-mnist",
        ) from error


@register_model
def foveate_nano(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """A DeiT-shaped Vision Transformer for 28x28 images: 196 tokens (patch 2), 12 blocks, width 96, 3 heads.

    pretrained: load the weights embedded in the package (Fashion-MNIST, no network).
    kwargs: as for any timm Vision Transformer, e.g. num_classes, img_size, in_chans, drop_path_rate; the embedded
        weights are resampled to another img_size or patch_size, and the head is dropped for another num_classes.
    Raises FoveateError if the weights are missing or damaged.
    """
    return _create_nano("foveate_nano", pretrained, {"patch_size": 2} | kwargs)


@register_model
def foveate_nano_p4(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """The patch-4 twin of `foveate_nano` for quick experiments: 49 tokens, otherwise the same shape and arguments."""
    return _create_nano("foveate_nano_p4", pretrained, {"patch_size": 4} | kwargs)
