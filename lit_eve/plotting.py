"""The look of all figures, and a way to make one without touching matplotlib's global state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that people who see red and green alike can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#00805E", "#C0392B"
CATEGORIES = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#8C6D1F", "#5B4B8A")
INK, SOFT, FAINT = "#222222", "#7A7A7A", "#C9C9C9"

STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "text.color": INK,
}


def shades(count: int) -> np.ndarray:
    """(count, 4) colours of lines that have an order, from dark to light."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.85, count))


def colours(count: int) -> Sequence[object]:
    """Colours of lines that have no order: ``CATEGORIES``, or shades where these are too few."""
    return CATEGORIES[:count] if count <= len(CATEGORIES) else shades(count)


@contextmanager
def drawing(rows: int, columns: int, size: tuple[float, float], **kwargs: object) -> Iterator[tuple[Figure, np.ndarray]]:
    """A new figure of so many inches, and its axes (rows, columns), in the look of all figures until the block ends."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        picture = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasAgg(picture)
        yield picture, picture.subplots(rows, columns, squeeze=False, **kwargs)


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float], **kwargs: object) -> Iterator[np.ndarray]:
    """Axes (rows, columns) of a new figure, saved to ``path`` at the end."""
    with drawing(rows, columns, size, **kwargs) as (picture, axes):
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=150)
