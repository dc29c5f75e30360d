"""What runs among the tokens of each image of a ragged batch: images of like length together, the others by themselves.

A call costs time of its own, and a padded token costs the products that it takes part in. Images share a call where the first weighs
more: at small widths all do, at 100 tokens and more of DeiT-S hardly any. Only attention ever sees a padded token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch that has none
    varlen_attn = None

Grouped = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""function(q [b, H, m, d], k [b, H, m, d], v [b, H, m, e], which tokens are there: bool [b, m], or None: all) -> [b, H, m, e]."""

FUSED_CALL, EXPLICIT_CALL = 2_500, 10_000
"""Scores that take as long as one more call of torch's fused kernel, and of products spelled out, on one core of a CPU."""
GPU_CALL = 2_000_000
LAYOUTS = 64
"""Layouts that are kept; all blocks between two stages share theirs."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Images that run in one call.

    rows: of the ragged stream, [b * m], or where they are of one image; an image that is shorter than m repeats its last row.
    there: bool [b, m], None for images of one length.
    """

    rows: Tensor | slice
    images: int
    there: Tensor | None


@dataclass(frozen=True, eq=False)
class Layout:
    """Buckets by falling length, and where each row of the stream stands in their results one after the other: back [T].

    No buckets mean that every image runs by itself.
    """

    buckets: tuple[Bucket, ...]
    back: Tensor | None


def by_image(function: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """`function` of each image by itself, in order: q, k [T, H, d], v [T, H, e] -> [T, H, e]."""
    parts = zip(*(t.transpose(0, 1)[None].split(lengths, 2) for t in (q, k, v)))
    return torch.cat([function(*part)[0] for part in parts], 1).transpose(0, 1)


def by_bucket(function: Grouped, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], call: int = EXPLICIT_CALL, linear: bool = False) -> Tensor:
    """`function` of images in groups, each with its own tokens only: q, k [T, H, d], v [T, H, e] -> [T, H, e].

    function must treat its images alike and leave out tokens that are not there; what it gives for those is thrown away.
    call: scores that one more call is worth. linear: what a padded token costs does not grow with the number of tokens.
    """
    call = GPU_CALL if q.is_cuda else call
    layout = layout_of(lengths, call // q.shape[1], q.shape[2] if linear else 0, q.device)
    if not layout.buckets:
        return by_image(lambda *part: function(*part, None), q, k, v, lengths)
    found = []
    for bucket in layout.buckets:
        one = isinstance(bucket.rows, slice)
        parts = ((t[bucket.rows] if one else t.index_select(0, bucket.rows)).unflatten(0, (bucket.images, -1)).transpose(1, 2) for t in (q, k, v))
        found.append(function(*parts, bucket.there).transpose(1, 2).flatten(0, 1))
    return (found[0] if len(found) == 1 else torch.cat(found)).index_select(0, layout.back)


@functools.lru_cache(maxsize=LAYOUTS)
def layout_of(lengths: tuple[int, ...], padding: int, width: int, device: torch.device) -> Layout:
    """Who shares a call: by falling length, until an image would be padded by `padding` scores of a head.

    width: of a head, where a token costs as much as so many scores however many there are; 0 where it has a score with each.
    """
    scores = lambda n: n * (width or n)
    groups: list[list[int]] = []
    for image in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and scores(lengths[groups[-1][0]]) - scores(lengths[image]) <= padding:
            groups[-1].append(image)
        else:
            groups.append([image])
    if len(groups) == len(lengths):
        return Layout((), None)
    # Indices that a gradient may need later; in inference mode they would be of no use to it.
    with torch.inference_mode(False):
        return _layout(groups, lengths, device)


def _layout(groups: list[list[int]], lengths: tuple[int, ...], device: torch.device) -> Layout:
    size = torch.tensor(lengths)
    start = size.cumsum(0) - size
    back, buckets, before = torch.empty(sum(lengths), dtype=torch.int64), [], 0
    for group in groups:
        column = torch.arange(lengths[group[0]])
        own = size[group][:, None]
        rows, there = start[group][:, None] + column.minimum(own - 1), column < own
        back[rows[there]] = before + torch.arange(there.numel())[there.flatten()]
        before += there.numel()
        taken = rows.flatten().to(device) if len(group) > 1 else slice(int(rows[0, 0]), int(rows[0, -1]) + 1)
        buckets.append(Bucket(taken, len(group), None if there.all() else there.to(device)))
    return Layout(tuple(buckets), back.to(device))


def varlen_runs(q: Tensor, v: Tensor) -> bool:
    """Whether torch's attention over packed sequences can take these: half precision on a GPU."""
    halves = (torch.bfloat16, torch.float16)
    return varlen_attn is not None and q.is_cuda and q.dtype in halves and q.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """Softmax attention of all images in one kernel that knows where each begins: q, k, v [T, H, d] -> [T, H, d]."""
    starts = _starts(lengths, q.device)
    longest = max(lengths)
    return varlen_attn(q, k, v, starts, starts, longest, longest, scale=scale)


@functools.lru_cache(maxsize=LAYOUTS)
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32)
