"""The next run: widths by textbook formulas and scipy, the best of candidates by brute force, and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats
from scipy.optimize import curve_fit

from analysis.fit import BadPoints, ScalingLaw
from analysis.forms import law_of
from analysis.joint import SharedLaw
from analysis.nextrun import interval_at, next_runs, noise

TRUTH = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37}
TARGET = {"n": 1e10, "d": 2e11}


def chinchilla(logs: Any, log_e: float, a: float, b: float, alpha: float, beta: float) -> Any:
    """L at (log n, log d), with powers at n = 1e8 and d = 1e10, where their coefficients are well determined."""
    n, d = logs
    return np.exp(log_e) + np.exp(a - alpha * (n - np.log(1e8))) + np.exp(b - beta * (d - np.log(1e10)))


def truth(n: Any, d: Any) -> Any:
    return TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]


def points(sigma: float, count: int = 30, draw: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(draw)
    n = 10 ** rng.uniform(7, 8.7, count)
    d = n * 10 ** rng.uniform(0.5, 2.2, count)
    return pd.DataFrame({"n": n, "d": d, "loss": truth(n, d) * np.exp(sigma * rng.standard_normal(count))})


def fitted(rows: pd.DataFrame, objective: str = "l2_log", form: str = "chinchilla") -> ScalingLaw:
    return ScalingLaw(form, objective).fit(rows, rows["loss"])


def candidates() -> pd.DataFrame:
    """Five sizes and five numbers of tokens, up to 3e9 and 1e11: 36 times the FLOPs of the largest point."""
    grid = [(n, d) for n in np.geomspace(1e7, 3e9, 5) for d in np.geomspace(1e8, 1e11, 5)]
    return pd.DataFrame(grid, columns=["n", "d"]).assign(seed=0, variant="base")


def each_costs_one(rows: pd.DataFrame) -> np.ndarray:
    return np.ones(len(rows))


# a straight line in logarithms: everything follows from textbooks


def line(sigma: float = 0.02) -> tuple[ScalingLaw, np.ndarray, np.ndarray]:
    """L = A c^-alpha, log L = a - alpha log c, and its log c and log L."""
    rng = np.random.default_rng(3)
    c = np.geomspace(1e15, 1e18, 9)
    loss = 40 * c**-0.06 * np.exp(sigma * rng.standard_normal(9))
    return ScalingLaw("power", "l2_log").fit(c, loss), np.log(c), np.log(loss)


def test_the_interval_is_that_of_a_regression_line() -> None:
    law, x, y = line()
    found = stats.linregress(x, y)
    s = np.sqrt(((y - found.intercept - found.slope * x) ** 2).sum() / 7)
    at = np.log(1e20)
    reach = stats.t.ppf(0.95, 7) * s * np.sqrt(1 / 9 + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    said = interval_at(law, {"c": 1e20})
    centre = found.intercept + found.slope * at
    assert said["loss"] == pytest.approx(np.exp(centre), rel=1e-6)
    assert [said["lo"], said["hi"]] == pytest.approx([np.exp(centre - reach), np.exp(centre + reach)], rel=1e-6)
    assert said["width"] == pytest.approx(2 * reach, rel=1e-6)
    assert interval_at(law, {"c": 1e20}, level=0.5)["width"] == pytest.approx(
        2 * reach * stats.t.ppf(0.75, 7) / stats.t.ppf(0.95, 7), rel=1e-6
    )


def test_the_run_that_narrows_it_most_by_trying_all() -> None:
    law, x, _ = line()
    offered = pd.DataFrame({"c": np.geomspace(1e14, 3e19, 12), "name": list("abcdefghijkl")})
    offered["flops"] = offered["c"] ** 0.1
    s, at = noise(law), np.log(1e20)

    def width(*more: float) -> float:
        z = np.append(x, np.log(more))
        return float(
            2 * stats.t.ppf(0.95, 7) * s * np.sqrt(1 / len(z) + (at - z.mean()) ** 2 / ((z - z.mean()) ** 2).sum())
        )

    gains = [(width() - width(c)) / cost for c, cost in zip(offered["c"], offered["flops"], strict=True)]
    first = int(np.argmax(gains))
    found = next_runs(law, offered, {"c": 1e20}, "flops", runs=2)
    assert found["name"][0] == offered["name"][first] and found["per_cost"][0] == pytest.approx(max(gains), rel=1e-6)
    assert found["width_before"].tolist() == pytest.approx([width(), width(offered["c"][first])], rel=1e-6)
    rest = [k for k in range(12) if k != first]
    after = [width(offered["c"][first], offered["c"][k]) for k in rest]
    gains = [(width(offered["c"][first]) - w) / offered["flops"][k] for k, w in zip(rest, after, strict=True)]
    assert found["name"][1] == offered["name"][rest[int(np.argmax(gains))]]
    assert found["width"][1] == pytest.approx(after[int(np.argmax(gains))], rel=1e-6)


# which run


def test_the_obviously_best_run_is_picked() -> None:
    """At one price, a run at the target itself against ever more of what is there."""
    rows = points(0.01)
    offered = pd.concat((rows[["n", "d"]], pd.DataFrame([TARGET])), ignore_index=True)
    found = next_runs(fitted(rows), offered, TARGET, each_costs_one)
    assert found.loc[0, ["n", "d"]].to_dict() == TARGET
    assert found["width"][0] < 0.5 * found["width_before"][0]


def test_a_run_that_tells_as_much_for_less_is_picked() -> None:
    offered = pd.DataFrame({"n": [3e9] * 3, "d": [6e10] * 3, "seed": [0, 1, 2], "hours": [4.0, 1.0, 2.0]})
    found = next_runs(fitted(points(0.01)), offered, TARGET, "hours", runs=5)
    assert found["seed"].tolist() == [1, 2, 0] and found["run"].tolist() == [1, 2, 3]
    assert (found["width"].to_numpy() < found["width_before"].to_numpy()).all()
    assert found["width_before"].tolist()[1:] == found["width"].tolist()[:-1]


def test_rows_can_be_run_as_they_are() -> None:
    offered = candidates().assign(flops=lambda rows: 6 * rows["n"] * rows["d"])
    found = next_runs(fitted(points(0.01)), offered, TARGET, lambda rows: rows["flops"] / 1e15 + 600, runs=3)
    assert list(found)[:5] == ["n", "d", "seed", "variant", "flops"]
    merged = found.merge(offered, on=list(offered))
    assert len(merged) == 3 and found["cost"].tolist() == pytest.approx((found["flops"] / 1e15 + 600).tolist())
    assert (found["lo"] < found["loss"]).all() and (found["loss"] < found["hi"]).all()
    assert np.log(found["hi"] / found["lo"]).to_numpy() == pytest.approx(found["width"].to_numpy())


def test_a_budget_is_kept() -> None:
    law, offered = fitted(points(0.01)), candidates().assign(hours=lambda rows: rows["n"] * rows["d"] / 1e18)
    found = next_runs(law, offered, TARGET, "hours", runs=100, budget=50.0)
    assert 3 <= len(found) < 25 and found["cost"].sum() <= 50
    skipped = offered.merge(found[["n", "d"]], how="left", indicator=True).query("_merge == 'left_only'")
    assert skipped["hours"].min() > 50 - found["cost"].sum()
    none = next_runs(law, offered, TARGET, "hours", budget=1e-6)
    assert len(none) == 0 and {"run", "width", "n"} <= set(none)


# laws in n and d


@pytest.mark.parametrize("objective", ["l2_log", "l2"])
def test_the_interval_by_scipys_covariance(objective: str) -> None:
    """scipy's curve_fit of the same law, its covariance, and the gradient at the target by differences."""
    rows = points(0.004)
    logs = np.log(rows[["n", "d"]].to_numpy().T)
    told: Any = np.log if objective == "l2_log" else (lambda values: values)
    start = [0.5, 0.0, -0.4, 0.34, 0.37]
    found, covariance = curve_fit(lambda *args: told(chinchilla(*args)), logs, told(rows["loss"]), start, xtol=1e-12)
    at = np.log([[TARGET["n"]], [TARGET["d"]]])
    steps = 1e-5 * np.eye(5)
    g = [np.log(chinchilla(at, *(found + h)) / chinchilla(at, *(found - h)))[0] / 2e-5 for h in steps]
    width = 2 * stats.t.ppf(0.95, 25) * np.sqrt(g @ covariance @ g)
    said = interval_at(fitted(rows, objective), TARGET)
    assert said["loss"] == pytest.approx(chinchilla(at, *found)[0], rel=1e-4)
    assert said["width"] == pytest.approx(width, rel=1e-3)


