import numpy as np
import pytest
import torch
from PIL import Image

from foveate.errors import FoveateError
from foveate.train.data import load_data
from foveate.train.evaluate import evaluate
from foveate.train.folders import ImageFiles
from foveate.train.images import ReadImages
from foveate.train.preprocessing import Preprocessing

SMALL = Preprocessing(8, (0.5,) * 3, (0.5,) * 3, 1.0)


def write_image(path, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (12, 10) if mode == "L" else (12, 10, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 10), ("val", 3)):
        for label in ("cat", "dog"):
            for index in range(count):
                write_image(tmp_path / part / label / f"{index}.png", index, "L" if index % 2 else "RGB")
    return tmp_path


def load(folder, split: str = "test", **options) -> ReadImages:
    return load_data("imagefolder", split, folder, SMALL, **options)


def test_own_folders_are_enough(folder):
    test = load(folder)
    assert test.classes == ("cat", "dog") and len(test) == 6
    image, label = test[5]
    assert image.shape == (3, 8, 8) and label == 1
    assert len(load(folder, "train")) == 18 and len(load(folder, "validation")) == 2
    assert test.batch([0, 5]).labels.tolist() == [0, 1]


@pytest.mark.parametrize("strength", ["none", "light", "full"])
def test_augmentation_is_a_function_of_seed_step_and_image(folder, strength):
    train = load(folder, "train")
    together, alone = train.augmented([2, 5], strength, 0, 3), train.augmented([5], strength, 0, 3)
    assert torch.equal(together.images[1:], alone.images)
    later = train.augmented([5], strength, 0, 4).images
    assert torch.equal(later, alone.images) == (strength == "none")


def test_damaged_files_are_left_out_and_named(folder):
    for name, content in (("bad.png", b"no image"), ("cut.png", (folder / "val/dog/0.png").read_bytes()[:150])):
        (folder / "val" / "dog" / name).write_bytes(content)
    with pytest.warns(UserWarning, match="left out 2 damaged images.*bad.png.*cut.png"):
        test = load(folder)
    assert len(test) == 6 and [name.rsplit("/", 1)[1] for name in test.skipped] == ["bad.png", "cut.png"]
    with pytest.raises(FoveateError) as caught:
        load(folder, strict=True)
    assert "2 damaged images" in caught.value.given and "bad.png" in caught.value.given and "--strict" in caught.value.do


def test_a_file_that_breaks_later_is_left_out_of_its_batch(folder):
    test = load(folder)
    (folder / "val" / "cat" / "1.png").write_bytes(b"")
    batch = test.batch(range(6))
    assert len(batch.images) == len(batch.labels) == 5 and batch.skipped[0].endswith("cat/1.png")
    with pytest.warns(UserWarning, match="cat/1.png"):
        result = evaluate(lambda images: torch.tensor([[1.0, 0.0]]).expand(len(images), 2), test, batch_size=4)
    assert result["n"] == 5 and result["accuracy_percent"] == pytest.approx(40)
    with pytest.raises(FoveateError, match="cat/1.png"):
        test[1]
    with pytest.raises(FoveateError, match="none can be read"):
        test.batch([1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", ["not a folder", "--data-dir"]),
        ("no train", ["has no train/", "train/CLASS"]),
        ("empty", ["is empty", "at least two sub-folders"]),
        ("no images", ["holds no image", ".png"]),
        ("all damaged", ["none can be read"]),
        ("other classes", ["missing: ['dog']", "unknown: ['fox']"]),
        ("unnamed", ["without a folder", "--data-dir"]),
    ],
)
def test_bad_folders_are_refused(folder, damage, words):
    where = folder
    if damage == "missing":
        where = folder / "elsewhere"
    elif damage == "no train":
        (folder / "train").rename(folder / "somewhere")
    elif damage == "empty":
        (folder / "val").rename(folder / "before")
        (folder / "val").mkdir()
    elif damage in ("no images", "all damaged"):
        for path in (folder / "val").rglob("*.png"):
            path.unlink() if damage == "no images" else path.write_bytes(b"?")
        (folder / "val" / "cat" / "notes.txt").write_text("no image")
    elif damage == "other classes":
        (folder / "val" / "dog").rename(folder / "val" / "fox")
    else:
        where = None
    with pytest.raises(FoveateError) as caught, pytest.warns() if damage == "all damaged" else _nothing():
        load(where)
    for word in words:
        assert word in str(caught.value)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_timm_s_names_go_through_timm(tmp_path):
    # torchvision's FakeData is not among timm's names; an image folder by another name is.
    for label in ("cat", "dog"):
        for index in range(4):
            write_image(tmp_path / "train" / label / f"{index}.png", index)
            write_image(tmp_path / "validation" / label / f"{index}.png", index)
    images = load_data("torch/image_folder", "test", tmp_path, SMALL)
    assert len(images) == 8 and images[7][1] == 1 and images[0][0].shape == (3, 8, 8)
    assert images.classes == ("cat", "dog")
    with pytest.raises(FoveateError) as caught:
        load_data("torch/no_such_set", "test", tmp_path)
    assert "torch/no_such_set" in caught.value.given and "timm.data.create_dataset" in caught.value.allowed


def test_image_files_count_every_suffix(folder):
    assert len(ImageFiles(((folder / "val/cat/0.png", 0),))) == 1
