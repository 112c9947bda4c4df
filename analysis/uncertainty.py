"""What a fit does not know: resampling, intervals, profiles, influence, and errors on points it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.fit import BadPoints, NotEnoughPoints, ScalingLaw
from analysis.laws import Law
from analysis.minimise import Problem, minimise
from analysis.objectives import Objective

Array = np.ndarray
Ends = tuple[float, float]
Band = tuple[Array, Array]
LEVEL = 0.95
LEAST = 1e-9  # of the lowest loss: an offset of nothing
STEP = 1e-6  # of numerical derivatives
TINY = 1e-12  # a bandwidth for residuals that are all 0
FAR = 30  # standard errors that a profile is followed from the estimate
SAME = 1e-6  # computes that differ by less than this part are one budget


def resampled(n: int, B: int = 1000, seed: int = 0, *, least: int = 1, legacy: bool = False) -> Array:
    """B resamples of n points with replacement, as counts (B, n).

    Those with fewer than `least` different points are drawn again. With `legacy` they are drawn one by one as
    `np.random.RandomState(seed).choice(n, n)`, which repeats bootstraps that were published with numpy's global seed.
    """
    if legacy:
        rng = np.random.RandomState(seed)
        return np.stack([np.bincount(rng.choice(n, n), minlength=n) for _ in range(B)]).astype(float)
    return _drawn(n, B, np.random.default_rng(seed), least)


def resampled_groups(groups: Any, B: int = 1000, seed: int = 0, *, least: int = 1) -> Array:
    """B resamples of whole groups, as counts of their points (B, n): clusters, as trials with all their seeds.

    `groups` has a label for each point, or a table has columns of which each different row is a group.
    """
    codes = _codes(groups)
    return _drawn(int(codes.max()) + 1, B, np.random.default_rng(seed), least)[:, codes]


def resampled_within(groups: Any, B: int = 1000, seed: int = 0) -> Array:
    """B resamples of the members of every group, as seeds within a point: counts (B, n), each group's size kept."""
    codes, rng = _codes(groups), np.random.default_rng(seed)
    counts = np.empty((B, len(codes)))
    for code in range(int(codes.max()) + 1):
        members = np.flatnonzero(codes == code)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), B)
    return counts


def resampled_pairs(keys: Mapping[str, Any], B: int = 1000, seed: int = 0, *, least: int = 1) -> dict[str, Array]:
    """The same resamples for every variant, so that what pairs share cancels in their differences: counts (B, n_v).

    `keys` has the labels of each variant's points, as for `resampled_groups`: equal ones are pairs and count alike.
    """
    frames = [pd.DataFrame(each).reset_index(drop=True) for each in keys.values()]
    counts = resampled_groups(pd.concat(frames, ignore_index=True), B, seed, least=least)
    ends = np.cumsum([len(frame) for frame in frames])[:-1]
    return dict(zip(keys, np.split(counts, ends, axis=1), strict=True))


def _codes(groups: Any) -> Array:
    frame = pd.DataFrame(groups)
    return np.asarray(frame.groupby(list(frame.columns), sort=False, dropna=False).ngroup())


def _drawn(n: int, B: int, rng: np.random.Generator, least: int) -> Array:
    if least > n:
        raise NotEnoughPoints(f"{n} points or groups to resample, and each resample needs {least} different ones")
    counts = rng.multinomial(n, np.full(n, 1 / n), B)
    while (few := (counts > 0).sum(1) < least).any():
        counts[few] = rng.multinomial(n, np.full(n, 1 / n), int(few.sum()))
    return counts.astype(float)


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
    low, high = _between(law.samples_.to_numpy(), _tail(law, level, units))
    return {name: (float(a), float(b)) for name, a, b in zip(law.samples_, low, high, strict=True)}


def confidence_interval(law: ScalingLaw, x: Any, level: float = LEVEL, units: int | None = None) -> Band:
    """Of the curve at x, after `bootstrap`: percentiles as those of `parameter_intervals`, (m,) each."""
    return _between(law.predict_samples(x), _tail(law, level, units))


