"""What `foveate inspect` computes, on a tiny model."""

import numpy as np
import pytest
import timm
import torch

import foveate as fv
from foveate.insight import cls_cka, head_maps, inspect, pixels_of, token_counts, token_grid
from foveate.train.data import load_data

PLAN = fv.Plan([fv.SPViT(after=(1, 2), keep=(0.6, 0.3), select="argmax")])


@pytest.fixture(scope="module")
def data():
    return load_data("fashion-mnist-subset", "test")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)  # of these random selectors each stage keeps some patches and drops some
    base = timm.create_model("vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=24, depth=3, num_heads=3, num_classes=10)
    fast = fv.adapt(base.eval(), PLAN)
    for parameter in fast.spvit.parameters():
        torch.nn.init.normal_(parameter)
    return fast


def test_grid_and_counts_are_those_of_the_trace(model, data):
    images = data.batch(range(5)).images
    _, trace = model.traced(images)
    pixels = pixels_of(data, images)
    grid, counts = token_grid(model, trace, pixels, "kept"), token_counts(model, trace, "plan")
    assert pixels.dtype == np.uint8 and pixels.shape == (5, 28, 28, 3)
    assert grid.grids == ((4, 4), (4, 4)) and grid.stages == ("after block 1", "after block 2")
    for stage in range(2):
        assert (counts.kept[stage] == trace.kept[stage].sum(1)).all() and counts.total[stage] == 16
    # normalising the pixels again gives the model's input back, to half a grey level
    assert (data.preprocessing.pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2)) - images).abs().max() < 0.51 / 255 / 0.353


def test_merged_head_scores_decide_what_is_kept(model, data):
    images = data.batch(range(6)).images
    _, trace = model.traced(images)
    first = head_maps(model, images, pixels_of(data, images))
    assert first.scores.shape == (6, 3, 16) and first.merged.shape == (6, 16)
    assert ((first.merged >= 0.5) == trace.kept[0]).mean() > 0.98
    second = head_maps(model, images, pixels_of(data, images), stage=2)
    assert (second.merged[~trace.kept[0]] == 0).all()


def test_cls_cka_ends_high_and_has_a_point_a_block(model, data):
    curve = cls_cka(model, data.batch(range(48)).images)
    assert len(curve.y) == 3 and (curve.low <= curve.high).all()
    assert ((0 <= curve.y) & (curve.y <= 1)).all() and "48 images" in curve.caption


@pytest.mark.parametrize("what", ["tokens", "heads", "cls-cka", "attention", "cka"])
def test_inspect_writes_a_report(what, model, data, tmp_path):
    page = inspect(what, model, data, tmp_path, count=16 if "cka" in what else 4).read_text()
    assert ("<img" in page or "<svg" in page) and "src=\"http" not in page and "href=\"http" not in page
    assert (tmp_path / "results.json").is_file()


def test_what_cannot_be_shown_is_refused(model, data, tmp_path):
    dense = fv.adapt(fv.restore(model), fv.Plan())
    images = data.batch(range(2)).images
    with pytest.raises(fv.FoveateError, match="plans with spvit"):
        head_maps(dense, images, pixels_of(data, images))
    with pytest.raises(fv.FoveateError, match="stages 1...2"):
        head_maps(model, images, pixels_of(data, images), stage=3)
    with pytest.raises(fv.FoveateError, match="plans that prune tokens"):
        inspect("tokens", dense, data, tmp_path)
    with pytest.raises(fv.FoveateError, match="tokens, heads, cls-cka"):
        inspect("nothing", model, data, tmp_path)
    headless = timm.create_model("vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=24, depth=2, num_heads=3, num_classes=10,
                                 class_token=False, global_pool="avg")
    with pytest.raises(fv.FoveateError, match="no class token"):
        cls_cka(fv.adapt(headless, fv.Plan()), images)


def test_replan_keeps_weights_and_changes_the_decisions(model, data):
    topk = fv.replan(model, fv.Plan([fv.SPViT(after=(1, 2), keep=(0.6, 0.3))]))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), topk.state_dict().values(), strict=True))
    _, trace = topk.traced(data.batch(range(3)).images)
    assert trace.tokens == [[12] * 3, [8] * 3]
