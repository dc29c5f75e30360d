"""report/tokens.py and report/heatmaps.py: which pixels are veiled, what stands in the corner, what a map looks like."""

from dataclasses import replace

import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.report.heatmaps import cka_curve, head_maps_figure, head_maps_html, overlay
from foveate.report.style import as_rgb
from foveate.report.tokens import VEIL, shade, strips, token_grid_figure, token_grid_html


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_kept_pixels_are_untouched_and_dropped_ones_veiled(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    alive = np.array([[True, False], [False, True]])
    out = shade(image, alive)
    for y in range(size[0]):
        for x in range(size[1]):
            if alive[y * 2 // size[0], x * 2 // size[1]]:
                assert (out[y, x] == image[y, x]).all()
            else:
                assert np.abs(out[y, x] - VEIL).max() < 50 and out[y, x, 2] > out[y, x, 0]


def test_a_veiled_pixel_is_told_from_any_grey_one():
    greys = np.arange(256, dtype=np.uint8).reshape(16, 16)
    out = shade(greys, np.zeros((1, 1), dtype=bool)).astype(int)
    assert (out[..., 2] - out[..., 0]).min() > 20


def test_every_picture_has_its_own_stage_grid_and_share(grid):
    shown = list(strips(grid))
    assert len(shown) == 3 and all(len(strip) == 3 for strip in shown)
    for index, strip in enumerate(shown):
        assert strip[0][1] is None
        assert strip[1][1] == pytest.approx(grid.kept[0][index].mean())
        assert strip[2][1] == pytest.approx(grid.kept[1][index].mean())
        changed = (strip[2][0] != strip[0][0]).any(-1)
        blocks = changed.reshape(2, changed.shape[0] // 2, 2, changed.shape[1] // 2).mean((1, 3)) > 0.5
        np.testing.assert_array_equal(blocks.ravel(), ~grid.kept[1][index])


def test_html_grid_has_alt_texts_and_badges(grid):
    html = token_grid_html(grid)
    assert html.count("<img") == 9 and html.count('class="badge"') == 6
    share = f"{grid.kept[0][1].mean():.0%}"
    assert f'alt="dog, after block 3: {share} of the patches kept"' in html
    assert "&lt;cow&gt;" in html and "<cow>" not in html


def test_figure_grid_shows_each_image_with_its_share(grid):
    figure = token_grid_figure(grid)
    pictures = [axis for axis in figure.axes if axis.images]
    assert len(pictures) == 9
    assert [axis.get_title() for axis in pictures[:3]] == ["input", *grid.stages]
    assert pictures[1].texts[0].get_text() == f"{grid.kept[0][0].mean():.0%}"
    assert pictures[3].get_ylabel() == "dog"


def test_masks_that_do_not_fit_are_refused(grid):
    with pytest.raises(FoveateError, match=r"\[3, 4\]"):
        token_grid_html(replace(grid, kept=(grid.kept[1], grid.kept[0])))
    with pytest.raises(FoveateError, match="2 masks, 2 grids and 1 captions"):
        token_grid_html(replace(grid, stages=("one",)))


def test_images_are_shown_large_enough_without_smoothing_and_photographs_smaller():
    small = as_rgb(np.arange(28 * 28).reshape(28, 28).astype(np.uint8))
    assert small.shape == (112, 112, 3) and (small[:4, :4] == small[0, 0]).all()
    assert as_rgb(np.zeros((224, 230, 3), np.uint8)).shape == (112, 115, 3)
    assert as_rgb(np.full((225, 225, 3), 7, np.uint8))[0, 0].tolist() == [7, 7, 7]


def test_overlay_runs_from_dark_to_bright():
    out = overlay(np.full((4, 4), 128, np.uint8), np.array([[0.0, 1.0], [0.5, 2.0]]))
    low, middle, high = out[0, 0].sum(), out[3, 0].sum(), out[0, 3].sum()
    assert low < middle < high and (out[3, 3] == out[0, 3]).all()


def test_head_maps_show_every_head_and_the_merged_one(results):
    html = head_maps_html(results.heads[0])
    assert html.count("<img") == 3 * 4
    assert 'alt="dog, head 2"' in html and 'alt="cow, merged"' in html
    figure = head_maps_figure(results.heads[0])
    assert [axis.get_title() for axis in figure.axes[:4]] == ["input", "head 1", "head 2", "merged"]
    assert figure.axes[-1].get_ylabel() == "score: keep"
    with pytest.raises(FoveateError, match="merged"):
        head_maps_html(replace(results.heads[0], grid=(3, 3)))


def test_cka_curve_counts_blocks_from_one():
    curve = cka_curve(np.array([0.2, 0.5, 1.0]))
    assert curve.x.tolist() == [1, 2, 3] and curve.y_label == "CKA" and curve.low is None
