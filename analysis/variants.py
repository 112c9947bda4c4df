"""The law of each variant of a study."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.fit import NotEnoughPoints, ScalingLaw
from analysis.intervals import LEVEL, percentiles

Array = np.ndarray


def fit_variants(table: pd.DataFrame, x: str = "train_flops", y: str = "loss", draws: int = 200) -> pd.DataFrame:
    """L = E + A x^-alpha of each variant (at each setting of the axes): n, E, A, alpha, 95 % intervals, doubts.

    Repeats (seeds) are averaged first, so that each size and budget is one point; intervals are from resampling
    seeds within points. A variant with too few points has a row that says so, and no numbers. Column `law`
    holds the fitted object.
    """
    names = [name for name in ("variant", "axes") if name in table]
    rows = []
    for labels, part in table.dropna(subset=[x, y]).groupby(names, sort=False, dropna=False, observed=True):
        row = dict(zip(names, map(str, labels), strict=True))
        rows.append(row | _fit_one(part, x, y, draws))
    return pd.DataFrame(rows)


def _fit_one(part: pd.DataFrame, x: str, y: str, draws: int) -> dict[str, object]:
    keys = ["size", "budget"] if {"size", "budget"} <= set(part) else [x]
    points = [(float(point[x].mean()), point[y].to_numpy(float)) for _, point in part.groupby(keys, dropna=False)]
    at = np.array([where for where, _ in points])
    row: dict[str, object] = {"n": len(part), "points": len(points), "law": None}
    law = ScalingLaw()
    if not (at > 0).all():
        return {**row, "note": f"not fitted: {x} is 0, as of models that are fitted by counting"}
    try:
        law.fit(at, np.array([losses.mean() for _, losses in points]))
    except NotEnoughPoints as error:
        return {**row, "note": f"not fitted: {error}"}
    if min(len(losses) for _, losses in points) > 1 and draws > 1:
        rng = np.random.default_rng(0)
        law.bootstrap_values(np.stack([_resampled_means(losses, draws, rng) for _, losses in points], axis=1))
    row |= law.params_ | {"objective": law.objective_, "law": law, "note": "; ".join(law.warnings_)}
    if len(law.samples_):
        ends = zip(law.samples_, *percentiles(law.samples_.to_numpy(), (1 - LEVEL) / 2), strict=True)
        row |= {f"{name}_{end}": float(value) for name, lo, hi in ends for end, value in (("lo", lo), ("hi", hi))}
    return row


def _resampled_means(losses: Array, draws: int, rng: np.random.Generator) -> Array:
    """Resampling n values with replacement spreads their mean by sqrt((n - 1) / n) too little: scaled back up."""
    n, mean = len(losses), losses.mean()
    return np.asarray(mean + np.sqrt(n / (n - 1)) * (rng.choice(losses, (draws, n)).mean(1) - mean))
