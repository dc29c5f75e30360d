"""From the token stream to attention functions over plain tensors, in all three forms of the stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foveate.nn.ragged import by_bucket, by_image
from foveate.nn.tokens import Tokens

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""function(q [B, H, n, d], k [B, H, m, d], v [B, H, m, e], weights of the keys [B, 1, m] or None) -> [B, H, n, e]."""


def mixed(function: Attention, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, weights: Tensor | None = None,
          alike: bool = False) -> Tensor:
    """`function` among the live tokens of each image.

    q: [B, n, H, d], k: [B, m, H, d], v: [B, m, H, e], or ragged [T, H, ...]: then image by image in order, each with its own tokens
    only, or in groups where the function does alike with all images. Returns q's leading shape, [..., H, e]. weights: decision
    weights of the keys [B, m] where they are others than the stream's own, as for keys in windows; B is then the number of windows
    of all images. alike: of ragged streams the function may see several images at once, padded by keys of weight 0.
    Under autocast the function runs outside it, in v's type: what may be rounded and what overflows it knows best itself.
    """
    device = v.device.type
    # Asked first, because switching it off leaves a trace in exported graphs; the meta device does not know autocast.
    if not v.is_meta and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return mixed(function, q.to(v.dtype), k.to(v.dtype), v, tokens, weights, alike)
    if weights is None and tokens.ragged:
        if not alike:
            return by_image(lambda *part: function(*part, None), q, k, v, tokens.lengths)
        padded = lambda *part: function(*part[:3], None if part[3] is None else part[3][:, None].to(torch.float32))
        return by_bucket(padded, q, k, v, tokens.lengths, linear=True)
    if weights is None and tokens.masked:
        weights = tokens.live
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return function(q, k, v, None if weights is None else weights[:, None]).transpose(1, 2)
