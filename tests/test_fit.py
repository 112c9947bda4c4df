"""The fit of L = E + A x^-alpha: known laws, the optimum by another route, intervals, warnings, real data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime, minimize

from analysis.fit import NotEnoughPoints, ScalingLaw, fit_alike
from analysis.forms import law_of
from analysis.intervals import percentiles
from analysis.objectives import DELTA, objective_of
from analysis.report.words import fit_rows
from analysis.resampling import resampled
from analysis.variants import fit_variants

LAW = law_of("power_offset")
AT_ONE = np.zeros(1)  # inputs whose logarithms are not centred
EXACT = 1e-6  # of a parameter, relative, where the points have no noise
UNITS = (1.0, 1e10, 1e17, 1e24)  # epochs, ..., FLOPs of the largest runs


def power(x: np.ndarray, E: float, alpha: float, at_first: float = 2.0) -> np.ndarray:
    """E + A x^-alpha, with A such that the power term is `at_first` at the first x."""
    return E + at_first * (x / x[0]) ** -alpha


def noisy(seed: int, E: float, alpha: float, noise: float, n: int = 10, decades: float = 3, jumps: int = 0):
    """Points of a law with noise of the logarithm, `jumps` of them 40 % too high."""
    rng = np.random.default_rng(seed)
    x = np.geomspace(1e9, 10 ** (9 + decades), n)
    y = power(x, E, alpha) * np.exp(noise * rng.standard_normal(n))
    y[rng.permutation(n)[:jumps]] *= 1.4
    return x, y


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("decades", "E", "alpha"),
    [(1, 1.8, 0.3), (2, 1.7, 0.05), (4, 1.8, 0.02), (6, 0.1, 0.15), (3, 1.69, 0.5), (0.5, 0.5, 2.5), (1, 3, 0.4)],
)
def test_a_known_law_is_recovered(unit: float, decades: float, E: float, alpha: float) -> None:
    x = unit * np.geomspace(1, 10**decades, 8)
    law = ScalingLaw().fit(x, power(x, E, alpha))
    assert law.params_ == pytest.approx({"E": E, "A": 2 * x[0] ** alpha, "alpha": alpha}, rel=EXACT)
    assert law.objective_ < 1e-15
    assert law.warnings_ == []


def test_as_few_points_as_allowed() -> None:
    x = np.array([1e9, 1e10, 1e11, 1e12])
    law = ScalingLaw().fit(x, power(x, 1.5, 0.25))
    assert law.params_ == pytest.approx({"E": 1.5, "A": 2 * x[0] ** 0.25, "alpha": 0.25}, rel=EXACT)
    assert law.n_ == 4


def test_predictions_go_beyond_the_points() -> None:
    x = np.geomspace(1e10, 1e20, 12)
    law = ScalingLaw().fit(x[:6], power(x, 1.5, 0.2)[:6])
    assert law.predict(x) == pytest.approx(power(x, 1.5, 0.2), rel=EXACT)


def huber_sum(r: np.ndarray, delta: float) -> float:
    return float(objective_of("huber", delta).rho(r).sum())


def test_all_at_one_place() -> None:
    with pytest.raises(NotEnoughPoints, match="all points have c = 5: power_offset needs several"):
        ScalingLaw().fit(np.full(20, 5.0), np.linspace(3, 2, 20))


@pytest.mark.parametrize("x", [[1, 2, 3], [1, 2, 3, 3, 3, 2], []], ids=str)
def test_too_few_distinct_points(x: list[float]) -> None:
    with pytest.raises(NotEnoughPoints, match=f"{len(set(x))} distinct x, power_offset needs at least 4"):
        ScalingLaw().fit(np.array(x), np.linspace(3, 2, len(x)))


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_points_must_be_positive_and_finite(axis: str, wrong: float) -> None:
    points = {"x": np.geomspace(1, 100, 6), "y": np.linspace(3, 2, 6)}
    points[axis][2] = wrong
    with pytest.raises(ValueError, match="positive and finite"):
        ScalingLaw().fit(**points)


@pytest.mark.parametrize("delta", [DELTA, 0.5])
def test_the_sum_of_huber_losses(delta: float) -> None:
    """Huber 1964: r^2 / 2 up to delta, and on as its tangent."""
    r = np.array([0.0, 0.4 * delta, -delta, 3 * delta, -20 * delta])
    expected = sum(v * v / 2 if abs(v) <= delta else delta * abs(v) - delta * delta / 2 for v in r)
    assert huber_sum(r, delta) == pytest.approx(expected, rel=1e-12)
    assert huber_sum(np.concatenate((r, r)), delta) == pytest.approx(2 * expected)  # a sum, not a mean


@pytest.mark.parametrize("theta", [(0.7, 0.5, 0.3), (-2.0, 1.0, 0.05), (3.0, -12.0, 1.7), (0.1, 0.1, -0.2)], ids=str)
def test_the_jacobian_is_the_derivative(theta: tuple[float, ...]) -> None:
    x = np.array([1e-4, 0.3, 1.0, 7.0, 1e4])
    logs = np.log(x)[:, None]
    for index, row in enumerate(LAW.log_jacobian(np.array(theta), logs)):
        numeric = approx_fprime(np.array(theta), lambda t, i=index: LAW.log_value(t, logs)[i], 1e-7)
        assert row == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_the_value_is_the_equation() -> None:
    x = np.array([0.5, 1.0, 40.0])
    theta = np.log([3.0, 1.7, np.exp(0.25)])
    named = LAW.named(theta, AT_ONE)
    assert named == pytest.approx({"A": 3.0, "E": 1.7, "alpha": 0.25})
    assert LAW.theta(named, AT_ONE) == pytest.approx(theta)
    assert np.exp(LAW.log_value(theta, np.log(x)[:, None])) == pytest.approx(1.7 + 3 * x**-0.25)


def by_another_route(x: np.ndarray, y: np.ndarray, starts: int = 5) -> float:
    """The lowest sum of Huber losses that BFGS finds from random starts, over log A, log E and alpha."""
    log_u, log_y = np.log(x / np.median(x)), np.log(y)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, e, alpha = theta
        value = np.exp(a - alpha * log_u) + np.exp(e)
        r = np.log(value) - log_y
        small = np.abs(r) <= DELTA
        losses = np.where(small, r**2 / 2, DELTA * np.abs(r) - DELTA**2 / 2)
        slope = np.where(small, r, DELTA * np.sign(r)) / value
        term = np.exp(a - alpha * log_u)
        gradient = np.array([(slope * term).sum(), (slope * np.exp(e)).sum(), -(slope * term * log_u).sum()])
        return losses.sum() / DELTA**2, gradient / DELTA**2

    rng = np.random.default_rng(0)
    lowest = np.inf
    for _ in range(starts):
        start = np.log(y.min()) + rng.uniform((-3, -4, 0), (1.5, 0, 0))
        found = minimize(objective, (*start[:2], rng.uniform(0.02, 1.2)), jac=True, method="BFGS")
        lowest = min(lowest, found.fun * DELTA**2)
    return lowest


# of the kind that the quickstart gives: three sizes at two budgets, which do not lie on one curve
FLOPS = np.array([2.47e10, 4.93e10, 6.84e10, 1.37e11, 1.48e11, 2.96e11])
SETS = {
    "quickstart, baseline": (FLOPS, np.array([2.5129, 2.3488, 2.4546, 2.3027, 2.4764, 2.2783])),
    "quickstart, rope": (FLOPS, np.array([2.4544, 2.1500, 2.3366, 2.0198, 2.3374, 1.9276])),
    "little noise": noisy(0, 1.8, 0.3, 1e-4),
    "noise like delta": noisy(1, 1.8, 0.3, 1e-3),
    "noise": noisy(2, 1.8, 0.2, 1e-2),
    "much noise": noisy(3, 2.5, 0.4, 5e-2, n=16),
    "no offset": noisy(4, 0.0, 0.2, 1e-2, n=12),
    "small offset": noisy(5, 0.3, 0.1, 3e-3, n=16),
    "steep": noisy(6, 2.0, 1.2, 1e-2, n=12),
    "few points": noisy(7, 1.8, 0.4, 1e-3, n=5),
    "many points": noisy(8, 1.69, 0.15, 1e-2, n=60, decades=5),
    "two jumps": noisy(9, 1.8, 0.3, 1e-3, n=14, jumps=2),
    "narrow range": noisy(10, 1.0, 0.3, 2e-3, n=9, decades=1),
}


@pytest.mark.parametrize("name", SETS)
def test_the_optimum_is_as_low_as_any_found_from_random_starts(name: str) -> None:
    x, y = SETS[name]
    law = ScalingLaw().fit(x, y)
    assert law.objective_ == pytest.approx(huber_sum(np.log(law.predict(x) / y), DELTA), rel=1e-9)
    assert law.objective_ <= by_another_route(x, y) * (1 + 1e-6)


@pytest.mark.parametrize("name", ["noise", "two jumps", "many points"])
def test_the_order_of_points_does_not_matter(name: str) -> None:
    x, y = SETS[name]
    mixed = np.random.default_rng(0).permutation(len(x))
    assert ScalingLaw().fit(x[mixed], y[mixed]).params_ == pytest.approx(ScalingLaw().fit(x, y).params_, rel=EXACT)


@pytest.mark.parametrize(("of_x", "of_y"), [(1e12, 1.0), (1e-9, 1.0), (1.0, 1 / np.log(2)), (1e3, 1e3)])
def test_units_do_not_matter(of_x: float, of_y: float) -> None:
    x, y = SETS["noise"]
    one, other = ScalingLaw().fit(x, y), ScalingLaw().fit(of_x * x, of_y * y)
    alpha = one.params_["alpha"]
    expected = {"alpha": alpha, "E": of_y * one.params_["E"], "A": of_y * one.params_["A"] * of_x**alpha}
    assert other.params_ == pytest.approx(expected, rel=1e-5)  # A has the error of alpha times log(1e12)
    assert other.objective_ == pytest.approx(one.objective_, rel=EXACT)


def test_one_wild_point_hardly_matters() -> None:
    """A diverging trial 30 % too high moves the exponent by 2 % at most; least squares would follow it."""
    x, y = noisy(0, 1.8, 0.3, 1e-3, n=12)
    y[7] *= 1.3
    robust, squares = (ScalingLaw(delta=delta).fit(x, y).params_ for delta in (DELTA, 10.0))
    assert robust["alpha"] == pytest.approx(0.3, rel=0.02) and robust["E"] == pytest.approx(1.8, rel=0.01)
    assert abs(squares["alpha"] / 0.3 - 1) > 0.1


@pytest.mark.parametrize(
    ("y", "word"),
    [
        (lambda x: 3 * x**-0.05, "E is at zero"),
        (lambda x: np.where(x < 2e9, 2.0, 1.0), "E is at the lowest loss"),
        (lambda x: 1 + (x / 1e9) ** -6.0, "exponent alpha is at the edge"),
        (lambda x: (x / 1e9) ** 0.1, "exponent alpha is at the edge"),
    ],
    ids=["pure power", "saturated", "very steep", "rising"],
)
def test_what_to_beware_of_is_said(y, word: str) -> None:
    x = np.geomspace(1e9, 1e11, 8)
    assert word in "; ".join(ScalingLaw().fit(x, y(x)).warnings_)


def test_intervals_cover_the_truth() -> None:
    """Resampled from the true law with the true noise: 95 % of intervals should hold the exponent, and E."""
    rng, truth, n = np.random.default_rng(4), {"E": 1.8, "alpha": 0.3}, 30
    x, _ = noisy(0, **truth, noise=0)
    y = power(x, **truth)
    covered = dict.fromkeys(truth, 0)
    for _ in range(n):
        law = ScalingLaw().fit(x, y * np.exp(3e-4 * rng.standard_normal(len(x))))
        mean = law.predict(x)
        law.bootstrap_values(mean * np.exp(3e-4 * rng.standard_normal((40, len(x)))))
        low, high = percentiles(law.samples_[list(truth)].to_numpy(), 0.025)
        for k, (name, value) in enumerate(truth.items()):
            covered[name] += low[k] <= value <= high[k]
    assert all(0.83 * n <= each for each in covered.values()), covered  # 95 % - 3 sigma of the count


def replicated(rng: np.random.Generator, noise: float, seeds: int) -> pd.DataFrame:
    """A variant's trials: eight sizes, each with some seeds."""
    x = np.repeat(np.geomspace(1e12, 1e16, 8), seeds)
    losses = power(x, 1.8, 0.3) * np.exp(noise * rng.standard_normal(len(x)))
    return pd.DataFrame({"variant": "v", "train_flops": x, "loss": losses})


