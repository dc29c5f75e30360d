"""One look for every figure: colour-blind safe colours, one colour and marker a plan, and figures as text for a page."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from foveate.report.results import Row

INK, MUTED, HAIRLINE, PAPER = "#1c2733", "#5a6775", "#d7dde4", "#ffffff"
BASELINE_COLOUR = "#5a6775"
# Okabe and Ito's palette without the two that are too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b07a00", "#3aa0d8", "#882255", "#44aa99")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 10.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # letters stay letters: searchable, and read out by a screen reader
    "svg.hashsalt": "foveate",  # the same results give the same bytes
}


def styled():
    """Context in which figures have the look of this report."""
    return matplotlib.rc_context(SETTINGS)


def looks(rows: Iterable[Row]) -> dict[str, tuple[str, str]]:
    """Plan -> (colour, marker), the same in the table and in every figure; baselines are grey."""
    rows = list(rows)
    baselines = {row.plan for row in rows if row.is_baseline}
    others = list(dict.fromkeys(row.plan for row in rows if row.plan not in baselines))
    found = dict.fromkeys(baselines, (BASELINE_COLOUR, "o"))
    for index, plan in enumerate(others):
        found[plan] = (COLOURS[index % len(COLOURS)], MARKERS[(index + 1) % len(MARKERS)])
    return found


def new_figure(width_in: float, height_in: float, rows: int = 1, columns: int = 1, **settings) -> tuple[Figure, np.ndarray]:
    """A figure outside pyplot's global list with its axes as an array [rows, columns]."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)  # measures texts for the layout
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def to_svg(figure: Figure, alt: str) -> str:
    """The figure as an inline <svg> with `alt` as its text for those who do not see it.

    Namespaces, document type and metadata are left out: HTML needs none of them, and they are the only addresses in the file.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")  # Verdana has nearly the same widths
    view = re.search(r'viewBox="([^"]+)"', text).group(1)
    inside = text[text.index(">", text.index("<svg")) + 1 :]
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(alt, quote=True)}">{inside.strip()}'


def to_png(image: np.ndarray) -> bytes:
    """A uint8 image [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(image), format="png")
    return buffer.getvalue()


def image_tag(image: np.ndarray, alt: str) -> str:
    """A uint8 image [H, W, 3] as an <img> that carries its data."""
    data = base64.b64encode(to_png(image)).decode()
    height, width = image.shape[:2]
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt, quote=True)}">'


def as_rgb(image: np.ndarray, side: int = 112) -> np.ndarray:
    """An image [H, W] or [H, W, 3] as RGB with a shorter side of about `side` pixels: whole pixels repeated or averaged."""
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    short = min(rgb.shape[:2])
    if short < side:
        factor = max(1, round(side / short))
        return rgb.repeat(factor, axis=0).repeat(factor, axis=1)
    factor = max(1, short // side)
    height, width = (size - size % factor for size in rgb.shape[:2])
    blocks = rgb[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def as_list(words: Sequence[str]) -> str:
    """"a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
