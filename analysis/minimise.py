"""Fits many times at once: Newton's method, damped, on objectives that are sharpened step by step.

From each start the parameters go down on the objective with a wide delta, where it is nearly a sum of squares, and
from there with ever narrower ones: residuals that end within delta are found on the way, not guessed. A step solves
(H + lambda M) p = -g with g the gradient, H the second derivative, and M = J' diag(rho' / r) J, whose step majorises
the objective of a law that is linear: lambda grows until the objective falls.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np

from analysis.laws import Law, Part
from analysis.objectives import Objective

Array = np.ndarray
SHRINK = 8.0  # from one delta to the next
STEPS = 60  # at each delta
LAST = 600  # at the last
FLAT = 1e-15  # an objective that falls by less than this part has ended
STUCK = 1e10  # the largest damping
CHUNK, VALUES = 128, 32_000  # fits at once, more while the law has fewer values: their Jacobians stay in the cache


@dataclass(frozen=True)
class Found:
    """theta (B, K), the objective (B,), and whether each has ended, (B,)."""

    theta: Array
    value: Array
    converged: Array


class Problem:
    """A law, points, and weights (B, n): what is minimised in theta (B, K). y is (n,), or (B, n) where it differs.

    The law is computed once at each distinct x, as of seeds: `x` has these, and the points are put in their order.
    """

    def __init__(self, law: Law, x: Array, y: Array, weights: Array, objective: Objective):
        self.law, self.objective = law, objective
        self.x, which, self._repeats = np.unique(x, axis=0, return_inverse=True, return_counts=True)
        order = np.argsort(which.reshape(-1), kind="stable")
        self.target = (np.log(y) if objective.log else y)[..., order]
        self.weights = weights[:, order]
        self._parts: list[Part] = []

    def _summed(self, each: Array) -> Array:
        """Over the points of each distinct x, (B, n) to (B, distinct)."""
        if len(self.x) == each.shape[-1]:
            return each
        starts = np.concatenate(([0], np.cumsum(self._repeats)[:-1]))
        return np.asarray(np.add.reduceat(each, starts, axis=-1))

    def residuals(self, theta: Array) -> Array:
        said = self.law.log_value if self.objective.log else self.law.value
        return np.repeat(said(theta, self.x), self._repeats, axis=-1) - self.target

    def value(self, theta: Array, objective: Objective) -> Array:
        r = self.residuals(theta)
        return np.asarray((self.weights * objective.rho(r)).sum(-1))

    def only(self, rows: Array | slice) -> Problem:
        """Some of the fits."""
        chosen = copy(self)
        chosen._parts, chosen.weights = self.parts, self.weights[rows]
        if self.target.ndim > 1:
            chosen.target = self.target[rows]
        return chosen

    def by(self, law: Law) -> Problem:
        """The same points by another law."""
        other = copy(self)
        other.law, other._parts = law, []
        return other

    @property
    def parts(self) -> list[Part]:
        """Of the law, at these points."""
        self._parts = self._parts or self.law.parts(self.x)
        return self._parts

    def model(self, theta: Array, objective: Objective) -> tuple[Array, Array, Array]:
        """The gradient (B, K), and the matrices H and M (B, K, K)."""
        slopes = objective.slope(self.residuals(theta))
        slope, weight, curve = (self._summed(self.weights * each) for each in slopes)
        L = None if objective.log else self.law.value(theta, self.x)
        B, K = theta.shape
        g, H, M = np.zeros((B, K)), np.zeros((B, K, K)), np.zeros((B, K, K))
        for part in self.parts:
            law, x, rows, own = part.law, part.x, part.rows, theta[:, part.at]
            J = (law.log_jacobian if objective.log else law.jacobian)(own, x)
            right, pull = np.swapaxes(J, -1, -2), slope[:, rows]
            g[:, part.at] += (right @ pull[..., None])[..., 0]
            M[part.block] += right @ (J * weight[:, rows][..., None])
            found = right @ (J * curve[:, rows][..., None])
            if L is None:
                found += law.curvature(own, x, pull)
            else:  # the second derivative of L = e^f is L f'' + (L f') (L f')' / L
                mine = L[:, rows]
                found += law.curvature(own, x, pull * mine) + right @ (J * (pull / mine)[..., None])
            H[part.block] += found
        return g, H, M


def minimise(problem: Problem, theta: Array, wide: bool = True) -> Found:
    """From one start for each fit, theta (B, K). With `wide` it begins with a wide delta; without, near the end of a
    fit to other weights, with the objective's own (a thousandth of the residuals where that is 0)."""
    chunk = max(CHUNK, VALUES // len(problem.x))
    parts = [
        _descend(problem.only(slice(at, at + chunk)), theta[at : at + chunk], wide)
        for at in range(0, len(theta), chunk)
    ]
    return Found(
        np.concatenate([part.theta for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.converged for part in parts]),
    )


def best_of(problem: Problem, starts: Array) -> Found:
    """Every fit from many starts, (B, S, K): the lowest objective that any of them reaches."""
    B, S, K = starts.shape
    found = minimise(problem.only(np.repeat(np.arange(B), S)), starts.reshape(B * S, K))
    at = np.nanargmin(found.value.reshape(B, S), axis=1) + S * np.arange(B)
    return Found(found.theta[at], found.value[at], found.converged[at])


def _deltas(problem: Problem, theta: Array, wide: bool) -> list[float | None]:
    """The widths that are gone through, the objective's last; a sharp |r| ends at a tiny part of the residuals."""
    delta = problem.objective.delta
    if delta is None:
        return [None]
    r = np.abs(problem.residuals(theta))
    scale = float(np.nanmedian(r)) or 1e-12
    last = delta or 1e-9 * scale
    first = float(np.nanmax(r)) if wide else last if delta else 1e-3 * scale
    count = max(0, int(np.ceil(np.log(max(first / last, 1.0)) / np.log(SHRINK))))
    return [last * SHRINK**k for k in range(count, -1, -1)]


def _descend(problem: Problem, theta: Array, wide: bool) -> Found:
    theta = theta.astype(float).copy()
    deltas = _deltas(problem, theta, wide)
    converged = np.zeros(len(theta), dtype=bool)
    for k, delta in enumerate(deltas):
        last = k == len(deltas) - 1
        objective = problem.objective if delta is None else problem.objective.smoothed(delta)
        theta, converged = _newton(problem, theta, objective, LAST if last else STEPS, FLAT if last else 1e-6)
    return Found(theta, problem.value(theta, problem.objective), converged)


def _newton(problem: Problem, theta: Array, objective: Objective, steps: int, flat: float) -> tuple[Array, Array]:
    """Damped steps until the objective is flat, each fit by itself; which of them ended."""
    B, K = theta.shape
    value = problem.value(theta, objective)
    damping = np.ones(B)
    calm = np.zeros(B, dtype=int)  # steps in a row that gained next to nothing
    going = np.isfinite(value)
    for _ in range(steps):
        rows = np.flatnonzero(going)
        if not len(rows):
            break
        part = problem.only(rows)
        g, H, M = part.model(theta[rows], objective)
        # a resample of few points may not know some parameters; each by its own size, so that a term may vanish
        ridge = (1e-12 * np.abs(np.einsum("bkk->bk", M)) + 1e-300)[:, :, None] * np.eye(K)
        step = -_solved(H + damping[rows, None, None] * M + ridge, g)
        tried = theta[rows] + np.clip(step, -5.0, 5.0)
        new = part.value(tried, objective)
        better = new < value[rows]
        gain = np.where(better, value[rows] - new, 0.0) / np.maximum(value[rows], 1e-300)
        theta[rows[better]], value[rows[better]] = tried[better], new[better]
        damping[rows] = np.clip(np.where(better, damping[rows] / 5, damping[rows] * 8), 1e-8, 1e12)
        calm[rows] = np.where(better & (gain > flat), 0, calm[rows] + better)
        promised = np.abs((g * step).sum(-1)) <= flat * value[rows]  # to first order, of the step just tried
        going[rows] &= (calm[rows] < 3) & (damping[rows] < STUCK) & ~promised
    return theta, ~going


def _solved(matrices: Array, right: Array) -> Array:
    """x of A x = b for each (K, K) and (K,); the shortest x of least squares where an A is singular."""
    try:
        return np.asarray(np.linalg.solve(matrices, right[..., None])[..., 0])
    except np.linalg.LinAlgError:
        finite = np.isfinite(matrices).all((-1, -2))[:, None, None]
        inverse = np.linalg.pinv(np.where(finite, matrices, 0.0), hermitian=True)
        return np.asarray((inverse @ right[..., None])[..., 0])
