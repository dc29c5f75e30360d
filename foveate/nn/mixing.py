"""From the token stream to attention functions over plain tensors, in all three forms of the stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foveate.nn.tokens import Tokens

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""function(q [B, H, n, d], k [B, H, m, d], v [B, H, m, e], weights of the keys [B, 1, m] or None) -> [B, H, n, e]."""


def mixed(function: Attention, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, weights: Tensor | None = None) -> Tensor:
    """`function` among the live tokens of each image.

    q: [B, n, H, d], k: [B, m, H, d], v: [B, m, H, e], or ragged [T, H, ...]: then image by image, each with its own tokens
    only. Returns q's leading shape, [..., H, e]. weights: decision weights of the keys [B, m] where they are others than
    the stream's own, as for keys in windows; B is then the number of windows of all images.
    Under autocast the function runs outside it, in v's type: what may be rounded and what overflows it knows best itself.
    """
    device = v.device.type
    # Asked first, because switching it off leaves a trace in exported graphs; the meta device does not know autocast.
    if not v.is_meta and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return mixed(function, q.to(v.dtype), k.to(v.dtype), v, tokens, weights)
    if weights is None and tokens.ragged:
        parts = zip(*(torch.split(t.transpose(0, 1), tokens.lengths, dim=1) for t in (q, k, v)))
        return torch.cat([function(*(t[None] for t in part), None)[0] for part in parts], dim=1).transpose(0, 1)
    if weights is None and tokens.masked:
        weights = tokens.live
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return function(q, k, v, None if weights is None else weights[:, None]).transpose(1, 2)