def test_the_predicted_width_is_that_of_the_fit_with_the_run() -> None:
    """With a new point on the curve the fit stays, and only degrees of freedom change besides."""
    rows = points(0.01)
    found = next_runs(fitted(rows), candidates(), TARGET, each_costs_one)
    run = found[["n", "d"]].assign(loss=fitted(rows).predict(found[["n", "d"]]))
    after = interval_at(fitted(pd.concat((rows, run))), TARGET)["width"]
    freedom = np.sqrt(25 / 26) * stats.t.ppf(0.95, 26) / stats.t.ppf(0.95, 25)
    assert after == pytest.approx(found["width"][0] * freedom, rel=1e-4)


def test_a_compute_is_its_best_n_and_d() -> None:
    """Hoffmann et al. 2022, equation 4, on the fitted parameters."""
    law = fitted(points(0.01))
    p = law.params_
    both = p["alpha"] + p["beta"]
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / both)
    n = G * (1e22 / 6) ** (p["beta"] / both)
    target = {"n": n, "d": 1e22 / 6 / n}
    assert interval_at(law, {"c": 1e22}) == pytest.approx(interval_at(law, target), rel=1e-6)
    by_c, by_both = (next_runs(law, candidates(), at, each_costs_one, runs=3) for at in ({"c": 1e22}, target))
    pd.testing.assert_frame_equal(by_c, by_both, rtol=1e-6)


