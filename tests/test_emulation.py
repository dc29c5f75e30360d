"""Fixed-point emulation: the grid of every tensor, what is left of the logits, and what is refused."""

import pytest
import torch

import foveate as fv
import tiny
from foveate.emulation import emulate
from foveate.nn.fixed_point import fixed_point, fraction_bits


@pytest.mark.parametrize("largest, bits, fraction", [(1.0, 16, 14), (0.99, 16, 15), (0.9999999, 16, 14), (3.0, 8, 5), (100.0, 8, 0), (1000.0, 8, -3), (0.001, 8, 16), (0.0, 8, 7)])
def test_the_point_lies_as_far_left_as_the_largest_number_allows(largest, bits, fraction):
    assert fraction_bits(largest, bits) == fraction
    x = torch.tensor([largest, -largest], dtype=torch.float64)
    assert (fixed_point(x, fraction, bits) - x).abs().max() <= 2.0**-fraction / 2
    if largest:
        finer = fixed_point(x, fraction + 1, bits)
        assert (finer - x).abs().max() > 2.0 ** -(fraction + 1) / 2, "a finer grid would do"


def test_numbers_are_rounded_and_clipped():
    x = torch.tensor([0.3, -0.3, 0.375, 7.0, -9.0])
    assert fixed_point(x, 2, 4).tolist() == [0.25, -0.25, 0.5, 1.75, -2.0]


@pytest.mark.parametrize("plan", ["dense", "spvit(after=[1,3], keep=[0.7,0.4], select=argmax)", "vitality()"])
def test_sixteen_bits_change_little_and_six_bits_much(plan):
    fast, images = tiny.adapted(fv.Plan.parse(plan)), tiny.images(count=4)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        error = lambda bits: (emulate(fast, images, bits).traced(images, decisions=trace)[0] - logits).abs().max() / logits.abs().max()
        assert 0 < error(16) < 2e-3 < error(6)
        assert torch.equal(fast(images), logits), "the given model must stay as it is"


def test_every_weight_and_layer_output_lies_on_its_grid():
    twin, images = emulate(tiny.adapted(fv.Plan([])), tiny.images(), 8), tiny.images()
    for parameter in twin.parameters():
        steps = parameter.detach().double() * 2.0 ** fraction_bits(float(parameter.detach().abs().max()), 8)
        assert torch.equal(steps, steps.round()) and len(parameter.unique()) <= 256
    seen = []
    for layer in (twin.blocks[0].norm1, twin.blocks[0].attn.qkv, twin.blocks[1].mlp.act):
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
    twin(images)
    assert len(seen) == 3 and all(len(out.unique()) <= 256 for out in seen)


@pytest.mark.parametrize("bits", [3, 25, 8.0, True])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(fv.FoveateError, match="(?s)given:.*bits.*allowed: 4 to 24.*do:"):
        emulate(tiny.adapted(fv.Plan([])), tiny.images(), bits)


def test_no_images_are_refused():
    with pytest.raises(fv.FoveateError, match="no images"):
        emulate(tiny.adapted(fv.Plan([])), tiny.images()[:0])
