"""The law of each variant of a study."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit import NotEnoughPoints, ScalingLaw
from analysis.intervals import LEVEL, percentiles
from analysis.points import OURS

Array = np.ndarray


def fit_variants(
    table: pd.DataFrame, x: str = "train_flops", y: str = "loss", draws: int = 200, form: str = "power_offset"
) -> pd.DataFrame:
    """The law of each variant (at each setting of the axes): n, its parameters, 95 % intervals, doubts.

    `form` is a name of `analysis.forms`; one of a single input, as E + A x^-alpha, reads the column x, another those
    columns that a study's trials have of its inputs.

    Repeats (seeds) are averaged first, so that each size and budget is one point; intervals are from resampling
    seeds within points. A variant with too few points has a row that says so, and no numbers. Column `law`
    holds the fitted object.

    Raises `AnalysisError` for a form that is not known, or reads what a study does not have.
    """
    inputs = ScalingLaw(form).law.inputs
    if missing := [letter for letter in inputs if letter not in OURS]:
        raise AnalysisError(f"form {form!r} reads {missing[0]}, which a study's trials do not have")
    names = [name for name in ("variant", "axes") if name in table]
    rows = []
    columns = [x] if inputs == ("c",) else [OURS[letter] for letter in inputs]
    for labels, part in table.dropna(subset=[*columns, y]).groupby(names, sort=False, dropna=False, observed=True):
        row = dict(zip(names, map(str, labels), strict=True))
        rows.append(row | _fit_one(part, columns, y, draws, form))
    return pd.DataFrame(rows)


def _fit_one(part: pd.DataFrame, columns: list[str], y: str, draws: int, form: str) -> dict[str, object]:
    keys = ["size", "budget"] if {"size", "budget"} <= set(part) else columns
    points = [
        (point[columns].astype(float).mean().to_numpy(), point[y].to_numpy(float))
        for _, point in part.groupby(keys, dropna=False)
    ]
    at = np.array([where for where, _ in points])
    row: dict[str, object] = {"n": len(part), "points": len(points), "law": None}
    law = ScalingLaw(form)
    if not (at > 0).all():
        zero = columns[int(np.argmax((at <= 0).any(axis=0)))]
        return {**row, "note": f"not fitted: {zero} is 0, as of models that are fitted by counting"}
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
