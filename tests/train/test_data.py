import gzip
import hashlib

import numpy as np
import pytest
import torch

from foveate.errors import FoveateError
from foveate.train import fashion
from foveate.train.data import load_data, split_indices
from foveate.train.preprocessing import Preprocessing


def test_the_embedded_subset_is_balanced_and_is_what_was_published():
    train, validation, test = (load_data(split=split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (8000, 1000, 2000)
    for images, each in ((train, 800), (validation, 100), (test, 200)):
        assert torch.equal(torch.bincount(images.labels), torch.full((10,), each))
        assert images.pixels.shape[1:] == (1, 28, 28) and images.pixels.dtype == torch.uint8
    assert train.classes[9] == "Ankle boot"
    # The first training image of Fashion-MNIST is an ankle boot, the second a T-shirt.
    assert train.labels[:2].tolist() == [9, 0]
    digest = hashlib.sha256(train.pixels.numpy().tobytes()).hexdigest()
    assert digest == "dcda5d31d243feac2ab8288403fb2d43b54ca240d7c12197455f1e39d833ad86"
    assert "MIT License" in (fashion.EMBEDDED / "LICENSE").read_text()


def test_the_subset_is_reproducible_from_the_full_set():
    try:
        fashion.find_fashion_mnist()
    except FoveateError:
        pytest.skip("the full Fashion-MNIST is not on this machine")
    full = {split: load_data("fashion-mnist", split).pixels.numpy() for split in ("train", "validation", "test")}
    assert [len(images) for images in full.values()] == [55_000, 5_000, 10_000]
    for split, images in full.items():
        whole = {image.tobytes() for image in images}
        assert all(image.numpy().tobytes() in whole for image in load_data(split=split).pixels)


def test_an_item_is_model_input_and_equals_its_place_in_a_batch():
    images = load_data(split="validation")
    image, label = images[7]
    assert image.shape == (3, 28, 28) and image.dtype == torch.float32 and label == int(images.labels[7])
    assert torch.equal(images.batch([3, 7]).images[1], image)
    assert torch.equal(image[0], image[2])
    assert torch.equal(images[-1][0], images[len(images) - 1][0])


def test_normalised_training_images_have_mean_0_and_deviation_1():
    images = load_data().batch(range(8000)).images
    assert abs(float(images.mean())) < 0.02 and abs(float(images.std()) - 1) < 0.02


def test_digits_take_the_model_s_size():
    images = load_data("digits", "test", preprocessing=Preprocessing(16, crop_pct=1.0))
    assert len(images) == 360 and images[0][0].shape == (3, 16, 16) and not images.flippable


@pytest.mark.parametrize("name", ["digits", "fashion-mnist-subset"])
def test_splits_are_disjoint_and_complete(name):
    parts = [load_data(name, split).pixels for split in ("train", "validation")]
    whole = load_data(name, "train+validation").pixels
    assert sum(map(len, parts)) == len(whole)
    assert len({image.numpy().tobytes() for image in torch.cat(parts)}) == len({image.numpy().tobytes() for image in whole})


def test_validation_is_a_fixed_tail():
    assert np.array_equal(split_indices(100, "validation", shuffled=True), np.arange(90, 100))
    shuffled = split_indices(100, "validation")
    assert len(shuffled) == 10 and np.array_equal(shuffled, split_indices(100, "validation"))
    assert not np.array_equal(shuffled, np.arange(90, 100))
    assert len(split_indices(200_000, "validation")) == 5000


def test_unknown_names_and_splits_list_what_is_known():
    with pytest.raises(FoveateError) as caught:
        load_data("fashon-mnist")
    assert "'fashon-mnist'" in caught.value.given
    assert "fashion-mnist-subset, fashion-mnist, digits" in caught.value.allowed and "--data-dir" in caught.value.do
    with pytest.raises(FoveateError, match=r"train \| validation"):
        load_data(split="val")


def test_missing_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(FoveateError) as caught:
        load_data("fashion-mnist", data_dir=tmp_path)
    assert str(tmp_path) in caught.value.given and "train-images-idx3-ubyte" in caught.value.allowed
    assert "dataset-fashion-mnist" in caught.value.do and "torchvision" in caught.value.do


def write_idx(path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(header + values.tobytes())


@pytest.fixture
def raw(tmp_path):
    """A tiny set in torchvision's layout, not compressed."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        write_idx(folder / f"{part}-images-idx3-ubyte", np.arange(count * 784, dtype=np.uint32).astype(np.uint8).reshape(count, 28, 28))
        write_idx(folder / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_torchvision_s_layout_is_read(raw):
    test = load_data("fashion-mnist", "test", raw)
    assert len(test) == 10 and test.labels.tolist() == list(range(10))
    assert test.pixels[1, 0, 0, :3].tolist() == [784 % 256, 785 % 256, 786 % 256]
    assert len(load_data("fashion-mnist", "train", raw)) == 27


@pytest.mark.parametrize("damage", ["cut", "gzip", "header", "labels"])
def test_damaged_idx_files_are_named(raw, damage):
    folder = raw / "FashionMNIST" / "raw"
    images, labels = folder / "t10k-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte"
    whole = images.read_bytes()
    if damage == "cut":
        images.write_bytes(whole[:-5])
    elif damage == "header":
        images.write_bytes(b"\x89PNG" + whole[4:])
    elif damage == "labels":
        write_idx(labels, np.zeros(9, np.uint8))
    else:
        images.unlink()
        (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-50])
    with pytest.raises(FoveateError) as caught:
        load_data("fashion-mnist", "test", raw)
    assert "t10k-images-idx3-ubyte" in caught.value.given and "damaged" in caught.value.given
