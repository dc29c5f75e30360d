"""How an image becomes a model's input: size, crop, interpolation, mean and deviation, as a value saved with each run."""

import json
from dataclasses import asdict, dataclass, fields

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.nn.functional import interpolate

from foveate.backbones.reader import image_size
from foveate.errors import FoveateError


@dataclass(frozen=True)
class Preprocessing:
    """Settings that turn pixels into a model's input [3, image_size, image_size].

    image_size: pixels a side. mean, std: per channel, on the 0..1 scale. crop_pct: share of the resized shorter side
    that the centre crop keeps, in (0, 1]. interpolation: "bilinear" | "bicubic" | "nearest".
    """

    image_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.9
    interpolation: str = "bicubic"

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        wrong = (
            self.image_size < 1
            or not 0 < self.crop_pct <= 1
            or len(self.mean) != 3
            or len(self.std) != 3
            or min(self.std) <= 0
            or self.interpolation not in ("bilinear", "bicubic", "nearest")
        )
        if wrong:
            raise FoveateError(
                f"preprocessing {asdict(self)}",
                "image_size >= 1, 0 < crop_pct <= 1, three means, three positive deviations, "
                "interpolation bilinear, bicubic or nearest",
                "correct preprocessing.json, or delete it to use the model's own",
            )

    @classmethod
    def of(cls, model: nn.Module) -> "Preprocessing":
        """Return what a timm model, adapted or not, was trained with (its pretrained_cfg; a model without one: its own image size)."""
        config = resolve_model_data_config(model) if getattr(model, "pretrained_cfg", None) else {}
        size = image_size(getattr(getattr(model, "anatomy", None), "model", model)) or config.get("input_size", (3, 224))[-2:]
        interpolation = config.get("interpolation", "bicubic")
        return cls(
            image_size=int(size[-1]),
            mean=config.get("mean", (0.5, 0.5, 0.5)),
            std=config.get("std", (0.5, 0.5, 0.5)),
            crop_pct=config.get("crop_pct", 1.0),
            interpolation=interpolation if interpolation in ("bilinear", "bicubic", "nearest") else "bicubic",
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        try:
            values = json.loads(text)
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, FoveateError):
                raise
            raise FoveateError(
                f"preprocessing that cannot be read ({type(error).__name__}: {error})",
                f"a JSON object with {', '.join(field.name for field in fields(cls))}",
                "write it with Preprocessing.to_json(), or delete the file to use the model's own",
            ) from error

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Turn whole images uint8 [B, 1 or 3, H, W] into model input [B, 3, S, S]; other sizes are resized, not cropped."""
        images = images.float()
        if images.shape[-2:] != (self.image_size, self.image_size):
            smooth = {} if self.interpolation == "nearest" else {"antialias": True, "align_corners": False}
            images = interpolate(images, (self.image_size,) * 2, mode=self.interpolation, **smooth).clamp_(0, 255)
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) * 255 for value in (self.mean, self.std))
        return (images - mean) / std

    def transform(self, augmentation: str | None = None):
        """Return timm's transform PIL image -> [3, S, S]: None for evaluation, else "none" | "light" | "full"."""
        common = {"input_size": self.image_size, "interpolation": self.interpolation, "mean": self.mean, "std": self.std}
        if augmentation in (None, "none"):
            return create_transform(is_training=False, crop_pct=self.crop_pct, **common)
        if augmentation == "light":
            return create_transform(is_training=True, scale=(0.35, 1.0), color_jitter=0.0, **common)
        return create_transform(is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel", **common)
