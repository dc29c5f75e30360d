"""Structure pruning: linears that read the features with the largest weights, in both forms, and give themselves back whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foveate as fv
import tiny
from foveate.methods.base import kept_count
from foveate.methods.structure.layers import NarrowLinear

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def narrowed(model) -> dict[str, NarrowLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, NarrowLinear)}


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("inputs", [1, 7, 24])
def test_a_narrow_linear_reads_the_strongest_columns(keep, inputs):
    linear, x = nn.Linear(inputs, 5), torch.randn(2, 3, inputs)
    narrow = NarrowLinear(linear, keep).eval()
    norms = [linear.weight[:, i].square().sum().item() for i in range(inputs)]
    best = sorted(sorted(range(inputs), key=norms.__getitem__)[-kept_count(keep, inputs):])
    assert narrow.kept.tolist() == best
    expected = sum(x[..., i : i + 1] * linear.weight[:, i] for i in best) + linear.bias
    torch.testing.assert_close(narrow(x), expected)
    torch.testing.assert_close(narrow.train()(x), expected)


def test_no_bias_no_bias():
    linear = nn.Linear(6, 5, bias=False)
    assert NarrowLinear(linear, 0.5).bias is None and NarrowLinear(linear, 0.5).whole().bias is None


def test_every_linear_of_the_chosen_blocks_is_narrow():
    assert set(narrowed(tiny.adapted(fv.Plan([fv.Structure(keep=0.5)])))) == {f"blocks.{b}.{n}" for b in range(4) for n in LINEARS}
    assert set(narrowed(tiny.adapted(fv.Plan([fv.Structure(keep=0.5, blocks=(2, 4))])))) == {f"blocks.{b}.{n}" for b in (1, 3) for n in LINEARS}
    for key in ("lvvit", "pit", "swin"):
        assert len(narrowed(tiny.adapted(fv.Plan([fv.Structure(keep=0.5)]), key))) == 4 * tiny.adapted(fv.Plan(), key).card.depth


def test_the_model_is_the_dense_one_with_columns_of_zeros():
    fast, images, base = tiny.adapted(fv.Plan([fv.Structure(keep=0.6)])), tiny.images(), tiny.model()
    with torch.no_grad():
        for name, narrow in narrowed(fast).items():
            weight = base.get_submodule(name).weight
            mask = torch.zeros(weight.shape[1]).index_fill(0, narrow.kept, 1.0)
            weight.mul_(mask)
        torch.testing.assert_close(fast(images), base(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(fast.train()(images), base(images), rtol=0, atol=1e-5)


def test_keeping_all_changes_nothing():
    fast, images = tiny.adapted(fv.Plan([fv.Structure(keep=1.0)])), tiny.images()
    torch.testing.assert_close(fast(images), tiny.model()(images), rtol=0, atol=1e-6)


def test_weights_left_out_get_no_gradient():
    fast = tiny.adapted(fv.Plan([fv.Structure(keep=0.5)])).train()
    F.cross_entropy(fast(tiny.images()), torch.arange(3)).backward()
    for narrow in narrowed(fast).values():
        out = torch.ones(narrow.in_features, dtype=torch.bool).index_fill(0, narrow.kept, False)
        assert (narrow.weight.grad[:, out] == 0).all() and (narrow.weight.grad[:, ~out] != 0).any()


def test_a_whole_linear_comes_back_with_its_present_weights():
    linear = nn.Linear(6, 5)
    narrow = NarrowLinear(linear, 0.5)
    with torch.no_grad():
        narrow.weight.mul_(2)
    whole = narrow.whole()
    assert type(whole) is nn.Linear and whole.weight is linear.weight and whole.bias is linear.bias
    assert list(whole.state_dict()) == ["weight", "bias"] and whole.training == narrow.training


def test_kept_features_are_saved_and_not_chosen_again(tmp_path):
    """Loading must repeat the choice of the saved model, not choose by the trained weights."""
    fast, images = tiny.adapted(fv.Plan([fv.Structure(keep=0.5)])), tiny.images()
    with torch.no_grad():
        for narrow in narrowed(fast).values():
            narrow.weight.mul_(torch.rand(narrow.in_features) * 10)
    back = fv.load(fv.save(fast, tmp_path))
    assert all(torch.equal(m.kept, narrowed(back)[n].kept) for n, m in narrowed(fast).items())
    with torch.no_grad():
        assert torch.equal(back(images), fast(images))