@pytest.mark.parametrize("seeds", [2, 5])
def test_intervals_from_seeds_are_as_wide_as_estimates_spread(seeds: int) -> None:
    """The estimate's standard deviation is sqrt(diag (J'J)^-1) sd; resampling two seeds as they are gives 0.7 of it.

    With few draws the empirical quantiles lie somewhat inside: the expected width is that of as many normal ones.
    """
    noise, draws, rng = 2e-4, 400, np.random.default_rng(0)  # noise below delta, where the fit is least squares
    tables = [replicated(rng, noise, seeds) for _ in range(16)]
    x = tables[0]["train_flops"].unique()
    jacobian = LAW.log_jacobian(np.log([2.0, 1.8, np.exp(0.3)]), np.log(x / x[0])[:, None])
    sd = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))[2] * noise / np.sqrt(seeds)
    lo, hi = (each.mean() for each in percentiles(rng.standard_normal((draws, 2000)), 0.025))
    found = [fit_variants(table, draws=draws).iloc[0] for table in tables]
    widths = np.array([row["alpha_hi"] - row["alpha_lo"] for row in found])
    assert np.sqrt(np.mean(widths**2)) == pytest.approx(sd * (hi - lo), rel=0.18)


def trials(variant: str, E: float, seeds: int = 2, sizes: int = 5, **others: object) -> pd.DataFrame:
    x = np.geomspace(1e10, 1e13, sizes)
    rows = [
        {"variant": variant, "size": f"s{i}", "budget": "b", "train_flops": x[i], "loss": loss + shift, **others}
        for i, loss in enumerate(power(x, E, 0.3))
        for shift in np.linspace(-1e-3, 1e-3, seeds)
    ]
    return pd.DataFrame(rows)


