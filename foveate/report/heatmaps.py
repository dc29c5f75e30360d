"""What each head of a selector finds informative (Fig. 3 of SPViT) and how early tokens resemble the final CLS (Fig. 4)."""

from collections.abc import Iterator
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from foveate.errors import FoveateError
from foveate.report.results import Curve, HeadMaps
from foveate.report.style import as_rgb, image_tag, new_figure, styled

COLOUR_MAP = "viridis"


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


def cka_curve(mean: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None) -> Curve:
    """CKA between each block's tokens and the final CLS token as a Curve; mean, low, high: float [blocks]."""
    blocks = np.arange(1, len(mean) + 1)
    caption = "Where the curve is low, tokens are not yet encoded well enough to be judged, and pruning there costs accuracy."
    return Curve("Tokens and the final CLS token", "block", "CKA", blocks, np.asarray(mean), low, high, caption)
