"""Matplotlib figures as inline SVG whose colours the page decides, so that one drawing is right in light and dark."""

from __future__ import annotations

import io
import re
from typing import Any

# Drawn with, and replaced by the page's custom properties: colours that nothing else uses.
INK, GRID = "#010203", "#040506"
SERIES = tuple(f"#0708{place:02x}" for place in range(8))
_PROPERTIES = {INK: "--ink", GRID: "--grid"} | {color: f"--series-{place}" for place, color in enumerate(SERIES)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def figure_style(name: str) -> Any:
    """What to draw and save with; `name` keeps ids of several drawings apart."""
    return _STYLE | {"svg.hashsalt": name}


def new_figure(style: Any, height: float) -> Any:
    """Without axes; `height` in inches, of a width of 7.2."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(style):
        return Figure(figsize=(7.2, height), layout="constrained")


def to_inline_svg(figure: Any, style: Any, name: str, description: str) -> str:
    """An `svg` element to put into a page, with a text alternative."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(style):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    # Style attributes may hold custom properties; the font is the page's.
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", drawing)
    for color, custom in _PROPERTIES.items():
        drawing = drawing.replace(color, f"var({custom})")
    return drawing.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
