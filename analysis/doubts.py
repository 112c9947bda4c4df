"""What speaks against a fit, in plain words, each with its number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.fit import BadPoints, ScalingLaw
from analysis.heldout import HeldOut, influence
from analysis.intervals import standard_errors
from analysis.laws import PowerSum
from analysis.profiles import profile

Array = np.ndarray
POINTS_A_PARAMETER = 4  # below it, as with 20 points and five parameters, a tied form predicts better than a free one
SURE = 0.01  # p of the tests on residuals: three of them raise a false alarm in at most 3 of 100 sound fits
TOP = 0.2  # of the points, those of most compute
AHEAD = 0.9  # of the held-out points share a sign
AWAY = 2.0  # median residuals that their mean error is
LEAST = 10  # points that a test on residuals needs
# The columns of the Jacobian have unit length: some combination of parameters is known so many times worse
# than one alone. Belsley, Kuh and Welsch 1980 call 30 to 100 strong; fits with E well inside its range have 15 to 60.
CONDITION = 100.0
DISTANCE = 10.0  # of what is predicted, in compute or in any input, beyond what was fitted
SHIFT = 1.0  # standard errors that one point may move an exponent
EXPONENTS = ("alpha", "beta", "eta", "gamma", "alpha_N", "alpha_D", "alpha_S", "c0", "c1")
MEANS = ("mse", "mae", "rmse", "average")


def doubts(
    law: ScalingLaw, c: Any = None, at: Any = None, at_c: float | None = None, held: HeldOut | None = None
) -> list[str]:
    """What speaks against a fitted law: warnings in plain words, each with its number; none where nothing does.

    `c` is the compute of the points, by which residuals are put in order (by default c where the law reads it, else
    6 n d, else its first input); `at` the inputs that are to be predicted, `at_c` their compute; `held` the errors of
    the same form on points that were held out.
    """
    compute = compute_of(law) if c is None else np.asarray(c, dtype=float)
    order = np.lexsort((law.x_[:, 0], np.round(np.log(compute), 6)))  # by the first input within one budget
    r = law.residuals_[order]
    found = [
        *law.warnings_,
        few_points(law),
        repeated_points(law),
        one_signed(r),
        one_sided_end(r),
        trend(r, np.log(compute[order])),
        unidentified_offset(law),
        at_its_start(law),
        ill_conditioned(law),
        influential_point(law),
        distant(law, at, compute, at_c) if at is not None else "",
        one_sided_ahead(held) if held is not None else "",
    ]
    return [each for each in found if each]


def refuse_mean(objective: object) -> None:
    """Raise `BadPoints` for an objective that is a mean over points, or a function that could be one."""
    name = objective.lower() if isinstance(objective, str) else ""
    if callable(objective) or name.startswith("mean") or name in MEANS:
        told = f"objective {objective!r}" if isinstance(objective, str) else "an objective of your own"
        raise BadPoints(
            f"{told}: a fit minimises a sum over points, never a mean. Their minimum is one, but optimisers stop "
            "at a fixed tolerance, and on a mean, which is smaller by the number of points, they stop 28 to 98 % "
            "above it and report success. Name one of huber, lad, l2_log, l2, asymmetric: all are sums."
        )


def compute_of(law: ScalingLaw) -> Array:
    """The compute of a law's points: c where it reads it, else 6 n d, else its first input."""
    x = np.exp(law.x_ + law.centre_)
    columns = dict(zip(law.law.inputs, x.T, strict=True))
    known = _compute(columns)
    return np.asarray(x[:, 0] if known is None else known)


def _compute(columns: Mapping[str, Array]) -> Array | None:
    if "c" in columns:
        return columns["c"]
    return np.asarray(6 * columns["n"] * columns["d"]) if {"n", "d"} <= set(columns) else None


def few_points(law: ScalingLaw) -> str:
    """Fewer distinct points than four a parameter."""
    n, K = len(np.unique(law.x_, axis=0)), len(law.law.parameters)
    if n >= POINTS_A_PARAMETER * K:
        return ""
    wanted = POINTS_A_PARAMETER * K
    return f"{n} different points for {K} free parameters: below {wanted} a form with fewer may well predict better"


def repeated_points(law: ScalingLaw) -> str:
    """Points of the same inputs."""
    n, different = len(law.x_), len(np.unique(np.round(law.x_, 9), axis=0))
    if n == different:
        return ""
    return f"{n - different} of {n} points repeat the inputs of another: average repeats, or resample them as groups"


def one_signed(r: Array) -> str:
    """The runs test of Wald and Wolfowitz 1940 on residuals in order of compute: too few changes of sign."""
    signs = np.sign(r[np.abs(r) > 1e-9 * np.abs(r).max(initial=0.0)])
    above, below = int((signs > 0).sum()), int((signs < 0).sum())
    n = above + below
    if n < LEAST:
        return ""
    if min(above, below) < 2:
        return f"{max(above, below)} of {n} residuals have one sign: the form is wrong for these points"
    runs = 1 + int((signs[1:] != signs[:-1]).sum())
    expected = 1 + 2 * above * below / n
    z = (runs - expected) / np.sqrt((expected - 1) * (expected - 2) / (n - 1))
    if stats.norm.cdf(z) >= SURE:
        return ""
    told = f"{runs} runs where {expected:.0f} are expected, z = {z:.1f}"
    return f"residuals keep their sign as compute grows ({told}): the form is wrong for these points"


