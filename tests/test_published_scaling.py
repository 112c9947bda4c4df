"""Published fits, made again from the published points. Skipped where the points are not at hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from designs import SCALING

from analysis.fit import ScalingLaw


def load(name: str) -> pd.DataFrame:
    file = SCALING / name
    if not file.is_file():
        pytest.skip(f"reference data: {name}")
    return pd.read_csv(file)


def chinchilla_epoch(drop: int = 5) -> pd.DataFrame:
    table = load("chinchilla_epoch.csv")
    table = table.rename(columns={"Model Size": "n", "Training FLOP": "c"})
    table["d"] = table["c"] / 6 / table["n"]
    return table[table["loss"].rank(ascending=False) > drop].reset_index(drop=True)


def fitted(table: pd.DataFrame, form: str = "chinchilla", **options: object) -> ScalingLaw:
    return ScalingLaw(form, **options).fit(table, table["loss"])  # type: ignore[arg-type]


def test_huber_s_minimum() -> None:
    """The sum, not the mean, at its true minimum: 0.9 % from the published headline in A."""
    law = fitted(chinchilla_epoch())
    assert law.n_ == 240 and law.objective_ <= 1.018274017801e-3 * (1 + 1e-9)
    found = [law.params_[name] for name in ("E", "alpha", "beta")]
    assert found == pytest.approx([1.8172181, 0.34731050, 0.36717243], abs=1e-6)
    assert law.params_["A"] == pytest.approx(477.82587, rel=1e-6)
    assert law.params_["B"] == pytest.approx(2143.4174, rel=1e-6)


def test_the_published_headline_is_a_fit_by_absolute_deviations() -> None:
    law = fitted(chinchilla_epoch(), objective="lad")
    expected = {"A": 482.0057, "B": 2085.4341, "E": 1.816864, "alpha": 0.3478130, "beta": 0.3658541}
    assert {name: law.params_[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert law.objective_ == pytest.approx(1.1294947, rel=1e-7)


def test_the_five_highest_losses_move_beta_by_a_quarter() -> None:
    law = fitted(chinchilla_epoch(drop=0))
    assert law.n_ == 245 and law.objective_ == pytest.approx(1.826010523e-3, rel=1e-9)
    expected = {"A": 495.72601, "B": 12845.613, "E": 1.8913385, "alpha": 0.3493129, "beta": 0.4530493}
    assert {name: law.params_[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_squares_of_log_losses() -> None:
    law = fitted(chinchilla_epoch(), objective="l2_log")
    expected = {"A": 593.322, "B": 4875.638, "E": 1.864550, "alpha": 0.360253, "beta": 0.405883}
    assert {name: law.params_[name] for name in expected} == pytest.approx(expected, rel=2e-6)
    assert law.objective_ == pytest.approx(5.73094e-3, rel=1e-6)


def test_runs_that_are_overtrained() -> None:
    """Gadre et al. 2024: five runs predict the loss of 1.4B parameters at 640 tokens each, and of 6.9B at 20."""
    table = load("overtraining_rpj.csv").rename(columns={"N": "n"})
    table["d"] = 20 * table["mult"] * table["n"]
    small = (table["mult"] == 1) & (table["n"] < 5e8) | (table["mult"] == 16) & (table["n"] < 2e7)
    law = fitted(table[small], "chinchilla_tied", objective="l2")
    assert law.n_ == 5
    expected = {"eta": 0.272851, "E": 1.836648, "A": 166.211, "B": 287.168}
    assert law.params_ == pytest.approx(expected, rel=3e-6)
    assert 2 * law.objective_ == pytest.approx(4.256e-4, rel=2e-4)
    large = table[table["n"] > 1e9].query("n > 2e9 or mult == 32").sort_values("n")
    errors = 100 * np.abs(law.predict(large) / large["loss"] - 1)
    assert errors.to_numpy() == pytest.approx([0.7103, 0.7320], abs=0.0005)


def test_errors_of_tasks_follow_from_losses() -> None:
    """The published second step: an exponential through six runs, then the error at the loss that the first step
    predicts for two larger ones."""
    table = load("overtraining_rpj.csv").rename(columns={"N": "n"})
    table["d"] = 20 * table["mult"] * table["n"]
    small = (table["mult"] == 1) & (table["n"] < 5e8) | (table["mult"] == 16) & (table["n"] < 2e7)
    first = fitted(table[small], "chinchilla_tied", objective="l2")
    seen = table[small | (table["mult"] == 1) & table["n"].between(1e9, 2e9)]
    assert len(seen) == 6
    second = ScalingLaw("error_exponential").fit({"l": seen["loss"]}, seen["err17"])
    large = table[table["n"] > 1e9].query("n > 2e9 or mult == 32").sort_values("n")
    said = second.predict({"l": first.predict(large)})
    assert 100 * np.abs(said / large["err17"] - 1).to_numpy() == pytest.approx([3.6365, 0.0464], abs=0.0005)


def test_dense_models_of_the_routing_study() -> None:
    """The last step of each plain run, the three seeds at 130M averaged: without that, n_c is 4 % lower."""
    curves = load("routing_curves.csv.gz")
    dense = curves[(curves["router_type"] == "Dense") & (curves["flop_increase"] == 1)]
    last = dense.sort_values("step").groupby("hyper_id").tail(1)
    assert len(last) == 8
    mean = last.groupby("dense_parameter_count")["loss_validation"].mean()
    law = ScalingLaw("power", "l2_log", letter="n").fit(mean.index.to_numpy(), mean)
    assert law.params_["alpha"] == pytest.approx(0.07862, abs=1e-5)
    assert law.derived_["n_c"] == pytest.approx(3.5681e13, rel=1e-4)
    every = ScalingLaw("power", "l2_log", letter="n").fit(last["dense_parameter_count"], last["loss_validation"])
    assert every.derived_["n_c"] == pytest.approx(3.420e13, rel=1e-3)


def test_asymmetric_absolute_error() -> None:
    """The `chinchilla` package's own objective is a mean; its printed fit lies 1.6e-5 above this minimum."""
    table = load("kyo_takano_llm.csv").rename(columns=str.lower)
    law = fitted(table, objective="asymmetric")
    assert law.objective_ / law.n_ == pytest.approx(0.022781859, abs=2e-9)
    expected = {"E": 1.700228, "A": 184.675, "B": 1633.35, "alpha": 0.289003, "beta": 0.355790}
    assert law.params_ == pytest.approx(expected, rel=3e-5)


