"""How much worse a law fits with one parameter held: what the points say of that parameter alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.fit import BadPoints, ScalingLaw
from analysis.intervals import LEVEL, Ends, noise_scale, standard_errors
from analysis.laws import STEP, Law
from analysis.minimise import Problem, minimise

Array = np.ndarray
LEAST = 1e-9  # of the lowest loss: an offset of nothing
FAR = 30  # standard errors that a profile is followed from the estimate


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