def one_sided_end(r: Array) -> str:
    """The signs of the residuals of most compute, by the binomial test."""
    top = np.sign(r[-int(np.ceil(TOP * len(r))) :])
    above, below = int((top > 0).sum()), int((top < 0).sum())
    if len(r) < LEAST or not above + below or stats.binomtest(above, above + below).pvalue >= SURE:
        return ""
    told = f"{max(above, below)} of the {above + below} points of most compute"
    return f"the law lies {'above' if above > below else 'below'} {told}: it cannot be trusted beyond them"


def one_sided_ahead(held: HeldOut) -> str:
    """Errors on held-out points that share a sign and are larger than the noise: the form bends away from the points.

    Errors ahead go together, since they share parameters: their signs alone would be no sign of anything.
    """
    errors = held.errors
    same = max(int((errors > 0).sum()), int((errors < 0).sum()))
    noise = 100 * float(np.median(np.abs(held.law.residuals_)))
    if same < AHEAD * len(errors) or len(errors) < LEAST or abs(held.signed) < AWAY * noise:
        return ""
    where = "high" if held.signed > 0 else "low"
    return (
        f"{same} of {len(errors)} held-out points are predicted too {where}, by {abs(held.signed):.2g} % on average"
    )


def trend(r: Array, log_c: Array) -> str:
    """Kendall's rank correlation of all residuals with compute."""
    if len(r) < LEAST or np.ptp(log_c) == 0:
        return ""
    tau, p = stats.kendalltau(r, log_c)
    return f"residuals drift with compute: rank correlation {tau:+.2f} (p = {p:.1e})" if p < SURE else ""


def unidentified_offset(law: ScalingLaw) -> str:
    """An offset E whose profile does not rise on both sides within (0, lowest loss)."""
    if "E" not in law.law.parameters:
        return ""
    found = profile(law, "E")
    if found.rises.min() < -0.01 * found.threshold - 1e-12:
        at = found.values[found.rises.argmin()]
        return f"the fit is not the minimum: with E held at {at:.4g} the objective is {-found.rises.min():.2g} lower"
    if found.identified:
        return ""
    told = f"anything from {found.interval[0]:.3g} to {found.interval[1]:.3g} fits as well"
    return f"E is not identified: {law.params_['E']:.3g}, but {told} (lowest loss {law.lowest_:.3g})"


def at_its_start(law: ScalingLaw) -> str:
    """Parameters that did not move from where a search begins: a failed fit."""
    starts = law.law.starts(law.x_, law.y_)
    same = (np.abs(law.theta_ - starts) <= 1e-10 * np.abs(starts)).any(0)
    return _unmoved({name: law.params_[name] for name, each in zip(law.law.parameters, same, strict=True) if each})


def left_at_start(found: Mapping[str, float], start: Mapping[str, float]) -> str:
    """The same of a fit that is given as numbers: parameters equal to what its search is known to begin from."""
    same = [name for name in start if name in found and np.isclose(found[name], start[name], rtol=1e-9, atol=0)]
    return _unmoved({name: found[name] for name in same})


def _unmoved(same: Mapping[str, float]) -> str:
    told = ", ".join(f"{name} = {value:.6g}" for name, value in same.items())
    return f"{told} stands where the search began: a fit that failed" if same else ""


def ill_conditioned(law: ScalingLaw) -> str:
    """Parameters that the points cannot tell apart."""
    if law.condition_ <= CONDITION:
        return ""
    told = f"condition number {law.condition_:.0f}, above {CONDITION:.0f}"
    return f"the points cannot tell the parameters apart ({told}): judge predictions, not coefficients"


def influential_point(law: ScalingLaw) -> str:
    """The point that moves an exponent most, where that is more than one of its standard errors by the curvature."""
    known = law.law.exponents if isinstance(law.law, PowerSum) else EXPONENTS
    names = [name for name in law.law.parameters if name in known]
    if not names:
        return ""
    table, errors = influence(law), standard_errors(law)
    moved = {name: table[name].abs().max() / errors[name] for name in names}
    name = max(names, key=lambda each: moved[each])
    if not moved[name] > SHIFT:
        return ""
    row = table.loc[table[name].abs().idxmax()]
    told = f"from {law.params_[name] + row[name]:.4g} without it to {law.params_[name]:.4g}"
    return f"point {int(row['point'])} alone moves {name} by {moved[name]:.1f} standard errors, {told}"


def distant(law: ScalingLaw, at: Any, compute: Array, at_c: float | None = None) -> str:
    """What is predicted lies far beyond what was fitted, in compute or in any input."""
    x = np.exp(law.x_ + law.centre_)
    columns = at if isinstance(at, Mapping | pd.DataFrame) else {law.law.inputs[0]: at}
    wanted = {name: np.asarray(columns[name], dtype=float) for name in law.law.inputs}
    ratios = {
        name: float(max(np.max(wanted[name]) / column.max(), column.min() / np.min(wanted[name])))
        for name, column in zip(law.law.inputs, x.T, strict=True)
    }
    target = _compute(wanted) if at_c is None else np.asarray(at_c)
    if target is not None:
        ratios["compute"] = float(np.max(target) / compute.max())
    name = max(ratios, key=lambda each: ratios[each])
    if ratios[name] <= DISTANCE:
        return ""
    return f"the prediction is {ratios[name]:.3g} times beyond the points in {name}, farther than {DISTANCE:.0f}"
