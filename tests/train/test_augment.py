import pytest
import torch

from foveate.train.augment import augment_pixels, erased, shifted
from foveate.train.randomness import uniform


def pixels(count: int = 6, channels: int = 1, side: int = 9) -> torch.Tensor:
    return torch.randint(1, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_shifted_equals_a_loop_over_pixels(channels):
    images, margin = pixels(channels=channels), 2
    down, right = uniform(0, 0, range(6), 2).unbind(1)
    expected = torch.zeros_like(images)
    for image in range(6):
        row, column = int(down[image] * 5) - margin, int(right[image] * 5) - margin
        for y in range(9):
            for x in range(9):
                if 0 <= y + row < 9 and 0 <= x + column < 9:
                    expected[image, :, y, x] = images[image, :, y + row, x + column]
    assert torch.equal(shifted(images, down, right, margin), expected)


def test_erased_makes_one_hole_in_some_images():
    images = pixels(400)
    holes = erased(images, uniform(0, 0, range(400), 4)) == 0
    counts = holes.sum((1, 2, 3))
    assert 60 < int((counts > 0).sum()) < 140
    # A rectangle fills its bounding box.
    for hole in holes[counts > 0]:
        rows, columns = hole[0].any(1).nonzero(), hole[0].any(0).nonzero()
        assert int(hole.sum()) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


@pytest.mark.parametrize("strength", ["light", "full"])
def test_an_image_is_augmented_alike_in_any_batch(strength):
    images = pixels(5)
    together = augment_pixels(images, [3, 1, 4, 15, 9], strength, seed=2, step=6)
    alone = augment_pixels(images[2:3], [4], strength, seed=2, step=6)
    assert torch.equal(together[2:3], alone)
    assert not torch.equal(augment_pixels(images, [3, 1, 4, 15, 9], strength, seed=2, step=7), together)


def test_none_changes_nothing_and_digits_are_never_mirrored():
    images = pixels(64)
    assert augment_pixels(images, range(64), "none", 0, 0) is images
    for image, shift in zip(images, augment_pixels(images, range(64), "light", 0, 0, flippable=False), strict=True):
        found = any(
            torch.equal(shift[:, 1:-1, 1:-1], image[:, 1 + y : 8 + y, 1 + x : 8 + x]) for y in (-1, 0, 1) for x in (-1, 0, 1)
        )
        assert found
