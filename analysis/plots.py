"""Figures: one function each, `(data, ax) -> ax`. Readable in print and by colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.columns import CELL

# Okabe and Ito 2008, "Color Universal Design"; the markers tell the same story without colour
COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#B0A000")
MARKERS = "osD^vPX*"
GREY = "#8a8a8a"
NAMES = {"loss": "loss (nats/token)", "bits_per_byte": "bits per byte"}  # of metrics, on an axis; others as they are


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th variant."""
    line = ("-", "--", ":", "-.")[index // len(COLORS) % 4]
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "linestyle": line}


def loss_against_compute(
    table: pd.DataFrame, fits: pd.DataFrame, ax: Axes, measure: str = "loss", unigram: float | None = None
) -> Axes:
    """Final loss of every trial, the column `measure`, against its training FLOPs, and each variant's fitted law."""
    variants = list(dict.fromkeys(table["variant"]))
    for index, variant in enumerate(variants):
        part = table[table["variant"] == variant]
        look = style(index)
        ax.plot(
            part["train_flops"],
            part[measure],
            **{**look, "linestyle": "none"},
            ms=4,
            alpha=0.75,
            label=variant,
        )
        mine = fits[fits["variant"] == variant] if len(fits) else fits
        for law in mine["law"] if len(mine) else ():
            if law is not None:
                x = np.geomspace(part["train_flops"].min(), part["train_flops"].max(), 100)
                ax.plot(x, law.predict(x), color=look["color"], linestyle=look["linestyle"], lw=1)
    if unigram is not None and len(table) and unigram < 1.3 * table["loss"].max():
        ax.axhline(unigram, color=GREY, lw=0.8, ls=":")
        ax.annotate("unigram entropy", (0.99, unigram), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                    fontsize=7, color=GREY)  # fmt: skip
    ax.set(xscale="log", xlabel="training FLOPs", ylabel=f"final {NAMES[measure]}")
    _legend(ax)
    return ax


def differences(cells: pd.DataFrame, ax: Axes) -> Axes:
    """Paired difference of one metric from the baseline with its interval, a row for each variant and cell.

    Filled where the verdict is better or worse, hollow and grey where it is not.
    """
    shown = cells[cells["diff"].notna()].iloc[::-1].reset_index(drop=True)
    for y, row in shown.iterrows():
        sure = row["verdict"] in ("better", "worse")
        color = {"better": "#0072B2", "worse": "#D55E00"}.get(str(row["verdict"]), GREY)
        if np.isfinite(row["lo"]):
            ax.plot([row["lo"], row["hi"]], [y, y], color=color, lw=1.5)
        ax.plot(row["diff"], y, "o", color=color, mfc=color if sure else "white", ms=5)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(shown)), [_row_label(row) for _, row in shown.iterrows()], fontsize=7)
    ax.set_ylim(-0.6, len(shown) - 0.4)
    _limit_to_points(ax, shown)
    metric, side = cells["metric"].iloc[0], {"lower": "left", "higher": "right"}[cells["better"].iloc[0]]
    ax.set_xlabel(f"difference of {NAMES.get(metric, metric)} from the baseline, 95 % interval; {side} is better")
    return ax


def _limit_to_points(ax: Axes, shown: pd.DataFrame) -> None:
    """With two seeds an interval can be a hundred times the effect: keep the points in view, let whiskers run out."""
    values = shown[["diff", "lo", "hi"]].to_numpy(dtype=float)
    points, ends = np.abs(values[:, 0]), np.abs(values[np.isfinite(values)])
    if len(points):
        reach = max(min(4 * points.max(), 1.05 * ends.max()), 1e-4)
        ax.set_xlim(-reach, reach)


def learning_curves(curves: pd.DataFrame, order: Sequence[str], ax: Axes) -> Axes:
    """Validation loss against tokens: the mean over seeds, and their range as a band."""
    valid = curves[(curves["split"] == "valid") & (curves["tokens"] > 0)]
    for index, variant in enumerate(order):
        part = valid[valid["variant"] == variant].groupby("tokens")["loss"].agg(["mean", "min", "max"])
        look = style(index)
        ax.plot(part.index, part["mean"], color=look["color"], linestyle=look["linestyle"], lw=1.2, label=variant)
        ax.fill_between(part.index.to_numpy(float), part["min"], part["max"], color=look["color"], alpha=0.15, lw=0)
    ax.set(xscale="log", xlabel="training tokens", ylabel="validation loss (nats/token)")
    _legend(ax)
    return ax


def _legend(ax: Axes) -> None:
    """All variants, in columns of at most sixteen: a longer one would be taller than the figure."""
    ax.legend(fontsize=7, frameon=False, ncol=1 + (len(ax.get_legend_handles_labels()[1]) - 1) // 16)


def _row_label(row: pd.Series) -> str:
    cell = ", ".join(str(row[name]) for name in CELL if row[name] and row[name] != "base")
    return f"{row['variant']}  ({cell})" if cell else str(row["variant"])
