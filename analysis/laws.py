"""What a scaling law is: a positive function of a few inputs with named parameters, and its derivative.

A law is computed in the logarithms of its inputs, each less a centre c_i, where it is well conditioned; `named`
gives the parameters as the equation has them. Arrays may have leading dimensions, one for each of many fits that are
made at once: theta (..., K), x (n, inputs), values (..., n), Jacobians (..., n, K).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
EXPONENTS = (0.01, 3.0)  # what starting points are looked for in, in steps of equal ratio
GRID = {1: 64, 2: 32, 3: 12, 4: 8}  # steps by the number of exponents
SEEDS = 6
STEP = 1e-6  # of central differences


class Law:
    """A form of a law. `inputs` are the columns that it reads: n parameters, d tokens, c FLOPs, s steps, u tokens
    that are not repeats, e experts, l a loss.

    A subclass gives `log_value` or `value`, `named`, `theta` and `starts`; Jacobians where it can.
    """

    name: str
    equation: str
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]  # those that are fitted
    default_objective: str = "huber"

    def centre(self, logs: Array) -> Array:
        """What is taken off the logarithms of the inputs (n, inputs): (inputs,)."""
        return logs.mean(0)

    def log_value(self, theta: Array, x: Array) -> Array:
        """log L, (..., n)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(self.value(theta, x))

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        """d log L / d theta, (..., n, K); by central differences unless overridden."""
        columns = []
        for k in range(theta.shape[-1]):
            step = np.zeros(theta.shape[-1])
            step[k] = STEP
            columns.append((self.log_value(theta + step, x) - self.log_value(theta - step, x)) / (2 * STEP))
        return np.stack(columns, -1)

    def curvature(self, theta: Array, x: Array, by: Array) -> Array:
        """sum_i by_i d2 log L_i / d theta2, (..., K, K), by (..., n); 0 where it is left out."""
        K = theta.shape[-1]
        return np.zeros((*theta.shape[:-1], K, K))

    def value(self, theta: Array, x: Array) -> Array:
        """L, (..., n)."""
        return np.exp(np.minimum(self.log_value(theta, x), 300.0))

    def jacobian(self, theta: Array, x: Array) -> Array:
        """d L / d theta, (..., n, K)."""
        return self.log_jacobian(theta, x) * self.value(theta, x)[..., None]

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        """The parameters as the equation has them, each (...)."""
        raise NotImplementedError

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        """The inverse of `named`, (K,)."""
        raise NotImplementedError

    def starts(self, x: Array, y: Array) -> Array:
        """Starting points, (S, K)."""
        raise NotImplementedError

    def derived(self, params: Mapping[str, float]) -> dict[str, float]:
        """What follows from the parameters and has a name of its own."""
        return {}

    def doubts(self, params: Mapping[str, float], y: Array) -> list[str]:
        """Parameters that stand at the end of what they can be, in words."""
        return []


@dataclass(frozen=True)
class Term:
    """A power of the inputs with a positive coefficient: coefficient x prod_i input_i^-exponent_i."""

    coefficient: str
    powers: Mapping[str, str]  # input -> exponent


