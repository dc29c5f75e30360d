"""Centred kernel alignment: how alike two sets of features of the same images are."""

from __future__ import annotations

from torch import Tensor

from foveate.nn.precision import at_least_float32


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA (Kornblith et al., used in Fig. 4 of SPViT): |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) on centred features.

    x: [..., images, p], y: [..., images, q], broadcast over leading dimensions. Returns [...] in [0, 1]; 0 where one
    side is constant. With fewer images than features it is biased upwards.
    """
    x, y = (at_least_float32(t) - at_least_float32(t).mean(-2, keepdim=True) for t in (x, y))
    # Images x images products are smaller than feature products wherever that matters here, and batch over positions.
    k, l = x @ x.transpose(-1, -2), y @ y.transpose(-1, -2)
    norms = k.square().sum((-1, -2)).sqrt() * l.square().sum((-1, -2)).sqrt()
    return (k * l).sum((-1, -2)) / norms.clamp_min(1e-30)
