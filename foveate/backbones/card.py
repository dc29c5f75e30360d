"""The Card under its room's name; it lives in `foveate.card`, which can be imported without this package's timm."""

from foveate.card import BlockCard, Card, Part, Transition, Window

__all__ = ["BlockCard", "Card", "Part", "Transition", "Window"]