def prediction_interval(law: ScalingLaw, x: Any, level: float = LEVEL) -> Band:
    """Of a new point at x, after `bootstrap`: percentiles of every sample of the curve times every residual.

    Residuals of the logarithm are widened by sqrt(n / (n - K)), for what the parameters took of them, and the tails
    are those of Student's t. The noise at x is taken to be that of the points that were fitted.
    """
    n, K = law.n_, len(law.law.parameters)
    noise = np.exp(-law.residuals_[law.weights_ > 0] * np.sqrt(n / (n - K)))
    tail = float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, n - K)))
    ends = [_between(np.outer(each, noise).ravel(), tail) for each in law.predict_samples(x).T]
    return np.array([low for low, _ in ends]), np.array([high for _, high in ends])


def _tail(law: ScalingLaw, level: float, units: int | None) -> float:
    delta = law.penalty.delta
    squares = delta is None or float(np.median(np.abs(law.residuals_))) <= delta
    if units is None and not squares:
        return (1 - level) / 2
    return expanded(level, units or law.n_, len(law.law.parameters))


def _between(samples: Array, tail: float) -> Band:
    low, high = np.nanquantile(samples, [tail, 1 - tail], axis=0, method="weibull")
    return low, high


class Held(Law):
    """A law with one parameter held at a value; theta is that of the law without the coordinate of that parameter,
    which follows from the others: log of the parameter, or the parameter itself where it is not positive."""

    def __init__(self, law: ScalingLaw, name: str, value: float):
        self.whole, self.centre_, self.held, self.target = law.law, law.centre_, name, value
        self.at = law.law.parameters.index(name)
        self.begin = float(law.theta_[self.at])
        self.log_scale = value > 0 and law.params_[name] > 0
        self.name, self.equation, self.inputs = law.law.name, law.law.equation, law.law.inputs
        self.parameters = tuple(each for each in law.law.parameters if each != name)

    def _away(self, theta: Array) -> Array:
        found = self.whole.named(theta, self.centre_)[self.held]
        return np.asarray(np.log(found / self.target) if self.log_scale else found - self.target)

    def _slope(self, theta: Array, k: int) -> Array:
        step = STEP * np.eye(theta.shape[-1])[k]
        return np.asarray((self._away(theta + step) - self._away(theta - step)) / (2 * STEP))

    def full(self, theta: Array) -> Array:
        """The whole law's theta, by Newton's method on the held coordinate: one step where it is affine."""
        whole = np.insert(theta, self.at, self.begin, axis=-1)
        for _ in range(50):
            step = self._away(whole) / self._slope(whole, self.at)
            whole[..., self.at] -= step
            if np.all(np.abs(step) < 1e-12 * (1 + np.abs(whole[..., self.at]))):
                break
        return whole

    def log_value(self, theta: Array, x: Array) -> Array:
        return self.whole.log_value(self.full(theta), x)

    def value(self, theta: Array, x: Array) -> Array:
        return self.whole.value(self.full(theta), x)

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        return self._chained(self.full(theta), self.whole.log_jacobian, x)

    def jacobian(self, theta: Array, x: Array) -> Array:
        return self._chained(self.full(theta), self.whole.jacobian, x)

    def _chained(self, whole: Array, jacobian: Callable[[Array, Array], Array], x: Array) -> Array:
        J = jacobian(whole, x)
        others = [k for k in range(whole.shape[-1]) if k != self.at]
        slopes = np.stack([self._slope(whole, k) for k in others], -1) / self._slope(whole, self.at)[..., None]
        return np.asarray(J[..., others] - J[..., self.at, None] * slopes[..., None, :])


@dataclass(frozen=True)
class Profile:
    """How the least objective rises when one parameter is held: `rises` at `values`.

    `interval` is where it rises by less than `threshold`; an end that was not reached stands at the last value seen.
    `identified` says that both ends were reached, of an offset inside (0, lowest loss).
    """

    name: str
    values: Array
    rises: Array
    scale: float
    threshold: float
    interval: Ends
    identified: bool


