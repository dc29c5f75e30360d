"""What each head of a selector finds informative, how early tokens resemble the final CLS, and matrices of likeness."""

from collections.abc import Iterator
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from foveate.errors import FoveateError
from foveate.report.results import Curve, HeadMaps, Matrix
from foveate.report.style import INK, MUTED, PAPER, as_rgb, image_tag, new_figure, styled

COLOUR_MAP = "viridis"
MOST_FIGURES = 16
"""Columns up to which a matrix has room for the figures on its cells."""


def overlay(image: np.ndarray, scores: np.ndarray, strength: float = 0.62) -> np.ndarray:
    """Lay a score map over the grey image.

    image: uint8 [H, W] or [H, W, 3]; scores: float [rows, columns] in [0, 1]; strength: share of the map in the mixture.
    Returns uint8 [H, W, 3]: dark violet = 0, yellow = 1.
    """
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    grey = (rgb @ np.array([0.299, 0.587, 0.114]))[..., None]
    height, width = rgb.shape[:2]
    rows, columns = np.arange(height) * scores.shape[0] // height, np.arange(width) * scores.shape[1] // width
    colours = 255 * matplotlib.colormaps[COLOUR_MAP](np.clip(scores, 0, 1))[rows][:, columns, :3]
    return ((1 - strength) * grey + strength * colours).round().astype(np.uint8)


def panels(maps: HeadMaps) -> Iterator[list[tuple[np.ndarray, str]]]:
    """For each image: the input, a map a head, the merged map, each as (RGB, caption)."""
    count, heads, slots = np.shape(maps.scores)
    if np.shape(maps.merged) != (count, slots) or len(maps.images) != count or maps.grid[0] * maps.grid[1] != slots:
        raise FoveateError(
            given=f"{len(maps.images)} images, scores {[count, heads, slots]}, merged {list(np.shape(maps.merged))}, grid {maps.grid}",
            allowed="scores [images, heads, patches], merged [images, patches] and rows x columns = patches",
            do="pass the selector's scores of these very images",
        )
    for image, scores, merged in zip(maps.images, maps.scores, maps.merged):
        rgb = as_rgb(image)
        shown = [(overlay(rgb, one.reshape(maps.grid)), f"head {i}") for i, one in enumerate(scores, start=1)]
        yield [(rgb, "input"), *shown, (overlay(rgb, merged.reshape(maps.grid)), "merged")]


def head_maps_html(maps: HeadMaps) -> str:
    """The maps as HTML, a strip an image."""
    blocks = []
    for index, strip in enumerate(panels(maps)):
        label = maps.labels[index] if index < len(maps.labels) else f"image {index + 1}"
        cells = "".join(
            f'<div class="cell">{image_tag(rgb, f"{label}, {caption}")}<small>{escape(caption)}</small></div>'
            for rgb, caption in strip
        )
        blocks.append(f'<div class="strip"><p>{escape(label)}</p><div class="cells">{cells}</div></div>')
    return f'<div class="strips">{"".join(blocks)}</div>'


def head_maps_figure(maps: HeadMaps) -> Figure:
    """The maps as one matplotlib figure with their colour scale, for a file of its own."""
    rows = list(panels(maps))
    with styled():
        figure, axes = new_figure(1.5 * len(rows[0]) + 0.8, 1.62 * len(rows) + 0.5, len(rows), len(rows[0]))
        figure.suptitle(maps.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for row, strip in enumerate(rows):
            for column, (rgb, caption) in enumerate(strip):
                axis = axes[row, column]
                axis.imshow(rgb, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if row == 0:
                    axis.set_title(caption, fontsize=9.5, fontweight="normal", loc="center")
            if row < len(maps.labels):
                axes[row, 0].set_ylabel(maps.labels[row], fontsize=9)
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), COLOUR_MAP)
        figure.colorbar(scale, ax=axes, shrink=0.8, pad=0.02, label="score: keep")
    return figure


def matrix_figure(matrix: Matrix) -> Figure:
    """The matrix as a heat map from 0 (dark violet) to 1 (yellow), with its figures on the cells where there is room."""
    rows, columns = matrix.values.shape
    with styled():
        figure, axes = new_figure(5.0, 0.75 + 4.1 * rows / columns)
        axis = axes[0, 0]
        axis.imshow(matrix.values, cmap=COLOUR_MAP, vmin=0, vmax=1, extent=(0.5, columns + 0.5, rows + 0.5, 0.5))
        for row, column in np.argwhere(np.isfinite(matrix.values)) if columns <= MOST_FIGURES else ():
            value = matrix.values[row, column]
            axis.text(column + 1, row + 1, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=8, color=PAPER if value < 0.6 else INK)
        axis.set(xlabel=matrix.column_label, ylabel=matrix.row_label, title=matrix.title)
        for side, count in ((axis.xaxis, columns), (axis.yaxis, rows)):
            side.set_ticks(range(1, count + 1, 1 if count <= MOST_FIGURES else 2))
        axis.grid(False)
        axis.spines[:].set_color(MUTED)
    return figure


def matrix_in_words(matrix: Matrix) -> str:
    """The matrix for those who do not see it: its range and where its largest value lies."""
    if not np.isfinite(matrix.values).any():
        return matrix.title
    row, column = np.unravel_index(np.nanargmax(matrix.values), matrix.values.shape)
    low, high = np.nanmin(matrix.values), np.nanmax(matrix.values)
    return f"{matrix.title}: {low:.2f} to {high:.2f}, the most at {matrix.row_label} {row + 1} and {matrix.column_label} {column + 1}"


def cka_curve(mean: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None) -> Curve:
    """CKA between each block's tokens and the final CLS token as a Curve; mean, low, high: float [blocks]."""
    blocks = np.arange(1, len(mean) + 1)
    caption = "Where the curve is low, tokens are not yet encoded well enough to be judged, and pruning there costs accuracy."
    return Curve("Tokens and the final CLS token", "block", "CKA", blocks, np.asarray(mean), low, high, caption)
