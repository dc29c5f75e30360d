"""Training in 8 bits: where a run's fake-quantised layers and the ranges that they begin with come from."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from foveate.quantised import RANGE, observe, quantise, quantised, quantised_in
from foveate.train.images import PixelImages, ReadImages
from foveate.train.randomness import permutation

CALIBRATION_IMAGES = 256
BATCH = 32


def quantise_for_training(model: nn.Module, images: PixelImages | ReadImages, seed: int, checkpoint: dict | None) -> None:
    """Lets the linears and convolutions of `model` compute in 8 bits, in place; a model that does already stays as it is.

    With a checkpoint the layers are those that it has ranges for, and the ranges come with it. Otherwise they are measured on 256
    training images without augmentation, which depend on the seed alone; training moves them.
    """
    if quantised(model):
        return
    quantise(model, observe(model, calibration_batches(images, seed)) if checkpoint is None else {name: RANGE for name in quantised_in(checkpoint["model"])})


def calibration_batches(images: PixelImages | ReadImages, seed: int) -> Iterator[Tensor]:
    """256 training images [32, 3, H, W] at a time, as evaluation sees them; fewer where the set has fewer."""
    chosen = permutation(seed, 0, len(images))[:CALIBRATION_IMAGES]
    for start in range(0, len(chosen), BATCH):
        yield images.batch(chosen[start : start + BATCH]).images
