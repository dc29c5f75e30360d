"""Settings of the Linear Transformer's attention, which ViTALiTy names beside its own (Table VI)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.methods.replacement import Replacement


@dataclass(frozen=True)
class LinearTransformer(Replacement):
    """Attention with weights phi(q) phi(k), phi(x) = elu(x) + 1 (Transformers are RNNs, Eqs. 5 and 7).

    blocks: 1-based blocks whose attention is replaced, or "all" that no other method of the plan names.
    """

    name: ClassVar[str] = "lineartransformer"

    blocks: tuple[int, ...] | str = "all"