def test_variants_are_fitted_to_the_means_over_seeds() -> None:
    table = pd.concat([trials("base", 1.8), trials("rope", 1.5, seeds=4)])
    base, rope = fit_variants(table, draws=20).to_dict("records")
    assert (base["variant"], base["n"], base["points"], rope["n"], rope["points"]) == ("base", 10, 5, 20, 5)
    assert (base["E"], rope["E"]) == pytest.approx((1.8, 1.5), rel=1e-5)
    assert base["E_lo"] < 1.8 < base["E_hi"] and base["alpha_lo"] < 0.3 < base["alpha_hi"]
    again = fit_variants(table, draws=20)
    assert again.drop(columns="law").to_dict("records")[0] == {k: v for k, v in base.items() if k != "law"}


def test_a_variant_with_too_few_sizes_has_a_row_that_says_so() -> None:
    table = pd.concat([trials("base", 1.8, seeds=1), trials("rope", 1.5, sizes=3)])
    base, rope = fit_variants(table).to_dict("records")
    assert rope["note"] == "not fitted: 3 distinct x, power_offset needs at least 4" and np.isnan(rope["E"])
    assert (rope["n"], rope["points"], rope["law"]) == (6, 3, None)
    assert base["E"] == pytest.approx(1.8, rel=1e-2) and "E_lo" not in base  # one seed: no interval


