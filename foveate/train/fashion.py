"""Fashion-MNIST (Zalando Research, MIT): finding and reading its idx files, whole or the embedded subset."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from foveate.errors import FoveateError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, on the 0..1 scale

EMBEDDED = Path(__file__).parent.parent / "data" / "fashion_mnist_subset"
# Where Debian's package dataset-fashion-mnist puts the files.
SYSTEM_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("/usr/local/share/datasets/fashion-mnist"))


def idx_file(folder: Path, stem: str) -> Path | None:
    """Return `stem` or `stem`.gz in `folder`, whichever is there."""
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def find_fashion_mnist(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds Fashion-MNIST's four idx files (plain or .gz, torchvision's layout too)."""
    roots = [Path(data_dir)] if data_dir else [Path("data"), Path(".")]
    folders = [root / inner for root in roots for inner in ("", "raw", "FashionMNIST/raw", "fashion-mnist")]
    folders += [] if data_dir else SYSTEM_FOLDERS
    stems = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for folder in folders:
        if all(idx_file(folder, stem) for stem in stems):
            return folder
    raise FoveateError(
        f"fashion-mnist, but its four files are not in {', '.join(str(folder) for folder in folders)}",
        f"a folder with {', '.join(stems)} (plain or .gz)",
        "install Debian's dataset-fashion-mnist, or download once with torchvision.datasets.FashionMNIST('data', download=True), "
        "or name the folder with --data-dir; --data fashion-mnist-subset needs no download",
    )


def read_idx(path: Path) -> torch.Tensor:
    """Return the uint8 array of an idx file (plain or gzip), checked against its own header."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if zero != 0 or kind != 8 or rank not in (1, 3) or values.size != math.prod(shape):
        raise _damaged(path, f"{values.size} values where the header says {shape}")
    return torch.from_numpy(values.reshape(shape).copy())


def read_fashion(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images uint8 [N, 1, 28, 28] and labels int64 [N] of `part` ("train" | "t10k")."""
    image_path, label_path = idx_file(folder, f"{part}-images-idx3-ubyte"), idx_file(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise _damaged(image_path, f"{tuple(images.shape)} images beside {tuple(labels.shape)} labels")
    return images[:, None], labels.long()


def _damaged(path: Path, why: str) -> FoveateError:
    return FoveateError(f"{path}, which is damaged ({why})", "an intact idx file", "fetch the file again")
