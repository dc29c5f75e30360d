import numpy as np
import pytest
import torch
from torch import nn

from foveate.train.evaluate import binomial_uncertainty, evaluate
from foveate.train.images import PixelImages
from foveate.train.preprocessing import Preprocessing


def coded(labels: list[int], shown: list[int]) -> PixelImages:
    """Images whose brightness is the class that a reader of brightness will say."""
    pixels = torch.tensor(shown, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone()
    return PixelImages("coded", ("a", "b", "c"), pixels, torch.tensor(labels), Preprocessing(2, (0,) * 3, (1 / 255,) * 3, 1.0))


def read_brightness(images: torch.Tensor) -> torch.Tensor:
    return -(images.mean((1, 2, 3))[:, None] - torch.arange(3)).square()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_figures_do_not_depend_on_the_batch(batch_size):
    result = evaluate(read_brightness, coded([0, 1, 2, 0], [0, 1, 1, 0]), batch_size)
    assert result["accuracy_percent"] == 75.0 and result["n"] == 4
    assert np.array_equal(result["correct"], [True, True, False, True])
    logits = read_brightness(torch.tensor([0.0, 1, 1, 0])[:, None, None, None]).double()
    naive = -torch.log_softmax(logits, -1)[range(4), [0, 1, 2, 0]].mean()
    assert result["loss"] == pytest.approx(float(naive), abs=1e-6)


def test_logits_that_are_no_numbers_are_wrong_also_for_the_first_class():
    silent = lambda images: read_brightness(images).index_fill(0, torch.tensor([0]), torch.nan)  # argmax then says class 0
    result = evaluate(silent, coded([0, 0, 1], [0, 0, 1]))
    assert np.array_equal(result["correct"], [False, True, True]) and np.isnan(result["loss"])


def test_a_module_is_evaluated_in_eval_mode_and_put_back():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.BatchNorm2d(3).eval()
            self.modes = []

        def forward(self, images):
            self.modes.append((self.training, torch.is_inference_mode_enabled()))
            return read_brightness(images)

    model = Model()
    evaluate(model, coded([0, 1], [0, 1]))
    assert model.modes == [(False, True)]
    assert model.training and not model.frozen.training


def test_uncertainty_is_wilson_s():
    # By hand for 90 of 100: centre 0.8853, interval 0.8256 ... 0.9448.
    assert binomial_uncertainty(90, 100) == pytest.approx((0.9448 - 0.8256) / 2, abs=1e-4)
    assert 0 < binomial_uncertainty(50, 50) < 0.05
