"""The exits' modules: a norm and a linear behind each block, and the gate."""

from __future__ import annotations

from torch import Tensor, nn

from foveate.methods.earlyexit.config import EarlyExit
from foveate.methods.earlyexit.losses import exit_losses
from foveate.methods.hooks import Hooks, Run
from foveate.nn.exits import sureness


class Exit(nn.Module):
    """One exit: features [B, width] of what the model's own head would read -> logits [B, classes]."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(self.norm(features))


class EarlyExitHooks(Hooks):
    """The exits of one plan; `exits.4` stands behind block 4, before a pruning stage there."""

    def __init__(self, config: EarlyExit, card):
        super().__init__()
        self.config = config
        self.exits = nn.ModuleDict({str(block): Exit(card.dim_after(block), card.num_classes) for block in config.heads(card)})

    def answer(self, block: int, features: Tensor) -> Tensor:
        return self.exits[str(block)](features.detach() if self.config.train == "heads" else features)

    def sure(self, answers: list[Tensor]) -> Tensor:
        return self.config.sure(sureness(self.config.gate, answers))

    def label_losses(self, run: Run, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        weight = self.config.exit_weight
        answers = {int(block): run.answers[f"exit_{block}"] for block in self.exits} if weight else {}
        return {f"exit_{block}": weight * loss for block, loss in exit_losses(answers, targets).items()}


def build(config: EarlyExit, card) -> EarlyExitHooks:
    """The exits of `config` for the backbone that `card` describes."""
    return EarlyExitHooks(config, card)
