"""Fixed sparse attention in place of softmax over all keys, and the masks it goes by."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.methods.hooks import Hooks, Run
from foveate.methods.replacement import check_whole_grid
from foveate.methods.vitcod.config import ViTCoD
from foveate.nn.attention import Mix
from foveate.nn.mixing import mixed
from foveate.nn.pairs import nearest, pairs_attention, pairs_of, strongest
from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import Tokens


class Mask(nn.Module):
    """The pairs of one block: `table` (see foveate.nn.pairs), and `images`, on how many it was calibrated; 0: nearest neighbours."""

    def __init__(self, grid: tuple[int, int], heads: int, kept: int):
        super().__init__()
        self.kept = kept
        self.register_buffer("table", nearest(grid, heads, kept))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args) -> None:
        table, images = state.get(f"{prefix}table"), state.get(f"{prefix}images")
        if table is not None and table.shape == self.table.shape and table.sum() != self.table.sum():
            # Weights that move to another sparsity: neighbours follow it, a calibrated mask cannot.
            if images is None or not images:
                return
            seen = int(table[0, 1, 1:].sum())
            raise FoveateError(f"{prefix}table, calibrated so that a patch token sees {seen} of {len(table[0]) - 1}, under a plan that lets it see {self.kept}",
                               "masks that were calibrated for the plan's own sparsity", "calibrate and train the other plan from the dense model")
        super()._load_from_state_dict(state, prefix, *args)


class ViTCoDHooks(Hooks):
    """A mask for each chosen block; `masks.3` is that of block 3."""

    calibrates = True

    def __init__(self, config: ViTCoD, card):
        super().__init__()
        self.config, self.card = config, card
        blocks = {number: card.block(number) for number in config.chosen(card)}
        self.masks = nn.ModuleDict({str(n): Mask(block.grid, block.heads, config.kept(block.patches)) for n, block in blocks.items()})

    def enter(self, tokens: Tokens) -> Tokens:
        check_whole_grid(self.config.name, tokens, self.card, "its masks have a row for each")
        return tokens

    def attention(self, block: int, run: Run) -> Mix:
        return partial(self._mix, block)

    def _mix(self, block: int, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, fused: bool = True, dropout: float = 0.0) -> Tensor:
        table = self.masks[str(block)].table
        # A ragged stream is mixed image by image, in order, and each image has places of its own.
        places = iter(tokens.place.split(tokens.lengths) if tokens.ragged else (tokens.place,))

        def attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None) -> Tensor:
            place = next(places)
            whole = not tokens.pruned and tokens.prefix == 1
            return pairs_attention(q, k, v, table[None] if whole else pairs_of(table, place), scale, weights, fused, dropout)

        return mixed(attention, q, k, v, tokens)

    @torch.no_grad()
    def calibrate(self, dense, batches: Iterable[Tensor]) -> None:
        """Each patch token then sees the others that it attends to most in the mean over all images, head by head.

        The mean is that of the dense model's softmax attention. Deviation: ViTCoD keeps a share of the attention mass, here it is a
        share of the pairs, so that the sparsity is what the plan says. Raises FoveateError for no images and maps that are not finite.
        """
        sums = {int(number): torch.zeros(mask.table[:, 1:, 1:].shape, dtype=torch.float64, device=mask.table.device) for number, mask in self.masks.items()}
        images = 0
        for batch in batches:
            tokens = dense.anatomy.stem(batch)
            images += len(batch)
            for block in range(1, dense.card.depth + 1):
                tokens = dense.anatomy.block(block, tokens, partial(_adding, sums[block], dense.anatomy.attend) if block in sums else None)
        if not images or not all(total.isfinite().all() for total in sums.values()):
            raise FoveateError(f"{images} images to calibrate the masks of vitcod on" if not images else f"attention of {dense.card.name} that is not finite",
                               "normalised images and a model whose outputs are numbers on them", "PIVOT calibrates on 256 images of the training set")
        for number, mask in self.masks.items():
            mask.table.copy_(strongest(sums[int(number)], mask.kept))
            mask.images.fill_(images)


def _adding(total: Tensor, attend: Mix, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, *settings, **more) -> Tensor:
    """The family's own softmax attention, whose maps between patch tokens are added to `total` [H, N, N] over the images."""
    wide_q, wide_k = (at_least_float32(t).transpose(1, 2) for t in (q, k))
    maps = ((wide_q * scale) @ wide_k.mT).softmax(-1)[..., tokens.patches, tokens.patches]
    total += maps.sum(0, dtype=total.dtype)
    return attend(q, k, v, tokens, scale, *settings, **more)


def build(config: ViTCoD, card) -> ViTCoDHooks:
    """The modules of `config` for the backbone that `card` describes."""
    return ViTCoDHooks(config, card)
