"""The training term of early exits."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def exit_losses(answers: dict[int, Tensor], targets: Tensor) -> dict[int, Tensor]:
    """The cross-entropy of each exit, divided by their number, so that their sum is the mean over exits.

    answers: block -> logits [B, K]; targets: labels [B], or class distributions [B, K]. A recipe's label smoothing is not known here:
    labels are learned as they are, mixed targets with the smoothing that they bring.
    """
    return {block: cross_entropy(logits.float(), targets) / len(answers) for block, logits in answers.items()}
