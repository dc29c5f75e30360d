"""Settings of Efficient Attention, which ViTALiTy names beside its own (Table VI)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.replacement import Replacement


@dataclass(frozen=True)
class Efficient(Replacement):
    """Attention as softmax(Q) (softmax(K)^T V): queries over channels, keys over tokens (Efficient Attention, with softmax normalisation).

    blocks: 1-based blocks whose attention is replaced, or "all" that no other method of the plan names.
    """

    name: ClassVar[str] = "efficient"

    blocks: tuple[int, ...] | str = "all"
