"""Approach 1: the lower envelope of training curves, which points of them can be compared, and who is ahead where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from analysis.envelope import comparable, envelope, race
from analysis.fit import BadPoints, NotEnoughPoints

A, B, E, ALPHA, BETA = 406.4, 410.7, 1.69, 0.34, 0.28  # Hoffmann et al. 2022, arXiv:2203.15556, equation 10
SIZES = np.geomspace(1e7, 1e10, 13)
HORIZONS = np.geomspace(1, 1000, 8)  # tokens per parameter
a, b = BETA / (ALPHA + BETA), ALPHA / (ALPHA + BETA)


def loss(n: Any, d: Any) -> Any:
    return E + A * n**-ALPHA + B * d**-BETA


def best(c: float) -> float:
    """Hoffmann et al. 2022, equation 4."""
    return float((ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (c / 6) ** a)


def table(n: Any, d: Any, trial: Any, schedule: str) -> pd.DataFrame:
    return pd.DataFrame({"trial": trial, "n": n, "d": d, "c": 6 * n * d, "loss": loss(n, d), "schedule": schedule})


def endless(sizes: Any = SIZES, schedule: str = "constant", ratios: tuple[float, float] = (0.3, 3e3)) -> pd.DataFrame:
    """One run a size, whose losses on the way are those of shorter runs."""
    n = np.repeat(sizes, 50)
    d = n * np.tile(np.geomspace(*ratios, 50), len(sizes))
    return table(n, d, [f"{each:.3g}" for each in n], schedule)


def decaying(sizes: Any = SIZES, schedule: str = "cosine", horizons: Any = HORIZONS) -> pd.DataFrame:
    """Runs of several lengths for each size: on their way losses are up to .3 above those of runs that end there."""
    n, horizon, done = (each.ravel() for each in np.meshgrid(sizes, horizons, [0.25, 0.5, 0.75, 1.0], indexing="ij"))
    trials = [f"{size:.3g}-{ratio:.3g}" for size, ratio in zip(n, horizon, strict=True)]
    runs = table(n, n * horizon * done, trials, schedule)
    return runs.assign(loss=runs["loss"] + 0.3 * (1 - done), done=done)


def ended(curves: pd.DataFrame) -> pd.DataFrame:
    return curves[curves["done"] == 1]


@pytest.mark.parametrize("make", [endless, decaying])
def test_known_exponents_are_recovered(make: Callable[[], pd.DataFrame]) -> None:
    found = envelope(make(), draws=0)
    assert found.params["n_exponent"] == pytest.approx(a, abs=0.008)  # sizes are a factor 1.8 apart
    assert found.params["n_exponent"] + found.params["d_exponent"] == pytest.approx(1, abs=1e-6)
    middle = found.at([1e18, 1e19, 1e20, 1e21])
    assert middle["n"].tolist() == pytest.approx([best(c) for c in middle["c"]], rel=0.06)
    assert (6 * middle["n"] * middle["d"]).tolist() == pytest.approx(middle["c"].tolist(), rel=1e-4)


def test_closer_sizes_come_closer_to_the_exponent() -> None:
    far, near = (envelope(endless(np.geomspace(1e7, 1e10, count)), draws=0) for count in (7, 49))
    assert abs(near.params["n_exponent"] - a) < 1e-3 < abs(far.params["n_exponent"] - a)


def test_the_run_on_the_envelope_is_the_one_with_the_lowest_loss() -> None:
    points = envelope(endless(), draws=0).points
    reach = SIZES[:, None] ** 2 * 6 * np.array([0.3, 3e3])
    for row in points.iloc[5::30].itertuples():
        there = SIZES[(reach[:, 0] <= row.c) & (row.c <= reach[:, 1])]
        losses = loss(there, row.c / 6 / there)
        assert row.trial == f"{there[losses.argmin()]:.3g}"
        assert (row.n, row.loss) == (pytest.approx(there[losses.argmin()]), pytest.approx(losses.min(), rel=1e-4))
        assert row.d == pytest.approx(row.c / 6 / row.n, rel=1e-6)
        assert row.accepted == (there.min() < row.n < there.max())


def test_at_the_edges_of_the_sizes_nothing_is_known() -> None:
    found = envelope(endless(), draws=0).points
    refused = found[~found["accepted"]]
    assert refused["reason"].unique().tolist() == [
        "no other size has been there",
        "the smallest size there leads",
        "the largest size there leads",
    ]
    assert set(found[found["accepted"]]["reason"]) == {""}
    assert (found[found["accepted"]]["n"].between(1.7e7, 5.7e9)).all()  # all sizes but the ends


@pytest.mark.parametrize("schedule", ["cosine", "linear", "one_cycle", "wsd"])
def test_only_the_ends_of_decaying_schedules_count(schedule: str) -> None:
    curves = decaying(schedule=schedule)
    found, alone = envelope(curves, draws=0), envelope(ended(curves), draws=0)
    assert found.params == pytest.approx(alone.params) and alone.left_out.empty and alone.warnings == []
    assert found.schedule == f"{schedule} (ends of runs)"
    assert len(found.left_out) == 3 * 8 * 13 and (found.left_out["done"] < 1).all()
    assert found.left_out["reason"].str.contains(schedule).all()
    assert found.warnings[0].startswith("312 of 416 points left out: 312 before the end of")


def test_mid_run_losses_would_have_changed_the_answer() -> None:
    """So that the test above can fail: taken for comparable, they give another exponent."""
    wrong = envelope(decaying().assign(schedule="constant"), draws=0).params["n_exponent"]
    assert abs(wrong - envelope(decaying(), draws=0).params["n_exponent"]) > 5e-3


def test_the_column_cooled_decides() -> None:
    curves = decaying().drop(columns="schedule").assign(cooled=lambda t: t["done"] == 1)
    found = envelope(curves, draws=0)
    assert found.params == pytest.approx(envelope(decaying(), draws=0).params)
    assert found.schedule == "schedule not named (ends of runs)"
    assert set(found.left_out["reason"]) == {"not cooled"}
    stopped = comparable(decaying().assign(cooled=lambda t: (t["done"] == 1) & (t["n"] > 2e7)))
    assert stopped.points["n"].min() > 2e7 and stopped.ends
    gaps = decaying().assign(cooled=None)  # not said: the end of a run of cosine
    assert envelope(gaps, draws=0).params == pytest.approx(found.params)


@pytest.mark.parametrize("schedule", ["constant", "inverse_sqrt"])
def test_schedules_without_a_decay_to_the_end_compare_among_themselves(schedule: str) -> None:
    found = comparable(endless(schedule=schedule))
    assert len(found.points) == 13 * 50 and found.left_out.empty and not found.ends
    assert found.schedule == f"{schedule} (not cooled)"
    assert found.warnings == [
        "no learning rate has come down: losses are above those of cooled runs, and the best size may differ"
    ]


def test_wsd_compares_before_its_cooldown() -> None:
    """Without ends: those are compared with each other first, and the stable phase is left out."""
    curves = endless(schedule="wsd").assign(decaying=False, cooled=False)
    found = comparable(curves)
    assert len(found.points) == 13 * 50 and found.schedule == "wsd (not cooled)"
    late = curves["c"] > curves.groupby("trial")["c"].transform("max") / 2
    cooling = comparable(curves.assign(decaying=late))
    assert (cooling.left_out.index == curves.index[late]).all()
    assert set(cooling.left_out["reason"]) == {
        "before the end of wsd, in its cooldown or not known to be ahead of it"
    }
    both = comparable(curves.assign(cooled=curves["c"] == curves.groupby("trial")["c"].transform("max")))
    assert both.ends and len(both.points) == 13
    assert set(both.left_out["reason"]) == {
        "its learning rate has not come down (wsd): not comparable with ends of runs"
    }
    with pytest.raises(NotEnoughPoints, match="no points of the curves can be compared"):
        envelope(curves.drop(columns="decaying"))


def test_cooled_and_uncooled_runs_are_not_mixed() -> None:
    both = pd.concat([decaying(SIZES[::2]), endless(SIZES[1::2])], ignore_index=True)
    found = comparable(both)
    assert set(found.points["schedule"]) == {"cosine"} and found.ends
    reasons = found.left_out.groupby("schedule")["reason"].unique()
    assert reasons["constant"].tolist() == [
        "its learning rate has not come down (constant): not comparable with ends of runs"
    ]
    assert reasons["cosine"].tolist() == ["before the end of a decaying learning rate (cosine)"]
    two = comparable(pd.concat([decaying(SIZES[::2]), decaying(SIZES[1::2], "linear")], ignore_index=True))
    assert "several schedules are compared as one: cosine, linear" in two.warnings
    assert two.schedule == "cosine, linear (ends of runs)"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_diverged_points_are_left_out(wrong: float) -> None:
    curves = endless()
    curves.loc[7, "loss"] = wrong
    found = comparable(curves)
    assert found.left_out.index.tolist() == [7]
    assert found.left_out["reason"].tolist() == ["its loss is not positive and finite"]
    assert "1 of 650 points left out: 1 its loss is not positive and finite" in found.warnings


def test_repeats_are_averaged() -> None:
    """Two seeds, one .02 above and one .02 below in the logarithm; and a size whose luckier seed must not lead."""
    for make in (endless, decaying):
        curves = make()
        seeds = [
            curves.assign(trial=curves["trial"] + sign, loss=curves["loss"] * np.exp(shift))
            for sign, shift in (("+", 0.02), ("-", -0.02))
        ]
        found, plain = envelope(pd.concat(seeds), draws=0), envelope(curves, draws=0)
        assert found.params == pytest.approx(plain.params, rel=1e-6)
        assert found.points["loss"].tolist() == pytest.approx(plain.points["loss"].tolist(), rel=1e-9)
        assert all("+" in trials and "-" in trials for trials in found.points["trial"])


def test_tokens_are_those_of_the_curves_or_follow_from_compute() -> None:
    curves = endless()
    assert envelope(curves.drop(columns="d"), draws=0).params == pytest.approx(
        envelope(curves, draws=0).params, rel=1e-6
    )
    other = envelope(curves.assign(d=curves["d"] * 2), draws=0).params
    assert other["d_coef"] == pytest.approx(2 * envelope(curves, draws=0).params["d_coef"], rel=1e-6)
    assert envelope(curves.drop(columns="d"), k=3, draws=0).params["d_coef"] == pytest.approx(
        other["d_coef"], rel=1e-6
    )


def test_intervals_are_over_sizes() -> None:
    found, again, other = (envelope(endless(), draws=60, seed=seed) for seed in (0, 0, 1))
    assert found.se == again.se != other.se
    low, high = found.ci95["n_exponent"]
    assert low < a < high
    assert 0.002 < found.se["n_exponent"] < 0.1
    few = envelope(endless(SIZES[::3]), draws=60)
    assert "of 60 resamples have no optimum and are not in the intervals" in "; ".join(few.warnings)
    assert envelope(endless(), draws=0).ci95 == {}


def test_few_sizes_are_doubted_or_refused() -> None:
    assert "only 2 sizes lead" in "; ".join(envelope(endless(SIZES[[0, 3, 6, 9]]), draws=0).warnings)
    with pytest.raises(
        NotEnoughPoints, match="1 sizes lead between a smaller and a larger one, a power law needs at least 2"
    ):
        envelope(endless(SIZES[[0, 6, 12]], ratios=(1e-3, 1e6)), draws=0)


def test_one_point_is_no_curve() -> None:
    isoflop = decaying(horizons=[20.0])
    with pytest.raises(
        NotEnoughPoints, match="every size has one point: points of equal compute are what isoflop is for"
    ):
        envelope(isoflop)
    curves = pd.concat([decaying(), decaying([3e7], horizons=[20.0])], ignore_index=True)
    found = envelope(curves, draws=0)
    lonely = found.left_out[found.left_out["reason"] == "the only point of its curve"]
    assert lonely["trial"].tolist() == ["3e+07-20"]
    assert "1 points left out: each the only one of its curve" in found.warnings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t: t.drop(columns="n"), "no column n; training curves have trial, n, c, loss and schedule or cooled"),
        (lambda t: t.drop(columns="schedule"), "curves need a column schedule or cooled"),
        (
            lambda t: t.assign(schedule="warm_restarts"),
            "schedule 'warm_restarts': whether it decays is not known; known: cos",
        ),
        (lambda t: t.assign(schedule=None), "schedule '': whether it decays is not known"),
        (lambda t: t.assign(c=0.0), "n, c and d must be positive and finite"),
        (lambda t: t.assign(d=np.nan), "n, c and d must be positive and finite"),
    ],
)
def test_curves_must_be_whole(wrong: Any, message: str) -> None:
    for ask in (comparable, envelope, race):
        with pytest.raises(BadPoints, match=message):
            ask(wrong(endless()))


def test_a_schedule_of_any_name_will_do_where_cooled_is_said() -> None:
    found = comparable(decaying(schedule="warm_restarts").assign(cooled=lambda t: t["done"] == 1))
    assert found.schedule == "warm_restarts (ends of runs)" and len(found.points) == 8 * 13


def crossing(n: float, m: float) -> float:
    """The compute at which two sizes have the same loss."""
    return float(np.exp(brentq(lambda at: loss(n, np.exp(at) / 6 / n) - loss(m, np.exp(at) / 6 / m), 30, 60)))


def test_a_race_of_sizes() -> None:
    n = np.repeat([1e7, 1e8, 1e9], 60)
    c = np.tile(np.geomspace(1e15, 1e22, 60), 3)
    found = race(table(n, c / 6 / n, n.astype(str), "constant"))
    assert found["leader"].tolist() == [1e7, 1e8, 1e8, 1e9]
    assert found["runner_up"].tolist() == [1e8, 1e7, 1e9, 1e8]
    leads = found.groupby("leader")[["c_from", "c_to"]].agg({"c_from": "min", "c_to": "max"})
    assert leads.loc[1e7, "c_to"] == pytest.approx(crossing(1e7, 1e8), rel=2e-3) == leads.loc[1e8, "c_from"]
    assert leads.loc[1e8, "c_to"] == pytest.approx(crossing(1e8, 1e9), rel=2e-3) == leads.loc[1e9, "c_from"]
    assert found["c_from"].tolist()[1:] == found["c_to"].tolist()[:-1]
    assert (found["c_from"].iloc[0], found["c_to"].iloc[-1]) == pytest.approx((1e15, 1e22))
    assert set(found["schedule"]) == {"constant (not cooled)"}


def variants(shapes: dict[str, tuple[float, float]], **columns: Any) -> pd.DataFrame:
    """Curves of variants of one size: L = start - slope log10(c / 1e15)."""
    c = np.geomspace(1e15, 1e19, 9)
    parts = []
    for name, (start, slope) in shapes.items():
        line = np.exp(start - slope * np.log10(c / 1e15))
        parts.append(
            pd.DataFrame({"trial": name, "variant": name, "n": 1e7, "c": c, "loss": line, "cooled": True, **columns})
        )
    return pd.concat(parts, ignore_index=True)


def test_a_race_of_variants() -> None:
    """The log losses 2 - .1 x and 1.9 - .05 x of x = log10(c / 1e15) meet at x = 2; the third is always behind."""
    found = race(variants({"base": (2.0, 0.1), "rope": (1.9, 0.05), "late": (2.3, 0.11)}), by="variant")
    assert found[["leader", "runner_up"]].to_numpy().tolist() == [["rope", "base"], ["base", "rope"]]
    assert found["c_to"].iloc[0] == pytest.approx(1e17, rel=1e-3) == found["c_from"].iloc[1]
    x = np.linspace(0, 2, 2001)
    expected = (np.exp(2 - 0.1 * x) - np.exp(1.9 - 0.05 * x)).mean()
    assert found["margin"].iloc[0] == pytest.approx(expected, rel=0.01)
    assert set(found["schedule"]) == {"schedule not named (ends of runs)"}


def test_a_race_changes_where_runners_up_change_places() -> None:
    found = race(variants({"first": (1.0, 0.1), "base": (2.0, 0.1), "rope": (1.9, 0.05)}), by="variant")
    assert found["leader"].tolist() == ["first", "first"] and found["runner_up"].tolist() == ["rope", "base"]
    assert found["c_to"].iloc[0] == pytest.approx(1e17, rel=1e-3)


def test_who_is_alone_has_no_runner_up() -> None:
    curves = variants({"base": (2.0, 0.1), "rope": (1.9, 0.05)})
    found = race(curves[(curves["variant"] == "base") | (curves["c"] < 2e16)], by="variant")
    assert found["leader"].tolist() == ["rope", "base"] and found["runner_up"].iloc[0] == "base"
    assert pd.isna(found["runner_up"].iloc[1]) and np.isnan(found["margin"].iloc[1])
    assert found["c_to"].iloc[0] == pytest.approx(1e16, rel=0.03)
    one = race(variants({"base": (2.0, 0.1)}), by="variant")
    assert one[["c_from", "c_to", "leader"]].to_numpy().tolist() == [
        [pytest.approx(1e15), pytest.approx(1e19), "base"]
    ]


def test_where_nobody_has_been_there_is_no_leader() -> None:
    curves = variants({"base": (2.0, 0.1), "rope": (1.9, 0.05)})
    low, high = curves[curves["c"] < 2e16], curves[curves["c"] > 5e17].assign(n=1e8)
    found = race(pd.concat([low, high]), by="n")
    assert found["leader"].tolist() == [1e7, 1e8]
    assert (found["c_to"].iloc[0], found["c_from"].iloc[1]) == pytest.approx((1e16, 1e18), rel=0.03)


def test_the_best_size_of_a_variant_counts() -> None:
    base = decaying(SIZES[:6]).assign(variant="base")
    better = decaying(SIZES[:6]).assign(
        variant="rope", loss=lambda t: t["loss"] - 0.05, trial=lambda t: t["trial"] + "r"
    )
    found = race(pd.concat([base, better]), by="variant")
    assert found["leader"].tolist() == ["rope"] and found["runner_up"].tolist() == ["base"]
    assert found["margin"].iloc[0] == pytest.approx(0.05, abs=2e-4)


def test_a_ladder_of_sizes_is_the_curve_of_a_variant() -> None:
    """One run a size, each with its own budget: the curve goes through the ends of all sizes."""
    ladder = decaying(SIZES[:6], horizons=[20.0])
    both = [ladder.assign(variant="base"), ladder.assign(variant="rope", loss=ladder["loss"] * 0.99)]
    found = race(pd.concat(both), by="variant")
    assert found["leader"].tolist() == ["rope"]
    assert found["c_from"].iloc[0] == pytest.approx(120 * 1e14) and found["c_to"].iloc[0] == pytest.approx(
        120 * SIZES[5] ** 2
    )
    isoflop = decaying(SIZES[:6], horizons=[20.0]).assign(c=1e18, variant="base")
    with pytest.raises(NotEnoughPoints, match="every size has one point"):
        race(isoflop, by="variant")


def test_a_race_is_by_a_column_without_gaps() -> None:
    with pytest.raises(BadPoints, match="no column variant without gaps"):
        race(endless(), by="variant")
    with pytest.raises(BadPoints, match="no column variant without gaps"):
        race(endless().assign(variant=[None, *["base"] * 649]), by="variant")
