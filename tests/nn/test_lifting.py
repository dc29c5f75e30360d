"""Lifting: against loops with the paper's equations, its inverse, its losses; wavelets against PyWavelets and ptwt."""

import pytest
import torch
import torch.nn.functional as F

from foveate.backbones import iret_sampler
from foveate.backbones.iret_sampler import Lifting, LiftingStep, Repeat, Wavelet, halved, sampler
from foveate.errors import FoveateError
from foveate.nn.lifting import lift, lifting_losses, split, unlift
from naive import lifting as naive


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(4)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def features(module: Lifting, images: torch.Tensor) -> torch.Tensor:
    x = F.relu(module.bn1(module.conv1(images)))
    return F.relu(module.bn2(module.conv2(x)))


def test_split_takes_even_and_odd_samples():
    x = torch.arange(24.0).view(1, 1, 4, 6)
    even, odd = split(x, -1)
    assert even[0, 0, 1].tolist() == [6, 8, 10] and odd[0, 0, 1].tolist() == [7, 9, 11]
    even, odd = split(x, -2)
    assert even[0, 0, :, 1].tolist() == [1, 13] and odd[0, 0, :, 1].tolist() == [7, 19]


def test_the_updater_comes_first_and_the_predictor_reads_the_approximation():
    x = torch.randn(2, 3, 4, 6)
    low, high = lift(x, -1, lambda odd: 10 * odd, lambda c: c + 1)
    assert torch.equal(low, x[..., ::2] + 10 * x[..., 1::2])
    assert torch.equal(high, x[..., 1::2] - (low + 1))


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("size", [(6, 10), (2, 4), (14, 2)])
def test_a_step_equals_the_equations_in_values_and_gradients(dim, size):
    step = LiftingStep(3, dim)
    x = torch.randn(2, 3, *size, requires_grad=True)
    low, high = step(x)
    walk = naive.rows if dim == -1 else naive.columns
    lows, highs, *_ = zip(*(walk(image, step) for image in x))
    weights = torch.randn(2, *low.shape)
    ours = torch.autograd.grad((weights[0] * low + weights[1] * high).sum(), [x, *step.parameters()])
    theirs = torch.autograd.grad((weights[0] * torch.stack(lows) + weights[1] * torch.stack(highs)).sum(), [x, *step.parameters()])
    torch.testing.assert_close(low, torch.stack(lows))
    torch.testing.assert_close(high, torch.stack(highs))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dim", [-1, -2])
def test_a_step_is_invertible(dim):
    step, x = LiftingStep(4, dim), torch.randn(3, 4, 8, 12) * 5
    torch.testing.assert_close(step.inverse(*step(x)), x, rtol=0, atol=1e-14)
    single = LiftingStep(4, dim, dtype=torch.float32)
    torch.testing.assert_close(single.inverse(*single(x.float())), x.float(), rtol=0, atol=1e-5)
    assert torch.equal(unlift(*lift(x, dim, torch.zeros_like, torch.zeros_like), dim, torch.zeros_like, torch.zeros_like), x)


def test_operators_have_the_papers_layers():
    horizontal, vertical = LiftingStep(3, -1), LiftingStep(3, -2)
    for step, kernel in ((horizontal, (1, 3)), (vertical, (3, 1))):
        for operator in (step.update, step.predict):
            assert [type(layer).__name__ for layer in operator] == ["Conv2d", "ReLU", "Conv2d", "Tanh"]
            assert (operator[0].kernel_size, operator[0].out_channels, operator[2].kernel_size) == (kernel, 6, (1, 1))


def test_the_scheme_in_two_dimensions_and_its_losses_equal_the_loops():
    module, images = Lifting(3, 4).train(), torch.randn(2, 3, 8, 12)
    coarse, sampled = module(images)
    assert torch.equal(coarse, F.interpolate(images, scale_factor=0.5, mode="area")) and sampled.shape == (2, 9, 4, 4, 6)
    torch.testing.assert_close(coarse, F.interpolate(images, scale_factor=0.5, mode="bilinear"))
    bands, loss_p, loss_u = zip(*(naive.lift_2d(image, module) for image in features(module, images)))
    torch.testing.assert_close(sampled[:, :3], torch.stack(bands)[:, 1:])
    ours, theirs = lifting_losses(sampled), (sum(loss_p) / 2, sum(loss_u) / 2)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)
    for parts in zip(*(torch.autograd.grad(loss_p + 3 * loss_u, module.parameters()) for loss_p, loss_u in (ours, theirs))):
        torch.testing.assert_close(*parts)


