"""Centred kernel alignment: how alike two sets of features of the same images are."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.nn.precision import at_least_float32

LEAST_IMAGES = 4
"""The unbiased estimate divides by n (n - 3)."""


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA (Kornblith et al., used in Fig. 4 of SPViT): |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) on centred features.

    x: [..., images, p], y: [..., images, q], broadcast over leading dimensions. Returns [...] in [0, 1]; 0 where one
    side is constant. With fewer images than features it is biased upwards.
    """
    # Images x images products are smaller than feature products wherever that matters here, and batch over positions.
    k, l = centred_gram(x), centred_gram(y)
    norms = k.square().sum((-1, -2)).sqrt() * l.square().sum((-1, -2)).sqrt()
    return (k * l).sum((-1, -2)) / norms.clamp_min(1e-30)


def centred_gram(x: Tensor) -> Tensor:
    """Scalar products of the centred features of every two images: x [..., images, p] -> [..., images, images]."""
    x = at_least_float32(x)
    x = x - x.mean(-2, keepdim=True)
    return x @ x.mT


def gram_hsic(k: Tensor, l: Tensor) -> Tensor:
    """tr(K L) of every pair of centred Gram matrices, HSIC up to its factor: k [p, n, n], l [q, n, n] -> [p, q]."""
    return k.flatten(1) @ l.flatten(1).T


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:
    """The unbiased estimate HSIC_1 (Song et al.; Eq. 3 of Nguyen et al., arXiv:2010.15327) of every pair of Gram matrices.

    tr(K~ L~) / (n (n - 3)) + ..., K~ and L~ being the matrices with a diagonal of 0; written as the product of K~ with the
    U-centred L~, which is the same number. k: [p, n, n], l: [q, n, n], n >= 4 images. Returns [p, q]; may be negative.
    """
    n = k.shape[-1]
    k, l = (t - t.diagonal(dim1=-2, dim2=-1).diag_embed() for t in (k, l))
    rows = l.sum(-1, keepdim=True)
    l = l - (rows + rows.mT) / (n - 2) + rows.sum(-2, keepdim=True) / ((n - 1) * (n - 2))
    return gram_hsic(k, l) / (n * (n - 3))


def cka_from_hsic(cross: Tensor, own_k: Tensor, own_l: Tensor) -> Tensor:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)): cross [p, q], own_k [p], own_l [q] -> [p, q]; 0 where one side is constant."""
    norms = own_k.clamp_min(0)[:, None] * own_l.clamp_min(0)
    return torch.where(norms <= 0, 0.0, cross / norms.sqrt())
