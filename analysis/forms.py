"""The forms of scaling laws that are known by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from analysis.forms_downstream import ErrorExponential, ErrorSigmoid
from analysis.forms_user import UnknownForm, UserLaw, function_of
from analysis.laws import SEEDS, Law, PowerSum, Term, _log_sum, nonnegative, separate
from analysis.typed import did_you_mean

Array = np.ndarray


def _power(letter: str) -> Law:
    return PowerSum("power", f"L = A {letter}^-alpha", [letter], [Term("A", {letter: "alpha"})])


def _power_offset(letter: str) -> Law:
    terms = [Term("A", {letter: "alpha"}), Term("E", {})]
    return PowerSum("power_offset", f"L = E + A {letter}^-alpha", [letter], terms)


def _chinchilla() -> Law:
    """Hoffmann et al. 2022, arXiv:2203.15556, equation 2."""
    terms = [Term("E", {}), Term("A", {"n": "alpha"}), Term("B", {"d": "beta"})]
    return PowerSum("chinchilla", "L = E + A n^-alpha + B d^-beta", ["n", "d"], terms)


def _chinchilla_tied() -> Law:
    """Both exponents the same (Gadre et al. 2024, arXiv:2403.08540, section 3)."""
    terms = [Term("E", {}), Term("A", {"n": "eta"}), Term("B", {"d": "eta"})]
    return PowerSum("chinchilla_tied", "L = E + A n^-eta + B d^-eta", ["n", "d"], terms)


def _kaplan_ns() -> Law:
    """Kaplan et al. 2020, arXiv:2001.08361, equation 1.6."""
    terms = [Term("A", {"n": "alpha_N"}), Term("B", {"s": "alpha_S"})]
    return PowerSum("kaplan_ns", "L = (n_c / n)^alpha_N + (s_c / s)^alpha_S", ["n", "s"], terms)


class KaplanND(Law):
    """L = [(n_c / n)^(alpha_N / alpha_D) + d_c / d]^alpha_D (Kaplan et al. 2020, equation 1.5).

    theta: (alpha_N / alpha_D) (log n_c - c_n), log d_c - c_d, alpha_N, alpha_D. With the exponents fixed
    L^(1 / alpha_D) is a sum of two powers.
    """

    name = "kaplan_nd"
    equation = "L = [(n_c / n)^(alpha_N / alpha_D) + d_c / d]^alpha_D"
    inputs = ("n", "d")
    parameters = ("n_c", "d_c", "alpha_N", "alpha_D")

    def _logs(self, theta: Array, x: Array) -> Array:
        kappa, lam, alpha_N, alpha_D = (theta[..., k, None] for k in range(4))
        return np.stack((kappa - alpha_N / alpha_D * x[:, 0], lam - x[:, 1]), -2)

    def log_value(self, theta: Array, x: Array) -> Array:
        logs = self._logs(theta, x)
        return np.asarray(theta[..., 3, None] * np.logaddexp(logs[..., 0, :], logs[..., 1, :]))

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        logs, (alpha_N, alpha_D) = self._logs(theta, x), (theta[..., k, None] for k in (2, 3))
        whole = np.logaddexp(logs[..., 0, :], logs[..., 1, :])
        first, second = np.exp(logs[..., 0, :] - whole), np.exp(logs[..., 1, :] - whole)
        tilt = first * x[:, 0]
        return np.stack((alpha_D * first, alpha_D * second, -tilt, whole + tilt * alpha_N / alpha_D), -1)

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        kappa, lam, alpha_N, alpha_D = (theta[..., k] for k in range(4))
        n_c = np.exp(kappa * alpha_D / alpha_N + centre[0])
        return {"n_c": n_c, "d_c": np.exp(lam + centre[1]), "alpha_N": alpha_N, "alpha_D": alpha_D}

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        ratio = params["alpha_N"] / params["alpha_D"]
        kappa = ratio * (np.log(params["n_c"]) - centre[0])
        return np.array([kappa, np.log(params["d_c"]) - centre[1], params["alpha_N"], params["alpha_D"]])

    def starts(self, x: Array, y: Array) -> Array:
        steps = np.geomspace(0.02, 1.5, 32)
        grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
        alpha_N, alpha_D = grid[:, :1], grid[:, 1:]
        powers = np.stack((-alpha_N / alpha_D * x[:, 0], np.broadcast_to(-x[:, 1], (len(grid), len(x)))), 1)
        columns = np.exp(np.clip(powers - (np.log(y) / alpha_D)[:, None, :], -300, 300))
        coefficients, _ = nonnegative(columns, np.ones((len(grid), len(y))))
        with np.errstate(divide="ignore"):
            theta = np.concatenate((np.maximum(np.log(coefficients), -50.0), grid), 1)
        errors = ((self.log_value(theta, x) - np.log(y)) ** 2).sum(-1)
        return theta[separate(errors, (32, 32))]


class BrokenPower(Law):
    """L = a + b x^-c0 (1 + (x / d1)^(1 / f1))^(-c1 f1): a smoothly broken power law with one break (Caballero et al.
    2022, arXiv:2210.14891, equation 1). The exponent is c0 before d1 and c0 + c1 beyond, f1 how slowly it turns.

    theta: log a, log b - c0 c, c0, c1, log d1 - c, log f1.
    """

    name = "bnsl"
    equation = "L = a + b x^-c0 (1 + (x / d1)^(1 / f1))^(-c1 f1)"
    parameters = ("a", "b", "c0", "c1", "d1", "f1")

    def __init__(self, letter: str = "c"):
        self.inputs = (letter,)

    def _parts(self, theta: Array, x: Array) -> tuple[Array, ...]:
        _, b, c0, c1, d1, log_f = (theta[..., k, None] for k in range(6))
        f = np.exp(log_f)
        u = (x[:, 0] - d1) / f
        soft = np.logaddexp(0.0, u)
        return b - c0 * x[:, 0] - c1 * f * soft, f, u, soft

    def log_value(self, theta: Array, x: Array) -> Array:
        return np.asarray(np.logaddexp(theta[..., 0, None], self._parts(theta, x)[0]))

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        power, f, u, soft = self._parts(theta, x)
        c1 = theta[..., 3, None]
        share = np.exp(power - np.logaddexp(theta[..., 0, None], power))
        turned = np.exp(u - soft)  # 1 / (1 + e^-u)
        bent = -c1 * f * (soft - u * turned)
        return np.stack(
            (1 - share, share, -share * x[:, 0], -share * f * soft, share * c1 * turned, share * bent), -1
        )

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        a, b, c0, c1, d1, log_f = (theta[..., k] for k in range(6))
        at = centre[0]
        powers = {"a": np.exp(a), "b": np.exp(b + c0 * at), "c0": c0, "c1": c1}
        return powers | {"d1": np.exp(d1 + at), "f1": np.exp(log_f)}

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        at = centre[0]
        b = np.log(params["b"]) - params["c0"] * at
        return np.array(
            [np.log(params["a"]), b, params["c0"], params["c1"], np.log(params["d1"]) - at, np.log(params["f1"])]
        )

    def starts(self, x: Array, y: Array) -> Array:
        low, high = x[:, 0].min(), x[:, 0].max()
        sizes = (10, 12, 7, 3)
        parts = (
            np.geomspace(0.01, 1.5, sizes[0]),
            np.concatenate((-np.geomspace(0.05, 1.0, 6)[::-1], np.geomspace(0.05, 1.0, 6))),
            np.linspace(low, high, sizes[2] + 2)[1:-1],
            np.log([0.05, 0.3, 1.5]),
        )
        grid = np.stack(np.meshgrid(*parts, indexing="ij"), -1).reshape(-1, 4)
        theta = np.concatenate((np.full((len(grid), 1), -50.0), np.zeros((len(grid), 1)), grid), 1)
        columns = np.stack((np.exp(self._parts(theta, x)[0]) / y, np.broadcast_to(1 / y, (len(grid), len(y)))), 1)
        coefficients, errors = nonnegative(columns, np.ones((len(grid), len(y))))
        floor = 1e-3 * y.min()
        theta[:, 0] = np.log(np.maximum(coefficients[:, 1], floor))
        theta[:, 1] = np.log(np.maximum(coefficients[:, 0], 1e-6))
        return theta[separate(errors, sizes, 2 * SEEDS)]


class Shifted(Law):
    """L = E + A (x + g)^-alpha: a power law that begins late, for learning curves (Alabdulmohsin et al. 2022,
    arXiv:2209.06640, M3). theta: log A, log E, alpha, log g - c."""

    name = "shifted"
    parameters = ("A", "E", "alpha", "g")

    def __init__(self, letter: str = "s"):
        self.inputs = (letter,)
        self.equation = f"L = E + A ({letter} + g)^-alpha"

    def log_value(self, theta: Array, x: Array) -> Array:
        a, e, alpha, g = (theta[..., k, None] for k in range(4))
        return np.asarray(np.logaddexp(e, a - alpha * np.logaddexp(x[:, 0], g)))

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        a, e, alpha, g = (theta[..., k, None] for k in range(4))
        moved = np.logaddexp(x[:, 0], g)
        power = a - alpha * moved
        share = np.exp(power - np.logaddexp(e, power))
        return np.stack((share, 1 - share, -share * moved, -share * alpha * np.exp(g - moved)), -1)

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        a, e, alpha, g = (theta[..., k] for k in range(4))
        return {"A": np.exp(a + alpha * centre[0]), "E": np.exp(e), "alpha": alpha, "g": np.exp(g + centre[0])}

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        a = np.log(params["A"]) - params["alpha"] * centre[0]
        return np.array([a, np.log(params["E"]), params["alpha"], np.log(params["g"]) - centre[0]])

    def starts(self, x: Array, y: Array) -> Array:
        alphas, gs = np.geomspace(0.02, 5.0, 32), np.linspace(x.min() - 6, x.max() + 2, 12)
        grid = np.stack(np.meshgrid(alphas, gs, indexing="ij"), -1).reshape(-1, 2)
        power = np.exp(-grid[:, :1] * np.logaddexp(x[:, 0], grid[:, 1:]))
        columns = np.stack((power / y, np.broadcast_to(1 / y, power.shape)), 1)
        found, errors = nonnegative(columns, np.ones((len(grid), len(y))))
        logs = np.log(np.maximum(found, np.array([1e-12, 1e-3 * y.min()])))
        return np.concatenate((logs, grid), 1)[separate(errors, (32, 12))]


class DataConstrained(Law):
    """L = E + A N'^-alpha + B D'^-beta with repeated data and surplus parameters counting less and less (Muennighoff
    et al. 2023, arXiv:2305.16264, equations 5 and 6): D' = u + u R_D (1 - e^(-(d / u - 1) / R_D)), u the tokens
    that are not repeats; N' = U_N + U_N R_N (1 - e^(-(n / U_N - 1) / R_N)), U_N the lesser of n and the
    compute-optimal n for u tokens.

    theta: that of `chinchilla`, then log R_D, log R_N.
    """

    name = "data_constrained"
    equation = "L = E + A N'(n)^-alpha + B D'(d, u)^-beta"
    inputs = ("n", "d", "u")
    parameters = ("E", "A", "B", "alpha", "beta", "R_D", "R_N")

    def __init__(self) -> None:
        self.plain = _chinchilla()

    def centre(self, logs: Array) -> Array:
        n, d, _ = logs.mean(0)
        return np.array([n, d, d])  # d and u are of one kind

    def log_value(self, theta: Array, x: Array) -> Array:
        return _log_sum(self._parts(theta, x)[0])

    def _parts(self, theta: Array, x: Array) -> tuple[Array, ...]:
        """The logarithms of the terms (..., 3, n); log N', log D', and their derivatives: of N' in log U_N where that
        is the optimum, in log R_N; of D' in log R_D."""
        e, a, b, alpha, beta, r_D, r_N = (theta[..., k, None] for k in range(7))
        n, d, u = x[:, 0], x[:, 1], np.minimum(x[:, 1], x[:, 2])  # less than an epoch has no repeats
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            d_eff, _, d_rate = _effective(d - u, np.exp(r_D))
            # alpha A n^-alpha = beta B d^-beta at the optimum: log n of it, from log d = log u
            best = (np.log(alpha / beta) + a - b + beta * u) / alpha
            unique = np.minimum(n, best)
            n_eff, n_slope, n_rate = _effective(n - unique, np.exp(r_N))
            n_eff, d_eff = n_eff + unique, d_eff + u
            logs = np.stack(np.broadcast_arrays(e, a - alpha * n_eff, b - beta * d_eff), -2)
        return logs, n_eff, d_eff, best, np.where(n > best, 1 - n_slope, 0.0), n_rate, d_rate

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        logs, n_eff, d_eff, best, bend, n_rate, d_rate = self._parts(theta, x)
        alpha, beta = theta[..., 3, None], theta[..., 4, None]
        shares = np.exp(logs - _log_sum(logs)[..., None, :])
        e, a, b = (shares[..., k, :] for k in range(3))
        with np.errstate(over="ignore", invalid="ignore"):
            by_alpha = -a * (n_eff + bend * (1 / alpha - best))
            by_beta = -b * d_eff - a * bend * (np.minimum(x[:, 1], x[:, 2]) - 1 / beta)
            return np.stack(
                (e, a * (1 - bend), b + a * bend, by_alpha, by_beta, -b * beta * d_rate, -a * alpha * n_rate), -1
            )

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        found = self.plain.named(theta[..., :5], centre[:2])
        return found | {"R_D": np.exp(theta[..., 5]), "R_N": np.exp(theta[..., 6])}

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        return np.append(self.plain.theta(params, centre[:2]), np.log([params["R_D"], params["R_N"]]))

    def starts(self, x: Array, y: Array) -> Array:
        fresh = x[:, 1] <= x[:, 2] + np.log(1.5)
        few = np.unique(x[fresh, 0]).size < 3 or fresh.sum() < 8
        plain = self.plain.starts(x[:, :2] if few else x[fresh, :2], y if few else y[fresh])
        return np.array([[*each, np.log(d), np.log(n)] for each in plain[:3] for d in (4, 15, 60) for n in (3, 15)])


