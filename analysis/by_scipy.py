"""The usual way to fit a law, kept as an independent check of `analysis.minimise`: scipy's BFGS from every start."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from analysis.minimise import Problem

Array = np.ndarray


def by_scipy(problem: Problem, starts: Array, jacobian: bool = True) -> tuple[Array, float]:
    """theta (K,) and the objective: the lowest that BFGS reaches from any of the starts (S, K), with analytic
    gradients or with differences. Of smooth objectives: Huber's and squares.

    scipy's `success` is no judge: at the very optimum BFGS often reports a loss of precision.
    """

    def value(theta: Array) -> float:
        found = float(problem.value(theta[None], problem.objective)[0])
        return found if np.isfinite(found) else 1e300

    def gradient(theta: Array) -> Array:
        return np.asarray(problem.model(theta[None], problem.objective)[0][0])

    found = [minimize(value, start, jac=gradient if jacobian else None, method="BFGS") for start in starts]
    best = min(found, key=lambda each: float(each.fun))
    return np.asarray(best.x), float(best.fun)
