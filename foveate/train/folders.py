"""Image folders (train/CLASS/*, val/CLASS/*) and timm's own data sets, decoded on demand."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_dataset

from foveate.errors import FoveateError
from foveate.train.images import DamagedImage, ReadImages, warn_skipped
from foveate.train.preprocessing import Preprocessing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
FULL_CHECK_LIMIT = 20_000  # larger folders are not decoded beforehand; their damaged files are left out when met

PARTS = {"train": ("train", "training"), "test": ("test", "val", "validation")}


@dataclass(frozen=True)
class ImageFiles(Sequence):
    """Image files by index -> (PIL image, label)."""

    files: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.files[index]
        image = Image.open(path)
        image.load()
        return image, label


def load_folder(
    name: str, part: str, data_dir: str | Path | None, preprocessing: Preprocessing | None, strict: bool = False
) -> ReadImages:
    """Return the images of DIR/train or DIR/val (or test) with one sub-folder a class.

    Damaged files are left out with a warning that names them, or refused with strict=True.
    """
    if not data_dir:
        raise FoveateError(
            "data imagefolder without a folder", "a folder with train/ and val/, one sub-folder a class", "add --data-dir DIR"
        )
    folder = _part_folder(Path(data_dir), part)
    classes = _class_names(folder)
    train_classes = _class_names(_part_folder(Path(data_dir), "train"))
    if classes != train_classes:
        missing, extra = sorted(set(train_classes) - set(classes)), sorted(set(classes) - set(train_classes))
        raise FoveateError(
            f"{folder}, whose classes differ from those of training (missing: {missing or 'none'}; unknown: {extra or 'none'})",
            f"the same {len(train_classes)} sub-folders in both",
            "add, remove or rename class folders",
        )
    files = tuple(
        (path, label) for label, label_name in enumerate(classes) for path in _image_files(folder / label_name)
    )
    if not files:
        raise FoveateError(
            f"{folder}, which holds no image in its class folders",
            f"files ending in {', '.join(SUFFIXES)}",
            "check --data-dir, or convert the images",
        )
    damaged = damaged_files([path for path, _ in files]) if len(files) <= FULL_CHECK_LIMIT or strict else []
    if damaged and strict:
        raise DamagedImage(
            f"{len(damaged)} damaged image{'s' * (len(damaged) > 1)} in {folder}: {', '.join(damaged[:5])}",
            "intact image files",
            "remove or replace them, or leave out --strict to skip them",
        )
    warn_skipped(str(folder), damaged)
    files = tuple(entry for entry in files if str(entry[0]) not in set(damaged))
    if not files:
        raise FoveateError(f"{folder}, of whose images none can be read", "intact image files", "replace the files")
    labels = torch.tensor([label for _, label in files])
    names = [str(path) for path, _ in files]
    preprocessing = preprocessing or Preprocessing()
    return ReadImages(name or "imagefolder", classes, ImageFiles(files), names, labels, preprocessing, tuple(damaged))


def damaged_files(paths: Iterable[Path]) -> list[str]:
    """Return the files that cannot be decoded to their end; unchanged files are decoded only once a process."""
    stats = [(path, path.stat()) for path in paths]
    return list(_damaged_files(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)))


@lru_cache(maxsize=8)
def _damaged_files(files: tuple[tuple[Path, int, int], ...]) -> tuple[str, ...]:
    def damaged(file: tuple[Path, int, int]) -> bool:
        try:
            with Image.open(file[0]) as image:
                image.load()
            return False
        except (OSError, ValueError, SyntaxError):
            return True

    with ThreadPoolExecutor() as pool:
        return tuple(str(file[0]) for file, bad in zip(files, pool.map(damaged, files), strict=True) if bad)


def load_timm(
    name: str, part: str, data_dir: str | Path | None, preprocessing: Preprocessing | None, strict: bool = False
) -> ReadImages:
    """Return one of timm's data sets ("torch/cifar10", "hfds/...", "wds/...") read through timm.data.create_dataset."""
    splits = ("train",) if part == "train" else ("test", "validation", "val")
    # timm reads the whole folder where the split's own is missing: ask first for one that is there.
    splits = sorted(splits, key=lambda split: not (data_dir and (Path(data_dir) / split).is_dir()))
    problems = []
    for split in splits:
        try:
            # timm downloads only torch/ sets, and only into a folder that was named.
            download = bool(data_dir) and name.startswith("torch/")
            source = create_dataset(name, root=str(data_dir) if data_dir else None, split=split, download=download)
            break
        except (ImportError, RuntimeError, ValueError, TypeError, KeyError, AssertionError, OSError) as error:
            problems.append(f"{split}: {type(error).__name__}: {error}".splitlines()[0][:200])
    else:
        raise FoveateError(
            f"data {name!r}, which timm could not open ({'; '.join(problems)})",
            "a data set that timm.data.create_dataset opens",
            "check the name and --data-dir, and install the library it needs (datasets for hfds/, webdataset for wds/)",
        )
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise FoveateError(
            f"data {name!r}, which is a stream",
            "sets with a length and random access, because a resumed run must see the same order",
            "unpack it into folders and use --data-dir, or use hfds/ instead of hfids/",
        )
    labels = _labels(source)
    classes = tuple(str(entry) for entry in getattr(source, "classes", ())) or tuple(
        str(label) for label in range(int(labels.max()) + 1)
    )
    names = [f"{name}[{index}]" for index in range(len(labels))]
    return ReadImages(name, classes, source, names, labels, preprocessing or Preprocessing())


def _labels(source) -> torch.Tensor:
    for attribute in ("targets", "labels"):
        if hasattr(source, attribute):
            return torch.as_tensor(getattr(source, attribute)).long()
    return torch.tensor([int(source[index][1]) for index in range(len(source))])


def _part_folder(root: Path, part: str) -> Path:
    if not root.is_dir():
        raise FoveateError(f"{root}, which is not a folder", "a folder with train/ and val/", "check --data-dir")
    for inner in PARTS[part]:
        if (root / inner).is_dir():
            return root / inner
    raise FoveateError(
        f"{root}, which has no {' or '.join(f'{inner}/' for inner in PARTS[part])}",
        "train/CLASS/*.png and val/CLASS/*.png",
        "put the images into these folders, or check --data-dir",
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    if len(names) < 2:
        what = "is empty" if not any(folder.iterdir()) else f"has {len(names)} class folder{'s' * (len(names) != 1)}"
        raise FoveateError(
            f"{folder}, which {what}", "at least two sub-folders, one a class", f"sort the images into {folder}/CLASS/"
        )
    return names


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
