"""What a law says of points it was not fitted to: without one of them, and beyond all of them in compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit import BadPoints, NotEnoughPoints, ScalingLaw
from analysis.intervals import standard_errors
from analysis.laws import Law

Array = np.ndarray
SAME = 1e-6  # computes that differ by less than this part are one budget


def influence(law: ScalingLaw, at: Any = None) -> pd.DataFrame:
    """What leaving out each point changes: one row a point, those that matter most first.

    Columns: `point` (its row), the change of every parameter, `prediction` (the relative change in % of the law at
    `at`; at the point of the lowest predicted loss by default), `most` (the largest change of a parameter in its
    `standard_errors`) and `of` (which).
    """
    everything = law.refit(law.weights_ * (1 - np.eye(len(law.weights_))))[0]
    without = law.law.named(everything, law.centre_)
    changes = pd.DataFrame({name: without[name] - law.params_[name] for name in law.law.parameters})
    x = _target(law, at)
    said = law.law.log_value(everything, x)[:, 0] - law.law.log_value(law.theta_, x)[0]
    inside = (changes / pd.Series(standard_errors(law))).abs()
    table = changes.assign(prediction=100 * np.expm1(said), most=inside.max(axis=1), of=inside.idxmax(axis=1))
    table.insert(0, "point", np.arange(len(table)))
    return table.sort_values("most", ascending=False, ignore_index=True)


def _target(law: ScalingLaw, at: Any) -> Array:
    """One row of centred logarithms."""
    if at is None:
        return np.asarray(law.x_[[int(law.law.log_value(law.theta_, law.x_).argmin())]])
    row = [at[name] for name in law.law.inputs] if isinstance(at, pd.DataFrame | Mapping) else np.ravel(at)
    return np.asarray(np.log([[float(np.ravel(each)[0]) for each in row]]) - law.centre_)


@dataclass(frozen=True)
class HeldOut:
    """Errors of a fit to the cheapest points on the others, in % of the loss, positive where the law is above them;
    `distance` is the largest compute that was held out by the largest that was fitted."""

    law: ScalingLaw
    fitted: int
    held: int
    errors: Array
    mean: float
    largest: float
    signed: float
    distance: float


def split_by_compute(c: Any, fraction: float) -> Array:
    """Which points to fit: the floor of (1 - fraction) n of least compute, and those that share the last one's."""
    c = np.asarray(c, dtype=float)
    if not (np.isfinite(c).all() and (c > 0).all()):
        raise BadPoints("compute must be positive and finite")
    count = int(np.floor((1 - fraction) * len(c) + 1e-9))
    if not 0 < fraction < 1 or count < 1:
        raise BadPoints(f"a fraction of {fraction} of {len(c)} points leaves none to fit")
    kept = c <= np.sort(c)[count - 1] * (1 + SAME)
    if kept.all():
        raise NotEnoughPoints("no point has more compute than those that would be fitted")
    return np.asarray(kept)


def held_out(form: str | Law, x: Any, y: Any, c: Any, fraction: float = 0.2, **settings: Any) -> HeldOut:
    """Fit the points of least compute c and predict the dearest `fraction`; `settings` are those of `ScalingLaw`.

    Raises `BadPoints` for compute that is not positive, and what `ScalingLaw.fit` raises of the points that are left.
    """
    kept, y, c = split_by_compute(c, fraction), np.asarray(y, dtype=float), np.asarray(c, dtype=float)
    law = ScalingLaw(form, **settings).fit(rows_of(x, kept), y[kept])
    errors = 100 * (law.predict(rows_of(x, ~kept)) / y[~kept] - 1)
    return HeldOut(
        law=law,
        fitted=int(kept.sum()),
        held=int((~kept).sum()),
        errors=np.asarray(errors),
        mean=float(np.abs(errors).mean()),
        largest=float(np.abs(errors).max()),
        signed=float(errors.mean()),
        distance=float(c[~kept].max() / c[kept].max()),
    )


def rows_of(x: Any, rows: Array) -> Any:
    """Some rows of inputs in any of the forms that `ScalingLaw.fit` takes."""
    if isinstance(x, Mapping):
        return {name: np.asarray(column)[rows] for name, column in x.items()}
    return x[rows] if isinstance(x, pd.DataFrame) else np.asarray(x)[rows]
