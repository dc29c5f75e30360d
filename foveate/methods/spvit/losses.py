"""SPViT's own training term."""

from __future__ import annotations

import torch
from torch import Tensor


def ratio_loss(mean_keep: list[Tensor], keep: list[float]) -> Tensor:
    """Latency-aware sparsity loss: mean over selectors of (1 - rho_i - mean_bj D_j)^2 (Eq. 11 of SPViT).

    mean_keep: for each selector the mean decision over batch and patch tokens, relative to all patches of its stage.
    keep: the target 1 - rho_i of each selector.
    Deviations: Eq. 11 lacks the 1/N that makes the decisions a rate, and sums over selectors where we average, so
    that the weight does not depend on their number.
    """
    return torch.stack([(target - rate) ** 2 for rate, target in zip(mean_keep, keep, strict=True)]).mean()
