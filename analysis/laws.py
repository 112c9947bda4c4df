"""Functional forms of scaling laws, with their analytic Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Law:
    """A form L(x; theta) with named parameters.

    `log_value(theta, x)` is log L and `log_jacobian` its derivative in theta, (n, k). `theta` holds the
    parameters in an unconstrained form; `named` gives them as the equation has them. `start(x, y)` gives
    starting points, (m, k).
    """

    name: str
    equation: str
    parameters: tuple[str, ...]
    log_value: Callable[[Array, Array], Array]
    log_jacobian: Callable[[Array, Array], Array]
    named: Callable[[Array], dict[str, float]]
    start: Callable[[Array, Array], Array]


def _offset_terms(theta: Array, x: Array) -> tuple[Array, Array]:
    """log(A x^-alpha) and log E."""
    a, e, alpha = theta
    return a - alpha * np.log(x), np.full(len(x), e)


def _offset_log_value(theta: Array, x: Array) -> Array:
    return np.logaddexp(*_offset_terms(theta, x))


def _offset_log_jacobian(theta: Array, x: Array) -> Array:
    power, constant = _offset_terms(theta, x)
    weight = np.exp(power - np.logaddexp(power, constant))  # share of the power term in L
    return np.stack((weight, 1 - weight, -weight * np.log(x)), 1)


def _offset_start(x: Array, y: Array) -> Array:
    """Variable projection: for each alpha on a grid, A and E are a non-negative least squares fit."""
    from scipy.optimize import nnls

    starts, errors = [], []
    for alpha in np.geomspace(0.01, 3.0, 64):
        design = np.stack((x**-alpha, np.ones_like(x)), 1)
        scale = np.linalg.norm(design, axis=0)
        (amplitude, offset), error = nnls(design / scale / y[:, None], np.ones_like(y))
        amplitude, offset = amplitude / scale[0], offset / scale[1]
        tiny = 1e-3 * y.min()
        starts.append((np.log(max(amplitude, tiny * x.min() ** alpha)), np.log(max(offset, tiny)), alpha))
        errors.append(error)
    best = np.argsort(errors)[:6]
    return np.array(starts)[best]


POWER_OFFSET = Law(
    name="power_offset",
    equation="L = E + A C^-alpha",
    parameters=("A", "E", "alpha"),
    log_value=_offset_log_value,
    log_jacobian=_offset_log_jacobian,
    named=lambda theta: {
        "A": float(np.exp(theta[0])),
        "E": float(np.exp(theta[1])),
        "alpha": float(theta[2]),
    },
    start=_offset_start,
)

LAWS = {law.name: law for law in (POWER_OFFSET,)}
