"""The CKA matrix: against features taken by hand, on every family, and its two estimators against one another."""

import numpy as np
import pytest
import timm
import torch
from naive import cka as naive
from torch import nn

import foveate as fv
import tiny
from foveate.redundancy import cka_matrix


def branches(model: nn.Module, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """What a tiny DeiT with LayerScale computes in each block, branch by branch and sum by sum."""
    x, seen = model._pos_embed(model.patch_embed(images)), []
    for block in model.blocks:
        attention = block.ls1(block.attn(block.norm1(x)))
        middle = x + attention
        mlp = block.ls2(block.mlp(block.norm2(middle)))
        x = middle + mlp
        seen.append({"attention": attention, "mlp": mlp, "attention sum": middle, "mlp sum": x})
    return seen


@pytest.fixture(scope="module")
def deit():
    model, images = tiny.model("deit3"), tiny.images("deit3", 6)
    with torch.no_grad():
        return model, images, branches(model, images)


@pytest.mark.parametrize("residual, suffix", [("before", ""), ("after", " sum")])
@pytest.mark.parametrize("features", ["tokens", "mean"])
def test_every_pair_equals_the_definition(deit, features, residual, suffix):
    model, images, seen = deit
    matrix = cka_matrix(model, images, features, residual)
    assert matrix.shape == (4, 4) and np.isnan(matrix[np.tril_indices(4)]).all()
    flat = lambda t: (t.mean(1) if features == "mean" else t).flatten(1).double()
    for i in range(4):
        for j in range(i + 1, 4):
            expected = naive.cka(flat(seen[i][f"mlp{suffix}"]), flat(seen[j][f"attention{suffix}"]))
            assert matrix[i, j] == pytest.approx(float(expected), abs=1e-5)


def test_the_minibatch_estimate_equals_its_definition(deit):
    model, images, _ = deit
    batches = [images, tiny.images("deit3", 5, seed=2), tiny.images("deit3", 7, seed=3)]
    matrix = cka_matrix(model, batches, estimator="minibatch")
    with torch.no_grad():
        seen = [branches(model, batch) for batch in batches]
    for i, j in ((0, 1), (1, 3)):
        pairs = [(s[i]["mlp"].flatten(1).double(), s[j]["attention"].flatten(1).double()) for s in seen]
        assert matrix[i, j] == pytest.approx(float(naive.minibatch_cka(pairs)), abs=1e-5)


def test_the_exact_matrix_does_not_depend_on_how_the_images_come(deit):
    model, images, _ = deit
    whole = cka_matrix(model, images)
    np.testing.assert_allclose(cka_matrix(model, images.split(4)), whole, atol=1e-6, equal_nan=True)
    np.testing.assert_allclose(cka_matrix(model, (batch for batch in images.split(5))), whole, atol=1e-6, equal_nan=True)


def test_the_unbiased_estimate_of_many_images_nears_the_exact_value():
    """Few features, so that both are nearly without bias at 512 images."""
    model, images = tiny.model(), tiny.images(count=512)
    exact = cka_matrix(model, images.split(128), "mean")
    batched = cka_matrix(model, images.split(64), "mean", estimator="minibatch")
    later = np.triu_indices(4, 1)
    assert np.abs(exact - batched)[later].max() < 0.03
    assert np.ptp(exact[later]) > 0.1, "all pairs are equally alike: this test shows nothing"


@pytest.mark.parametrize("key", tiny.MODELS)
def test_every_family_has_a_matrix(key):
    model, images = tiny.model(key), tiny.images(key, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for residual in ("before", "after"):
        matrix = cka_matrix(model, images, residual=residual)
        depth = fv.adapt(model, fv.Plan()).card.depth
        later = matrix[np.triu_indices(depth, 1)]
        assert matrix.shape == (depth, depth) and (later > 0).all() and (later <= 1 + 1e-9).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_adapted_model_is_looked_at_without_its_plan():
    plan = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))])
    images = tiny.images(count=5)
    np.testing.assert_array_equal(cka_matrix(tiny.adapted(plan).train(), images), cka_matrix(tiny.model(), images))


def test_what_makes_no_matrix_is_refused():
    model, images = tiny.model(), tiny.images(count=5)
    for name, value in (("features", "cls"), ("residual", "between"), ("estimator", "fast")):
        with pytest.raises(fv.FoveateError, match=f"{name}='{value}'"):
            cka_matrix(model, images, **{name: value})
    with pytest.raises(fv.FoveateError, match="(?s)3 images.*4 to 2,048"):
        cka_matrix(model, images[:3])
    with pytest.raises(fv.FoveateError, match="batch of 1"):
        cka_matrix(model, images.split(4), estimator="minibatch")
    with pytest.raises(fv.FoveateError, match="no images"):
        cka_matrix(model, [], estimator="minibatch")
    with pytest.raises(fv.FoveateError, match="not finite"):
        cka_matrix(model, torch.full_like(images, float("nan")))
    with torch.device("meta"):
        parallel = timm.create_model("vit_small_patch16_18x2_224", **tiny.VIT)
    with pytest.raises(fv.FoveateError, match="blocks.0"):
        cka_matrix(parallel, images)
