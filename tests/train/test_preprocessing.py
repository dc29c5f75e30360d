import json

import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from foveate.errors import FoveateError
from foveate.train.preprocessing import Preprocessing


def test_json_round_trip():
    settings = Preprocessing(28, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1.0, "bilinear")
    assert Preprocessing.from_json(settings.to_json()) == settings


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"image_size": 8})])
def test_unreadable_settings_are_refused(text):
    with pytest.raises(FoveateError, match="image_size"):
        Preprocessing.from_json(text)


@pytest.mark.parametrize("change", [{"image_size": 0}, {"std": (1, 0, 1)}, {"crop_pct": 1.2}, {"interpolation": "lanczos"}])
def test_values_out_of_range_are_refused(change):
    with pytest.raises(FoveateError, match="crop_pct"):
        Preprocessing(**change)


def test_it_follows_the_model():
    with torch.device("meta"):
        deit = timm.create_model("deit_tiny_patch16_224", img_size=160)
    settings = Preprocessing.of(deit)
    assert (settings.image_size, settings.crop_pct, settings.interpolation) == (160, 0.9, "bicubic")
    assert settings.mean == (0.485, 0.456, 0.406)
    plain = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1)
    assert Preprocessing.of(plain).image_size == 8


def test_pixels_are_scaled_and_grey_becomes_three_channels():
    settings = Preprocessing(4, (0.5, 0.25, 0.0), (0.5, 0.5, 1.0), 1.0)
    out = settings.pixels(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8))
    assert out.shape == (2, 3, 4, 4)
    assert torch.allclose(out[:, :, 0, 0], torch.tensor([1.0, 1.5, 1.0]).expand(2, 3))


def test_other_sizes_are_resized_and_an_image_is_the_same_alone():
    settings = Preprocessing(6, crop_pct=1.0)
    images = torch.randint(0, 256, (3, 3, 9, 9), dtype=torch.uint8)
    assert torch.equal(settings.pixels(images)[1:2], settings.pixels(images[1:2]))
    assert settings.pixels(images).shape == (3, 3, 6, 6)


def test_the_transform_of_a_file_equals_the_pixels_of_a_tensor():
    settings = Preprocessing(8, (0.3,) * 3, (0.4,) * 3, 1.0)
    pixels = torch.randint(0, 256, (8, 8), dtype=torch.uint8)
    from_file = settings.transform()(Image.fromarray(pixels.numpy()).convert("RGB"))
    assert torch.allclose(from_file, settings.pixels(pixels[None, None])[0], atol=1e-5)