def spread(law: ScalingLaw, sigma: float, draw: int) -> float:
    """The standard deviation of log L at the target over fits to simulated values at the same points."""
    rng = np.random.default_rng(draw)
    values = law.y_ * np.exp(law.residuals_) * np.exp(sigma * rng.standard_normal((250, law.n_)))
    law.bootstrap_values(values)
    return float(np.log(law.predict_samples(pd.DataFrame([TARGET]))[:, 0]).std())


def test_the_interval_shrinks_as_predicted_when_the_run_is_done() -> None:
    """Simulated: a resample's spread with the chosen run in the points against the spread without it, and against
    runs chosen at random."""
    sigma, rows = 0.004, points(0.004)
    law = fitted(rows)
    before = spread(law, sigma, 0)
    offered = candidates()
    found = next_runs(law, offered, TARGET, each_costs_one)
    rng = np.random.default_rng(1)

    def done(run: pd.DataFrame) -> float:
        loss = truth(run["n"], run["d"]) * np.exp(sigma * rng.standard_normal(len(run)))
        return spread(fitted(pd.concat((rows, run[["n", "d"]].assign(loss=loss)))), sigma, 2)

    ratio = done(found) / before
    assert ratio == pytest.approx(found["width"][0] / found["width_before"][0], rel=0.15)
    others = [done(offered.iloc[[k]]) / before for k in rng.choice(len(offered), 4, replace=False)]
    assert ratio < 0.8 * np.mean(others)


# several variants


@pytest.mark.parametrize("shared", [(), ("E",)])
def test_runs_of_the_variant_that_is_predicted(shared: tuple[str, ...]) -> None:
    """Another variant's run tells nothing unless something is shared, and then less."""
    rows = pd.concat((points(0.01).assign(variant="base"), points(0.01, draw=1).assign(variant="rope")))
    law = SharedLaw(law_of("chinchilla"), ("base", "rope"), shared)
    fit = ScalingLaw(law, "l2_log").fit(law.numbered(rows), rows["loss"])
    offered = pd.DataFrame({"n": [3e9, 3e9], "d": [1e11, 1e11], "variant": ["base", "rope"]})
    found = next_runs(fit, offered, TARGET | {"variant": "rope"}, each_costs_one)
    assert found["variant"].tolist() == ["rope"]
    other = next_runs(fit, offered[:1], TARGET | {"variant": "rope"}, each_costs_one)
    narrower = 1 - other["width"][0] / other["width_before"][0]
    assert (1e-4 < narrower < 1 - found["width"][0] / found["width_before"][0]) if shared else abs(narrower) < 1e-9
    by_compute = next_runs(fit, offered, {"c": 1e22, "variant": "rope"}, each_costs_one)
    assert by_compute["variant"].tolist() == ["rope"] and by_compute["loss"][0] == pytest.approx(1.97, abs=0.1)


