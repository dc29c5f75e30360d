"""IRET's modules: forgetting before the IRET layers, fewer sub-bands where the plan says so, and classifiers that only training needs.

The focus itself is the backbone's own: its IRET layers widen the tokens that are left at their beginning.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.methods.hooks import Hooks, Run
from foveate.methods.iret.config import IRET
from foveate.methods.iret.losses import auxiliary_losses
from foveate.methods.stages import Rule, prune_stage
from foveate.nn.lifting import BANDS, lifting_losses
from foveate.nn.tokens import Tokens, prefix_rows

AUXILIARY = "iret_"


class IRETHooks(Hooks):
    """Stages before the IRET layers; `heads.4` is the auxiliary classifier of IRET layer (block) 4."""

    training_only = ("heads",)

    def __init__(self, config: IRET, card):
        super().__init__()
        self.config, self.bands = config, config.bands(card)
        self.thresholds = dict(zip(config.stages(card), config.thresholds(card), strict=True))
        layers = config.layers(card) if config.auxiliary_weight and card.num_classes else ()
        self.heads = nn.ModuleDict({str(n): nn.Sequential(nn.LayerNorm(card.block(n).dim, 1e-6), nn.Linear(card.block(n).dim, card.num_classes))
                                    for n in layers})

    def after(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        if run.answers is not None and str(block) in self.heads:
            run.answers[f"{AUXILIARY}{block}"] = self.heads[str(block)](prefix_rows(tokens)[:, 0])
        if block not in self.thresholds:
            return tokens
        if block == min(self.thresholds):
            tokens = self._sampled(tokens, run)
        return self._forgotten(block, tokens, run)

    def losses(self, run: Run) -> dict[str, Tensor]:
        if "lifting" not in run.figures:
            return {}
        return {"lifting": self.config.lifting_weight * run.figures["lifting"]}

    def label_losses(self, run: Run, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        answers = {int(block): run.answers[f"{AUXILIARY}{block}"] for block in self.heads}
        return {f"auxiliary_{block}": self.config.auxiliary_weight * loss for block, loss in auxiliary_losses(answers, targets).items()}

    def _sampled(self, tokens: Tokens, run: Run) -> Tokens:
        """Leaves out the last sub-bands that the plan does not use, or that this training batch misses; notes the errors of the lifting."""
        found, layers = tokens.beside, len(self.thresholds)
        if run.answers is not None and self.config.lifting_weight and found.shape[1] > max(BANDS, layers):
            run.figures["lifting"] = sum(lifting_losses(found))
        wanted = self.bands
        if run.sample and wanted and torch.rand(()) < self.config.omit:
            wanted = int(torch.randint(wanted, ()))
        return tokens if wanted == layers else replace(tokens, beside=found[:, :wanted])

    def _forgotten(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        """The tokens without the patches whose attention lies below the threshold (Fig. 10); at least one patch of an image stays."""
        threshold = self.thresholds[block]
        if run.replay is None and (run.sample or not threshold):
            run.pruned(block, None, tokens)
            return tokens

        def score(patches: Tensor, _) -> Tensor:
            row = patches.new_ones(patches.shape[:-1]) if run.replay is not None else _attention(block, tokens, run).view(patches.shape[:-1])
            return torch.stack([row, torch.full_like(row, threshold)], -1)

        return prune_stage(tokens, run, Rule(block, None, "argmax", package=False, noise=None), score)


def _attention(block: int, tokens: Tokens, run: Run) -> Tensor:
    """What the class token attended to in the patches of all images, one after the other, in float32 or wider.

    Raises FoveateError where that is NaN, naming block and image.
    """
    row = run.class_row(tokens).flatten()
    tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if not tracing and row.isnan().any():
        image = int(tokens.image_of_row()[row.isnan()][0])
        place = image if run.waiting is None else run.waiting.places[image]
        raise FoveateError(f"an attention of NaN before IRET layer {block + 1}: block {block}, image {place + 1} of the batch", "finite scores",
                           "look for NaN or infinite pixels in that image, or weights that overflow in this precision")
    return row[tokens.places().flatten() >= 0]


def build(config: IRET, card) -> IRETHooks:
    """The modules of `config` for the backbone that `card` describes."""
    return IRETHooks(config, card)
