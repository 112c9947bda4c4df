"""How compute is best divided between parameters n and tokens d, where c = k n d.

Approach 3 of Hoffmann et al. 2022, arXiv:2203.15556, section 3.3: from a law of the loss in n and d. Approaches 1
and 2 (`analysis.envelope`, `analysis.isoflop`) end in an `Allocation` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from analysis.fit import BadPoints, NotEnoughPoints, ScalingLaw
from analysis.forms import KaplanND
from analysis.laws import PowerSum
from analysis.points import FLOPS

Array = np.ndarray
ENDS = (0.025, 0.975)  # of a 95 % interval
REACH = 10.0  # how far around the fitted points a numerical search goes, in logarithms
FINE = 0.01  # steps of log n in a numerical search
CHUNK = 128  # samples at once in a numerical search
FEW = 4  # budgets, below which an exponent rests on hardly anything


@dataclass
class Allocation:
    """n_opt = n_coef c^n_exponent and d_opt = d_coef c^d_exponent: parameters and tokens for c FLOPs.

    `samples` has a row for each resample, with the columns of `params`; it is empty where nothing was resampled.
    """

    params: dict[str, float]
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)
    warnings: list[str] = field(default_factory=list)

    @property
    def se(self) -> dict[str, float]:
        """Standard deviations of the resamples."""
        with np.errstate(over="ignore", invalid="ignore"):
            return {name: float(self.samples[name].std()) for name in self.samples}

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """95 % intervals: quantiles of the resamples."""
        return {name: _interval(self.samples[name].to_numpy()) for name in self.samples}

    def at(self, c: Any) -> pd.DataFrame:
        """One row for each budget c: c, n, d, tokens_per_param, and 95 % intervals as NAME_lo and NAME_hi."""
        budgets = _budgets(c)
        told = [self._log_sizes(pd.DataFrame([self.params]), np.log(each)) for each in budgets]
        drawn = [self._log_sizes(self.samples, np.log(each)) for each in budgets]
        rows = [_row(each, *one, *many) for each, one, many in zip(budgets, told, drawn, strict=True)]
        return pd.DataFrame(rows)

    @staticmethod
    def _log_sizes(params: pd.DataFrame, log_c: float) -> tuple[Array, Array]:
        if not len(params):
            return np.empty(0), np.empty(0)
        n, d = (np.log(params[f"{each}_coef"]) + params[f"{each}_exponent"] * log_c for each in "nd")
        return n.to_numpy(), d.to_numpy()


def power_laws(log_c: Array, log_n: Array, log_d: Array, accepted: Array) -> pd.DataFrame:
    """Least squares of log n and of log d on log c, many fits at once: log_c (V,), the others (B, V).

    Returns a row for each fit, missing where fewer than two different c are accepted.
    """
    weights = accepted.astype(float)
    count = np.maximum(weights.sum(-1), 1.0)
    mean_c = weights @ log_c / count
    moved = (log_c - mean_c[:, None]) * weights
    square = (moved**2).sum(-1)
    enough = square > 1e-12 * count
    found = {}
    for name, values in (("n", log_n), ("d", log_d)):
        known = np.where(accepted, values, 0.0)
        slope = np.full(len(known), np.nan)
        slope[enough] = (moved * known).sum(-1)[enough] / square[enough]
        found[f"{name}_exponent"] = slope
        found[f"{name}_coef"] = np.exp((weights * known).sum(-1) / count - slope * mean_c)
    return pd.DataFrame(found)[["n_exponent", "n_coef", "d_exponent", "d_coef"]]


def allocation(law: ScalingLaw, k: float = FLOPS) -> Allocation:
    """The compute-optimal power laws of a law that has them in closed form (Hoffmann et al. 2022, equation 4):

    n_opt = G (c / k)^a, d_opt = G^-1 (c / k)^b, G = (alpha A / (beta B))^(1 / (alpha + beta)),
    a = beta / (alpha + beta), b = alpha / (alpha + beta). `params` has G as well; a is n_exponent, b d_exponent.

    Of `chinchilla`, tied or not, with any offset; of `kaplan_nd` with A n^-alpha + B d^-beta = L^(1 / alpha_D).
    Intervals are of the law's own resamples. Raises `BadPoints` for other forms, and where the loss does not fall
    with both n and d.
    """
    _refuse(law, {})
    terms = _two_powers(law, law.theta_[None])
    if terms is None:
        raise BadPoints(f"{law.law.name} has no closed form of the optimum: use compute_optimal")
    if not terms.bowl()[0]:
        raise BadPoints(f"{law.law.name}: no compute-optimal size: the loss does not fall both with n and with d")
    samples, warnings = pd.DataFrame(), list[str]()
    if _resampled(law):
        drawn = _two_powers(law, law.thetas_)
        assert drawn is not None
        samples, warnings = without_missing(drawn.allocation(k))
    return Allocation(terms.allocation(k).iloc[0].to_dict(), samples, warnings)


def compute_optimal(
    law: ScalingLaw, c: Any, k: float = FLOPS, given: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """One row for each budget c = k n d in FLOPs: the n and d of the lowest loss, tokens_per_param, that loss.

    NAME_lo and NAME_hi are 95 % intervals over the law's resamples, each at its own optimum; missing without any.
    `extrapolated` says that n or d is outside of what the law was fitted to. `given` are inputs besides n and d: the
    u of `data_constrained` is how many different tokens there are, of which d tokens have at most d. In closed form
    where there is one, by a search over n elsewhere. Raises `BadPoints` for a form that is not one of n and d, and
    where no n is the best.
    """
    _refuse(law, given or {})
    rows = []
    for budget in _budgets(c):
        log_n, log_d, loss = _best(law, law.theta_[None], budget, k, given or {}, exact=True)
        if not np.isfinite(log_n[0]):
            raise BadPoints(f"{law.law.name}: at c = {budget:.4g} the loss has no lowest point")
        none = (np.empty(0),) * 3
        drawn = _best(law, law.thetas_, budget, k, given or {}, exact=False) if _resampled(law) else none
        row = _row(budget, log_n, log_d, *drawn[:2])
        row |= _with_interval("loss", float(loss[0]), drawn[2])
        rows.append(row | {"extrapolated": _extrapolated(law, log_n[0], log_d[0])})
    return pd.DataFrame(rows)


def frontier(
    law: ScalingLaw,
    low: float | None = None,
    high: float | None = None,
    points: int = 50,
    k: float = FLOPS,
    given: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """`compute_optimal` at budgets of equal ratio from `low` to `high`: those of the fitted points unless given."""
    _refuse(law, given or {})
    spent = k * np.exp(_logs(law, "n") + _logs(law, "d"))
    first, last = _budgets((spent.min() if low is None else low, spent.max() if high is None else high))
    return compute_optimal(law, np.geomspace(first, last, points), k, given)


def optimal_tokens(
    law: ScalingLaw, n: Any, k: float = FLOPS, given: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """One row for each n: how many tokens d a model of n parameters deserves, so that no other n is better at their
    compute c = k n d. There n dL/dn = d dL/dd, whatever k. Columns, intervals and errors as of `compute_optimal`.
    """
    _refuse(law, given or {})
    rows = []
    for size in _budgets(n, "n"):
        log_d, loss = _deserved(law, law.theta_[None], np.log(size), given or {}, exact=True)
        if not np.isfinite(log_d[0]):
            raise BadPoints(f"{law.law.name}: n = {size:.4g} is compute-optimal at no number of tokens")
        drawn = (np.empty(0),) * 2
        if _resampled(law):
            drawn = _deserved(law, law.thetas_, np.log(size), given or {}, exact=False)
        d = float(np.exp(log_d[0]))
        row = {"n": size} | _with_interval("d", d, np.exp(drawn[0])) | {"c": k * size * d}
        row |= _with_interval("tokens_per_param", d / size, np.exp(drawn[0]) / size)
        row |= _with_interval("loss", float(loss[0]), drawn[1])
        rows.append(row | {"extrapolated": _extrapolated(law, np.log(size), log_d[0])})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _TwoPowers:
    """L = E + (A n^-alpha + B d^-beta)^power, of many laws at once: all are (B,)."""

    log_A: Array
    log_B: Array
    alpha: Array
    beta: Array
    E: Array
    power: Array

    def bowl(self) -> Array:
        """Whether the loss falls with n and with d, so that there is a best n at every c."""
        finite = np.isfinite(self.log_A) & np.isfinite(self.log_B)
        return np.asarray(finite & (self.alpha > 0) & (self.beta > 0) & (self.power > 0))

    def allocation(self, k: float) -> pd.DataFrame:
        """Hoffmann et al. 2022, equation 4; missing where there is none."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            both = np.where(self.bowl(), self.alpha + self.beta, np.nan)
            a, b = self.beta / both, self.alpha / both
            log_G = (np.log(self.alpha) + self.log_A - np.log(self.beta) - self.log_B) / both
            n, d = np.exp(log_G - a * np.log(k)), np.exp(-log_G - b * np.log(k))
            return pd.DataFrame({"n_exponent": a, "n_coef": n, "d_exponent": b, "d_coef": d, "G": np.exp(log_G)})

    def loss(self, log_n: Array, log_d: Array) -> Array:
        with np.errstate(invalid="ignore"):
            inside = np.logaddexp(self.log_A - self.alpha * log_n, self.log_B - self.beta * log_d)
        return np.asarray(self.E + np.exp(self.power * inside))

    def tokens(self, log_n: float) -> Array:
        """log d where alpha A n^-alpha = beta B d^-beta."""
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.log(self.beta) + self.log_B - np.log(self.alpha) - self.log_A
            return np.where(self.bowl(), (scale + self.alpha * log_n) / self.beta, np.nan)


