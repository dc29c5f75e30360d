"""IRET's own training terms; Loss(P) and Loss(U) of the lifting scheme (Eqs. 11, 12) are in foveate.nn.lifting."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def auxiliary_losses(answers: dict[int, Tensor], targets: Tensor) -> dict[int, Tensor]:
    """The cross-entropy of each classifier on the class token behind an IRET layer (section V).

    answers: 1-based block -> logits [B, K]. targets: labels [B], or class distributions [B, K].
    """
    return {block: cross_entropy(logits.float(), targets) for block, logits in answers.items()}
