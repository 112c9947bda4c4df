"""Every warning about a fit: where it is due, with its number, and where it is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from designs import SCALING, reference

from analysis.doubts import (
    at_its_start,
    compute_of,
    distant,
    doubts,
    few_points,
    ill_conditioned,
    influential_point,
    left_at_start,
    one_sided_ahead,
    one_sided_end,
    one_signed,
    refuse_mean,
    repeated_points,
    trend,
    unidentified_offset,
)
from analysis.fit import BadPoints, ScalingLaw
from analysis.heldout import held_out
from analysis.laws import PowerSum, Term

X = np.geomspace(1e15, 1e21, 60)


def noisy(seed: int, x: np.ndarray = X) -> np.ndarray:
    """Points of L = 1.7 + 3000 x^-0.2 with noise of 1 %."""
    return (1.7 + 3000 * x**-0.2) * np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(x)))


def fitted(x: np.ndarray = X, y: np.ndarray | None = None, form: str = "power_offset") -> ScalingLaw:
    return ScalingLaw(form, objective="l2_log").fit(x, noisy(0, x) if y is None else y)


def porian() -> pd.DataFrame:
    """Tuned hyper-parameters at a constant learning rate: Porian et al. 2024, arXiv:2406.19146."""
    table = pd.read_csv(SCALING / "porian_isoflop_points.csv")
    kept = table.query("dataset == 'rw' and hparams == 'tuned' and param_count == 'standard'")
    return kept.rename(columns={"t": "d"})[["n", "d", "loss"]].astype(float)


def test_a_sound_fit_raises_no_doubt() -> None:
    raised = [bool(doubts(fitted(y=noisy(seed)))) for seed in range(25)]
    assert sum(raised) <= 2  # three tests at 1 %


def test_every_doubt_is_told_together() -> None:
    """A pure power law, with a point twice, asked for far away."""
    x = np.array([1e15, 1e15, 1e16, 1e17, 1e18, 1e19])
    law = ScalingLaw("power_offset", objective="l2_log").fit(x, 60 * x**-0.07)
    told = "\n".join(doubts(law, at=np.array([1e24])))
    for part in (
        "5 different points for 3 free",
        "1 of 6 points repeat",
        "E is not identified",
        "1e+05 times beyond",
    ):
        assert part in told, told


@reference("porian_isoflop_points.csv")
def test_a_form_that_is_broken_by_a_constant_learning_rate() -> None:
    table = porian()
    law = ScalingLaw("chinchilla").fit(table, table["loss"])
    c = 6 * table["n"] * table["d"]
    told = doubts(law, c, held=held_out("chinchilla", table, table["loss"], c))
    assert any(each.startswith("residuals keep their sign as compute grows (21 runs where 61") for each in told), told
    assert any(each.startswith("21 of 21 held-out points are predicted too high, by 8.2 %") for each in told), told


@reference("chinchilla_epoch.csv")
def test_a_form_that_fits_its_points() -> None:
    table = pd.read_csv(SCALING / "chinchilla_epoch.csv")
    table = table.drop(table["loss"].nlargest(5).index)
    n, c = table["Model Size"], table["Training FLOP"]
    points = {"n": n, "d": c / (6 * n)}
    law = ScalingLaw("chinchilla").fit(points, table["loss"])
    assert doubts(law, c, held=held_out("chinchilla", points, table["loss"], c)) == []


@pytest.mark.parametrize("objective", ["mean_huber", "Mean squared error", "mse", "MAE", np.mean, lambda r: r.mean()])
def test_means_are_refused(objective: object) -> None:
    with pytest.raises(BadPoints, match=r"a sum over points, never a mean.*stop 28 to 98 % above it"):
        refuse_mean(objective)


@pytest.mark.parametrize(("n", "told"), [(11, True), (12, False)])
def test_too_few_points_for_three_parameters(n: int, told: bool) -> None:
    said = few_points(fitted(np.geomspace(1e15, 1e21, n)))
    assert said.startswith("11 different points for 3 free parameters: below 12") if told else said == ""


@pytest.mark.parametrize(("n", "told"), [(19, True), (20, False)])
def test_too_few_points_for_five_parameters(n: int, told: bool) -> None:
    rng = np.random.default_rng(0)
    x = {"n": 10 ** rng.uniform(8, 10, n), "d": 10 ** rng.uniform(9, 11, n)}
    law = ScalingLaw("chinchilla").fit(x, 1.7 + 400 * x["n"] ** -0.34 + 1500 * x["d"] ** -0.36)
    assert bool(few_points(law)) == told
    assert few_points(ScalingLaw("chinchilla", pinned={"E": 1.7}).fit(x, law.y_)) == ""  # four parameters


def test_repeats_count_as_one_point() -> None:
    x = np.repeat(np.geomspace(1e15, 1e21, 6), 3)
    law = fitted(x)
    assert repeated_points(law).startswith("12 of 18 points repeat the inputs of another: average repeats")
    assert few_points(law).startswith("6 different points")
    assert repeated_points(fitted()) == ""


def test_runs_by_hand() -> None:
    """Ten above and ten below in four runs: 11 are expected, sd sqrt(10 * 9 / 19) = 2.176, z = -3.22."""
    r = np.array([1.0] * 5 + [-1] * 5 + [1] * 5 + [-1] * 5)
    assert one_signed(r).startswith(
        "residuals keep their sign as compute grows (4 runs where 11 are expected, z = -3.2)"
    )
    assert one_signed(np.tile([1.0, -1], 10)) == ""
    assert one_signed(np.tile([1.0, 1, -1, -1], 5)) == ""  # 10 runs
    assert one_signed(np.array([1.0] * 12 + [-1])).startswith("12 of 13 residuals have one sign")
    assert one_signed(r[5:14]) == ""  # too few to tell
    assert one_signed(np.zeros(20)) == ""


def test_the_signs_of_most_compute() -> None:
    """Eight of eight: p = 2 / 256 = .0078; seven of seven: .0156."""
    r = np.tile([1.0, -1], 20)
    assert one_sided_end(np.append(r[:32], [1.0] * 8)).startswith(
        "the law lies above 8 of the 8 points of most compute"
    )
    assert one_sided_end(np.append(r[:32], [-1.0] * 8)).startswith("the law lies below 8 of the 8")
    assert one_sided_end(np.append(r[:32], [1.0] * 7 + [-1.0])) == ""
    assert one_sided_end(np.append(r[:28], [1.0] * 7)) == ""
    assert one_sided_end(r) == ""


def test_residuals_that_drift() -> None:
    log_c = np.linspace(0, 10, 30)
    wave = np.where(np.arange(30) % 2, 0.3, -0.3)
    assert trend(wave + 0.1 * log_c, log_c).startswith("residuals drift with compute: rank correlation +0.")
    assert trend(wave - 0.1 * log_c, log_c).startswith("residuals drift with compute: rank correlation -0.")
    assert trend(wave, log_c) == ""
    assert trend(wave, np.zeros(30)) == ""
    bent = ScalingLaw("power", objective="l2_log").fit(X, 1.7 + 3000 * X**-0.2)
    assert any("runs where" in each for each in doubts(bent))


def test_an_offset_that_is_not_identified() -> None:
    law = fitted(y=60 * X**-0.07 * np.exp(0.01 * np.random.default_rng(0).standard_normal(60)))
    assert unidentified_offset(law).startswith("E is not identified: ")
    assert "but anything from 0 to" in unidentified_offset(law)
    assert unidentified_offset(fitted()) == ""
    assert unidentified_offset(fitted(form="power")) == ""


def test_a_fit_that_is_not_the_minimum() -> None:
    """A fit left away from its optimum: others are better with E held."""
    law = fitted()
    law.theta_ = law.theta_ + np.array([0.0, 0.03, 0.0])
    law.params_ = law.named(law.theta_)
    law.objective_ = float(law.problem(law.weights_[None]).value(law.theta_[None], law.penalty)[0])
    assert unidentified_offset(law).startswith("the fit is not the minimum: with E held at")


def test_a_fit_left_at_its_start() -> None:
    law = fitted()
    assert at_its_start(law) == ""
    start = law.law.starts(law.x_, law.y_)[0]
    law.theta_[2] = start[2]
    law.params_ = law.named(law.theta_)
    assert at_its_start(law) == f"alpha = {start[2]:.6g} stands where the search began: a fit that failed"


@reference("porian_published_fits.csv")
def test_published_fits_that_were_left_at_their_start() -> None:
    """Stored fits of log A = 5, log E = 0 and alpha = 0.1, which is where their search began."""
    start = {"A": np.exp(5), "E": 1.0, "alpha": 0.1}
    fits = pd.read_csv(SCALING / "porian_published_fits.csv")
    fits = fits[fits["A"].notna()]
    left = [bool(left_at_start(row[["A", "E", "alpha"]].to_dict(), start)) for _, row in fits.iterrows()]
    assert sum(left) == int((fits["alpha"] == 0.1).sum()) > 10 and not all(left)
    assert left_at_start({"A": 148.4131591025766, "E": 1.2}, start).startswith("A = 148.413 stands where the search")


def test_a_parameter_at_its_bound() -> None:
    law = fitted(y=60 * X**-0.07)
    assert any("the offset E is at zero" in each for each in doubts(law))


def test_parameters_that_cannot_be_told_apart() -> None:
    """d grows with n, but for a little."""
    rng = np.random.default_rng(0)
    n = np.geomspace(1e7, 1e10, 40)
    points = {"n": n, "d": 20 * n * np.exp(0.05 * rng.standard_normal(40))}
    y = (1.7 + 400 * n**-0.34 + 1500 * points["d"] ** -0.36) * np.exp(0.01 * rng.standard_normal(40))
    law = ScalingLaw("chinchilla", objective="l2_log").fit(points, y)
    told = f"the points cannot tell the parameters apart (condition number {law.condition_:.0f}, above 100)"
    assert ill_conditioned(law).startswith(told)
    assert ill_conditioned(fitted()) == ""


def test_one_point_that_moves_an_exponent() -> None:
    y = noisy(0)
    y[59] *= 1.15
    law = fitted(y=y)
    without = ScalingLaw("power_offset", objective="l2_log").fit(X[:59], y[:59])
    said = influential_point(law)
    assert (
        said.startswith("point 59 alone moves alpha by ")
        and f"from {without.params_['alpha']:.4g} without it" in said
    )
    assert influential_point(fitted()) == ""
    constant = PowerSum("constant", "L = E", ["c"], [Term("E", {})])
    assert influential_point(ScalingLaw(constant)) == ""  # it has no exponent


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ({"n": 5e9, "d": 1e11}, ""),
        ({"n": 2e11, "d": 1e11}, "the prediction is 20 times beyond the points in n, farther than 10"),
        ({"n": 1e10, "d": 9e12}, "the prediction is 90 times beyond the points in d"),
        ({"n": 5e10, "d": 5e11}, "the prediction is 25 times beyond the points in compute"),
        ({"n": 1e5, "d": 1e11}, "the prediction is 100 times beyond the points in n"),
    ],
)
def test_predictions_far_away(at: dict[str, float], told: str) -> None:
    n, d = (each.ravel() for each in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e11, 5)))
    law = ScalingLaw("chinchilla").fit({"n": n, "d": d}, 1.7 + 400 * n**-0.34 + 1500 * d**-0.36)
    assert compute_of(law) == pytest.approx(6 * n * d)
    said = distant(law, at, compute_of(law))
    assert said.startswith(told) and bool(said) == bool(told)
    assert distant(law, at, compute_of(law), at_c=6e24).startswith("the prediction is 1e+03 times")


def test_compute_of_laws_of_other_inputs() -> None:
    assert compute_of(fitted()) == pytest.approx(X)
    law = ScalingLaw("power_offset", letter="d").fit(X, noisy(0))
    assert compute_of(law) == pytest.approx(X)


@pytest.mark.parametrize(("shift", "told"), [(0.0, ""), (0.05, "low"), (-0.05, "high")])
def test_held_out_points_on_one_side(shift: float, told: str) -> None:
    """Losses that leave their law by 5 % in the last fifth."""
    y = noisy(0) * np.where(np.arange(60) < 48, 1.0, 1 + shift)
    said = one_sided_ahead(held_out("power_offset", X, y, X, objective="l2_log"))
    assert said.startswith("12 of 12 held-out points are predicted too " + told) if told else said == ""
