"""How much it costs that a setting, as the learning rate, is not the best."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import CELL
from analysis.effects import LEVEL, paired_difference
from analysis.table import require

VALUES = 3  # values that a sweep has at least


def sensitivity(
    table: pd.DataFrame, rows: pd.DataFrame | None = None, setting: str = "lr", level: float = LEVEL
) -> pd.DataFrame:
    """How much a variant loses on average where its learning rate is not the best: one row a cell and variant.

    sensitivity = E_eta[min(l(A(eta)), l_0) - l*] of Wortsman et al. 2023, arXiv:2309.14322, section 2.2: the mean
    over the rates eta of the sweep, l(A(eta)) the final loss, l_0 the loss at initialisation (which a trial that
    diverged has too), l* the lowest loss of the sweep; in the loss's units. Of another setting its column says the
    values. It is computed for each seed that has ended at all of them; [lo, hi] is the Student interval over the `n`
    seeds. l_0 is the validation loss of step 0 in `rows` (`analysis.stability.training_rows`), the mean over the
    cell's trials of the variant; without it a trial that diverged leaves its seed out. Failed, stopped and pending
    trials leave theirs out too.

    A cell is a stage, size, budget and the axes but for the learning rate. The values are those that all variants of
    the cell with a sweep have tried, `low` to `high`, so that all are measured alike; variants with fewer than three
    of them have a `reason` instead. Differs from the paper: its sweep is one fixed grid, and its mean is over that.

    Raises `AnalysisError` without the columns loss, status, seed and that of the setting.
    """
    require(table, ("trial_id", "variant", "status", "loss", "seed", setting, *CELL))
    starts = _first_losses(rows)
    mine = table.assign(
        axes=[re.sub(r"(?:^|, )lr=[^,]*", "", str(axes)).removeprefix(", ") for axes in table["axes"]],
        value=table[setting].astype(float).round(12),
        variant=table["variant"].astype(str),
        start=table["trial_id"].map(starts).astype(float) if starts else np.nan,
    )
    found = []
    for cell, part in mine.groupby(list(CELL), sort=False, dropna=False, observed=True):
        tried = {name: set(each["value"].dropna()) for name, each in part.groupby("variant", sort=False)}
        swept = [each for each in tried.values() if len(each) >= VALUES]
        shared = sorted(set.intersection(*swept)) if swept else []
        for variant, each in part.groupby("variant", sort=False):
            labels = dict(zip(CELL, map(str, cell), strict=True)) | {"variant": str(variant)}
            found.append(labels | _sensitivity(each, shared, tried[variant], level))
    columns = (*CELL, "variant", "tried", "low", "high", "best", "n", "sensitivity", "lo", "hi", "reason")
    return pd.DataFrame(found, columns=list(columns))


def _first_losses(rows: pd.DataFrame | None) -> dict[str, float]:
    """The validation loss of every trial before its first step."""
    if rows is None:
        return {}
    first = rows[(rows["step"] == 0) & (rows["split"] == "valid")].dropna(subset=["loss"])
    return dict(zip(first["trial_id"], first["loss"].astype(float), strict=True))


def _sensitivity(trials: pd.DataFrame, shared: list[float], tried: set[float], level: float) -> dict[str, Any]:
    if len(shared) < VALUES or not set(shared) <= tried:
        own = f"{len(tried)} values"
        few = own if len(tried) < VALUES else f"{len(shared)} values in common with the others"
        return {"tried": len(tried), "n": 0, "reason": f"{few}: a sweep has at least {VALUES}"}
    start = float(trials["start"].mean())
    ended = trials[trials["value"].isin(shared) & trials["status"].isin(["finished", "diverged"])]
    loss = ended["loss"].astype(float).where(ended["status"] == "finished", start)
    capped = np.minimum(loss, start) if np.isfinite(start) else loss
    wide = ended.assign(capped=capped).pivot_table(index="seed", columns="value", values="capped", dropna=False)
    wide = wide.reindex(columns=shared).dropna()
    told: dict[str, Any] = {"tried": len(shared), "low": shared[0], "high": shared[-1]}
    if not len(wide):
        unknown = "" if np.isfinite(start) else ", and the loss at initialisation is not known"
        return told | {"n": 0, "reason": f"no seed has ended at all {len(shared)} values{unknown}"}
    values = wide.to_numpy(dtype=float)
    each = (values - values.min(1, keepdims=True)).mean(1)
    found = paired_difference(each, level)
    numbers = {"sensitivity": found["diff"], "lo": found["lo"], "hi": found["hi"]}
    return {**told, **numbers, "n": len(each), "reason": "", "best": float(wide.mean().idxmin())}