def test_evaluation_returns_the_three_bands_only():
    module, images = Lifting(3, 4).eval(), torch.randn(2, 3, 8, 12)
    module.bn1.running_mean.normal_(), module.bn2.running_var.uniform_(0.5, 2)
    coarse, bands = module(images)
    assert bands.shape == (2, 3, 4, 4, 6) and coarse.shape == (2, 3, 4, 6)
    found = torch.stack([naive.lift_2d(image, module)[0] for image in features(module, images)])
    torch.testing.assert_close(bands, found[:, 1:])


def test_every_part_of_the_scheme_learns_from_the_bands_alone():
    module = Lifting(3, 3).train()
    module(torch.randn(2, 3, 8, 8))[1][:, :3].square().sum().backward()
    # A convolution's bias in front of a BatchNorm cancels out.
    assert all(p.grad.abs().max() > 0 for name, p in module.named_parameters() if name not in ("conv1.bias", "conv2.bias"))


WAVELETS = ("haar", "db2", "sym4", "bior2.2")


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_wavelets_equal_those_of_pywavelets(wavelet):
    pywt = pytest.importorskip("pywt")
    images = torch.randn(2, 3, 16, 20)
    coarse, bands = Wavelet(3, wavelet)(images)
    ll, others = pywt.dwt2(images.numpy(), wavelet, mode="periodization")
    for ours, theirs in zip((coarse, *bands.unbind(1)), (ll, *others), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs))


def test_the_built_in_wavelet_equals_that_of_ptwt():
    ptwt = pytest.importorskip("ptwt")
    images = torch.randn(2, 3, 8, 12)
    coarse, bands = Wavelet(3)(images)
    ll, others = ptwt.wavedec2(images, "haar", level=1, mode="zero")
    for ours, theirs in zip((coarse, *bands.unbind(1)), (ll, *others), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_letters_name_the_horizontal_direction_first():
    upright = torch.tensor([1.0, -1.0]).repeat(4)[None, None, None, :].expand(1, 1, 8, 8)
    for images, loud in ((upright, 1), (upright.mT, 0), (upright * upright.mT, 2)):
        energy = Wavelet(1)(images)[1].square().sum((0, 2, 3, 4))
        assert (energy > 0).nonzero().tolist() == [[loud]]


def test_without_pywavelets_only_haar_is_known(monkeypatch):
    monkeypatch.setattr(iret_sampler, "pywt", None)
    Wavelet(3)
    with pytest.raises(FoveateError, match="(?s)db2.*without PyWavelets.*extra wavelets"):
        Wavelet(3, "db2")


def test_a_wavelet_that_pywavelets_does_not_know_is_refused():
    pytest.importorskip("pywt")
    for name in ("db2000", "morl", 3):
        with pytest.raises(FoveateError, match=f"wavelet {name!r}"):
            Wavelet(3, name)


def test_the_baseline_repeats_the_halved_image():
    images = torch.randn(2, 3, 8, 8)
    coarse, bands = Repeat(3, 5)(images)
    assert torch.equal(coarse, halved(images)) and bands.shape == (2, 5, 3, 4, 4)
    assert all(torch.equal(band, coarse) for band in bands.unbind(1))


def test_samplers_that_cannot_be_are_refused():
    with pytest.raises(FoveateError, match="(?s)sampler='fft'.*'lifting', 'dwt', 'original'"):
        sampler("fft", 3, 3, 3, "haar")
    for kind in ("lifting", "dwt"):
        with pytest.raises(FoveateError, match="(?s)4 IRET layers.*1 to 3"):
            sampler(kind, 3, 4, 3, "haar")
    for channels in (0, -3, 2.5, True, "3"):
        with pytest.raises(FoveateError, match=f"lifting_channels={channels!r}"):
            sampler("lifting", 3, 3, channels, "haar")
    assert sampler("original", 3, 4, 3, "haar").layers == 4
