"""Data by name: `load_data(name, split)` gives a set of labelled images with its class names."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from foveate.errors import FoveateError
from foveate.train import fashion
from foveate.train.folders import load_folder, load_timm
from foveate.train.images import PixelImages, ReadImages
from foveate.train.preprocessing import Preprocessing
from foveate.train.randomness import permutation

SPLITS = ("train", "validation", "train+validation", "test")
DEFAULT_DATA = "fashion-mnist-subset"
TIMM_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
VALIDATION_SEED = 20220507


def load_data(
    name: str = DEFAULT_DATA,
    split: str = "train",
    data_dir: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    strict: bool = False,
) -> PixelImages | ReadImages:
    """Return a set of labelled images by name.

    name: "fashion-mnist-subset" (embedded), "fashion-mnist", "digits", "imagefolder" (with data_dir), or a name that timm
    knows ("torch/...", "hfds/...", "wds/...").
    split: "train" | "validation" | "train+validation" | "test". Validation images are a fixed tail of the training set
    (its order shuffled with a fixed seed unless the files are shuffled already); "train" excludes them. Where a folder has
    `val/` but no `test/`, "test" reads `val/`.
    preprocessing: of the model; None takes the data's own size and statistics.
    strict: refuse a set with damaged image files instead of leaving them out.
    """
    if split not in SPLITS:
        raise FoveateError(f"split {split!r} of {name}", " | ".join(SPLITS), "choose one of these with --split")
    if name in _IN_MEMORY:
        return _IN_MEMORY[name](name, split, data_dir, preprocessing)
    if name.startswith(TIMM_PREFIXES):
        return take_split(lambda part: load_timm(name, part, data_dir, preprocessing, strict), split)
    if name in ("imagefolder", "folder", ""):
        return take_split(lambda part: load_folder(name, part, data_dir, preprocessing, strict), split)
    raise FoveateError(
        f"data {name!r}, which is not known",
        f"{', '.join(_IN_MEMORY)}, imagefolder, or timm's {', '.join(f'{prefix}...' for prefix in TIMM_PREFIXES)}",
        "for your own images use --data-dir DIR with train/CLASS/ and val/CLASS/ inside",
    )


def split_indices(size: int, split: str, shuffled: bool = False, held_out: int | None = None) -> np.ndarray:
    """Return which of `size` training samples belong to "train", "validation" or "train+validation".

    The tail of `held_out` samples (default: a tenth, at most 5,000) is the validation set; unless the set is `shuffled`
    already, it is the tail of a permutation with a fixed seed. Indices come back ascending.
    """
    if held_out is None:
        held_out = max(1, min(5000, size // 10))
    order = np.arange(size) if shuffled else permutation(VALIDATION_SEED, 0, size)
    parts = {"train": order[: size - held_out], "validation": order[size - held_out :], "train+validation": order}
    return np.sort(parts[split])


def take_split(load: Callable[[str], PixelImages | ReadImages], split: str) -> PixelImages | ReadImages:
    """Load "test", or the right part of "train"; `load` takes "train" or "test"."""
    if split == "test":
        return load("test")
    whole = load("train")
    return whole if split == "train+validation" else whole.subset(split_indices(len(whole), split))


def _fashion(name: str, split: str, data_dir, preprocessing: Preprocessing | None) -> PixelImages:
    embedded = name == "fashion-mnist-subset"
    folder = fashion.EMBEDDED if embedded else fashion.find_fashion_mnist(data_dir)
    pixels, labels = fashion.read_fashion(folder, "t10k" if split == "test" else "train")
    own = Preprocessing(28, (fashion.MEAN,) * 3, (fashion.STD,) * 3, 1.0, "bicubic")
    images = PixelImages(name, fashion.CLASSES, pixels, labels, preprocessing or own)
    if split in ("test", "train+validation"):
        return images
    # The files are shuffled; the subset's last 1,000 images come from the full set's last 5,000, so a base
    # trained on either one's "train" has seen no validation image of the other.
    return images.subset(split_indices(len(labels), split, shuffled=True, held_out=1000 if embedded else None))


def _digits(name: str, split: str, data_dir, preprocessing: Preprocessing | None) -> PixelImages:
    digits = load_digits()
    pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    own = Preprocessing(8, (0.305,) * 3, (0.376,) * 3, 1.0, "bicubic")
    images = PixelImages(name, tuple(str(digit) for digit in range(10)), pixels, labels, preprocessing or own, flippable=False)
    # The last 360 of the 1,797 images were written by other people than the first.
    test = np.arange(1437, 1797)
    return images.subset(test if split == "test" else split_indices(1437, split))


_IN_MEMORY = {"fashion-mnist-subset": _fashion, "fashion-mnist": _fashion, "digits": _digits}