def _effective(log_ratio: Array, most: Array) -> tuple[Array, Array, Array]:
    """log(1 + R* (1 - e^(-R / R*))) with R = ratio - 1, and its derivatives in log ratio and in log R*."""
    repeats = np.maximum(np.expm1(log_ratio), 0.0)
    left = np.exp(-repeats / most)
    gained = -most * np.expm1(-repeats / most)
    whole = 1 + gained
    return np.log1p(gained), left * (1 + repeats) / whole, (gained - repeats * left) / whole


class Routing(Law):
    """log L = a log n + b log e' + c log n log e' + d, of models with e experts (Clark et al. 2022, arXiv:2202.01169,
    equations 7 to 9): 1 / e' = 1 / (e - 1 + 1 / (1 / e_start - 1 / e_max)) + 1 / e_max.

    theta: a, b, c, d at the centre of log n, log(e_start), log(e_max - e_start).
    """

    name = "routing"
    equation = "log L = a log n + b log e' + c log n log e' + d"
    inputs = ("n", "e")
    parameters = ("a", "b", "c", "d", "e_start", "e_max")

    def centre(self, logs: Array) -> Array:
        return np.array([logs[:, 0].mean(), 0.0])

    def _experts(self, theta: Array, x: Array) -> Array:
        start = np.exp(theta[..., 4, None])
        most = start + np.exp(theta[..., 5, None])
        return -np.log(1 / (np.exp(x[:, 1]) - 1 + 1 / (1 / start - 1 / most)) + 1 / most)

    def log_value(self, theta: Array, x: Array) -> Array:
        a, b, c, d = (theta[..., k, None] for k in range(4))
        e = self._experts(theta, x)
        return np.asarray(a * x[:, 0] + b * e + c * x[:, 0] * e + d)

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        a, b, c, d = (theta[..., k] for k in range(4))
        start = np.exp(theta[..., 4])
        at = centre[0]
        named = {"a": a, "b": b - c * at, "c": c, "d": d - a * at}
        return named | {"e_start": start, "e_max": start + np.exp(theta[..., 5])}

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        a, b, c, d = (params[name] for name in "abcd")
        start, at = params["e_start"], centre[0]
        return np.array([a, b + c * at, c, d + a * at, np.log(start), np.log(params["e_max"] - start)])

    def starts(self, x: Array, y: Array) -> Array:
        found = []
        for start in (1.0, 1.5, 3.0):
            for most in (30.0, 100.0, 300.0, 3000.0):
                tail = [np.log(start), np.log(most - start)]
                e = self._experts(np.array([0, 0, 0, 0, *tail]), x)
                design = np.stack((x[:, 0], e, x[:, 0] * e, np.ones(len(x))), 1)
                found.append([*np.linalg.lstsq(design, np.log(y), rcond=None)[0], *tail])
        return np.array(found)


ONE_INPUT: dict[str, Callable[[str], Law]] = {
    "power": _power,
    "power_offset": _power_offset,
    "bnsl": BrokenPower,
    "shifted": Shifted,
}
FORMS: dict[str, Callable[[], Law]] = {
    "chinchilla": _chinchilla,
    "chinchilla_tied": _chinchilla_tied,
    "kaplan_nd": KaplanND,
    "kaplan_ns": _kaplan_ns,
    "data_constrained": DataConstrained,
    "routing": Routing,
    "error_exponential": ErrorExponential,
    "error_sigmoid": ErrorSigmoid,
}


def law_of(form: str, letter: str = "c") -> Law:
    """The law of that name; those of one input read `letter`. `FILE.py:FUNCTION` is a function of one's own.

    Raises `UnknownForm`.
    """
    if form in ONE_INPUT:
        return ONE_INPUT[form](letter)
    if form in FORMS:
        return FORMS[form]()
    if ".py:" in form:
        return UserLaw(function_of(form))
    names = sorted((*ONE_INPUT, *FORMS))
    near, known = did_you_mean(form, names), ", ".join(names)
    raise UnknownForm(f"unknown form {form!r};{near} known: {known}, or FILE.py:FUNCTION for one of your own")