def profile(law: ScalingLaw, name: str, values: Sequence[float] | None = None, level: float = LEVEL) -> Profile:
    """The profile of a parameter: the objective's least rise over its minimum with the parameter held at each value.

    The threshold is s^2 t^2 / 2, s^2 the `noise_scale` and t Student's of n - K degrees: of many points t^2 is
    chi^2(1); of thirty it is a tenth more, without which the interval holds the truth too seldom. Without `values`
    the parameter is followed from its estimate both ways until the rise is beyond the threshold, for 30 standard
    errors at most; an offset E within (0, lowest loss). Raises `BadPoints` for a name that is not fitted and for
    values that it cannot have.
    """
    if name not in law.law.parameters:
        raise BadPoints(f"{law.law.name} fits {', '.join(law.law.parameters)}: {name} is not among them")
    scale = noise_scale(law)
    threshold = scale * float(stats.t.ppf((1 + level) / 2, law.n_ - len(law.law.parameters))) ** 2 / 2
    limits = (LEAST * law.lowest_, law.lowest_ * (1 - LEAST)) if name == "E" else (-np.inf, np.inf)
    if values is not None and (np.asarray(values) < 0).any() and law.params_[name] > 0:
        raise BadPoints(f"{name} is positive")
    sides = []
    for sign in (-1, 1):
        wanted = _outwards(law, name, sign, limits) if values is None else _given(law, name, sign, values, limits)
        sides.append(_walk(law, name, wanted, threshold if values is None else np.inf))
    (low, low_closed), (high, high_closed) = (_crossing(law.params_[name], side, threshold) for side in sides)
    if name == "E" and not low_closed:
        low = 0.0
    points = sorted([*sides[0], (law.params_[name], 0.0), *sides[1]])
    found, rises = np.array(points).T
    return Profile(name, found, rises, scale, threshold, (low, high), low_closed and high_closed)


def _outwards(law: ScalingLaw, name: str, sign: int, limits: Ends) -> list[float]:
    """Values ever farther from the estimate; in equal ratios where a parameter other than E is positive."""
    at, error = law.params_[name], standard_errors(law)[name]
    if name == "E":
        error = max(error, 3e-3 * law.lowest_)
    by_ratio = at > 0 and name != "E"
    reach = sign * np.geomspace(0.6, FAR, 14) * (error / at if by_ratio else error)
    wanted = at * np.exp(np.clip(reach, -50, 50)) if by_ratio else at + reach
    inside = [float(each) for each in wanted if limits[0] < each < limits[1]]
    end = limits[0] if sign < 0 else limits[1]
    return [*inside, end] if np.isfinite(end) and sign * (end - at) > 0 else inside


def _given(law: ScalingLaw, name: str, sign: int, values: Sequence[float], limits: Ends) -> list[float]:
    at = law.params_[name]
    return sorted({float(np.clip(each, *limits)) for each in values if sign * (each - at) > 0})[::sign]


def _walk(law: ScalingLaw, name: str, wanted: Sequence[float], enough: float) -> list[tuple[float, float]]:
    """(value, rise) at each value, each fit begun from its neighbour's end and from the estimate; until `enough`."""
    found: list[tuple[float, float]] = []
    free = start = np.delete(law.theta_, law.law.parameters.index(name))
    for value in wanted:
        held = Held(law, name, value)
        starts = np.stack((start, free))
        problem = Problem(held, law.x_, law.y_, np.repeat(law.weights_[None], 2, 0), law.penalty)
        ended = minimise(problem, starts, wide=False)
        best = int(np.nanargmin(ended.value))
        start = ended.theta[best]
        found.append((value, float(ended.value[best]) - law.objective_))
        if found[-1][1] > 2 * enough:
            break
    return found


def _crossing(at: float, side: Sequence[tuple[float, float]], threshold: float) -> tuple[float, bool]:
    """Where the rise last goes beyond the threshold on the way out, its square root taken as straight in between."""
    points = [(at, 0.0), *side]
    below = max(k for k, (_, rise) in enumerate(points) if rise <= threshold)
    if below == len(points) - 1:
        return points[-1][0], False
    (x0, low), (x1, high) = points[below], points[below + 1]
    ends = np.sqrt([max(low, 0.0), high])
    return float(x0 + (x1 - x0) * (np.sqrt(threshold) - ends[0]) / (ends[1] - ends[0])), True


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