class PowerSum(Law):
    """L = sum_j A_j prod_i x_i^-alpha_ij: most of the laws of the field.

    theta holds log A_j - sum_i alpha_ij c_i of every term, then the exponents; two terms may share an exponent. With
    the exponents fixed the coefficients are a problem of non-negative least squares, so starting points are looked
    for in the exponents alone (variable projection). `pinned` terms have a given coefficient.
    """

    def __init__(
        self,
        name: str,
        equation: str,
        inputs: Sequence[str],
        terms: Sequence[Term],
        pinned: Mapping[str, float] | None = None,
    ):
        self.name, self.equation, self.inputs = name, equation, tuple(inputs)
        self.pinned = dict(pinned or {})
        self.terms = tuple(term for term in terms if self.pinned.get(term.coefficient, 1.0) > 0)
        self.free = tuple(term for term in self.terms if term.coefficient not in self.pinned)
        self.exponents = tuple(dict.fromkeys(each for term in terms for each in term.powers.values()))
        self.parameters = (*(term.coefficient for term in self.free), *self.exponents)
        self._coefficients = [j for j, term in enumerate(self.terms) if term.coefficient not in self.pinned]
        # exponents of term j are theta[..., J:] @ share[j]: which of them, of which input
        self._powers = np.zeros((len(self.terms), len(self.exponents), len(self.inputs)))
        for j, term in enumerate(self.terms):
            for letter, exponent in term.powers.items():
                self._powers[j, self.exponents.index(exponent), self.inputs.index(letter)] = 1.0

    def with_pinned(self, pinned: Mapping[str, float]) -> PowerSum:
        """The same law with coefficients given; 0 leaves the term out."""
        return PowerSum(self.name, self.equation, self.inputs, self.terms, {**self.pinned, **pinned})

    def _logs(self, theta: Array, x: Array) -> Array:
        """The logarithm of every term, (..., J, n)."""
        J = len(self.free)
        slopes = np.einsum("...e,jei->...ji", theta[..., J:], self._powers)
        logs = -slopes @ x.T
        at = 0
        for j, term in enumerate(self.terms):
            if term.coefficient in self.pinned:
                logs[..., j, :] += np.log(self.pinned[term.coefficient]) - self._moved(theta, j)[..., None]
            else:
                logs[..., j, :] += theta[..., at, None]
                at += 1
        return logs

    def _moved(self, theta: Array, j: int) -> Array:
        """What centring does to a pinned coefficient: only constants can be pinned, which have no inputs."""
        assert not self._powers[j].any(), "only a constant can be pinned"
        return np.zeros(theta.shape[:-1])

    def log_value(self, theta: Array, x: Array) -> Array:
        return _log_sum(self._logs(theta, x))

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        shares = self._shares(theta, x)
        found = np.zeros((*shares.shape[:-2], len(x), theta.shape[-1]))
        for k, j in enumerate(self._coefficients):
            found[..., k] = shares[..., j, :]
        for j, e, i in np.argwhere(self._powers):
            found[..., len(self.free) + e] -= shares[..., j, :] * x[:, i]
        return found

    def _shares(self, theta: Array, x: Array) -> Array:
        """The part of L that each term is, (..., J, n)."""
        logs = self._logs(theta, x)
        return np.asarray(np.exp(logs - _log_sum(logs)[..., None, :]))

    def curvature(self, theta: Array, x: Array, by: Array) -> Array:
        """Terms are linear in theta before the logarithm of their sum: it is the covariance of their slopes."""
        shares, mean, K = self._shares(theta, x), self.log_jacobian(theta, x), theta.shape[-1]
        found = -np.swapaxes(mean, -1, -2) @ (mean * by[..., None])
        for j, slope in enumerate(self._slopes(x)):
            squares = (slope[:, :, None] * slope[:, None, :]).reshape(len(x), K * K)
            found += ((by * shares[..., j, :]) @ squares).reshape(*theta.shape[:-1], K, K)
        return np.asarray(found)

    def _slopes(self, x: Array) -> Array:
        """d log term_j / d theta, (J, n, K)."""
        ones = np.zeros((len(self.terms), len(x), len(self.free)))
        for k, j in enumerate(self._coefficients):
            ones[j, :, k] = 1.0
        return np.concatenate((ones, -np.einsum("jei,ni->jne", self._powers, x)), -1)

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        J = len(self.free)
        found = {name: theta[..., J + k] for k, name in enumerate(self.exponents)}
        logs = {}
        for at, term in enumerate(self.free):
            moved = sum(found[name] * centre[self.inputs.index(letter)] for letter, name in term.powers.items())
            with np.errstate(over="ignore"):  # a coefficient that nothing holds
                logs[term.coefficient] = np.exp(theta[..., at] + moved)
        return {name: {**logs, **found}[name] for name in self.parameters} | {
            name: np.full(theta.shape[:-1], value) for name, value in self.pinned.items()
        }

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        found = []
        for term in self.free:
            moved = sum(params[name] * centre[self.inputs.index(letter)] for letter, name in term.powers.items())
            found.append(np.log(params[term.coefficient]) - moved)
        return np.array([*found, *(params[name] for name in self.exponents)])

    def starts(self, x: Array, y: Array) -> Array:
        E = len(self.exponents)
        steps = np.geomspace(*EXPONENTS, GRID[E])
        grid = np.stack(np.meshgrid(*[steps] * E, indexing="ij"), -1).reshape(-1, E)
        slopes = np.einsum("ge,jei->gji", grid, self._powers)
        columns = np.exp(-slopes @ x.T) / y  # (G, J, n), of relative errors
        known = np.array([term.coefficient in self.pinned for term in self.terms])
        given = [self.pinned[term.coefficient] for term in self.terms if term.coefficient in self.pinned]
        rest = 1 - np.einsum("gjn,j->gn", columns[:, known], given)
        coefficients, errors = nonnegative(columns[:, ~known], rest)
        least = 1e-3 * np.array([1 / columns[:, j].max(-1) for j in np.flatnonzero(~known)]).T
        theta = np.concatenate((np.log(np.maximum(coefficients, least)), grid), 1)
        return theta[separate(errors, (GRID[E],) * E)]

    def derived(self, params: Mapping[str, float]) -> dict[str, float]:
        """x_c of A x^-alpha = (x_c / x)^alpha, as Kaplan et al. 2020 write it, of terms with one input."""
        found = {}
        for term in self.free:
            if len(term.powers) == 1:
                ((letter, exponent),) = term.powers.items()
                found[f"{letter}_c"] = float(np.exp(np.log(params[term.coefficient]) / params[exponent]))
        return found

    def doubts(self, params: Mapping[str, float], y: Array) -> list[str]:
        found = []
        if "E" in params and "E" not in self.pinned:
            if params["E"] < 1e-2 * y.min():
                found.append("the offset E is at zero: the points do not bend")
            if params["E"] > 0.98 * y.min():
                found.append("the offset E is at the lowest loss: hardly anything is left to fall")
        for name in self.exponents:
            if not 1.1 * EXPONENTS[0] < params[name] < EXPONENTS[1] / 1.03:
                found.append(f"the exponent {name} is at the edge of what was searched")
        return found


