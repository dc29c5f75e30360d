"""Where IRET's four looks at an image come from: a coarse image first, then sub-bands of half its size (section IV.B, Fig. 15)."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.lifting import BANDS, lift, split, unlift, update_error

try:
    import pywt
except ImportError:  # an extra: only the Haar wavelet is built in
    pywt = None

HAAR = ((0.5**0.5, 0.5**0.5), (-(0.5**0.5), 0.5**0.5))
"""Decomposition filters of the Haar wavelet, low-pass and high-pass, as PyWavelets writes them."""


def halved(images: Tensor) -> Tensor:
    """Images [B, C, H, W] at half the resolution: the mean of 2x2 pixels, which is what both area and bilinear resizing compute."""
    return F.avg_pool2d(images, 2)


class LiftingStep(nn.Module):
    """One learnable lifting step along one axis (Eqs. 8-10): [B, C, ...] -> (approximation, details), each of half the length.

    U and P: convolution of width 3 along the axis to 2C channels, ReLU, 1x1 convolution, tanh. dim: -1 horizontal, -2 vertical.
    """

    def __init__(self, channels: int, dim: int, device=None, dtype=None):
        super().__init__()
        self.dim = dim
        self.update, self.predict = (self._operator(channels, device=device, dtype=dtype) for _ in range(2))

    def _operator(self, channels: int, **factory) -> nn.Sequential:
        kernel, padding = ((1, 3), (0, 1)) if self.dim == -1 else ((3, 1), (1, 0))
        return nn.Sequential(
            nn.Conv2d(channels, 2 * channels, kernel, padding=padding, **factory), nn.ReLU(),
            nn.Conv2d(2 * channels, channels, 1, **factory), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return lift(x, self.dim, self.update, self.predict)

    def inverse(self, low: Tensor, high: Tensor) -> Tensor:
        """The map whose approximation and details these are."""
        return unlift(low, high, self.dim, self.update, self.predict)


class Lifting(nn.Module):
    """The learnable two-dimensional lifting scheme of Fig. 9.

    images [B, in_chans, H, W], H and W even -> (coarse [B, in_chans, H/2, W/2], bands [B, 3, channels, H/2, W/2]): the halved
    image, and LH, HL and HH of the features that two 3x3 convolutions with BatchNorm and ReLU make; the first letter is the
    horizontal direction. In training the errors of the operators follow the bands, [B, 9, ...], see `lifting_losses`.
    Shared by all sub-bands: the convolutions and the horizontal step; the approximation and the details of that step have
    vertical steps of their own. Deviation: none is said of borders; convolutions are padded with zeros.
    """

    kind = "lifting"

    def __init__(self, in_chans: int, channels: int, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.channels = channels
        self.conv1, self.bn1 = nn.Conv2d(in_chans, channels, 3, padding=1, **factory), nn.BatchNorm2d(channels, **factory)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, **factory), nn.BatchNorm2d(channels, **factory)
        self.horizontal = LiftingStep(channels, -1, **factory)
        self.vertical_low, self.vertical_high = (LiftingStep(channels, -2, **factory) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        low, high = self.horizontal(x)
        (ll, lh), (hl, hh) = self.vertical_low(low), self.vertical_high(high)
        maps = [lh, hl, hh]
        if self.training:
            odd = split(x, -1)[1]
            maps += [*split(high, -2), update_error(ll, split(low, -2)[1]), update_error(hl, split(high, -2)[1]),
                     *split(update_error(low, odd), -2)]
        return halved(images), torch.stack(maps, 1)


class Wavelet(nn.Module):
    """The discrete wavelet transform: coarse [B, C, H/2, W/2] is its LL band, bands [B, 3, C, H/2, W/2] are LH, HL and HH.

    images [B, C, H, W], H and W even. The first letter is the horizontal direction, as in PyWavelets' (cH, cV, cD).
    wavelet: "haar", or with PyWavelets the name of any orthogonal or biorthogonal one; borders are periodic, so that bands
    have half the size whatever the filter. Raises FoveateError for a name that is not known.
    """

    kind = "dwt"

    def __init__(self, in_chans: int, wavelet: str = "haar", device=None, dtype=None):
        super().__init__()
        self.channels, self.wavelet = in_chans, wavelet
        low, high = (torch.tensor(f[::-1], device=device, dtype=dtype) for f in filters(wavelet))
        before = len(low) // 2 - 1
        self.padding = (before, len(low) - 2 - before) * 2
        # LL, LH, HL, HH; the filters come back to front because a convolution of torch is a correlation.
        kernels = [torch.outer(down, across) for across, down in product((low, high), repeat=2)]
        self.register_buffer("kernels", torch.stack(kernels)[:, None].repeat(in_chans, 1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(images, self.padding, mode="circular") if any(self.padding) else images
        four = F.conv2d(padded, self.kernels, stride=2, groups=self.channels).unflatten(1, (self.channels, 4)).transpose(1, 2)
        return four[:, 0], four[:, 1:]


def filters(wavelet: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The decomposition filters (low-pass, high-pass) of a wavelet, each of even length.

    Raises FoveateError for any but "haar" without PyWavelets, and for a name that PyWavelets does not know.
    """
    if wavelet == "haar":
        return HAAR
    if pywt is None:
        raise FoveateError(f"wavelet {wavelet!r} without PyWavelets", '"haar"', "install foveate with the extra wavelets")
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise FoveateError(f"wavelet {wavelet!r}", 'discrete wavelets of PyWavelets such as "haar", "db2", "bior2.2"', "see pywt.wavelist(kind='discrete')")
    found = pywt.Wavelet(wavelet)
    return tuple(found.dec_lo), tuple(found.dec_hi)


class Repeat(nn.Module):
    """The baseline: the halved image again for every IRET layer. coarse [B, C, H/2, W/2], bands [B, layers, C, H/2, W/2]."""

    kind = "original"

    def __init__(self, in_chans: int, layers: int):
        super().__init__()
        self.channels, self.layers = in_chans, layers

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        coarse = halved(images)
        return coarse, coarse[:, None].expand(-1, self.layers, -1, -1, -1)


SAMPLERS = ("lifting", "dwt", "original")


def sampler(kind: str, in_chans: int, layers: int, lifting_channels: int, wavelet: str, device=None, dtype=None) -> nn.Module:
    """The sampler `kind` for images of `in_chans` channels and `layers` IRET layers; raises FoveateError for another kind or too many layers."""
    if kind not in SAMPLERS:
        raise FoveateError(f"sampler={kind!r}", ", ".join(map(repr, SAMPLERS)), "choose one of these")
    if kind == "original":
        return Repeat(in_chans, layers)
    if layers > BANDS:
        raise FoveateError(f"{layers} IRET layers for sampler={kind!r}", f"1 to {BANDS}: there are no more sub-bands than LH, HL and HH",
                           'name fewer blocks in widen_at, or take sampler="original"')
    if kind == "dwt":
        return Wavelet(in_chans, wavelet, device, dtype)
    if isinstance(lifting_channels, bool) or not isinstance(lifting_channels, int) or lifting_channels < 1:
        raise FoveateError(f"lifting_channels={lifting_channels!r}", "a whole number >= 1", "take 3, or 8 as fits the paper's 17.24 M parameters")
    return Lifting(in_chans, lifting_channels, device, dtype)