def _two_powers(law: ScalingLaw, theta: Array) -> _TwoPowers | None:
    """The law as a sum of a power of n and one of d; None where it is none."""
    named = law.law.named(theta, law.centre_)
    zero, one = np.zeros(len(theta)), np.ones(len(theta))
    if isinstance(law.law, KaplanND):
        alpha = named["alpha_N"] / named["alpha_D"]
        log_A, log_B = alpha * np.log(named["n_c"]), np.log(named["d_c"])
        return _TwoPowers(log_A, log_B, alpha, one, zero, named["alpha_D"])
    if not isinstance(law.law, PowerSum):
        return None
    terms = {tuple(term.powers): term for term in law.law.terms}
    if len(terms) != len(law.law.terms) or not {("n",), ("d",)} <= set(terms) <= {("n",), ("d",), ()}:
        return None
    of_n, of_d = terms[("n",)], terms[("d",)]
    offset = named[terms[()].coefficient] if () in terms else zero
    with np.errstate(divide="ignore"):
        log_A, log_B = np.log(named[of_n.coefficient]), np.log(named[of_d.coefficient])
    return _TwoPowers(log_A, log_B, named[of_n.powers["n"]], named[of_d.powers["d"]], offset, one)


def _best(
    law: ScalingLaw, theta: Array, c: float, k: float, given: Mapping[str, float], exact: bool
) -> tuple[Array, Array, Array]:
    """log n, log d and the loss of the optimum at c, each (B,); missing where there is none."""
    whole = np.log(c / k)
    terms = _two_powers(law, theta)
    if terms is not None:
        told = terms.allocation(k)
        log_n = np.log(told["G"].to_numpy()) + told["n_exponent"].to_numpy() * whole
        return log_n, whole - log_n, terms.loss(log_n, whole - log_n)
    grid = _grid(law, "n", abs(whole - np.mean(_logs(law, "n") + _logs(law, "d"))))
    found = _in_chunks(lambda part: lowest(grid, _log_loss(law, part, grid, whole - grid, given)), theta)
    log_n, log_loss = found
    if exact and np.isfinite(log_n[0]):
        step = grid[1] - grid[0]
        polished = optimize.minimize_scalar(
            lambda at: float(_log_loss(law, theta, np.array([at]), np.array([whole - at]), given)[0, 0]),
            bounds=(log_n[0] - step, log_n[0] + step),
            method="bounded",
            options={"xatol": 1e-10},
        )
        log_n, log_loss = np.array([polished.x]), np.array([polished.fun])
    return log_n, whole - log_n, np.exp(log_loss)


