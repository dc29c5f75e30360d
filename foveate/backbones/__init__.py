"""Backbones that timm lacks; importing this package registers them with `timm.create_model`."""

from foveate.backbones import nano

__all__ = ["nano"]
