"""Fits of scaling laws, scikit-learn shaped: `ScalingLaw(form="power_offset").fit(x, y)`.

The objective is the sum of Huber losses of the log residuals, as Hoffmann et al. 2022 (arXiv:2203.15556,
section 3.3) use it: a sum, never a mean, which makes optimisers stop early. Starting points come from a grid
over the exponent with the linear parameters solved inside; each is refined by least squares.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from analysis.laws import LAWS, Law

DELTA = 1e-3
Array = np.ndarray


class NotEnoughPoints(ValueError):
    """Fewer distinct points than the form needs to be identified."""


@dataclass
class ScalingLaw:
    """A law fitted to points (x, y).

    After `fit`: `params_`, `objective_`, `n_`, `lowest_` (the least y), `warnings_`; after `bootstrap`: `ci95_`.
    """

    form: str = "power_offset"
    delta: float = DELTA
    params_: dict[str, float] = field(default_factory=dict, init=False)
    ci95_: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)
    objective_: float = field(default=np.nan, init=False)
    n_: int = field(default=0, init=False)
    lowest_: float = field(default=np.nan, init=False)
    warnings_: list[str] = field(default_factory=list, init=False)
    theta_: Array = field(default_factory=lambda: np.empty(0), init=False)

    @property
    def law(self) -> Law:
        return LAWS[self.form]

    def fit(self, x: Array, y: Array) -> ScalingLaw:
        """Fit to positive x and y. Raises `NotEnoughPoints` unless there is one x more than parameters."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
            raise ValueError("x and y must be positive and finite")
        needed = len(self.law.parameters) + 1
        distinct = len(np.unique(x))
        if distinct < needed:
            raise NotEnoughPoints(f"{distinct} distinct x, {self.form} needs at least {needed}")
        centre = float(np.exp(np.log(x).mean()))
        self._centre, self.n_, self.lowest_ = centre, len(x), float(y.min())
        self.theta_, self.objective_ = _minimise(self.law, x / centre, y, self.delta)
        self.params_ = self._named(self.theta_)
        self.warnings_ = self._judge()
        return self

    def predict(self, x: Array) -> Array:
        return np.exp(self.law.log_value(self.theta_, np.asarray(x, dtype=float) / self._centre))

    def bootstrap(self, draws: list[tuple[Array, Array]]) -> pd.DataFrame:
        """Refit on resampled (x, y) from this fit's own optimum; sets `ci95_`, returns the parameters."""
        rows = []
        for x, y in draws:
            x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            theta, _ = _refine(self.law, x / self._centre, y, self.delta, self.theta_, tolerance=1e-8, at_most=50)
            rows.append(self._named(theta))
        samples = pd.DataFrame(rows, columns=list(self.law.parameters))
        self.ci95_ = {
            name: (float(samples[name].quantile(0.025)), float(samples[name].quantile(0.975))) for name in samples
        }
        return samples

    def _named(self, theta: Array) -> dict[str, float]:
        """The parameters in the units of x: the fit itself is done at x / centre, where it is well conditioned."""
        named = self.law.named(theta)
        named["A"] *= self._centre ** named["alpha"]
        return named

    def _judge(self) -> list[str]:
        found = []
        if self.params_["E"] < 1e-2 * self.lowest_:
            found.append("the offset E is at zero: the points do not bend")
        if self.params_["E"] > 0.98 * self.lowest_:
            found.append("the offset E is at the lowest loss: hardly anything is left to fall")
        if self.params_["alpha"] > 2.9 or self.params_["alpha"] < 0.011:
            found.append("the exponent is at the edge of what was searched")
        return found


def huber_sum(r: Array, delta: float) -> float:
    """sum of r^2/2 within delta, delta (|r| - delta/2) beyond (Huber 1964)."""
    a = np.abs(r)
    return float(np.where(a <= delta, a * a / 2, delta * (a - delta / 2)).sum())


def _minimise(law: Law, x: Array, y: Array, delta: float) -> tuple[Array, float]:
    found = [_refine(law, x, y, delta, start) for start in law.start(x, y)]
    return min(found, key=lambda pair: pair[1])


def _refine(
    law: Law, x: Array, y: Array, delta: float, start: Array, tolerance: float = 1e-12, at_most: int = 500
) -> tuple[Array, float]:
    log_y = np.log(y)
    solved = least_squares(
        lambda theta: law.log_value(theta, x) - log_y,
        start,
        jac=lambda theta: law.log_jacobian(theta, x),
        loss="huber",
        f_scale=delta,
        x_scale="jac",
        xtol=tolerance,
        ftol=tolerance,
        gtol=tolerance,
        max_nfev=at_most,
    )
    return solved.x, huber_sum(solved.fun, delta)


def fit_variants(table: pd.DataFrame, x: str = "train_flops", y: str = "loss", draws: int = 200) -> pd.DataFrame:
    """The law of each variant (at each setting of the axes): n, E, A, alpha, 95 % intervals, what to beware of.

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
    if min(len(losses) for _, losses in points) > 1:
        rng = np.random.default_rng(0)
        law.bootstrap([(at, np.array([_resampled_mean(losses, rng) for _, losses in points])) for _ in range(draws)])
    row |= law.params_ | {"objective": law.objective_, "law": law, "note": "; ".join(law.warnings_)}
    for name, (lo, hi) in law.ci95_.items():
        row |= {f"{name}_lo": lo, f"{name}_hi": hi}
    return row


def _resampled_mean(losses: Array, rng: np.random.Generator) -> float:
    """Resampling n values with replacement spreads their mean by sqrt((n - 1) / n) too little: scaled back up."""
    n, mean = len(losses), losses.mean()
    return float(mean + np.sqrt(n / (n - 1)) * (rng.choice(losses, n).mean() - mean))
