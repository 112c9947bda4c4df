"""A figure as SVG, the same bytes for the same data."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

WIDTH_IN = 7.2


def svg(draw: Callable[[Any], Any], height_in: float = 3.8) -> bytes:
    """What `draw(ax)` draws."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasSVG(figure)
    ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    draw(ax)
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "ablate"}):  # else the ids in it are new each time
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
