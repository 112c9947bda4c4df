"""Which run to do next: the one that narrows the prediction at a target most for its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.fit import BadPoints, ScalingLaw
from analysis.joint import GROUP, SharedLaw
from analysis.optimal import compute_optimal
from analysis.points import FLOPS

Array = np.ndarray
LEVEL = 0.90
RIDGE = 1e-12  # of the information, where parameters cannot be told apart: their variance is then huge, not infinite
TOLD = ["run", "cost", "loss", "lo", "hi", "width", "width_before", "per_cost"]
NORMAL = 1.4826  # standard deviations in the median of |r|


def next_runs(
    law: ScalingLaw,
    candidates: pd.DataFrame,
    target: Mapping[str, Any],
    cost: str | Callable[[pd.DataFrame], Any],
    runs: int = 1,
    budget: float | None = None,
    level: float = LEVEL,
    k: float = FLOPS,
) -> pd.DataFrame:
    """The candidates to run, in their order, each the best after those before it: a greedy c-optimal design.

    With g the gradient of log L at the target, j that of a candidate, and C = (J'WJ)^-1 of the fitted points, the
    target's variance is v = s^2 g'Cg, and a run takes s^2 (g'Cj)^2 / (1 + j'Cj) of it. A run is the best that makes
    the interval of log L, +-t sqrt(v) with Student's t at n - K, most narrower per unit of `cost` (a column, or a
    function of the candidates: FLOPs over measured FLOP/s). Several ends when no candidate fits in what is left of
    `budget`. Each row of `candidates` is one run: seeds are rows of their own.

    `target` gives the law's inputs, or `c` alone for a law in n and d, which is then its compute-optimal n and d at
    c = k n d. Of a `SharedLaw` the target and the candidates have a column `variant`.

    Returns the chosen rows as they were with, besides, run (from 1), cost, loss (of the law at the target), lo and hi
    (its interval after this run and those before it), width and width_before (log hi / lo), and per_cost. The
    interval is the law's, without the noise of one run about it.

    It is as good as the linearisation: the law must be the right one, the fit near enough to the truth that the
    gradient is about the same there, and noise alike at all points and in the runs to come. A parameter that the
    points do not identify gives huge widths: read them as an order of the candidates. Where cost spans orders of
    magnitude, the gain per cost is highest for the smallest runs, which a law that is not quite right should not
    rest on: leave those out of the candidates, or give a cost that has what every run costs besides. Raises
    `BadPoints`.
    """
    rows = candidates.reset_index(drop=True)
    if not len(rows):
        raise BadPoints("no candidates")
    prices = _prices(rows, cost)
    at = _at_target(law, target, k)
    g, J = law.law.log_jacobian(law.theta_, _places(law, at))[0], _jacobian(law, _places(law, rows))
    covariance, scale = _covariance(law)
    reach = 2 * _quantile(law, level)
    loss, width = float(law.predict(_inputs(law, at))[0]), reach * scale * np.sqrt(g @ covariance @ g)
    left, free, chosen = budget if budget is not None else np.inf, np.ones(len(rows), dtype=bool), []
    for run in range(1, runs + 1):
        free &= prices <= left
        if not free.any():
            break
        shares = (J @ covariance @ g) ** 2 / (1 + np.einsum("nk,kl,nl->n", J, covariance, J))
        after = reach * scale * np.sqrt(np.maximum(g @ covariance @ g - shares, 0.0))
        gain = np.where(free, (width - after) / prices, -np.inf)
        best = int(gain.argmax())
        found = {"run": run, "cost": prices[best], "loss": loss, **_ends(loss, after[best])}
        chosen.append((best, found | {"width": after[best], "width_before": width, "per_cost": gain[best]}))
        moved = covariance @ J[best]
        covariance = covariance - np.outer(moved, moved) / (1 + J[best] @ moved)
        width, left, free[best] = after[best], left - prices[best], False
    told = pd.DataFrame([each for _, each in chosen], columns=TOLD)
    picked = rows.iloc[[each for each, _ in chosen]].reset_index(drop=True)
    return pd.concat((picked.drop(columns=[name for name in told if name in picked]), told), axis=1)


def interval_at(
    law: ScalingLaw, target: Mapping[str, Any], level: float = LEVEL, k: float = FLOPS
) -> dict[str, float]:
    """loss, lo, hi and width at the target as the points are, by the same linearisation as `next_runs`."""
    at = _at_target(law, target, k)
    g = law.law.log_jacobian(law.theta_, _places(law, at))[0]
    covariance, scale = _covariance(law)
    loss = float(law.predict(_inputs(law, at))[0])
    width = 2 * _quantile(law, level) * scale * float(np.sqrt(g @ covariance @ g))
    return {"loss": loss, **_ends(loss, width), "width": width}


def noise(law: ScalingLaw) -> float:
    """s of the covariance s^2 (J'WJ)^-1 of a fit, where noise is normal and alike at all points.

    Of least squares s^2 = sum w r^2 / (n - K). Of Huber's and the absolute penalty it is sigma^2 E psi^2 /
    (E psi')^2, which is pi / 2 sigma^2 for the absolute one, with sigma from the median of |r|: outliers do not
    count. In log L, or in L where that is what was fitted. Raises `BadPoints` for a penalty that is not symmetric,
    and where the points have no noise.
    """
    objective, n, K = law.penalty, int((law.weights_ > 0).sum()), len(law.theta_)
    if objective.over != 1:
        raise BadPoints(f"the noise is unknown of a fit by {objective.name}, which is not symmetric")
    r = law.problem(law.weights_[None]).residuals(law.theta_)
    if objective.delta is None:
        s = float(np.sqrt((law.weights_ * r**2).sum() / (n - K)))
    else:
        sigma = NORMAL * float(np.median(np.abs(r[law.weights_ > 0]))) * np.sqrt(n / (n - K))
        s = sigma * np.sqrt(_inefficiency(objective.delta / sigma)) if sigma > 0 else 0.0
    if s < 1e-12:
        raise BadPoints("the points have no noise: every prediction is exact")
    return s


def _inefficiency(k: float) -> float:
    """E psi^2 / (E psi')^2 of Huber's penalty with delta = k on standard normal noise."""
    if k < 1e-5:
        return np.pi / 2
    inside = 2 * stats.norm.cdf(k) - 1
    return float((inside - 2 * k * stats.norm.pdf(k) + 2 * k * k * stats.norm.sf(k)) / inside**2)


def _covariance(law: ScalingLaw) -> tuple[Array, float]:
    """(J'WJ)^-1 and s."""
    J = _jacobian(law, law.x_) * np.sqrt(law.weights_)[:, None]
    length = np.linalg.norm(J, axis=0)
    length[length == 0] = 1.0
    unit = J / length
    inverse = np.linalg.inv(unit.T @ unit + RIDGE * np.eye(len(length)))
    return inverse / np.outer(length, length), noise(law)


def _jacobian(law: ScalingLaw, x: Array) -> Array:
    """Of what the objective compares with the points."""
    return (law.law.log_jacobian if law.penalty.log else law.law.jacobian)(law.theta_, x)


def _places(law: ScalingLaw, table: pd.DataFrame) -> Array:
    """Rows of a table as the law reads them."""
    columns = _inputs(law, table)
    values = np.stack([np.asarray(columns[name], dtype=float) for name in law.law.inputs], -1)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise BadPoints("candidates and the target must be positive and finite")
    return np.asarray(np.log(values) - law.centre_)


def _inputs(law: ScalingLaw, table: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in law.law.inputs if name not in table and name != GROUP]
    if missing:
        raise BadPoints(f"{law.law.name} reads {', '.join(law.law.inputs)}: {missing[0]} is missing")
    if isinstance(law.law, SharedLaw) and GROUP not in table:
        return law.law.numbered(table)
    return table[list(law.law.inputs)]


def _at_target(law: ScalingLaw, target: Mapping[str, Any], k: float) -> pd.DataFrame:
    at = pd.DataFrame({name: [value] for name, value in target.items()})
    if "c" in at and {"n", "d"} <= set(law.law.inputs) and not {"n", "d"} & set(at):
        if isinstance(law.law, SharedLaw) and GROUP not in at:
            at[GROUP] = law.law.numbered(at.assign(n=1.0, d=1.0))[GROUP]
        given = {name: float(at[name].iloc[0]) for name in law.law.inputs if name not in ("n", "d")}
        best = compute_optimal(law, float(at["c"].iloc[0]), k, given).iloc[0]
        at = at.assign(n=best["n"], d=best["d"])
    return at


def _quantile(law: ScalingLaw, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, int((law.weights_ > 0).sum()) - len(law.theta_)))


def _ends(loss: float, width: float) -> dict[str, float]:
    with np.errstate(over="ignore"):
        return {"lo": float(loss * np.exp(-width / 2)), "hi": float(loss * np.exp(width / 2))}


def _prices(rows: pd.DataFrame, cost: str | Callable[[pd.DataFrame], Any]) -> Array:
    if isinstance(cost, str) and cost not in rows:
        raise BadPoints(f"no column {cost!r} of costs; columns: {', '.join(map(str, rows))}")
    found = np.asarray(rows[cost] if isinstance(cost, str) else cost(rows), dtype=float)
    if found.shape != (len(rows),) or not (np.isfinite(found).all() and (found > 0).all()):
        raise BadPoints("costs must be one positive number a candidate")
    return found
