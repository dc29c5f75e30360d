"""Sets of labelled images: whole sets in memory as uint8 tensors, folders read image by image."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from foveate.errors import FoveateError
from foveate.train.augment import augment_pixels
from foveate.train.preprocessing import Preprocessing
from foveate.train.randomness import AUGMENT, seeded, step_seed


@dataclass(frozen=True)
class Batch:
    """Model input [B, 3, S, S], labels [B], and the files that could not be read (left out of both)."""

    images: torch.Tensor
    labels: torch.Tensor
    skipped: tuple[str, ...] = ()


class DamagedImage(FoveateError):
    """An image file that cannot be decoded."""


@dataclass(frozen=True, eq=False)
class PixelImages(Dataset):
    """A set in memory. pixels: uint8 [N, 1 or 3, H, W]; labels: int64 [N]; flippable: mirror images mean the same."""

    name: str
    classes: tuple[str, ...]
    pixels: torch.Tensor
    labels: torch.Tensor
    preprocessing: Preprocessing
    flippable: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.preprocessing.pixels(self.pixels[index][None])[0], int(self.labels[index])

    def subset(self, indices: Sequence[int]) -> "PixelImages":
        indices = torch.as_tensor(indices)
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the images as evaluation sees them."""
        indices = torch.as_tensor(indices)
        return Batch(self.preprocessing.pixels(self.pixels[indices]), self.labels[indices])

    def augmented(self, indices: Sequence[int], strength: str, seed: int, step: int) -> Batch:
        """Return the images augmented, as a function of (seed, step, image)."""
        chosen = torch.as_tensor(indices)
        pixels = augment_pixels(self.pixels[chosen], indices, strength, seed, step, self.flippable)
        return Batch(self.preprocessing.pixels(pixels), self.labels[chosen])


@dataclass(frozen=True, eq=False)
class ReadImages(Dataset):
    """A set that is decoded on demand: `source[index]` -> (PIL image, label).

    names: one a sample, for messages. skipped: files already found damaged and left out.
    """

    name: str
    classes: tuple[str, ...]
    source: Sequence
    names: Sequence[str]
    labels: torch.Tensor
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()
    _transforms: dict = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._read(index, None), int(self.labels[index])

    def subset(self, indices: Sequence[int]) -> "ReadImages":
        indices = [int(index) for index in indices]
        return replace(
            self,
            source=_Picked(self.source, indices),
            names=[self.names[index] for index in indices],
            labels=self.labels[indices],
        )

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the images as evaluation sees them; damaged files are left out and named in `skipped`."""
        return self._collect(indices, lambda index: self._read(int(index), None))

    def augmented(self, indices: Sequence[int], strength: str, seed: int, step: int) -> Batch:
        """Return the images augmented, as a function of (seed, step, image)."""

        def read(index: int) -> torch.Tensor:
            with seeded(step_seed(seed, step, int(index), AUGMENT)):
                return self._read(int(index), strength)

        return self._collect(indices, read)

    def _read(self, index: int, strength: str | None) -> torch.Tensor:
        if strength not in self._transforms:
            self._transforms[strength] = self.preprocessing.transform(strength)
        try:
            image = self.source[index][0].convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DamagedImage(
                f"{self.names[index]}, which cannot be read as an image ({error})",
                "intact image files",
                "remove or replace the file",
            ) from error
        return self._transforms[strength](image)

    def _collect(self, indices: Sequence[int], read) -> Batch:
        images, labels, skipped = [], [], []
        for index in indices:
            try:
                images.append(read(index))
                labels.append(int(self.labels[int(index)]))
            except DamagedImage:
                skipped.append(self.names[int(index)])
        if not images:
            raise FoveateError(
                f"a batch of {len(skipped)} images of which none can be read ({skipped[0]}, ...)",
                "a data set with mostly intact files",
                "check the files, for instance with --strict",
            )
        return Batch(torch.stack(images), torch.tensor(labels), tuple(skipped))


@dataclass(frozen=True)
class _Picked(Sequence):
    source: Sequence
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.source[self.indices[index]]


class TrainingBatches(Dataset):
    """The training set as a function of (step, sample indices), for a DataLoader over a StepSampler."""

    def __init__(self, images: PixelImages | ReadImages, strength: str, seed: int):
        self.images, self.strength, self.seed = images, strength, seed

    def __getitem__(self, key: tuple[int, np.ndarray]) -> tuple[int, torch.Tensor, torch.Tensor, tuple[str, ...]]:
        """Return (step, model input, labels, files left out)."""
        step, indices = key
        batch = self.images.augmented(indices, self.strength, self.seed, step)
        return step, batch.images, batch.labels, batch.skipped


def warn_skipped(name: str, files: Sequence[str]) -> None:
    """Warn once with the count and the first names of files that were left out."""
    if files:
        shown = ", ".join(list(files)[:5]) + (", ..." if len(files) > 5 else "")
        warnings.warn(f"{name}: left out {len(files)} damaged image{'s' * (len(files) > 1)}: {shown}", stacklevel=2)
