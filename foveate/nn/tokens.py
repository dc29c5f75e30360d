"""Tokens: what flows between two blocks, in one of three forms.

*masked*: x [B, n, D] holds every patch; `live` [B, n] says with which weight each token takes part (training).
*uniform*: x [B, n, D] holds live tokens only, the same count for every image (static shapes, or one image).
*ragged*: x [T, D] holds the live tokens of all images, one image after the other; `lengths` counts them.

Within an image the order is always prefix tokens, patches in grid order, package tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.nn.precision import at_least_float32

PREFIX, PACKAGE = -1, -2


@dataclass(frozen=True)
class Tokens:
    """One token stream.

    x: [B, n, D] (masked, uniform) or [T, D] (ragged).
    prefix: number of leading tokens that are never pruned.
    grid: (rows, columns) of this stage's patch grid.
    place: grid slot of every token, PREFIX or PACKAGE: [n] while all patches are there, [B, n] or [T] afterwards.
    live: decision weights [B, n] in [0, 1] of the masked form, else None.
    packages: trailing package tokens of the masked and uniform forms; ragged, or None while tracing: see `place`.
    lengths: live tokens of each image, ragged form only.
    package_weight: weight of package tokens in average and map pooling.
    rope: rotary table of the backbone, rows in grid order; None without rotary embeddings.
    beside: what the backbone carries past the blocks for a later layer, such as MobileViT's map [B, C, H, W]; None for most.
    sizes: how many patches the token in each grid slot stands for, [B, slots], once tokens were merged; None before.
    """

    x: Tensor
    prefix: int
    grid: tuple[int, int]
    place: Tensor
    live: Tensor | None = None
    packages: int | None = 0
    lengths: tuple[int, ...] | None = None
    package_weight: float = 1.0
    rope: Tensor | None = None
    beside: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def masked(self) -> bool:
        return self.live is not None

    @property
    def ragged(self) -> bool:
        return self.lengths is not None

    @property
    def pruned(self) -> bool:
        """Whether something other than all patches in grid order may flow."""
        return self.place.dim() > 1 or self.ragged or self.masked or self.packages != 0

    @property
    def images(self) -> int:
        return len(self.lengths) if self.ragged else self.x.shape[0]

    @property
    def patches(self) -> slice:
        """Where the patches stand in dimension 1 of the masked and uniform forms."""
        return slice(self.prefix, self.x.shape[1] - self.packages)

    def with_x(self, x: Tensor) -> "Tokens":
        return replace(self, x=x)

    def select(self, images: Tensor) -> "Tokens":
        """The tokens of some images, `images` [b] by number and increasing; images with equally many tokens and packages become uniform."""
        live, beside, sizes = (None if t is None else t[images] for t in (self.live, self.beside, self.sizes))
        if not self.ragged:
            place = self.place if self.place.dim() == 1 else self.place[images]
            return replace(self, x=self.x[images], place=place, live=live, beside=beside, sizes=sizes)
        chosen = torch.zeros(self.images, dtype=torch.bool, device=self.x.device)
        chosen[images] = True
        image = self.image_of_row()
        rows = chosen[image]
        number = chosen.cumsum(0) - 1
        lengths = tuple(self.lengths[i] for i in images.tolist())
        return from_rows(replace(self, lengths=lengths, beside=beside, sizes=sizes), self.x[rows], number[image[rows]], self.place[rows])

    def counts(self) -> list[int]:
        """Live tokens of each image."""
        if self.ragged:
            return list(self.lengths)
        if self.masked:
            return (self.live > 0).sum(1).tolist()
        return [self.x.shape[1]] * self.x.shape[0]

    def image_of_row(self) -> Tensor:
        """Image index of every row of x.flatten(0, 1) (uniform) or x (ragged)."""
        device = self.x.device
        if self.ragged:
            return torch.repeat_interleave(torch.arange(self.images, device=device), torch.tensor(self.lengths, device=device),
                                           output_size=self.x.shape[0])
        return torch.arange(self.images, device=device)[:, None].expand(self.x.shape[:2]).flatten()

    def places(self) -> Tensor:
        """`place` with one entry for every token: [B, n] or, ragged, [T]."""
        return self.place if self.ragged or self.place.dim() > 1 else self.place.expand(self.x.shape[0], -1)

    def size_of_rows(self) -> Tensor:
        """How many patches every token stands for, where `sizes` says so: [B, n] or, ragged, [T]; 1 for prefix and package tokens."""
        place = self.places()
        at = place.clamp_min(0)
        size = self.sizes[self.image_of_row(), at] if self.ragged else self.sizes.gather(1, at)
        return torch.where(place >= 0, size, 1.0)

    def kept(self) -> Tensor:
        """Which patch slots are alive: bool [B, grid slots]."""
        slots = self.grid[0] * self.grid[1]
        if self.masked:
            return self.live[:, self.patches] > 0
        mask = torch.zeros(self.images, slots, dtype=torch.bool, device=self.x.device)
        image, place = self.image_of_row(), self.places().flatten()
        mask[image[place >= 0], place[place >= 0]] = True
        return mask


def dense(x: Tensor, prefix: int, grid: tuple[int, int], rope: Tensor | None = None) -> Tokens:
    """All patches of all images: x [B, prefix + rows * columns, D]."""
    place = torch.arange(-prefix, grid[0] * grid[1], device=x.device).clamp_min(PREFIX)
    return Tokens(x, prefix, grid, place, rope=rope)


def with_all_live(tokens: Tokens) -> Tokens:
    """The masked form in which every token still takes part."""
    return replace(tokens, live=at_least_float32(tokens.x).new_ones(tokens.x.shape[:2]))


def prefix_rows(tokens: Tokens) -> Tensor:
    """The prefix tokens of every image: [B, prefix, D]."""
    if tokens.ragged:
        return tokens.x[tokens.place == PREFIX].view(tokens.images, tokens.prefix, -1)
    return tokens.x[:, : tokens.prefix]


def from_rows(tokens: Tokens, rows: Tensor, image: Tensor, place: Tensor) -> Tokens:
    """Packs rows [R, D] that belong to images `image` [R] (any order) into ragged or uniform form.

    Rows of one image keep their relative order. Uniform is what images with equally many tokens and equally many
    package tokens become, so that `packages` always tells where the patches end; one image is always uniform.
    """
    packaged = place == PACKAGE
    if tokens.images == 1:
        # While a graph is being traced the number of packages must not become a constant of it.
        tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()
        packages = None if tracing else int(packaged.sum())
        if torch.compiler.is_exporting():
            torch._check(rows.shape[0] > 0)  # or attention asks whether there is a token at all
        return replace(tokens, x=rows[None], place=place[None], packages=packages, lengths=None, live=None)
    order = torch.argsort(image, stable=True)
    lengths = tuple(torch.bincount(image, minlength=tokens.images).tolist())
    packages = torch.bincount(image[packaged], minlength=tokens.images).tolist()
    rows, place = rows.index_select(0, order), place.index_select(0, order)
    if len(set(lengths)) == 1 and len(set(packages)) == 1:
        x, place = rows.unflatten(0, (tokens.images, lengths[0])), place.view(tokens.images, lengths[0])
        return replace(tokens, x=x, place=place, packages=packages[0], lengths=None, live=None)
    return replace(tokens, x=rows, place=place, packages=0, lengths=lengths, live=None)
