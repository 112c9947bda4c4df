"""Figures of training against validation, of pruned heads, and of gradients over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.plots import style

ACROSS = 3  # panels beside each other
LINES = {"train": ("#0072B2", "--", "training"), "valid": ("#D55E00", "-", "validation")}


def rows_of_panels(variants: int) -> int:
    """How many rows `train_and_valid` needs."""
    return -(-variants // ACROSS)


def train_and_valid(points: pd.DataFrame, order: Sequence[str], ax: Axes) -> Axes:
    """Training and validation loss of the same trials, a panel a variant in the place of `ax`: means over seeds at
    every evaluation, and their range as a band. `points` are those of `capacity.curve_points`."""
    ax.set_axis_off()
    grid = ax.get_subplotspec()
    assert grid is not None and ax.figure is not None
    across = min(ACROSS, max(1, len(order)))
    places = grid.subgridspec(rows_of_panels(len(order)), across)
    first = None
    for index, variant in enumerate(order):
        panel = ax.figure.add_subplot(places[index // across, index % across], sharex=first, sharey=first)
        panel.spines[["top", "right"]].set_visible(False)
        for split, (color, line, name) in LINES.items():
            mine = points[(points["variant"] == variant) & (points["split"] == split)]
            values = mine.groupby("tokens")["loss"].agg(["mean", "min", "max"])
            x = values.index.to_numpy(float)
            panel.plot(x, values["mean"], color=color, linestyle=line, lw=1.2, label=name)
            panel.fill_between(x, values["min"], values["max"], color=color, alpha=0.15, lw=0)
        panel.set_title(str(variant), fontsize=8)
        panel.set_xscale("log")
        panel.tick_params(labelsize=7)
        if first is None:
            first = panel
            panel.legend(fontsize=7, frameon=False)
        if index % across == 0:
            panel.set_ylabel("loss (nats/token)", fontsize=8)
        if index + across >= len(order):
            panel.set_xlabel("training tokens", fontsize=8)
    return ax


def pruning(curves: pd.DataFrame, order: Sequence[str], ax: Axes) -> Axes:
    """Validation loss against the share of heads removed, least important first: mean and range over seeds."""
    for index, variant in enumerate(order):
        mine = curves[curves["variant"] == variant].groupby("share")["loss"].agg(["mean", "min", "max"])
        look = style(index)
        ax.plot(mine.index, mine["mean"], **look, lw=1.2, ms=4, label=variant)
        ax.fill_between(mine.index.to_numpy(float), mine["min"], mine["max"], color=look["color"], alpha=0.15, lw=0)
    ax.set(xlabel="share of the heads removed", ylabel="validation loss (nats/token)")
    ax.legend(fontsize=7, frameon=False)
    return ax


def gradients_over_time(distances: pd.DataFrame, order: Sequence[str], ax: Axes) -> Axes:
    """The norm of the last loss's gradient against how far back the input is: geometric means over seeds, at the end
    of the training. Norms of 0 are not drawn."""
    seen = distances[(distances["at"] == "final") & (distances["distance"] > 0) & (distances["norm"] > 0)]
    for index, variant in enumerate(order):
        mine = seen[seen["variant"] == variant]
        norms = np.exp(np.log(mine["norm"].astype(float)).groupby(mine["distance"]).mean())
        ax.plot(norms.index, norms, **style(index), lw=1.2, ms=4, label=variant)
    ax.set(xscale="log", yscale="log", xlabel="tokens back from the loss", ylabel="gradient norm")
    ax.legend(fontsize=7, frameon=False)
    return ax
