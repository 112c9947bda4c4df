"""Training against validation: the gap between them, and whether a model fits too much or too little."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import CELL
from analysis.effects import paired_difference
from analysis.table import finished

RISE = 0.01  # of the validation loss: what it must be above its lowest value to call that overfitting
FALL = 0.01  # of the training loss: what a doubling of the tokens must still take off to call that underfitting
GAP = 0.05  # of the training loss: the gap below which it is the training that is lacking
ERRORS = 2.0  # standard errors over seeds that a rise or a fall must have besides
COLUMNS = (
    *CELL, "variant", "n", "train_loss", "loss", "gap", "gap_lo", "gap_hi", "best_loss", "best_at", "seen", "rise",
    "fall", "flag",
)  # fmt: skip


def curve_points(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Training and validation losses of the finished trials at their evaluations, without the one before training:
    the columns of `curves`, split "train" or "valid", and `share`, of the trial's steps.

    Every point of a curve is of one sample. The evaluation at the end has larger ones; its losses on the curve's
    own samples are the columns `curve_loss` and `curve_train_loss`, which trials with the diagnostic `train_curve`
    have. Without it the validation curve ends before the last evaluation, and the training curve is the mean loss
    of the training batches since the evaluation before, as it was trained, with dropout.
    """
    done = finished(table).set_index("trial_id")
    rows = curves[curves["trial_id"].isin(done.index) & (curves["step"] > 0) & curves["loss"].notna()]
    trial, split = rows["trial_id"], rows["split"]
    last = rows.groupby("trial_id")["step"].transform("max")
    sampled = (split == "train").groupby(trial).transform("sum") > 1
    sampled &= trial.map(_ends(done, "curve_train_loss")).notna()
    parts = []
    for name, mine, end in (
        ("valid", split == "valid", "curve_loss"),
        ("train", (split == "train") & sampled, "curve_train_loss"),
        ("train", (split == "batch") & ~sampled, ""),
    ):
        part = rows[mine].assign(split=name, share=(rows["step"] / last)[mine])
        part = part.drop_duplicates(["trial_id", "step"], keep="last")
        if end:
            at_end = part["share"] == 1
            part["loss"] = part["loss"].mask(at_end, part["trial_id"].map(_ends(done, end)))
            part = part[part["loss"].notna()]
        parts.append(part)
    order = {name: place for place, name in enumerate(done.index)}
    return pd.concat(parts).sort_values("trial_id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True)


def _ends(done: pd.DataFrame, name: str) -> pd.Series:
    """A column by trial; missing values where the table has no such column."""
    return done[name].astype(float) if name in done else pd.Series(np.nan, done.index)


def capacity_table(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a variant and cell with finished trials; curves as `curve_points` has them, losses in nats per token.

    train_loss, loss: at the end, on a training sample and on validation data, means over n seeds. gap, gap_lo,
    gap_hi: loss - train_loss and its 95 % Student interval over seeds.
    best_loss, best_at: the lowest point of the validation curve (the mean over seeds at each evaluation), and the
    share of the steps that it was reached at; `seen` is where that curve ends.
    rise: the validation curve's last point less its lowest, a mean of differences within seeds.
    fall: what the next doubling of the tokens would take off the training loss if it went on as over the last one:
    (l(h) - l(end)) / log2(end / h), h the evaluation nearest, in ratio, to half of the steps.

    flag is "overfitting" where rise > RISE best_loss, rise > ERRORS standard errors (with two seeds or more), and the
    training loss has fallen since the lowest point; else "underfitting" where fall > FALL of the last training loss,
    fall > ERRORS standard errors, and gap < GAP train_loss; else "". It is "unknown" with fewer than three points.
    A learning rate that is lowered towards the end makes training losses fall: compare flags under one schedule.
    """
    points, done, rows = curve_points(table, curves), finished(table), []
    groups = done.groupby([*CELL, "variant"], sort=False, dropna=False, observed=True)
    number = points["trial_id"].map(dict(zip(done["trial_id"], groups.ngroup(), strict=True)))
    by_row = dict(iter(points.groupby(number)))
    for place, (key, part) in enumerate(groups):
        mine = by_row.get(place, points.iloc[:0])
        gap = paired_difference(part["generalisation_gap"].dropna().to_numpy(dtype=float))
        row = dict(zip((*CELL, "variant"), map(str, key), strict=True)) | {
            "n": len(part),
            "train_loss": part["train_loss"].astype(float).mean(),
            "loss": part["loss"].astype(float).mean(),
            "gap": gap["diff"],
            "gap_lo": gap["lo"],
            "gap_hi": gap["hi"],
        }
        rows.append(row | _shape(_by_step(mine, "valid"), _by_step(mine, "train"), row))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _by_step(points: pd.DataFrame, split: str) -> pd.DataFrame:
    """Losses by the share of the steps (rows) and trial (columns), at evaluations that all trials have."""
    part = points[points["split"] == split]
    return part.pivot(index="share", columns="trial_id", values="loss").dropna().sort_index()


def _shape(valid: pd.DataFrame, train: pd.DataFrame, row: dict[str, Any]) -> dict[str, Any]:
    if len(valid) < 3 or len(train) < 3:
        return dict.fromkeys(("best_loss", "best_at", "seen", "rise", "fall"), np.nan) | {"flag": "unknown"}
    mean = valid.mean(axis=1)
    best_at = float(mean.idxmin())
    rises = (valid.iloc[-1] - valid.loc[best_at]).to_numpy(dtype=float)
    half = float(train.index[np.abs(np.log2(2 * train.index.to_numpy(dtype=float)[:-1])).argmin()])
    falls = ((train.loc[half] - train.iloc[-1]) / np.log2(train.index[-1] / half)).to_numpy(dtype=float)
    trained = train.mean(axis=1)
    at_best, at_end = (np.interp(share, trained.index, trained) for share in (best_at, valid.index[-1]))
    flag = ""
    if _sure(rises, RISE * mean[best_at]) and at_end < at_best:
        flag = "overfitting"
    elif _sure(falls, FALL * trained.iloc[-1]) and row["gap"] < GAP * row["train_loss"]:
        flag = "underfitting"
    return {
        "best_loss": float(mean[best_at]),
        "best_at": best_at,
        "seen": float(valid.index[-1]),
        "rise": rises.mean(),
        "fall": falls.mean(),
        "flag": flag,
    }


def _sure(values: np.ndarray, threshold: float) -> bool:
    """Whether their mean is above a threshold, and above its own error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return bool(values.mean() > max(threshold, ERRORS * error))