def test_the_settings_of_axes_have_laws_of_their_own() -> None:
    table = pd.concat([trials("base", 1.8, axes="dropout=0"), trials("base", 1.5, axes=None)])
    found = fit_variants(table, draws=2)
    assert found["E"].tolist() == pytest.approx([1.8, 1.5], rel=1e-5)


def test_a_table_without_budgets_has_a_point_for_every_x() -> None:
    """Several lengths of training of one size are not repeats of each other."""
    long = trials("base", 1.8, seeds=1, sizes=8).drop(columns="budget").assign(size="one")
    (row,) = fit_variants(long).to_dict("records")
    assert (row["points"], row["E"]) == (8, pytest.approx(1.8, rel=1e-2))


def test_an_offset_at_zero_is_printed_as_zero() -> None:
    wobble = np.tile([0.999, 1.001], 5)
    pure = trials("pure", 0).assign(loss=lambda t: 5 * t["train_flops"] ** -0.05 * wobble)
    rising = trials("rising", 0).assign(loss=lambda t: t["train_flops"] ** 0.1 * wobble)
    fits = fit_variants(pd.concat([pure, trials("bent", 1.8), rising]), draws=20)
    rows = {row["variant"]: row for row in fit_rows(fits)}
    assert rows["pure"]["E"].startswith("0 ") and "e-" not in rows["pure"]["E"]
    assert rows["pure"]["E"].endswith("(not identified)") and "E is at zero" in rows["pure"]["note"]
    assert rows["pure"]["alpha"].startswith("0.05 [0.0")
    assert rows["bent"]["E"].startswith("1.8 [1.") and "identified" not in rows["bent"]["E"]
    assert "identified" not in rows["rising"]["alpha"] + rows["rising"]["A"]