@pytest.fixture(scope="module")
def bootstrap() -> ScalingLaw:
    table = chinchilla_epoch()
    law = fitted(table)
    draw = np.random.RandomState(42)
    law.bootstrap(np.stack([np.bincount(draw.choice(240, 240), minlength=240) for _ in range(4000)]))
    return law


def test_bootstrap_of_the_published_points(bootstrap: ScalingLaw) -> None:
    """Standard errors over 4,000 resamples."""
    published = {"A": 124.4936, "B": 1293.1691, "E": 0.025657, "alpha": 0.015397, "beta": 0.020594}
    assert bootstrap.se_ == pytest.approx(published, rel=1e-3)
    low, high = bootstrap.samples_.quantile(0.025), bootstrap.samples_.quantile(0.975)
    assert (low["alpha"], high["alpha"]) == pytest.approx((0.3168, 0.3733), abs=1e-4)
    assert (low["beta"], high["beta"]) == pytest.approx((0.3313, 0.4154), abs=1e-4)
    share = bootstrap.samples_["beta"] / (bootstrap.samples_["alpha"] + bootstrap.samples_["beta"])
    assert share.mean() == pytest.approx(0.5165, abs=1e-4)
    assert share.quantile([0.025, 0.975]).to_numpy() == pytest.approx([0.4805, 0.5561], abs=2e-4)


def test_no_resample_is_above_scipy_s(bootstrap: ScalingLaw) -> None:
    """BFGS with analytic gradients from the same start, on forty resamples with the largest B and forty others."""
    from analysis.by_scipy import by_scipy

    table = chinchilla_epoch()
    draw = np.random.RandomState(42)
    weights = np.stack([np.bincount(draw.choice(240, 240), minlength=240) for _ in range(4000)]).astype(float)
    assert len(table) == weights.shape[1]
    chosen = np.concatenate((np.argsort(-bootstrap.samples_["B"].to_numpy())[:40], np.arange(40)))
    above = 0
    for each in chosen:
        _, value = by_scipy(bootstrap.problem(weights[each : each + 1]), bootstrap.theta_[None])
        assert bootstrap.values_[each] <= value * (1 + 1e-12)
        above += value > bootstrap.values_[each] * (1 + 1e-9)
    assert above > 10  # BFGS often ends early


RMSE = {  # of log losses on the later part of each curve, the mean over a domain's curves
    ("LM", "power"): 0.0140,
    ("NMT", "power"): 0.222,
    ("IC", "power"): 0.105,
    ("BB", "power"): 0.0148,
    ("LM", "power_offset"): 0.0011,
    ("NMT", "power_offset"): 0.048,
    ("BB", "power_offset"): 0.0108,
    ("LM", "last half"): 0.0016,
    ("NMT", "last half"): 0.0125,
    ("IC", "last half"): 0.0379,
    ("BB", "last half"): 0.0111,
}


def extrapolated(curve: pd.DataFrame, form: str) -> float:
    """How far the law of a curve's first part is from the rest of it."""
    seen, later = curve[curve["Training"] == 1].sort_values("Seen Examples"), curve[curve["Training"] == 0]
    if form == "last half":
        seen, form = seen[len(seen) // 2 :], "power_offset"
    law = ScalingLaw(form, "l2_log", letter="s").fit(seen["Seen Examples"], seen["Loss"])
    return float(np.sqrt(np.mean(np.log(law.predict(later["Seen Examples"]) / later["Loss"]) ** 2)))


@pytest.mark.parametrize("file", ["learning_curves_language.csv", "learning_curves_vision.csv.gz"])
@pytest.mark.parametrize("form", ["power", "power_offset", "last half"])
def test_learning_curves(file: str, form: str) -> None:
    """92 curves of Alabdulmohsin et al. 2022. Of images with an offset the recorded error is 0.109; the minimum of
    the squares of log losses gives 0.068."""
    curves = load(file).drop_duplicates()  # the language file repeats some
    errors: dict[str, list[float]] = {}
    for (domain, *_), curve in curves.groupby(["Domain", "Task", "Model"]):
        errors.setdefault(domain, []).append(extrapolated(curve, form))
    assert sum(map(len, errors.values())) == (20 if "language" in file else 72)
    for domain, found in errors.items():
        if (domain, form) in RMSE:
            assert np.mean(found) == pytest.approx(RMSE[domain, form], rel=0.1)
        else:
            assert np.mean(found) < 0.109
