"""Fits of scaling laws, scikit-learn shaped: `ScalingLaw("chinchilla").fit(table, loss)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.forms import law_of
from analysis.laws import Law, PowerSum
from analysis.minimise import Found, Problem, best_of, minimise
from analysis.objectives import Objective, objective_of

Array = np.ndarray


class NotEnoughPoints(AnalysisError):
    """Fewer distinct points than the form needs to be identified."""


class BadPoints(AnalysisError):
    """Points that no law can be fitted to."""


@dataclass
class ScalingLaw:
    """A law fitted to points (x, y).

    `form` is a name of `analysis.forms` or a `Law`; `objective` one of `analysis.objectives`; `pinned` coefficients
    that are given (`{"E": 0}` leaves the offset out); `letter` the input of a form that has one.

    After `fit`: `params_`, `derived_`, `objective_` (a sum over points, never a mean), `n_`, `residuals_` (log law
    less log y), `condition_` (of the scaled curvature), `converged_`, `warnings_`, `lowest_` (the least y). After
    `bootstrap`: `samples_`, `se_`; `analysis.intervals` has the intervals of them.
    """

    form: str | Law = "power_offset"
    objective: str | None = None
    delta: float | None = None
    pinned: Mapping[str, float] = field(default_factory=dict)
    letter: str = "c"
    over: float | None = None
    params_: dict[str, float] = field(default_factory=dict, init=False)
    derived_: dict[str, float] = field(default_factory=dict, init=False)
    se_: dict[str, float] = field(default_factory=dict, init=False)
    samples_: pd.DataFrame = field(default_factory=pd.DataFrame, init=False)
    objective_: float = field(default=np.nan, init=False)
    n_: int = field(default=0, init=False)
    lowest_: float = field(default=np.nan, init=False)
    converged_: bool = field(default=False, init=False)
    condition_: float = field(default=np.nan, init=False)
    warnings_: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        law = law_of(self.form, self.letter) if isinstance(self.form, str) else self.form
        if self.pinned:
            if not isinstance(law, PowerSum) or not set(self.pinned) <= {"E"}:
                raise BadPoints(f"form {law.name!r} has no offset E that could be pinned")
            law = law.with_pinned(self.pinned)
        self.law = law

    @property
    def penalty(self) -> Objective:
        """What is minimised."""
        return objective_of(self.objective or self.law.default_objective, self.delta, self.over)

    def fit(self, x: Any, y: Any, weights: Any = None) -> ScalingLaw:
        """Fit to positive inputs x (a table or mapping with a column for each of the law's inputs, or one array) and
        positive y. Raises `BadPoints`, and `NotEnoughPoints` unless there is one distinct x more than parameters.
        """
        self._read(x, y, weights)
        self._ended(best_of(self.problem(self.weights_[None]), self.law.starts(self.x_, self.y_)[None]))
        return self

    def _read(self, x: Any, y: Any, weights: Any) -> None:
        """Take the points, or refuse them."""
        logs, y = self._inputs(x), np.asarray(y, dtype=float)
        if not (np.isfinite(y).all() and (y > 0).all()):
            raise BadPoints("y must be positive and finite")
        for letter, column in zip(self.law.inputs, logs.T, strict=True):
            if len(np.unique(column)) == 1 and len(column) > 1:
                told = f"all points have {letter} = {np.exp(column[0]):.6g}"
                raise NotEnoughPoints(f"{told}: {self.law.name} needs several")
        distinct, needed = len(np.unique(logs, axis=0)), len(self.law.parameters) + 1
        if distinct < needed:
            raise NotEnoughPoints(f"{distinct} distinct x, {self.law.name} needs at least {needed}")
        self.centre_ = self.law.centre(logs)
        self.x_, self.y_ = logs - self.centre_, y
        self.weights_ = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=float)

    def _ended(self, found: Found, at: int = 0) -> None:
        """Take one of the optima that were found."""
        self.theta_, self.objective_ = found.theta[at], float(found.value[at])
        self.converged_, self.n_, self.lowest_ = bool(found.converged[at]), len(self.y_), float(self.y_.min())
        self.params_ = self.named(self.theta_)
        self.derived_ = self.law.derived(self.params_)
        self.residuals_ = self.law.log_value(self.theta_, self.x_) - np.log(self.y_)
        self.condition_ = self._condition()
        self.warnings_ = self._judge()

    def problem(self, weights: Array) -> Problem:
        """What is minimised with these weights of the points, (B, n)."""
        return Problem(self.law, self.x_, self.y_, weights, self.penalty)

    def refit(self, weights: Array) -> tuple[Array, Array]:
        """Parameters theta (B, K) and objectives (B,) with other weights of the points, from this fit's optimum."""
        found = minimise(self.problem(weights), np.repeat(self.theta_[None], len(weights), 0), wide=False)
        return found.theta, found.value

    def named(self, theta: Array) -> dict[str, float]:
        """The parameters of one theta, as the equation has them."""
        return {name: float(value) for name, value in self.law.named(theta, self.centre_).items()}

    def predict(self, x: Any) -> Array:
        """The law at inputs x."""
        return self.law.value(self.theta_, self._inputs(x) - self.centre_)

    def predict_samples(self, x: Any) -> Array:
        """The law at inputs x by every bootstrap sample, (B, n)."""
        return self.law.value(self.thetas_, self._inputs(x) - self.centre_)

    def bootstrap(self, weights: Array) -> pd.DataFrame:
        """Refit with resampled weights (B, n): see `analysis.resampling`. Sets `samples_` and `se_`."""
        self._drew(*self.refit(np.asarray(weights, dtype=float)))
        return self.samples_

    def bootstrap_values(self, y: Array) -> pd.DataFrame:
        """Refit with resampled values (B, n) of y at the same x; as `bootstrap`."""
        y = np.asarray(y, dtype=float)
        weights = np.repeat(self.weights_[None], len(y), 0)
        problem = Problem(self.law, self.x_, y, weights, self.penalty)
        found = minimise(problem, np.repeat(self.theta_[None], len(y), 0), wide=False)
        self._drew(found.theta, found.value)
        return self.samples_

    def _drew(self, thetas: Array, values: Array) -> None:
        self.thetas_, self.values_ = thetas, values
        self.samples_ = pd.DataFrame(self.law.named(self.thetas_, self.centre_))
        with np.errstate(over="ignore", invalid="ignore"):  # coefficients that nothing holds
            self.se_ = {name: float(self.samples_[name].std()) for name in self.samples_}

    def _inputs(self, x: Any) -> Array:
        """The logarithms of the inputs, (n, inputs)."""
        if isinstance(x, pd.DataFrame | Mapping):
            missing = [name for name in self.law.inputs if name not in x]
            if missing:
                raise BadPoints(f"{self.law.name} reads {', '.join(self.law.inputs)}: {missing[0]} is missing")
            columns = np.stack([np.asarray(x[name], dtype=float) for name in self.law.inputs], -1)
        else:
            columns = np.asarray(x, dtype=float)
            columns = columns[:, None] if columns.ndim == 1 else columns
        if not (np.isfinite(columns).all() and (columns > 0).all()):
            raise BadPoints("x must be positive and finite")
        return np.log(columns)

    def _condition(self) -> float:
        """Of the Jacobian with columns of unit length: how little parameters can be told apart, in any units."""
        J = self.law.log_jacobian(self.theta_, self.x_) * np.sqrt(self.weights_)[:, None]
        length = np.linalg.norm(J, axis=0)
        if not (np.isfinite(J).all() and length.all()):
            return float("inf")
        return float(np.linalg.cond(J / length))

    def _judge(self) -> list[str]:
        found = self.law.doubts(self.params_, self.y_)
        if not self.converged_:
            found.append("the fit did not come to an end: its gradient is not small")
        return found


def fit_alike(form: str, x: Array, ys: Array, weights: Array) -> list[ScalingLaw]:
    """One law for each row of ys (V, n) at the same inputs x (n,), with the same resamples, weights (B, n): what
    `fit` and `bootstrap` give each of them, in the time of few."""
    laws = [ScalingLaw(form) for _ in ys]
    for law, y in zip(laws, ys, strict=True):
        law._read(x, y, None)
    first, V, B = laws[0], len(ys), len(weights)
    once = Problem(first.law, first.x_, ys, np.ones(ys.shape), first.penalty)
    found = best_of(once, np.stack([first.law.starts(first.x_, y) for y in ys]))
    often = Problem(first.law, first.x_, np.repeat(ys, B, 0), np.tile(weights, (V, 1)), first.penalty)
    drawn = minimise(often, np.repeat(found.theta, B, 0), wide=False)
    for v, law in enumerate(laws):
        law._ended(found, v)
        law._drew(drawn.theta[v * B : (v + 1) * B], drawn.value[v * B : (v + 1) * B])
    return laws