def test_a_model_that_costs_nothing_has_no_law() -> None:
    """An n-gram is fitted by counting: no FLOPs to fit over, and no reason to stop the report."""
    rows = [{"variant": "ngram", "size": "a", "budget": b, "train_flops": 0.0, "loss": 2.0 / b} for b in (1, 2, 3, 4)]
    (row,) = fit_variants(pd.DataFrame(rows)).to_dict("records")
    assert row["law"] is None and row["note"].startswith("not fitted: train_flops is 0")


def test_resamples_of_few_points_do_not_stop_a_bootstrap() -> None:
    """Six points for five parameters: many a resample knows four points or fewer."""
    rng = np.random.default_rng(0)
    n, d = np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e10, 6)[[3, 0, 5, 1, 4, 2]]
    loss = 1.8 + 480 * n**-0.35 + 2100 * d**-0.37
    law = ScalingLaw("chinchilla").fit({"n": n, "d": d}, loss * np.exp(0.01 * rng.standard_normal(6)))
    law.bootstrap(np.stack([np.bincount(rng.integers(6, size=6), minlength=6) for _ in range(50)]))
    assert len(law.samples_) == 50


def test_less_than_an_epoch_repeats_nothing() -> None:
    """More unique tokens than are trained on change nothing."""
    law = law_of("data_constrained")
    params = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353, "R_D": 15.4, "R_N": 5.3}
    centre = np.zeros(3)
    points = np.log([[1e8, 1e9, 1e9], [1e8, 1e9, 1e12], [1e8, 4e9, 1e9], [1e8, 4e9, 4e9]])
    once, plenty, repeated, fresh = law.value(law.theta(params, centre), points)
    assert once == plenty and once > repeated > fresh


def test_laws_of_points_alike_are_those_fitted_one_by_one() -> None:
    """Also where seeds repeat an x in any order, and with resamples that leave points out."""
    rng = np.random.default_rng(3)
    order, x = rng.permutation(21), np.repeat(np.geomspace(1e8, 1e12, 7), 3)
    ys = [power(x, E, alpha) * np.exp(0.004 * rng.standard_normal(21)) for E, alpha in ((1.5, 0.2), (2, 0.4))]
    x, ys = x[order], np.stack(ys)[:, order]
    weights = resampled(21, 60, least=8)
    for law, y in zip(fit_alike("power_offset", x, ys, weights), ys, strict=True):
        alone = ScalingLaw("power_offset").fit(x, y)
        assert law.params_ == pytest.approx(alone.params_, rel=1e-7)
        assert law.objective_ == pytest.approx(alone.objective_, rel=1e-12)
        np.testing.assert_allclose(law.samples_, alone.bootstrap(weights), rtol=1e-4)
        assert law.warnings_ == alone.warnings_


def test_resamples_are_fits_to_the_points_drawn() -> None:
    """Of points in no order, of which some have the same x."""
    rng = np.random.default_rng(4)
    x = rng.permutation(np.repeat(np.geomspace(1e8, 1e12, 7), 3))
    y = 1.5 + 2 * (x / 1e8) ** -0.3 + 0.002 * rng.standard_normal(21)
    weights = resampled(21, 8, least=8)
    found = ScalingLaw("power_offset", "l2_log").fit(x, y).bootstrap(weights)
    for each, (_, row) in zip(weights.astype(int), found.iterrows(), strict=True):
        drawn = ScalingLaw("power_offset", "l2_log").fit(np.repeat(x, each), np.repeat(y, each))
        assert row.to_dict() == pytest.approx(drawn.params_, rel=1e-5)
