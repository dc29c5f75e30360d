"""CKA and the unbiased HSIC, pair of images by pair of images."""

import torch
from torch import Tensor


def gram(x: Tensor) -> Tensor:
    """Scalar products of the features x [n, ...] of every two images."""
    return torch.stack([torch.stack([(a * b).sum() for b in x]) for a in x])


def cka(x: Tensor, y: Tensor) -> Tensor:
    """HSIC with linear kernels, spelled out: tr(K H L H) / sqrt(tr(K H K H) tr(L H L H))."""
    n = len(x)
    h = torch.eye(n, dtype=x.dtype) - torch.full((n, n), 1 / n, dtype=x.dtype)
    k, l = gram(x), gram(y)
    hsic = lambda a, b: torch.trace(a @ h @ b @ h)
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()


def unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """HSIC_1 as Eq. 3 of Nguyen et al. (arXiv:2010.15327) writes it."""
    n = len(x)
    off = 1 - torch.eye(n, dtype=x.dtype)
    k, l, ones = gram(x) * off, gram(y) * off, torch.ones(n, dtype=x.dtype)
    trace = torch.trace(k @ l)
    sums = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (ones @ k @ l @ ones)
    return (trace + sums - cross) / (n * (n - 3))


def minibatch_cka(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Means of HSIC_1 over the batches in numerator and denominator (Eq. 2 of Nguyen et al.)."""
    mean = lambda pairs: torch.stack([unbiased_hsic(a, b) for a, b in pairs]).mean()
    cross, own_x, own_y = (mean([(b[i], b[j]) for b in batches]) for i, j in ((0, 1), (0, 0), (1, 1)))
    return cross / (own_x.sqrt() * own_y.sqrt())
