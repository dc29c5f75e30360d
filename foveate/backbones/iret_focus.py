"""Focus: the beginning of an IRET layer, where kept tokens become wider by what a sub-band shows at their place (section IV.A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROWTHS = ("learned", "zeros", "mean", "projection")
"""How class and distillation token become as wide as the patches, of which the paper says nothing."""


class Focus(nn.Module):
    """Widens tokens from `dim` to `width`: each patch gets an embedding of its patch of a sub-band, concatenated.

    [B, prefix + N, dim] and a band [B, channels, h, w] -> [B, prefix + N, width]. The embedding is a linear of the band's
    patch, the same as a convolution whose stride is its kernel, and has a position embedding of its own.
    grid: (rows, columns) of patches, N = rows * columns. patch: (height, width) of a patch of the band in pixels.
    growth: what prefix tokens get: "learned" (an extra embedding, with positions as in the first embedding), "zeros", "mean" (of
        the new features of the patches that are there), or "projection" (no concatenation: a linear dim -> width).
    """

    def __init__(self, dim: int, width: int, channels: int, grid: tuple[int, int], patch: tuple[int, int], prefix: int, growth: str,
                 device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.width, self.grid, self.patch, self.growth = width, grid, patch, growth
        self.own = prefix if growth == "learned" else 0
        self.embed = nn.Linear(channels * patch[0] * patch[1], width - dim, **factory)
        self.pos_embed = nn.Parameter(torch.empty(1, self.own + grid[0] * grid[1], width - dim, **factory))
        self.prefix_embed = nn.Parameter(torch.empty(1, prefix, width - dim, **factory)) if growth == "learned" else None
        self.prefix_proj = nn.Linear(dim, width, **factory) if growth == "projection" else None

    def forward(self, x: Tensor, band: Tensor) -> Tensor:
        prefix = x.shape[1] - self.grid[0] * self.grid[1]
        new = self.patches(band)
        wide = self.prefix(x[:, :prefix], new.mean(1) if self.growth == "mean" else None)
        return torch.cat([wide, torch.cat([x[:, prefix:], new], -1)], 1)

    def patches(self, band: Tensor | None, at: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """New features [B, N, width - dim] of all patches, or of those `at` (image, place), index tensors of one shape: [*shape, width - dim].

        band: [B, channels, h, w]; None for an omitted sub-band, of which only the positions are left ([1, N, ...] for all patches).
        """
        positions = self.pos_embed[:, self.own:] if at is None else self.pos_embed[0, self.own + at[1]]
        return positions if band is None else self.embed(self.pixels(band, at)) + positions

    def pixels(self, band: Tensor, at: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The patches of a band as rows [..., channels * pixels]; arguments as in `patches`. No other patch is read."""
        (rows, columns), (height, width) = self.grid, self.patch
        tiles = band.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
        if at is None:
            return tiles.flatten(3).flatten(1, 2)
        image, place = at
        return tiles[image, place // columns, place % columns].flatten(-3)

    def prefix(self, x: Tensor, mean: Tensor | None) -> Tensor:
        """The prefix tokens x [B, prefix, dim], widened; mean: of the patches' new features [B, width - dim], for growth="mean"."""
        if self.prefix_proj is not None:
            return self.prefix_proj(x)
        if self.prefix_embed is not None:
            new = (self.prefix_embed + self.pos_embed[:, : self.own]).expand(x.shape[0], -1, -1)
        elif mean is not None:
            new = mean[:, None].expand(-1, x.shape[1], -1)
        else:
            new = x.new_zeros(*x.shape[:2], self.pos_embed.shape[2])
        return torch.cat([x, new], -1)
