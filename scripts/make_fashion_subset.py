"""Rebuild the embedded Fashion-MNIST subset from the full set.

    python scripts/make_fashion_subset.py [--data-dir DIR] [--out foveate/data/fashion_mnist_subset]

Training: per class the first 800 images by index of the full set's first 55,000, then per class the first 100 of its last
5,000 (the validation images of both sets). Test: per class the first 200 images of the full test set. File order is kept.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

from foveate.train.fashion import CLASSES, EMBEDDED, find_fashion_mnist, read_fashion

TRAIN, VALIDATION, TEST = 800, 100, 200  # images a class
HELD_OUT = 5000


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the ascending indices of the first `count` images of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(len(CLASSES))]))


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = find_fashion_mnist(arguments.data_dir)
    for part in ("train", "t10k"):
        pixels, labels = (tensor.numpy() for tensor in read_fashion(folder, part))
        if part == "train":
            border = len(labels) - HELD_OUT
            held_out = border + first_of_each_class(labels[border:], VALIDATION)
            chosen = np.concatenate([first_of_each_class(labels[:border], TRAIN), held_out])
        else:
            chosen = first_of_each_class(labels, TEST)
        write_idx(arguments.out / f"{part}-images-idx3-ubyte.gz", pixels[chosen, 0])
        write_idx(arguments.out / f"{part}-labels-idx1-ubyte.gz", labels[chosen])
        print(f"{part}: {len(chosen)} images")


if __name__ == "__main__":
    main()
