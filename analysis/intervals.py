"""Standard errors and intervals: of parameters, of a curve, of a new point."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from analysis.fit import NotEnoughPoints, ScalingLaw
from analysis.laws import STEP
from analysis.objectives import Objective

Array = np.ndarray
Ends = tuple[float, float]
Band = tuple[Array, Array]
LEVEL = 0.95
TINY = 1e-12  # a bandwidth for residuals that are all 0


def noise_scale(law: ScalingLaw) -> float:
    """s^2 = mean(psi^2) n / (n - K) / kappa, psi the derivative of the penalty and kappa the derivative of mean(psi).

    With it the rise of the objective over its minimum is s^2 chi^2(1) / 2 for a parameter that is held at its true
    value. Of squares it is the residual variance. Huber's and the absolute penalty are no likelihoods of the noise,
    so their own scale would be wrong: there kappa is the density of the residuals about 0 (twice, for |r|), and s^2
    the scale of the likelihood-ratio test of quantile regression (Koenker and Bassett 1982, Econometrica 50).
    """
    spread, kappa = _spread(law)
    return spread / kappa


def standard_errors(law: ScalingLaw) -> dict[str, float]:
    """Of every parameter, from s^2 (J'J)^-1 / kappa: right where the form is and the noise is alike at all points."""
    J = (law.law.log_jacobian if law.penalty.log else law.law.jacobian)(law.theta_, law.x_)
    spread, kappa = _spread(law)
    inverse = np.linalg.pinv(J.T @ (J * law.weights_[:, None]), rcond=1e-14, hermitian=True)
    steps = STEP * np.eye(len(law.theta_))
    up, down = (law.law.named(law.theta_ + sign * steps, law.centre_) for sign in (1, -1))
    slopes = {name: (up[name] - down[name]) / (2 * STEP) for name in law.law.parameters}
    return {name: float(np.sqrt(spread * (slope @ inverse @ slope)) / kappa) for name, slope in slopes.items()}


def _spread(law: ScalingLaw) -> tuple[float, float]:
    """mean(psi^2) n / (n - K) and kappa: a difference over n^(-1/5) robust standard deviations, since a narrow delta
    holds too few residuals to count, without the K least of them, which a law can be put through."""
    objective, w, K = law.penalty, law.weights_ / law.weights_.mean(), len(law.theta_)
    r = law.problem(law.weights_[None]).residuals(law.theta_)
    n = int((law.weights_ > 0).sum())
    left = np.argsort(np.abs(r))[K:]
    h = max(1.4826 * float(np.median(np.abs(r[left]))) * n**-0.2, TINY)
    rise = _psi(objective, r[left] + h) - _psi(objective, r[left] - h)
    kappa = (w[left] * rise).sum() / (2 * h * w[left].sum())
    return float((w * _psi(objective, r) ** 2).mean() * n / max(n - K, 1)), float(kappa)


def _psi(objective: Objective, r: Array) -> Array:
    if objective.delta == 0:
        return np.asarray(np.sign(r) * np.where(r > 0, objective.over, 1.0))
    return objective.slope(r)[0]


def expanded(level: float, units: int, parameters: int) -> float:
    """The tail of the samples to cut off at either end: Phi(-t sqrt(n / (n - K))), t Student's with n - K degrees.

    A bootstrap of n units is narrow by sqrt((n - K) / n) and knows nothing of Student's t. The percentiles at this
    tail make up for both (Hesterberg 2015, arXiv:1411.5279). Raises `NotEnoughPoints` unless n > K.
    """
    if units <= parameters:
        raise NotEnoughPoints(f"{units} resampled units say nothing of the spread of {parameters} parameters")
    free = units - parameters
    return float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, free) * np.sqrt(units / free)))


def parameter_intervals(law: ScalingLaw, level: float = LEVEL, units: int | None = None) -> dict[str, Ends]:
    """The interval of every parameter, after `bootstrap`: percentiles of its samples, `expanded` for squares.

    A bootstrap of absolute deviations is too wide by about what its percentiles are too narrow, so those stand.
    `units` is the number of groups where groups were resampled: then they are expanded whatever the objective.
    """
    low, high = percentiles(law.samples_.to_numpy(), _tail(law, level, units))
    return {name: (float(a), float(b)) for name, a, b in zip(law.samples_, low, high, strict=True)}


def confidence_interval(law: ScalingLaw, x: Any, level: float = LEVEL, units: int | None = None) -> Band:
    """Of the curve at x, after `bootstrap`: percentiles as those of `parameter_intervals`, (m,) each."""
    return percentiles(law.predict_samples(x), _tail(law, level, units))


def prediction_interval(law: ScalingLaw, x: Any, level: float = LEVEL) -> Band:
    """Of a new point at x, after `bootstrap`: percentiles of every sample of the curve times every residual.

    Residuals of the logarithm are widened by sqrt(n / (n - K)), for what the parameters took of them, and the tails
    are those of Student's t. The noise at x is taken to be that of the points that were fitted.
    """
    n, K = law.n_, len(law.law.parameters)
    noise = np.exp(-law.residuals_[law.weights_ > 0] * np.sqrt(n / (n - K)))
    tail = float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, n - K)))
    ends = [percentiles(np.outer(each, noise).ravel(), tail) for each in law.predict_samples(x).T]
    return np.array([low for low, _ in ends]), np.array([high for _, high in ends])


def _tail(law: ScalingLaw, level: float, units: int | None) -> float:
    delta = law.penalty.delta
    squares = delta is None or float(np.median(np.abs(law.residuals_))) <= delta
    if units is None and not squares:
        return (1 - level) / 2
    return expanded(level, units or law.n_, len(law.law.parameters))


def percentiles(samples: Array, tail: float) -> Band:
    """The values of (B, m) samples that leave `tail` of them below, and above: (m,) each."""
    low, high = np.nanquantile(samples, [tail, 1 - tail], axis=0, method="weibull")
    return low, high
