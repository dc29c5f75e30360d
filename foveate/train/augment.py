"""Augmentation of whole batches of small images with a few tensor operations."""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from foveate.train.randomness import uniform

ERASED_SHARE = 0.25  # of the images, under "full"


def augment_pixels(
    pixels: torch.Tensor, samples: Sequence[int], strength: str, seed: int, step: int, flippable: bool = True
) -> torch.Tensor:
    """Return the images shifted, mirrored and (under "full") partly erased; each image's draw depends on (seed, step, sample).

    pixels: uint8 [B, C, H, W]. Shifts go up to 1/14 of the side in each direction (2 pixels of 28), the border is black.
    """
    if strength == "none":
        return pixels
    draws = uniform(seed, step, samples, 7)
    pixels = shifted(pixels, draws[:, 0], draws[:, 1], margin=max(1, round(pixels.shape[-1] / 14)))
    if flippable:
        pixels = torch.where((draws[:, 2] < 0.5)[:, None, None, None], pixels.flip(-1), pixels)
    return erased(pixels, draws[:, 3:]) if strength == "full" else pixels


def shifted(pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor, margin: int) -> torch.Tensor:
    """Cut each image [C, H, W] out of its black-padded self at a place given by two numbers in [0, 1) an image."""
    count, _, height, width = pixels.shape
    rows = (down * (2 * margin + 1)).long()[:, None] + torch.arange(height)
    columns = (right * (2 * margin + 1)).long()[:, None] + torch.arange(width)
    padded = pad(pixels, (margin,) * 4).permute(0, 2, 3, 1)
    cut = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2).contiguous()


def erased(pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Blacken a rectangle in a quarter of the images; its sides are 1/8 to 1/2 of the image. draws: [B, 4] in [0, 1)."""
    height, width = pixels.shape[-2:]
    side = 0.125 + 0.375 * draws[:, 1]
    top, left = draws[:, 2] * (1 - side) * height, draws[:, 3] * (1 - side) * width
    row, column = torch.arange(height), torch.arange(width)
    inside_rows = (row >= top[:, None]) & (row < (top + side * height)[:, None])
    inside_columns = (column >= left[:, None]) & (column < (left + side * width)[:, None])
    hole = inside_rows[:, :, None] & inside_columns[:, None, :] & (draws[:, 0] < ERASED_SHARE)[:, None, None]
    return pixels.masked_fill(hole[:, None], 0)