def _log_sum(logs: Array) -> Array:
    """log sum_j exp, over the last axis but one."""
    if logs.shape[-2] == 2:
        return np.logaddexp(logs[..., 0, :], logs[..., 1, :])
    top = logs.max(-2)
    return np.asarray(top + np.log(np.exp(logs - top[..., None, :]).sum(-2)))


def nonnegative(columns: Array, target: Array) -> tuple[Array, Array]:
    """Least squares with non-negative coefficients, many problems at once: columns (G, J, n), target (G, n).

    The minimum is the plain solution on one of the subsets of columns, which are all tried: J is at most 3 or 4.
    Returns the coefficients (G, J) and the sums of squares (G,).
    """
    G, J, _ = columns.shape
    scale = np.linalg.norm(columns, axis=-1)
    scale[scale == 0] = 1.0
    unit = columns / scale[..., None]
    gram, right = unit @ np.swapaxes(unit, -1, -2), np.einsum("gjn,gn->gj", unit, target)
    whole = np.einsum("gn,gn->g", target, target)
    best, coefficients = whole.copy(), np.zeros((G, J))
    for subset in range(1, 1 << J):
        chosen = [j for j in range(J) if subset >> j & 1]
        inside = gram[:, chosen][:, :, chosen] + 1e-13 * np.eye(len(chosen))
        found = np.linalg.solve(inside, right[:, chosen, None])[..., 0]
        error = whole - np.einsum("gj,gj->g", found, right[:, chosen])
        better = (found >= 0).all(-1) & (error < best)
        best[better] = error[better]
        coefficients[better] = 0.0
        coefficients[np.ix_(better, chosen)] = found[better]
    return coefficients / scale, best


def separate(errors: Array, shape: tuple[int, ...], count: int = SEEDS) -> Array:
    """Which points of a grid to start from: its local minima, the best first; the best of all others after them."""
    grid = errors.reshape(shape)
    lowest = np.ones(shape, dtype=bool)
    for axis in range(len(shape)):
        for step in (1, -1):
            moved = np.roll(grid, step, axis)
            edge = [slice(None)] * len(shape)
            edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
            moved[tuple(edge)] = np.inf
            lowest &= grid <= moved
    order = np.lexsort((errors, ~lowest.reshape(-1)))
    return np.asarray(order[:count])
