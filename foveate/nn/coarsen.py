"""From one stage's patch grid to the next coarser one while some slots of it are dead (semantics.md 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.nn.precision import at_least_float32
from foveate.nn.prune import package
from foveate.nn.tokens import PACKAGE, PREFIX, Tokens, from_rows


@dataclass(frozen=True)
class Coarsening:
    """What a transition between two stages does to each kind of token, and the field of old slots under a new one.

    patches: [B, rows, columns, D] -> [B, rows', columns', D'].
    package: package tokens [..., D] -> [..., D'], each merged with itself. prefix: prefix tokens [..., D] -> [..., D'].
    kernel, stride: side and distance of the fields, in slots. pad: slots added (left, right, top, bottom).
    """

    patches: Callable[[Tensor], Tensor]
    package: Callable[[Tensor], Tensor]
    prefix: Callable[[Tensor], Tensor]
    kernel: int
    stride: int
    pad: tuple[int, int, int, int]


def stage_behind(block: int, depths: Sequence[int]) -> int | None:
    """The stage (from 0) that begins behind block `block` (from 1), or None; depths: blocks of each stage."""
    ends = list(accumulate(depths))[:-1]
    return ends.index(block) + 1 if block in ends else None


def any_alive(live: Tensor, step: Coarsening) -> Tensor:
    """A new slot lives as much as the liveliest slot of its field: live [B, rows, columns] -> [B, new slots].

    Where several are equally alive they share the gradient.
    """
    return F.unfold(F.pad(live[:, None], step.pad), step.kernel, stride=step.stride).amax(1)


def coarsen(tokens: Tokens, step: Coarsening) -> Tokens:
    """The next stage's tokens: dead slots enter `step.patches` with their image's package value.

    That value is the mean over the image's live package tokens, and zero where there are none. The masked form gives
    gradient to the decisions both through the slots' values and through `any_alive`; the packed forms then drop the
    new slots that are dead.
    """
    return _masked(tokens, step) if tokens.masked else _packed(tokens, step)


def _masked(tokens: Tokens, step: Coarsening) -> Tokens:
    start, stop = tokens.patches.start, tokens.patches.stop
    x, live = tokens.x, tokens.live
    fill = package(x[:, stop:], live[:, stop:])
    alive = live[:, start:stop]
    share = alive.to(x.dtype)[..., None]
    # Both products are exact for decisions of 0 and 1, which x + share * (fill - x) would not be.
    field = share * x[:, start:stop] + (1 - share) * fill[:, None]
    new = step.patches(field.unflatten(1, tokens.grid))
    parts = [new.flatten(1, 2)]
    if start:
        parts.insert(0, step.prefix(x[:, :start]))
    if tokens.packages:
        parts.append(step.package(x[:, stop:]).to(new.dtype))
    slots = torch.arange(new.shape[1] * new.shape[2], device=x.device)
    return replace(
        tokens, x=torch.cat(parts, 1), grid=_grid(new),
        live=torch.cat([live[:, :start], any_alive(alive.unflatten(1, tokens.grid), step), live[:, stop:]], 1),
        place=torch.cat([tokens.place[:start], slots, tokens.place[stop:]]))


def _packed(tokens: Tokens, step: Coarsening) -> Tokens:
    rows, image, place = tokens.x.reshape(-1, tokens.x.shape[-1]), tokens.image_of_row(), tokens.places().flatten()
    images, slots = tokens.images, tokens.grid[0] * tokens.grid[1]
    # Rows without a slot go to a spare one at the end.
    target = torch.where(place >= 0, image * slots + place, images * slots)
    field = rows.new_zeros(images * slots + 1, rows.shape[1]).index_copy(0, target, rows)[:-1].unflatten(0, (images, slots))
    alive = torch.zeros(images * slots + 1, device=rows.device).scatter(0, target, 1.0)[:-1].unflatten(0, (images, slots))
    prefix, packaged = place == PREFIX, place == PACKAGE
    field = torch.where(alive[..., None] > 0, field, _package_mean(rows, image, packaged, images)[:, None])
    new = step.patches(field.unflatten(1, tokens.grid))
    new_image, new_place = (any_alive(alive.unflatten(1, tokens.grid), step) > 0).nonzero(as_tuple=True)
    kinds = [(new.flatten(1, 2)[new_image, new_place], new_image, new_place)]
    if tokens.prefix:
        kinds.insert(0, (step.prefix(rows[prefix]), image[prefix], place[prefix]))
    if tokens.ragged or tokens.packages != 0:
        kinds.append((step.package(rows[packaged]).to(new.dtype), image[packaged], place[packaged]))
    return from_rows(replace(tokens, grid=_grid(new)), *(torch.cat(parts) for parts in zip(*kinds)))


def _grid(x: Tensor) -> tuple[int, int]:
    # In a graph being traced shapes are tensors; the grid is a constant of it.
    return int(x.shape[1]), int(x.shape[2])


def _package_mean(rows: Tensor, image: Tensor, packaged: Tensor, images: int) -> Tensor:
    """Mean over each image's package rows: rows [R, D], packaged [R] (bool) -> [images, D], zero where there are none."""
    wide = at_least_float32(rows)
    weight = packaged.to(wide.dtype)
    count = wide.new_zeros(images).index_add(0, image, weight)
    total = wide.new_zeros(images, rows.shape[1]).index_add(0, image, wide * weight[:, None])
    return (total / count.clamp_min(1.0)[:, None]).to(rows.dtype)
