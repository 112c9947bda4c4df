"""Stability as a result: divergence, loss spikes, the tail of the gradient norm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.columns import CELL
from analysis.effects import LEVEL
from analysis.table import require, trial_rows

Array = np.ndarray
ENDED = ("finished", "diverged", "failed", "stopped")
WINDOW, CHANGES = 5, 15  # rows of a running median, and changes between rows that its deviation is of
LEAST = 4  # rows, before which there is no median
DEVIATIONS = 6.0  # robust standard deviations that a spike lies above it: see `spikes`
SHARE = 0.01  # of the running median: less is no spike, however even the rows before
SIGMA = 1.4826  # of the median absolute deviation, to be the standard deviation where values are normal
WARM_UP = 0.1  # of the steps, where rows do not say the learning rate
MAXIMA = ("loss_max", "grad_norm_max")  # over the steps of a row
CURVE = ("trial_id", "split", "step", "tokens", "loss", "grad_norm", "lr", *MAXIMA)


@dataclass(frozen=True)
class Spikes:
    """`count`; `largest`: the loss of the highest above the running median before it, in the loss's units, 0 where
    there is none; `recovered`: how many of them came back."""

    count: int
    largest: float
    recovered: int


def training_rows(results: Path, trials: Iterable[str]) -> pd.DataFrame:
    """Every row of the metrics of some trials, by their ids: trial_id, split, step, tokens, loss, grad_norm, lr, and
    loss_max, grad_norm_max, the largest of a step since the row before, missing where a record has none."""
    rows = [{"trial_id": trial} | row for trial in trials for row in trial_rows(results, trial)]
    table = pd.DataFrame(rows, columns=list(CURVE))
    numbers = [name for name in CURVE if name not in ("trial_id", "split")]
    return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})


def stability(table: pd.DataFrame, rows: pd.DataFrame | None = None, level: float = LEVEL) -> pd.DataFrame:
    """Every variant in every cell (stage, size, axes, budget): how its trials ended, and how smoothly they trained.

    `ended` counts the trials that ended, and of these finished, diverged, failed (by the machine or a mistake, which
    is no divergence) and stopped: all stay in the denominator. `rate` = diverged / ended, [lo, hi] Wilson's interval
    (Wilson 1927, JASA 22). `not_finished` = 1 - finished / ended.

    From `rows` (`training_rows`), over the trials that have some: `curves`, how many; `spikes`, how many a trial,
    `spiked`, the share of trials with any, `largest_spike` and `recovered`, the share of spikes that came back, as
    `spikes` defines them; `grad_tail` and `grad_p99`, the medians over trials of the largest gradient norm and of its
    99th percentile over its median, as `gradient_tail` does. Missing where no trial has rows.

    Spikes are sought in loss_max and `grad_tail` is of grad_norm_max, in which a spike of one step shows however many
    steps a row has. Where one trial's rows lack them all are measured by loss and grad_norm, means over the steps of
    a row, so that variants are measured alike.

    Raises `AnalysisError` without the columns of the table of trials.
    """
    require(table, ("trial_id", "variant", "status", *CELL))
    by_trial = {} if rows is None else _training(rows[rows["trial_id"].isin(table["trial_id"])])
    found = []
    for (*cell, variant), part in table.groupby([*CELL, "variant"], sort=False, dropna=False, observed=True):
        counts = {name: int((part["status"] == name).sum()) for name in ENDED}
        ended = sum(counts.values())
        lo, hi = _wilson(counts["diverged"], ended, level)
        rates = {"rate": counts["diverged"] / ended, "lo": lo, "hi": hi} if ended else {}
        rates |= {"not_finished": 1 - counts["finished"] / ended} if ended else {}
        labels = dict(zip(CELL, map(str, cell), strict=True)) | {"variant": str(variant), "trials": len(part)}
        mine = [by_trial[trial] for trial in part["trial_id"] if trial in by_trial]
        found.append(labels | {"ended": ended} | counts | rates | _smoothness(mine))
    first = (*CELL, "variant", "trials", "ended", *ENDED, "rate", "lo", "hi", "not_finished", "curves", "spikes")
    return pd.DataFrame(found, columns=[*first, "spiked", "largest_spike", "recovered", "grad_tail", "grad_p99"])


def spikes(loss: Any, window: int = WINDOW, deviations: float = DEVIATIONS, share: float = SHARE) -> Spikes:
    """Spikes of a training loss, in order of steps.

    A row is above where loss > m + max(k s, `share` |m|): m is the median of the last `window` rows that were not
    above (4 at least), s = 1.4826 times the median absolute deviation of the last 15 changes between such rows, k =
    `deviations`. A spike is a run of rows above; it has recovered where a later row is not. While it lasts m and s
    stay as they were, so that a loss that jumps and stays is one spike without recovery. Rows without a finite loss
    are left out: that is divergence.

    A falling loss makes m high, so that small spikes are not found early. Of rows that are means over many steps, as
    `loss` is between a trial's evaluations, a spike of few steps is lost in the mean; of rows that are maxima, as
    `loss_max`, it is not.
    """
    values = np.asarray(loss, dtype=float)
    calm: list[float] = []
    count, recovered, largest, inside = 0, 0, 0.0, False
    for value in values[np.isfinite(values)]:
        middle = float(np.median(calm[-window:])) if len(calm) >= LEAST else np.inf
        above = float(value) > middle + max(deviations * _spread(calm), share * abs(middle))
        count += int(above and not inside)
        recovered += int(inside and not above)
        if above:
            largest = max(largest, float(value) - middle)
        else:
            calm.append(float(value))
        inside = above
    return Spikes(count, largest, recovered)


def _spread(calm: list[float]) -> float:
    changes = np.diff(calm[-CHANGES - 1 :])
    return SIGMA * float(np.median(np.abs(changes - np.median(changes)))) if len(changes) >= LEAST - 1 else 0.0


def gradient_tail(rows: pd.DataFrame) -> dict[str, float]:
    """The largest gradient norm of a trial and its 99th percentile, each over the median, after warm-up.

    `rows` has step and grad_norm, and lr and grad_norm_max or not. Warm-up ends at the first row of the highest lr;
    where rows do not say it, after a tenth of the steps. The largest is of grad_norm_max where rows have it, but for
    the first row, some of whose steps were before; the median and the percentile are always of grad_norm. Missing
    where fewer than four rows are left.
    """
    known = rows[np.isfinite(rows["grad_norm"].astype(float))]
    if "lr" in known and len(known) and known["lr"].notna().all():
        begin = known["step"].loc[known["lr"].idxmax()]
    else:
        begin = WARM_UP * rows["step"].max()
    after = known[known["step"] >= begin]
    norms = after["grad_norm"].to_numpy(dtype=float)
    middle = float(np.median(norms)) if len(norms) >= LEAST else 0.0
    if not middle > 0:
        return {"grad_tail": np.nan, "grad_p99": np.nan}
    later = after.loc[after["step"] > after["step"].min(), _seen(after, "grad_norm_max", "grad_norm")]
    return {
        "grad_tail": float(np.fmax(norms.max(), later.max()) / middle),
        "grad_p99": float(np.quantile(norms, 0.99) / middle),
    }


def _wilson(count: int, n: int, level: float) -> tuple[float, float]:
    if not n:
        return np.nan, np.nan
    found = stats.binomtest(count, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def _training(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of training steps by their trial; with maxima where all that have a gradient have them."""
    mine = rows[rows["split"] == "batch"].reindex(columns=[*dict.fromkeys((*rows, *MAXIMA))])
    if (mine["grad_norm"].notna() & mine[list(MAXIMA)].isna().any(axis=1)).any():
        mine = mine.assign(**dict.fromkeys(MAXIMA, np.nan))
    return dict(tuple(mine.groupby("trial_id", sort=False)))


def _smoothness(curves: list[pd.DataFrame]) -> dict[str, float]:
    """What `stability` says of the curves of one variant in one cell."""
    if not curves:
        return {"curves": 0}
    found = [spikes(rows.sort_values("step")[_seen(rows, "loss_max", "loss")]) for rows in curves]
    count = sum(each.count for each in found)
    tails = pd.DataFrame([gradient_tail(rows) for rows in curves])
    return {
        "curves": len(curves),
        "spikes": count / len(found),
        "spiked": float(np.mean([each.count > 0 for each in found])),
        "largest_spike": max(each.largest for each in found),
        "recovered": sum(each.recovered for each in found) / count if count else np.nan,
        **{str(name): float(value) for name, value in tails.median().items()},
    }


def _seen(rows: pd.DataFrame, first: str, otherwise: str) -> str:
    """The first of two columns that has values."""
    return first if first in rows and rows[first].notna().any() else otherwise