# noise


@pytest.mark.parametrize(("objective", "factor"), [("l2_log", 1.0), ("lad", np.pi / 2)])
def test_noise_of_many_points(objective: str, factor: float) -> None:
    assert noise(fitted(points(0.01, 1200), objective)) == pytest.approx(0.01 * np.sqrt(factor), rel=0.06)


def test_noise_of_a_huber_fit_is_between_the_two() -> None:
    """E psi^2 / (E psi')^2 on normal noise, by scipy's quadrature, with delta as wide as the noise."""
    rows = points(0.01, 800)
    law = ScalingLaw("chinchilla", "huber", delta=0.01).fit(rows, rows["loss"])
    sigma = 1.4826 * np.median(np.abs(law.residuals_)) * np.sqrt(800 / 795)
    k = 0.01 / sigma
    square = integrate.quad(lambda z: min(abs(z), k) ** 2 * stats.norm.pdf(z), -10, 10, points=[-k, k])[0]
    flat = integrate.quad(stats.norm.pdf, -k, k)[0]
    assert noise(law) == pytest.approx(sigma * np.sqrt(square) / flat, rel=1e-6)
    assert 1.0 < (noise(law) / sigma) ** 2 < np.pi / 2
    wide = ScalingLaw("chinchilla", "huber", delta=1.0).fit(rows, rows["loss"])
    narrow = ScalingLaw("chinchilla", "huber", delta=1e-9).fit(rows, rows["loss"])
    assert [noise(wide) / sigma, noise(narrow) / sigma] == pytest.approx([1.0, np.sqrt(np.pi / 2)], rel=0.02)


def test_outliers_do_not_widen_a_robust_fit() -> None:
    rows = points(0.01, 400)
    rows.loc[::20, "loss"] *= 1.5
    assert noise(fitted(rows, "lad")) < 0.017 < 0.05 < noise(fitted(rows))


# refusals


def test_what_cannot_be_planned() -> None:
    law, offered = fitted(points(0.01)), candidates()
    for rows, target, cost, message in (
        (offered[:0], TARGET, each_costs_one, "no candidates"),
        (offered, TARGET, "hours", "no column 'hours' of costs; columns: n, d, seed, variant"),
        (offered.assign(hours=0.0), TARGET, "hours", "costs must be one positive number a candidate"),
        (offered.assign(hours=np.nan), TARGET, "hours", "costs must be one positive number a candidate"),
        (offered, TARGET, lambda rows: 1.0, "costs must be one positive number a candidate"),
        (offered.drop(columns="d"), TARGET, each_costs_one, "chinchilla reads n, d: d is missing"),
        (offered, {"n": 1e10}, each_costs_one, "chinchilla reads n, d: d is missing"),
        (offered.assign(n=0.0), TARGET, each_costs_one, "candidates and the target must be positive and finite"),
        (offered, {"n": 1e10, "d": -1.0}, each_costs_one, "candidates and the target must be positive and finite"),
    ):
        with pytest.raises(BadPoints, match=message):
            next_runs(law, rows, target, cost)


def test_fits_without_a_noise_scale() -> None:
    with pytest.raises(BadPoints, match="the points have no noise: every prediction is exact"):
        interval_at(fitted(points(0.0)), TARGET)
    with pytest.raises(BadPoints, match="the noise is unknown of a fit by asymmetric, which is not symmetric"):
        interval_at(fitted(points(0.01), "asymmetric"), TARGET)
