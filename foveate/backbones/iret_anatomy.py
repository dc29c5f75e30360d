"""IRET: blocks that widen the tokens alive at their beginning, by what the sub-bands show at the tokens' places."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from foveate.backbones.anatomy import check_children, refuse, residual_block, weighted_mean
from foveate.backbones.iret import IncrementalTransformer
from foveate.backbones.iret_focus import Focus
from foveate.backbones.iret_sampler import Lifting, Repeat, Wavelet
from foveate.backbones.pooling import pooled_head
from foveate.backbones.vit import ViT, attention_rows
from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import PREFIX, Tokens, dense, prefix_rows

FOCUS = {"embed", "pos_embed", "prefix_embed", "prefix_proj"}


class IRETAnatomy(ViT):
    """foveate's own IncrementalTransformer; what it does not say here it does as a Vision Transformer of timm.

    `tokens.beside` are the sub-bands [B, layers, C, h, w] in the order of the IRET layers. A layer whose sub-band is missing at
    its end (sampling with fewer, Fig. 15) gives its patches their positions only. In training a lifting sampler's errors
    follow the bands, see `foveate.nn.lifting.lifting_losses`.
    """

    family = "iret"
    children = {"sampler", "patch_embed", "cls_token", "dist_token", "pos_embed", "pos_drop", "focus", "blocks", "norm", "head_drop", "head", "head_dist"}
    resized_by = "img_size=... (divisible by twice its patch)"

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        return type(model) is IncrementalTransformer

    def check(self) -> None:
        super().check()
        name, model = self.card.name, self.model
        if type(model.sampler) not in (Lifting, Wavelet, Repeat):
            refuse(name, f"sampler is a {type(model.sampler).__name__}", "Lifting, Wavelet or Repeat of foveate.backbones.iret_sampler")
        for i, layer in enumerate(model.focus):
            if type(layer) is not Focus:
                refuse(name, f"focus.{i} is a {type(layer).__name__}", "Focus of foveate.backbones.iret_focus")
            check_children(layer, FOCUS, {"embed", "pos_embed"}, name, f"focus.{i}")

    def check_prunable(self) -> None:
        pass

    def stem(self, images: Tensor) -> Tokens:
        coarse, bands = self.model.sample(images)
        return replace(dense(self.model.embed(coarse), self.model.num_prefix_tokens, self.model.patch_embed.grid_size), beside=bands)

    def run_native(self, index: int, tokens: Tokens) -> Tokens:
        return super().run_native(index, self.widened(index, tokens))

    def run(self, index: int, tokens: Tokens, mix, between=None) -> Tokens:
        tokens = self.widened(index, tokens)
        return residual_block(self.model.blocks[index - 1], tokens, mix, attention_rows, between)

    def head(self, tokens: Tokens) -> Tensor:
        return pooled_head(self.model, tokens, include_prefix=False)

    def widened(self, index: int, tokens: Tokens) -> Tokens:
        """The tokens as block `index` (1-based) attends among them: at the beginning of an IRET layer, those alive become wider.

        Tokens that are as wide as the block already stay as they are. No sub-band patch of a token that was dropped is embedded,
        except in the masked form.
        """
        if index not in self.model.widen_at:
            return tokens
        number = self.model.widen_at.index(index)
        layer = self.model.focus[number]
        if tokens.x.shape[-1] == layer.width:
            return tokens
        band = tokens.beside[:, number] if number < tokens.beside.shape[1] else None
        return tokens.with_x(_widened_rows(layer, tokens, band) if tokens.ragged else _widened(layer, tokens, band))


def _widened(layer: Focus, tokens: Tokens, band: Tensor | None) -> Tensor:
    """Masked and uniform forms: x [B, n, dim] -> [B, n, width]."""
    x, prefix = tokens.x, tokens.prefix
    at = None
    if tokens.place.dim() > 1:
        place = tokens.place[:, prefix:]
        at = torch.arange(x.shape[0], device=x.device)[:, None].expand_as(place), place
    new = layer.patches(band, at).expand(x.shape[0], -1, -1)
    mean = None
    if layer.growth == "mean":
        mean = weighted_mean(new, tokens.live[:, prefix:]) if tokens.masked else new.mean(1)
    return torch.cat([layer.prefix(x[:, :prefix], mean), torch.cat([x[:, prefix:], new], -1)], 1)


def _widened_rows(layer: Focus, tokens: Tokens, band: Tensor | None) -> Tensor:
    """Ragged form: x [T, dim] -> [T, width]."""
    patches = tokens.place != PREFIX
    image = tokens.image_of_row()[patches]
    new = layer.patches(band, (image, tokens.place[patches]))
    mean = None
    if layer.growth == "mean":
        total = at_least_float32(new).new_zeros(tokens.images, new.shape[1]).index_add(0, image, at_least_float32(new))
        mean = (total / torch.bincount(image, minlength=tokens.images)[:, None]).to(new.dtype)
    wide = torch.cat([tokens.x[patches], new], -1)
    x = wide.new_empty(len(tokens.x), layer.width)
    x[patches], x[~patches] = wide, layer.prefix(prefix_rows(tokens), mean).flatten(0, 1).to(wide.dtype)
    return x
