"""Images with the tokens that were pruned greyed out, stage by stage (Fig. 6 of SPViT)."""

from collections.abc import Iterator
from html import escape

import numpy as np
from matplotlib.figure import Figure

from foveate.errors import FoveateError
from foveate.report.results import TokenGrid
from foveate.report.style import INK, as_rgb, image_tag, new_figure, styled

VEIL = np.array([150, 172, 201], dtype=float)
VEIL_STRENGTH = 0.84


def shade(image: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Veil the patches of `image` whose token is gone; kept pixels are untouched.

    image: uint8 [H, W] or [H, W, 3]; alive: bool [rows, columns] of any grid (H and W need not be multiples).
    Returns uint8 [H, W, 3]. A veiled pixel is its grey value faintly under a cold light grey, so that neither black
    backgrounds nor grey photographs can be mistaken for it.
    """
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    height, width = rgb.shape[:2]
    rows = np.arange(height) * alive.shape[0] // height
    columns = np.arange(width) * alive.shape[1] // width
    grey = rgb @ np.array([0.299, 0.587, 0.114])
    veiled = VEIL_STRENGTH * VEIL + (1 - VEIL_STRENGTH) * grey[..., None]
    return np.where(alive[rows][:, columns, None], rgb, veiled.round()).astype(np.uint8)


def checked(grid: TokenGrid) -> TokenGrid:
    """`grid` itself, or FoveateError where its masks, grids and images do not fit together."""
    count = len(grid.images)
    for stage, (kept, (rows, columns)) in enumerate(zip(grid.kept, grid.grids, strict=False), start=1):
        if np.shape(kept) != (count, rows * columns):
            raise FoveateError(
                given=f"kept patches of stage {stage} with shape {list(np.shape(kept))}",
                allowed=f"[{count}, {rows * columns}]: {count} images on a grid of {rows} x {columns}",
                do="pass trace.kept[stage] and the grid of that stage (hierarchical backbones change it)",
            )
    if not len(grid.kept) == len(grid.grids) == len(grid.stages):
        raise FoveateError(
            given=f"{len(grid.kept)} masks, {len(grid.grids)} grids and {len(grid.stages)} captions",
            allowed="one of each a stage",
            do="give kept, grids and stages the same length",
        )
    return grid


def strips(grid: TokenGrid) -> Iterator[list[tuple[np.ndarray, float | None, str]]]:
    """For each image its pictures as (RGB, share of patches kept or None for the input, caption)."""
    for index, image in enumerate(checked(grid).images):
        rgb = as_rgb(image)
        strip: list[tuple[np.ndarray, float | None, str]] = [(rgb, None, "input")]
        for kept, shape, stage in zip(grid.kept, grid.grids, grid.stages):
            alive = np.asarray(kept[index], dtype=bool).reshape(shape)
            strip.append((shade(rgb, alive), float(alive.mean()), stage))
        yield strip


def token_grid_html(grid: TokenGrid) -> str:
    """The grid as HTML: a strip an image, with the share of patches kept in the corner of each picture."""
    blocks = []
    for index, strip in enumerate(strips(grid)):
        label = grid.labels[index] if index < len(grid.labels) else f"image {index + 1}"
        cells = []
        for rgb, share, caption in strip:
            alt = f"{label}, {caption}" + ("" if share is None else f": {share:.0%} of the patches kept")
            badge = "" if share is None else f'<span class="badge">{share:.0%}</span>'
            cells.append(f'<div class="cell">{image_tag(rgb, alt)}{badge}<small>{escape(caption)}</small></div>')
        blocks.append(f'<div class="strip"><p>{escape(label)}</p><div class="cells">{"".join(cells)}</div></div>')
    return f'<div class="strips">{"".join(blocks)}</div>'


def token_grid_figure(grid: TokenGrid) -> Figure:
    """The same grid as one matplotlib figure, for a file of its own."""
    pictures = list(strips(grid))
    with styled():
        figure, axes = new_figure(1.5 * len(pictures[0]), 1.62 * len(pictures) + 0.5, len(pictures), len(pictures[0]))
        figure.suptitle(grid.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for row, strip in enumerate(pictures):
            for column, (rgb, share, caption) in enumerate(strip):
                axis = axes[row, column]
                axis.imshow(rgb, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if row == 0:
                    axis.set_title(caption, fontsize=9.5, fontweight="normal", loc="center")
                if share is not None:
                    axis.text(0.97, 0.96, f"{share:.0%}", transform=axis.transAxes, ha="right", va="top", fontsize=9,
                              color="white", bbox={"boxstyle": "round,pad=0.22", "facecolor": INK, "linewidth": 0})  # fmt: skip
            if row < len(grid.labels):
                axes[row, 0].set_ylabel(grid.labels[row], fontsize=9)
    return figure
