"""What a fit does not know: resamples, intervals, profiles, influence and held-out points, each by a second route."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from designs import DESIGNS, SCALING, reference
from scipy.optimize import curve_fit, minimize

from analysis.fit import BadPoints, NotEnoughPoints, ScalingLaw
from analysis.heldout import held_out, influence, split_by_compute
from analysis.intervals import (
    confidence_interval,
    expanded,
    noise_scale,
    parameter_intervals,
    prediction_interval,
    standard_errors,
)
from analysis.profiles import Held, profile
from analysis.resampling import resampled, resampled_groups, resampled_pairs, resampled_within

X = np.geomspace(1e15, 1e21, 60)
REPEATS, LOW, HIGH = 200, 0.92, 0.98  # what 200 repetitions of a sound 95 % interval cover


def noisy(seed: int, x: np.ndarray = X, E: float = 1.7, noise: float = 0.01) -> np.ndarray:
    """Points of L = E + 3000 x^-0.2."""
    return (E + 3000 * x**-0.2) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(x)))


def power(seed: int, x: np.ndarray = X) -> np.ndarray:
    return 60 * x**-0.07 * np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(x)))


def epoch() -> pd.DataFrame:
    """The 240 points of the reconstruction of Hoffmann et al. 2022 that are left without the five highest losses."""
    table = pd.read_csv(SCALING / "chinchilla_epoch.csv")
    table = table.drop(table["loss"].nlargest(5).index)
    n, c = table["Model Size"], table["Training FLOP"]
    return pd.DataFrame({"n": n, "d": c / (6 * n), "c": c, "loss": table["loss"]}).reset_index(drop=True)


def test_a_resample_draws_as_many_points_as_there_are() -> None:
    counts = resampled(12, 500, seed=3)
    assert counts.shape == (500, 12) and (counts.sum(1) == 12).all()
    assert (counts == resampled(12, 500, seed=3)).all()
    assert not (counts == resampled(12, 500, seed=4)).all()
    assert (counts == 0).mean() == pytest.approx((11 / 12) ** 12, abs=0.02)  # a point is left out so often


def test_a_resample_has_as_many_different_points_as_a_fit_needs() -> None:
    assert ((resampled(4, 2000, seed=0) > 0).sum(1) < 3).any()
    counts = resampled(4, 2000, seed=0, least=3)
    assert ((counts > 0).sum(1) >= 3).all() and (counts.sum(1) == 4).all()
    with pytest.raises(NotEnoughPoints, match="4 points or groups to resample, and each resample needs 5"):
        resampled(4, 10, least=5)


def test_the_legacy_generator() -> None:
    """What `np.random.seed(42)` and `np.random.choice(n, n)` in a loop have drawn in published code."""
    rng = np.random.RandomState(42)
    drawn = [rng.choice(7, 7) for _ in range(3)]
    expected = [[list(each).count(k) for k in range(7)] for each in drawn]
    assert resampled(7, 3, seed=42, legacy=True).tolist() == expected


def test_groups_are_drawn_whole() -> None:
    groups = ["b", "a", "a", "b", "c", "c"]
    counts = resampled_groups(groups, 300, seed=1)
    for pair in ((0, 3), (1, 2), (4, 5)):
        assert (counts[:, pair[0]] == counts[:, pair[1]]).all()
    assert (counts[:, [0, 1, 4]].sum(1) == 3).all()
    table = pd.DataFrame({"size": [1, 2, 2, 1, 3, 3], "budget": [None, 7, 7, None, 7, 7]})
    assert (resampled_groups(table, 300, seed=1) == counts).all()
    with pytest.raises(NotEnoughPoints):
        resampled_groups(groups, 10, least=4)


def test_seeds_are_drawn_within_their_point() -> None:
    groups = ["a", "b", "a", "b", "b", "c"]
    counts = resampled_within(groups, 400, seed=2)
    assert (counts[:, [0, 2]].sum(1) == 2).all() and (counts[:, [1, 3, 4]].sum(1) == 3).all()
    assert (counts[:, 5] == 1).all()
    assert counts[:, 1].std() > 0.5


def test_pairs_are_drawn_alike_for_every_variant() -> None:
    counts = resampled_pairs({"base": [1, 2, 3, 4], "rope": [4, 3, 2, 1], "half": [2, 4]}, 200, seed=5)
    assert (counts["base"] == counts["rope"][:, ::-1]).all()
    assert (counts["base"][:, [1, 3]] == counts["half"]).all()
    assert (counts["base"].sum(1) == 4).all()


@reference("chinchilla_epoch.csv")
def test_the_published_bootstrap_is_repeated() -> None:
    """Besiroglu et al. 2024, arXiv:2404.10102: standard errors of 4,000 resamples, recomputed elsewhere from their
    data; the published ones are 124.522, 1293.284, .02566, .01540, .02060."""
    points = epoch()
    law = ScalingLaw("chinchilla").fit(points, points["loss"])
    law.bootstrap(resampled(240, 4000, seed=42, legacy=True))
    expected = {"A": 124.4936, "B": 1293.1691, "E": 0.025657, "alpha": 0.015397, "beta": 0.020594}
    assert law.se_ == pytest.approx(expected, rel=1e-3)
    share = law.samples_["beta"] / (law.samples_["alpha"] + law.samples_["beta"])
    assert share.mean() == pytest.approx(0.5165, abs=1e-4)
    assert np.quantile(share, [0.025, 0.975]) == pytest.approx([0.4805, 0.5561], abs=2e-4)


def test_the_tail_that_is_cut_off() -> None:
    """t(.975, 9) = 2.262157, times sqrt(10 / 9) = 2.384519, and Phi(-2.384519) = .0085511."""
    assert expanded(0.95, 10, 1) == pytest.approx(0.0085511, rel=1e-4)
    assert expanded(0.95, 10**7, 5) == pytest.approx(0.025, rel=1e-4)
    with pytest.raises(NotEnoughPoints, match="5 resampled units say nothing of the spread of 5 parameters"):
        expanded(0.95, 5, 5)


def test_intervals_of_a_straight_line_are_those_of_students_t() -> None:
    """log L = a - alpha log x is a regression, whose intervals are known."""
    x = np.geomspace(1, 1e4, 25)
    y = 5 * x**-0.1 * np.exp(0.02 * np.random.default_rng(0).standard_normal(25))
    law = ScalingLaw("power", objective="l2_log").fit(x, y)
    law.bootstrap(resampled(25, 4000, seed=1))
    design = np.stack((np.ones(25), -np.log(x)), 1)
    (_, alpha), rss, *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    reach = 2.0687 * np.sqrt(rss[0] / 23 * np.linalg.inv(design.T @ design)[1, 1])  # t(.975, 23)
    low, high = parameter_intervals(law)["alpha"]
    assert (low, high) == pytest.approx((alpha - reach, alpha + reach), abs=0.25 * reach)
    assert standard_errors(law)["alpha"] == pytest.approx(reach / 2.0687, rel=1e-4)


def test_intervals_are_order_statistics_of_the_samples() -> None:
    law = ScalingLaw("power", objective="l2_log").fit(X, power(0))
    law.bootstrap(resampled(60, 99, seed=1))
    at = expanded(0.9, 60, 2) * 100  # the k-th of B samples stands at k / (B + 1)
    said = np.sort(law.samples_["A"] * 1e19 ** -law.samples_["alpha"])
    k = int(at)
    expected = said[k - 1] + (at - k) * (said[k] - said[k - 1])
    low, high = confidence_interval(law, np.array([1e19]), level=0.9)
    assert low[0] == pytest.approx(expected, rel=1e-10)
    assert low[0] < law.predict(np.array([1e19]))[0] < high[0]
    wide = confidence_interval(law, np.array([1e19]), level=0.9, units=6)
    assert wide[0][0] < low[0] and high[0] < wide[1][0]  # six groups say less than sixty points


def test_intervals_of_new_points_cover_them() -> None:
    ahead = np.array([1e16, 1e19, 1e22])
    covered = np.zeros(3)
    for seed in range(REPEATS):
        law = ScalingLaw("power", objective="l2_log").fit(X[::3], power(seed, X[::3]))
        law.bootstrap(resampled(20, 99, seed))
        low, high = prediction_interval(law, ahead)
        new = power(seed + 10_000, ahead)
        covered += (low <= new) & (new <= high)
    assert LOW <= covered.mean() / REPEATS <= HIGH, covered / REPEATS


def test_the_scale_of_squares_is_the_residual_variance() -> None:
    law = ScalingLaw("power_offset", objective="l2_log").fit(X, noisy(0))
    assert noise_scale(law) == pytest.approx((law.residuals_**2).sum() / (60 - 3))


@pytest.mark.parametrize("objective", ["lad", "huber"])
def test_the_scale_of_absolute_deviations(objective: str) -> None:
    """Of normal noise: mean(psi^2) = delta^2, kappa = 2 delta f(0), so s^2 = delta sigma sqrt(pi / 2)."""
    x = np.geomspace(1e15, 1e21, 4000)
    law = ScalingLaw("power", objective=objective, delta=1e-4 if objective == "huber" else None).fit(x, power(1, x))
    delta = 1e-4 if objective == "huber" else 1.0
    assert noise_scale(law) == pytest.approx(delta * 0.01 * np.sqrt(np.pi / 2), rel=0.1)


def test_standard_errors_are_those_of_a_least_squares_library() -> None:
    x = X / 1e18
    y = (1.7 + 0.8 * x**-0.2) * np.exp(0.01 * np.random.default_rng(3).standard_normal(60))
    law = ScalingLaw("power_offset", objective="l2_log").fit(x, y)
    found, covariance = curve_fit(
        lambda x, A, E, alpha: np.log(E + A * x**-alpha), x, np.log(y), p0=(0.8, 1.7, 0.2), xtol=1e-14, ftol=1e-14
    )
    errors = dict(zip(("A", "E", "alpha"), np.sqrt(np.diag(covariance)), strict=True))
    assert law.params_ == pytest.approx(dict(zip(("A", "E", "alpha"), found, strict=True)), rel=1e-5)
    assert standard_errors(law) == pytest.approx(errors, rel=1e-3)


@pytest.mark.parametrize("objective", ["huber", "l2_log", "lad"])
def test_a_profile_is_the_objective_with_the_offset_given(objective: str) -> None:
    law = ScalingLaw("power_offset", objective=objective).fit(X, noisy(0))
    found = profile(law, "E", [0.0, 1.2, 1.6, 1.75, 1.85])
    for value, rise in zip(found.values, found.rises, strict=True):
        pinned = ScalingLaw("power_offset", objective=objective, pinned={"E": value}).fit(X, noisy(0))
        assert rise == pytest.approx(pinned.objective_ - law.objective_, rel=1e-4, abs=1e-9 * law.objective_)


def test_a_profile_of_an_exponent_by_another_route() -> None:
    y = noisy(4)
    law = ScalingLaw("power_offset", objective="l2_log").fit(X, y)
    u = np.log(X / 1e18)

    def squares(theta: np.ndarray, alpha: float) -> float:
        return float(((np.logaddexp(theta[0], theta[1] - alpha * u) - np.log(y)) ** 2).sum() / 2)

    found = profile(law, "alpha", [0.17, 0.19, 0.22])
    for value, rise in zip(found.values, found.rises, strict=True):
        exact = {"xatol": 1e-10, "fatol": 1e-16}
        other = minimize(squares, np.log([1.7, 0.8]), args=(value,), method="Nelder-Mead", options=exact)
        assert rise == pytest.approx(other.fun - law.objective_, abs=1e-9)


@pytest.mark.parametrize("form", DESIGNS)
def test_every_parameter_of_every_form_can_be_held(form: str) -> None:
    """The parameter is what it is held at, and the law moves as its Jacobian says."""
    design = DESIGNS[form]
    law = ScalingLaw(form, letter=next(iter(design.inputs)))
    x = np.log(np.stack([design.inputs[name] for name in law.law.inputs], -1))[::7]
    law.centre_ = law.law.centre(x)
    law.theta_ = law.law.theta(design.params, law.centre_)
    law.params_ = law.named(law.theta_)
    x = x - law.centre_
    for k, name in enumerate(law.law.parameters):
        held = Held(law, name, law.params_[name] * 1.01)
        free = np.delete(law.theta_, k)
        assert law.named(held.full(free[None])[0])[name] == pytest.approx(law.params_[name] * 1.01, rel=1e-9)
        step = 1e-6 * np.eye(len(free))
        for said, jacobian in ((held.log_value, held.log_jacobian), (held.value, held.jacobian)):
            numeric = (said(free + step, x) - said(free - step, x)) / 2e-6
            assert np.allclose(jacobian(free[None], x)[0].T, numeric, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("objective", ["l2_log", "huber", "lad"])
def test_profiles_cover_the_truth(objective: str) -> None:
    """The rise at the true offset is within the threshold in 95 of 100 data sets of thirty points."""
    inside = 0
    for seed in range(REPEATS):
        law = ScalingLaw("power_offset", objective=objective).fit(X[::2], noisy(seed, X[::2]))
        found = profile(law, "E", [1.7])
        inside += bool(found.rises.max() <= found.threshold)
    assert LOW <= inside / REPEATS <= HIGH


def test_the_interval_of_a_profile_ends_at_the_threshold() -> None:
    y = noisy(0)
    law = ScalingLaw("power_offset", objective="l2_log").fit(X, y)
    for name in ("E", "alpha", "A"):
        found = profile(law, name)
        assert found.identified and found.interval[0] < law.params_[name] < found.interval[1]
        ends = profile(law, name, found.interval)
        assert ends.rises[[0, -1]] == pytest.approx(found.threshold, rel=0.05)
        assert found.threshold == pytest.approx(2.0024655**2 / 2 * found.scale)  # t(.975, 57)
    narrow, wide = (profile(law, "E", level=level).interval for level in (0.5, 0.95))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_an_offset_that_the_points_do_not_show() -> None:
    straight = ScalingLaw("power_offset").fit(X, power(0))
    found = profile(straight, "E")
    assert not found.identified and found.interval[0] == 0 < found.interval[1] < straight.lowest_
    x = np.geomspace(1e20, 1e21, 30)  # where the power term has all but gone
    flat = ScalingLaw("power_offset").fit(x, 1.7 * np.exp(0.01 * np.random.default_rng(1).standard_normal(30)))
    assert not profile(flat, "E").identified


@reference("misfitting_final.csv")
def test_an_offset_that_real_points_do_not_show() -> None:
    table = misfitting()
    law = ScalingLaw("chinchilla").fit(table, table["loss"])
    assert not profile(law, "E").identified


@reference("chinchilla_epoch.csv")
def test_an_offset_that_real_points_show() -> None:
    points = epoch()
    found = profile(ScalingLaw("chinchilla").fit(points, points["loss"]), "E")
    assert found.identified and 1.77 < found.interval[0] < 1.8172 < found.interval[1] < 1.87


def test_a_profile_that_ends_too_soon_is_no_interval() -> None:
    law = ScalingLaw("power_offset").fit(X, noisy(0))
    near = [0.9999 * law.params_["E"], 1.0001 * law.params_["E"]]
    found = profile(law, "E", near)
    assert not found.identified and found.interval[1] == pytest.approx(near[1])


def test_profiles_of_what_is_not_fitted_are_refused() -> None:
    law = ScalingLaw("power_offset").fit(X, noisy(0))
    with pytest.raises(BadPoints, match="power_offset fits A, E, alpha: beta is not among them"):
        profile(law, "beta")
    with pytest.raises(BadPoints, match="E is positive"):
        profile(law, "E", [-1.0, 1.0])
    pinned = ScalingLaw("power_offset", pinned={"E": 1.7}).fit(X, noisy(0))
    with pytest.raises(BadPoints, match="E is not among them"):
        profile(pinned, "E")


def test_influence_is_a_fit_without_the_point() -> None:
    x, y = X[::4], noisy(1, X[::4])
    y[14] *= 1.2
    law = ScalingLaw("power_offset", objective="l2_log").fit(x, y)
    table = influence(law, at=np.array([1e24]))
    assert sorted(table["point"]) == list(range(15)) and table["point"][0] == 14
    assert (table["most"].diff().dropna() <= 0).all()
    errors = pd.Series(standard_errors(law))
    for _, row in table.iterrows():
        kept = np.arange(15) != row["point"]
        other = ScalingLaw("power_offset", objective="l2_log").fit(x[kept], y[kept])
        changes = pd.Series({name: other.params_[name] - law.params_[name] for name in law.params_})
        assert row[list(changes.index)].astype(float).to_dict() == pytest.approx(
            changes.to_dict(), rel=1e-4, abs=1e-7
        )
        assert row["most"] == pytest.approx((changes / errors).abs().max(), rel=1e-3)
        ratio = other.predict(np.array([1e24])) / law.predict(np.array([1e24]))
        assert row["prediction"] == pytest.approx(100 * (ratio[0] - 1), rel=1e-3, abs=1e-6)
    assert influence(law)["prediction"].abs().max() < table["prediction"].abs().max()  # nearer by default


def test_points_of_one_budget_stay_together() -> None:
    c = np.array([1, 2, 2, 2 * (1 + 1e-12), 3, 4, 4, 5, 6, 7.0])
    assert split_by_compute(c, 0.2).tolist() == [True] * 8 + [False] * 2
    assert split_by_compute(c, 0.7).sum() == 4  # three of ten, and the last of them shares its compute
    assert split_by_compute(c[::-1], 0.2).tolist() == [False] * 2 + [True] * 8


@pytest.mark.parametrize(
    ("c", "fraction", "told"),
    [
        ([1, 2, -3], 0.5, "compute must be positive"),
        ([1, 2, np.nan], 0.5, "compute must be positive"),
        ([1, 2, 3], 0.9, "a fraction of 0.9 of 3 points leaves none to fit"),
        ([1, 2, 3], 0.0, "a fraction of 0.0"),
        ([2, 2, 2], 0.4, "no point has more compute"),
    ],
)
def test_splits_that_are_refused(c: list[float], fraction: float, told: str) -> None:
    with pytest.raises((BadPoints, NotEnoughPoints), match=told):
        split_by_compute(c, fraction)


@pytest.mark.parametrize("kind", ["table", "mapping", "array"])
def test_held_out_errors_by_hand(kind: str) -> None:
    """Eight points of an exact law, and two that are 10 % above and 20 % below it."""
    x = np.array([10.0, 1, 2, 3, 4, 5, 6, 7, 8, 20])
    y = 3 * x**-0.5
    y[0], y[9] = 1.1 * y[0], 0.8 * y[9]
    columns = {"table": pd.DataFrame({"c": x, "other": "text"}), "mapping": {"c": x}, "array": x}[kind]
    found = held_out("power", columns, y, x, objective="l2_log")
    assert (found.fitted, found.held) == (8, 2) and found.distance == pytest.approx(2.5)
    assert found.errors == pytest.approx([100 * (1 / 1.1 - 1), 25.0], abs=1e-6)
    assert found.mean == pytest.approx((100 / 11 + 25) / 2) and found.largest == pytest.approx(25)
    assert found.signed == pytest.approx((25 - 100 / 11) / 2)
    assert found.law.params_ == pytest.approx({"A": 3, "alpha": 0.5})


def misfitting() -> pd.DataFrame:
    table = pd.read_csv(SCALING / "misfitting_final.csv")
    best = table.loc[table.groupby(["N", "D"])["loss"].idxmin()]
    return pd.DataFrame({"n": best["N"], "d": best["D"], "loss": best["loss"]}).astype(float)


def overtraining() -> pd.DataFrame:
    return pd.read_csv(SCALING / "overtraining_rpj.csv").rename(columns={"N": "n", "D": "d"})[["n", "d", "loss"]]


def porian() -> pd.DataFrame:
    table = pd.read_csv(SCALING / "porian_isoflop_points.csv")
    kept = table.query("dataset == 'rw' and hparams == 'tuned' and param_count == 'standard'")
    return kept.rename(columns={"t": "d"})[["n", "d", "loss"]]


def marin() -> pd.DataFrame:
    table = pd.read_csv(SCALING / "isoflops.csv").query("experiment == 'marin_202603__dclm__llama_2' and not outlier")
    return table.rename(columns={"params": "n", "tokens": "d"})[["n", "d", "loss"]]


SETS = {
    "chinchilla_epoch.csv": (epoch, 240, 1.05, 3.60),
    "misfitting_final.csv": (misfitting, 81, 0.79, 2.50),
    "overtraining_rpj.csv": (overtraining, 35, 0.99, 2.35),
    "porian_isoflop_points.csv": (porian, 121, 8.69, 14.0),
    "isoflops.csv": (marin, 79, 1.23, 3.84),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=reference(name)) for name in SETS])
def test_extrapolation_errors_on_public_data(name: str) -> None:
    """Huber 1e-3 fitted to the lowest 80 % of 6 n d: mean and largest error in %, computed elsewhere."""
    read, n, mean, largest = SETS[name]
    table = read().astype(float)
    assert len(table) == n
    found = held_out("chinchilla", table, table["loss"], 6 * table["n"] * table["d"])
    assert (found.mean, found.largest) == pytest.approx((mean, largest), rel=0.1)
