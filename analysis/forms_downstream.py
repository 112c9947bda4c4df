"""Laws of what a loss says of a task's error: the second of two steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.laws import SEEDS, Law

Array = np.ndarray


class Downstream(Law):
    """What a loss says of a task's error. Subclasses are fitted on the error itself, by least squares."""

    inputs = ("l",)
    default_objective = "l2"

    def log_value(self, theta: Array, x: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(self.value(theta, x))

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        return self.jacobian(theta, x) / self.value(theta, x)[..., None]


class ErrorExponential(Downstream):
    """error = epsilon - k e^(-gamma L) (Gadre et al. 2024, arXiv:2403.08540, equation 5).

    theta: epsilon, log k - gamma L0, log gamma, with L0 the centre's exponential.
    """

    name = "error_exponential"
    equation = "error = epsilon - k e^(-gamma l)"
    parameters = ("epsilon", "k", "gamma")

    def value(self, theta: Array, x: Array) -> Array:
        epsilon, k, gamma = (theta[..., each, None] for each in range(3))
        return np.asarray(epsilon - np.exp(k - np.exp(gamma) * self._moved(x)))

    def jacobian(self, theta: Array, x: Array) -> Array:
        k, gamma = theta[..., 1, None], np.exp(theta[..., 2, None])
        moved = self._moved(x)
        part = np.exp(k - gamma * moved)
        return np.stack((np.ones_like(part), -part, part * gamma * moved), -1)

    @staticmethod
    def _moved(x: Array) -> Array:
        """The loss, less 1, in units of the centre: x is the logarithm of the loss less its mean logarithm."""
        return np.expm1(x[:, 0])

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        scale = np.exp(centre[0])
        gamma = np.exp(theta[..., 2])
        return {"epsilon": theta[..., 0], "k": np.exp(theta[..., 1] + gamma), "gamma": gamma / scale}

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        gamma = params["gamma"] * np.exp(centre[0])
        return np.array([params["epsilon"], np.log(params["k"]) - gamma, np.log(gamma)])

    def starts(self, x: Array, y: Array) -> Array:
        found = []
        for gamma in np.geomspace(0.05, 50.0, 40):
            design = np.stack((np.ones(len(x)), -np.exp(-gamma * self._moved(x))), 1)
            (epsilon, k), *_ = np.linalg.lstsq(design, y, rcond=None)
            k = max(k, 1e-9)
            error = ((design @ np.array([epsilon, k]) - y) ** 2).sum()
            found.append((error, epsilon, np.log(k), np.log(gamma)))
        return np.array(sorted(found))[:SEEDS, 1:]


class ErrorSigmoid(Downstream):
    """error = low + (high - low) / (1 + e^(-k (L - l0))) (as in Bhagia et al. 2024, arXiv:2412.04403, equation 3, of
    accuracy). theta: low, high, log k, l0 / exp(centre)."""

    name = "error_sigmoid"
    equation = "error = low + (high - low) / (1 + e^(-k (l - l0)))"
    parameters = ("low", "high", "k", "l0")

    def _gate(self, theta: Array, x: Array) -> tuple[Array, Array, Array]:
        k, at = np.exp(theta[..., 2, None]), theta[..., 3, None]
        away = np.exp(x[:, 0]) - at
        return 1 / (1 + np.exp(-np.clip(k * away, -500, 500))), k, away

    def value(self, theta: Array, x: Array) -> Array:
        low, high = theta[..., 0, None], theta[..., 1, None]
        return np.asarray(low + (high - low) * self._gate(theta, x)[0])

    def jacobian(self, theta: Array, x: Array) -> Array:
        gate, k, away = self._gate(theta, x)
        steep = (theta[..., 1, None] - theta[..., 0, None]) * gate * (1 - gate)
        return np.stack((1 - gate, gate, steep * k * away, -steep * k), -1)

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        scale = np.exp(centre[0])
        low, high, k, at = (theta[..., each] for each in range(4))
        return {"low": low, "high": high, "k": np.exp(k) / scale, "l0": at * scale}

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        scale = np.exp(centre[0])
        return np.array([params["low"], params["high"], np.log(params["k"] * scale), params["l0"] / scale])

    def starts(self, x: Array, y: Array) -> Array:
        loss, found = np.exp(x[:, 0]), []
        for k in np.geomspace(0.5, 100.0, 12):
            for at in np.linspace(loss.min() - 0.3, loss.max() + 0.3, 12):
                gate = 1 / (1 + np.exp(-np.clip(k * (loss - at), -500, 500)))
                design = np.stack((1 - gate, gate), 1)
                (low, high), *_ = np.linalg.lstsq(design, y, rcond=None)
                found.append((((design @ np.array([low, high]) - y) ** 2).sum(), low, high, np.log(k), at))
        return np.array(sorted(found))[: 2 * SEEDS, 1:]
