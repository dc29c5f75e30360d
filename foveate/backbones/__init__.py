"""Backbones that timm lacks; importing this package registers them with `timm.create_model`."""

from foveate.backbones import deit_scaled, iret, lvvit, nano

__all__ = ["deit_scaled", "iret", "lvvit", "nano"]
