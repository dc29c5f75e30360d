"""Which images a command reads, and how they become a model's input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.adaptive import AdaptiveModel
    from foveate.cascade import Cascade
    from foveate.cli.targets import Target
    from foveate.train.images import PixelImages, ReadImages
    from foveate.train.preprocessing import Preprocessing


def data_name(target: Target, data: str | None, data_dir: Path | None) -> str:
    """The data that were asked for, else what the target was trained on. Raises FoveateError where nothing says which."""
    if data:
        return data
    if data_dir:
        return "imagefolder"
    known = "fashion-mnist-subset" if target.embedded else target.record().get("data")
    if known is None:
        raise FoveateError(
            f"{target.text} without data", "--data NAME, or --data-dir DIR with train/CLASS/ and val/CLASS/", "add one of them, such as --data-dir my-photos"
        )
    return known


def preprocessing_for(target: Target, model: AdaptiveModel | Cascade) -> Preprocessing:
    """A run's own preprocessing.json (of a cascade its first effort's: all efforts take the same images), else what the backbone was trained with."""
    from foveate.train.preprocessing import Preprocessing

    folders = [target.folder, *(model.plan.folders(target.folder)[:1] if hasattr(model, "efforts") else [])] if target.folder else []
    for path in (folder / "preprocessing.json" for folder in folders):
        if path.is_file():
            return Preprocessing.from_json(path.read_text(encoding="utf-8", errors="replace"))
    return Preprocessing.of(getattr(model, "efforts", [model])[0].anatomy.model)


def images_for(
    target: Target, model: AdaptiveModel | Cascade, data: str | None, data_dir: Path | None, split: str, strict: bool = False, limit: int | None = None
) -> PixelImages | ReadImages:
    """Labelled images of a split, as `model` takes them. Raises FoveateError where their classes are not the model's."""
    from foveate.train.data import load_data

    images = load_data(data_name(target, data, data_dir), split, data_dir, preprocessing_for(target, model), strict)
    if len(images.classes) != model.num_classes:
        raise FoveateError(
            f"{target.text} with {model.num_classes} classes and data {images.name} with {len(images.classes)}",
            "the same classes in both",
            "choose other data with --data or --data-dir, or train the model on these",
        )
    return images if limit is None else images.subset(range(min(limit, len(images))))


def class_names(target: Target, model: AdaptiveModel) -> list[str]:
    """Names of the classes: the run's, else those that the backbone carries, else their numbers."""
    names = target.record().get("classes") or list(model.pretrained_cfg.get("label_names") or ())
    if len(names) == model.num_classes:
        return list(map(str, names))
    return [str(index) for index in range(model.num_classes)]


def read_picture(path: Path):
    """An image file of any kind and size as an upright RGB picture. Raises FoveateError for anything else."""
    from PIL import Image, ImageOps

    if not path.is_file():
        what = "which is a folder" if path.is_dir() else "which does not exist"
        raise FoveateError(f"image {path}, {what}", "PNG, JPEG and other image files", f"give files: {path}/*.png" if path.is_dir() else "check the path (`ls`)")
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            # 16-bit grey is cut off at 255 by PIL's own conversion, which would turn nearly every pixel white.
            if picture.mode.startswith("I"):
                picture = picture.convert("I").point(lambda value: value / 257).convert("L")
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise FoveateError(
            f"image {path}, which cannot be read ({str(error).splitlines()[0]})", "an intact PNG, JPEG or other image file", "check or replace the file"
        ) from error
