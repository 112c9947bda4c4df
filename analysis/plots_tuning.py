"""Figures of sweeps: loss against the setting, and what a tuning budget buys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.plots import style
from analysis.tuning import TUNE, expected_best, optimum


def sweep_curves(table: pd.DataFrame, path: str, ax: Axes) -> Axes:
    """Mean validation loss of every variant's sweep against one setting, with its range over seeds, a line at what
    was chosen, and its interval; crosses at the top are values at which a trial diverged."""
    swept = table[table["stage"] == TUNE]
    for index, (variant, part) in enumerate(swept.groupby("variant", sort=False, observed=True)):
        look: dict[str, Any] = style(index)
        loss = part["loss"].where(part["status"] == "finished").astype(float)
        rows = part.assign(loss=loss).groupby(path)["loss"].agg(["mean", "min", "max"])
        ax.plot(rows.index, rows["mean"], **look, ms=4, lw=1, label=str(variant))
        ax.vlines(rows.index, rows["min"], rows["max"], color=look["color"], lw=1)
        bad = part.loc[loss.isna(), path].unique()
        ax.plot(bad, np.full(len(bad), 0.98), "x", color=look["color"], transform=ax.get_xaxis_transform())
        found = optimum(part[path].to_numpy(float), loss.fillna(np.inf).to_numpy(float))
        if found is not None:
            ax.axvline(found.value, color=look["color"], ls=look["linestyle"], lw=0.8)
            if np.isfinite([found.lo, found.hi]).all() and found.lo > 0:
                ax.axvspan(found.lo, found.hi, color=look["color"], alpha=0.08, lw=0)
    ax.set(xscale="log", xlabel=path, ylabel="validation loss (nats/token)")
    return _legend(ax)


def tuning_curves(table: pd.DataFrame, ax: Axes) -> Axes:
    """The expected best validation loss of k trials of each variant's sweep, and 80 % of what that best may be."""
    swept = table[table["stage"] == TUNE]
    for index, (variant, part) in enumerate(swept.groupby("variant", sort=False, observed=True)):
        look: dict[str, Any] = style(index)
        losses = part["loss"].where(part["status"] == "finished").astype(float).fillna(np.inf)
        curve = expected_best(losses.to_numpy())
        ax.plot(curve["k"], curve["mean"], **look, ms=4, lw=1, label=str(variant))
        ax.fill_between(curve["k"], curve["lo"], curve["hi"], color=look["color"], alpha=0.12, lw=0)
    ax.set(xlabel="tuning trials", ylabel="expected best validation loss")
    return _legend(ax)


def _legend(ax: Axes) -> Axes:
    """Right of the axes, in columns of at most sixteen."""
    handles, labels = ax.get_legend_handles_labels()
    columns = 1 + (len(handles) - 1) // 16
    ax.legend(handles, labels, fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=columns)
    return ax
