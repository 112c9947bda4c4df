"""Tables as papers print them: builders from tidy frames, and one layout as HTML, Markdown, LaTeX, CSV or a frame."""

from analysis.layouts.configuration import settings, whole_orders
from analysis.layouts.layout import COUNT, MARKS, Column, Layout, LayoutError, frame, words
from analysis.layouts.lengths import BOUNDS, complexity, layer_costs
from analysis.layouts.pages import bundle, csv, html, markdown, write_bundle
from analysis.layouts.papers import by_cell, narang, ordering, position, vaswani3
from analysis.layouts.scales import isoflop, laws, optima, scaling
from analysis.layouts.tex import document, latex

__all__ = [
    "BOUNDS", "COUNT", "MARKS", "Column", "Layout", "LayoutError",
    "bundle", "by_cell", "complexity", "csv", "document", "frame", "html", "isoflop", "latex", "laws", "layer_costs",
    "markdown", "narang", "optima", "ordering", "position", "scaling", "settings", "vaswani3", "whole_orders",
    "words", "write_bundle",
]  # fmt: skip