def lowest(grid: Array, values: Array) -> tuple[Array, Array]:
    """Where rows of values (B, G) on an even grid are lowest, by a parabola through the lowest point and its
    neighbours, and how low; missing where that is at an end."""
    at = np.argmin(np.where(np.isfinite(values), values, np.inf), -1)
    inside = (at > 0) & (at < len(grid) - 1)
    at = np.clip(at, 1, len(grid) - 2)
    left, middle, right = (np.take_along_axis(values, at[:, None] + move, -1)[:, 0] for move in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        bend = left - 2 * middle + right
        shift = np.where(bend > 0, (left - right) / (2 * bend), np.nan)
    low = middle - (left - right) * shift / 4
    return np.where(inside, grid[at] + shift * (grid[1] - grid[0]), np.nan), np.where(inside, low, np.nan)


def _deserved(
    law: ScalingLaw, theta: Array, log_n: float, given: Mapping[str, float], exact: bool
) -> tuple[Array, Array]:
    """log d at which n is the best at its compute, and the loss there, each (B,)."""
    terms = _two_powers(law, theta)
    if terms is not None:
        log_d = terms.tokens(log_n)
        return log_d, terms.loss(np.full(len(theta), log_n), log_d)
    h = 1e-4

    def steeper(part: Array, log_d: Array) -> Array:
        """How much faster the loss falls with d than with n: above 0 while tokens are too few."""
        n = np.full(len(log_d), log_n)
        by_n = _log_loss(law, part, n + h, log_d, given) - _log_loss(law, part, n - h, log_d, given)
        by_d = _log_loss(law, part, n, log_d + h, given) - _log_loss(law, part, n, log_d - h, given)
        return np.asarray(by_n - by_d)

    grid = _grid(law, "d", 3 * abs(log_n - np.mean(_logs(law, "n"))))
    (log_d,) = _in_chunks(lambda part: (_crossing(grid, steeper(part, grid)),), theta)
    if exact and np.isfinite(log_d[0]):
        ends = (log_d[0] - 2 * FINE, log_d[0] + 2 * FINE)
        log_d = np.array([optimize.brentq(lambda at: float(steeper(theta, np.array([at]))[0, 0]), *ends, xtol=1e-10)])
    known = zip(theta, np.nan_to_num(log_d), strict=True)
    log_loss = [_log_loss(law, each[None], np.array([log_n]), np.array([at]), given)[0, 0] for each, at in known]
    return log_d, np.where(np.isfinite(log_d), np.exp(np.array(log_loss)), np.nan)


def _crossing(grid: Array, values: Array) -> Array:
    """Where rows of values (B, G) first go from above 0 to below, by straight lines; missing where they never do."""
    falls = (values[:, :-1] > 0) & (values[:, 1:] <= 0)
    at = falls.argmax(-1)
    rows = np.arange(len(values))
    before, after = values[rows, at], values[rows, at + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = grid[at] + before / (before - after) * (grid[1] - grid[0])
    return np.where(falls.any(-1), found, np.nan)


def _in_chunks(compute: Callable[[Array], tuple[Array, ...]], theta: Array) -> tuple[Array, ...]:
    parts = [compute(theta[at : at + CHUNK]) for at in range(0, len(theta), CHUNK)]
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


def _log_loss(law: ScalingLaw, theta: Array, log_n: Array, log_d: Array, given: Mapping[str, float]) -> Array:
    """log L of laws theta (B, K) at points (G,): (B, G)."""
    columns = {"n": log_n, "d": log_d} | {name: np.full(len(log_n), np.log(value)) for name, value in given.items()}
    if "u" in columns:
        columns["u"] = np.minimum(columns["u"], log_d)
    x = np.stack([columns[letter] for letter in law.law.inputs], -1)
    return law.law.log_value(theta, x - law.centre_)


def _refuse(law: ScalingLaw, given: Mapping[str, float]) -> None:
    inputs = law.law.inputs
    if not {"n", "d"} <= set(inputs):
        raise BadPoints(f"{law.law.name} reads {', '.join(inputs)}: compute is divided by a law of n and d")
    missing = [letter for letter in inputs if letter not in ("n", "d") and letter not in given]
    if missing:
        raise BadPoints(f"{law.law.name} reads {', '.join(inputs)}: say which {missing[0]} is given")
    if not hasattr(law, "theta_"):
        raise NotEnoughPoints(f"{law.law.name} has not been fitted")


def _resampled(law: ScalingLaw) -> bool:
    return len(law.samples_) > 0


def _budgets(c: Any, name: str = "c") -> Array:
    budgets = np.atleast_1d(np.asarray(c, dtype=float))
    if not (np.isfinite(budgets).all() and (budgets > 0).all()):
        raise BadPoints(f"{name} must be positive and finite")
    return budgets


def without_missing(samples: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The resamples that have an optimum, and a warning that says how many have none."""
    kept = samples.dropna()
    lost = len(samples) - len(kept)
    return kept, [f"{lost} of {len(samples)} resamples have no optimum and are not in the intervals"] if lost else []


def _interval(values: Array) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, ENDS) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _with_interval(name: str, value: float, samples: Array) -> dict[str, float]:
    low, high = _interval(samples)
    return {name: value, f"{name}_lo": low, f"{name}_hi": high}


def _row(c: float, log_n: Array, log_d: Array, many_n: Array, many_d: Array) -> dict[str, Any]:
    """c, n, d and tokens per parameter, each with its interval."""
    found: dict[str, Any] = {"c": float(c)}
    sizes = {"n": (log_n, many_n), "d": (log_d, many_d), "tokens_per_param": (log_d - log_n, many_d - many_n)}
    for name, (one, many) in sizes.items():
        found |= _with_interval(name, float(np.exp(one[0])), np.exp(many))
    return found


def _extrapolated(law: ScalingLaw, log_n: float, log_d: float) -> bool:
    slack = 1e-9  # of logarithms
    seen = ((_logs(law, "n"), log_n), (_logs(law, "d"), log_d))
    return not all(column.min() - slack <= value <= column.max() + slack for column, value in seen)


def _logs(law: ScalingLaw, letter: str) -> Array:
    """The logarithms of one input of the fitted points."""
    at = law.law.inputs.index(letter)
    return np.asarray(law.x_[:, at] + law.centre_[at])


def _grid(law: ScalingLaw, letter: str, beyond: float) -> Array:
    """Where an optimum is searched: logarithms around the fitted ones, further where more is asked for."""
    seen = _logs(law, letter)
    reach = REACH + beyond
    return np.arange(seen.min() - reach, seen.max() + reach, FINE)
