"""Racing keeps its error, decides as the full grid where it can, and replays on grids that were run in full."""

from __future__ import annotations

from pathlib import Path

import fabricate
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.effects import compare
from analysis.errors import AnalysisError
from analysis.promotion import BadLadder, Gates, largest, promote
from analysis.racing import (
    BadRace,
    RacePlan,
    decide,
    decide_all,
    nominal_levels,
    pairs,
    pooled_noise,
    sequential_p,
    spent,
    standing,
)
from analysis.replay import Promotion, replay
from analysis.table import finished, study_table

Array = np.ndarray
LOOKS = (3, 4, 5, 7, 9, 12)


def statistics(differences: Array, looks: tuple[int, ...]) -> Array:
    """The t-statistics of sequences of pairs (S, n) at the looks, (S, K), by scipy."""
    return np.stack([stats.ttest_1samp(differences[:, :n], 0, axis=1).statistic for n in looks], 1)


def null_rows(studies: int, rows: int, most: int, draw: int = 0, base: float = 1.0) -> Array:
    """Differences without effects that all share one baseline, (studies, rows, most)."""
    rng = np.random.default_rng(draw)
    return rng.standard_normal((studies, rows, most)) - base * rng.standard_normal((studies, 1, most))


def named(rows: Array) -> dict[tuple[str, ...], Array]:
    return {("", "s", "", "", f"v{k}"): each for k, each in enumerate(rows)}


# the plan and its boundaries


def test_looks_are_a_quarter_apart() -> None:
    assert RacePlan(3, 12).looks == LOOKS and RacePlan(2, 8).looks == (2, 3, 4, 5, 7, 8)
    assert RacePlan(3, 3).looks == (3,) and RacePlan(10, 20).looks == (10, 13, 17, 20)


def test_all_of_the_level_is_spent_at_the_end() -> None:
    share = np.array([0.25, 0.5, 1.0])
    assert spent(share, 0.05, "pocock") == pytest.approx([0.05 * np.log(1 + (np.e - 1) / 4), 0.0310, 0.05], abs=5e-5)
    z = 1.959964 / np.sqrt(share)
    assert spent(share, 0.05, "obrien_fleming") == pytest.approx(2 * (1 - stats.norm.cdf(z)), rel=1e-4)


@pytest.mark.parametrize("bounds", ["pocock", "obrien_fleming"])
@pytest.mark.parametrize(("looks", "level"), [((2, 3, 4, 6, 8), 0.05), (LOOKS, 0.05), (LOOKS, 0.2)])
def test_the_boundaries_spend_what_they_are_to_spend_at_every_look(
    looks: tuple[int, ...], level: float, bounds: str
) -> None:
    """By simulation of the pairs forwards: the boundaries are computed backwards, from the look's t."""
    studies = 60_000
    t = statistics(np.random.default_rng(3).standard_normal((studies, looks[-1])), looks)
    nominal = np.array(nominal_levels(looks, level, bounds))
    crossed = np.abs(t) >= stats.t.isf(nominal / 2, np.array(looks) - 1)
    reached = np.maximum.accumulate(crossed, 1).mean(0)
    wanted = spent(np.array(looks) / looks[-1], level, bounds)
    assert np.abs(reached - wanted).max() < 4 * np.sqrt(level / studies)


def test_a_single_look_is_the_t_test_and_the_first_look_is_what_is_spent() -> None:
    assert nominal_levels((5,), 0.05) == pytest.approx((0.05,))
    d = np.array([0.1, 0.3, 0.2, 0.25])
    assert sequential_p(d, RacePlan(4, 4)) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=0.01)
    p = float(stats.ttest_1samp(d[:3], 0).pvalue)
    level = p / np.log1p((np.e - 1) * 3 / 12)  # Pocock's: what is spent at the first look is in proportion
    assert sequential_p(d[:3], RacePlan(3, 12, bounds="pocock")) == pytest.approx(level, rel=0.01)


def test_boundaries_of_a_normal_walk_would_not_do() -> None:
    """Of Pocock's kind they are |z| of 2.36 to 2.55 at these looks: four times the error."""
    z = np.array([2.36, 2.54, 2.55, 2.45, 2.43, 2.37])
    t = statistics(np.random.default_rng(4).standard_normal((20_000, 12)), LOOKS)
    assert (np.abs(t) >= z).any(1).mean() > 0.2
    assert max(nominal_levels(LOOKS, 0.05, "pocock")) < 2 * stats.norm.sf(z).min() * 2


# the error


@pytest.mark.parametrize("bounds", ["pocock", "obrien_fleming"])
def test_the_family_wise_error_over_forty_rows(bounds: str) -> None:
    """All rows share their baseline, and every one is looked at to its end. Holm's first step decides whether any
    is told from it."""
    studies = 1500
    p = sequential_p(null_rows(studies, 40, 8, 7), RacePlan(3, 8, bounds=bounds))
    assert (p.min(1) <= 0.05 / 40).mean() <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / studies)
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.006)


def test_the_error_of_whole_races_with_futility_and_true_effects_among_the_rows() -> None:
    """20 of 40 rows have no effect; those told from 0 make Holm's correction smaller for the others."""
    wrong, found = [], []
    for draw in range(60):
        rows = null_rows(1, 40, 8, 100 + draw)[0]
        rows[:20] += 8.0
        told = standing(named(rows), RacePlan(3, 8, futile=0.2)).decisions.values()
        kinds = [each.status for each in told]
        wrong.append(bool({"better", "worse"} & set(kinds[20:])))
        found.append(kinds[:20].count("worse") / 20)
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 60) and np.mean(found) > 0.7


def test_futility_only_ever_takes_verdicts_away() -> None:
    rows = null_rows(1, 60, 12, 5)[0] + np.repeat([0.0, 1.5, 3.0], 20)[:, None]
    free, stopped = (standing(named(rows), RacePlan(3, 12, futile=futile)) for futile in (0.0, 0.4))
    told = {name for name, each in stopped.decisions.items() if each.status == "worse"}
    assert told <= {name for name, each in free.decisions.items() if each.status == "worse"}
    assert sum(stopped.seen.values()) < 0.8 * sum(free.seen.values())
    assert "futile" not in {each.status for each in free.decisions.values()}


def test_repeated_intervals_hold_the_truth_at_all_looks_together() -> None:
    plan, missed = RacePlan(3, 8), 0
    draws = np.random.default_rng(9).standard_normal((400, 8)) + 0.7
    for d in draws:
        ends = [decide(d[:look], plan) for look in plan.looks]
        missed += any(not each.lo <= 0.7 <= each.hi for each in ends)
    assert missed / 400 == pytest.approx(0.05, abs=2.5 * np.sqrt(0.05 * 0.95 / 400))


def test_the_smallest_effect_of_interest() -> None:
    """An effect as large as that is no better or worse; far smaller ones are negligible, larger ones are told."""
    plan = RacePlan(3, 8, smallest=0.5)
    rng = np.random.default_rng(11)
    at = sequential_p(rng.standard_normal((20_000, 8)) * 0.2 + 0.5, plan)
    assert (at <= 0.05).mean() == pytest.approx(0.025, abs=0.003)  # on the one side that is the nearer
    noise = 0.05 * rng.standard_normal(8)
    assert decide(0.1 + noise, plan).status == "equivalent"
    assert [decide(shift + noise, plan).status for shift in (-0.9, 0.9)] == ["better", "worse"]


# one row


def test_a_decision_by_hand() -> None:
    d = np.array([-0.20, -0.23, -0.17])
    found = decide(d, RacePlan(3, 3))
    by_scipy = stats.ttest_1samp(d, 0)
    interval = by_scipy.confidence_interval(0.95)
    assert (found.status, found.pairs) == ("better", 3) and found.diff == pytest.approx(-0.2)
    assert (found.lo, found.hi) == pytest.approx((interval.low, interval.high), rel=0.01)
    assert found.p == pytest.approx(by_scipy.pvalue, rel=0.01) and found.p_holm == found.p
    assert decide(-d, RacePlan(3, 3)).status == "worse"


def test_the_predictive_power_is_that_of_pairs_to_come() -> None:
    """With a flat prior: mu and sigma drawn from what 4 pairs say of them, and then 8 more pairs."""
    d, plan = np.array([0.5, 1.4, 0.2, 1.1]), RacePlan(4, 12)
    rng, draws = np.random.default_rng(0), 40_000
    sigma = d.std(ddof=1) * np.sqrt(3 / rng.chisquare(3, draws))
    mu = d.mean() + sigma / 2 * rng.standard_normal(draws)
    more = mu + sigma * rng.standard_normal(draws) / np.sqrt(8)
    final = (4 * d.mean() + 8 * more) / 12 / (d.std(ddof=1) / np.sqrt(12))
    needed = stats.t.isf(nominal_levels(plan.looks, 0.05)[-1] / 2, 11)
    assert decide(d, plan).power == pytest.approx((np.abs(final) > needed).mean(), abs=0.01)


def test_pairs_that_are_missing() -> None:
    """They count for the look and not for the test."""
    plan, d = RacePlan(4, 4), np.array([-0.20, np.nan, -0.23, -0.17])
    found = decide(d, plan)
    assert (found.pairs, found.status) == (3, "better")
    assert found.p == pytest.approx(stats.ttest_1samp(d[[0, 2, 3]], 0).pvalue, rel=0.01)
    alone = decide(np.array([np.nan, np.nan, -0.2, np.nan]), plan)
    assert (alone.status, alone.pairs) == ("futile", 1) and np.isnan(alone.lo)
    assert decide(d[:2], plan).status == "undecided"


def test_differences_without_spread_decide_nothing() -> None:
    """Two equal accuracies say nothing of the noise."""
    found = decide(np.full(3, 0.25), RacePlan(3, 6))
    assert (found.status, found.p, found.power) == ("undecided", 1.0, 1.0)


# pooled noise


def test_pooled_noise_is_the_two_way_residual() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((6, 5)) + rng.standard_normal(5) + 3 * rng.standard_normal((6, 1))
    residual = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    variance, df = pooled_noise(list(x[1:] - x[0]))
    assert df == 20 and variance == pytest.approx(2 * (residual**2).sum() / 20)
    own, own_df = pooled_noise([x[1] - x[0]])
    assert own_df == 4 and own == pytest.approx((x[1] - x[0]).var(ddof=1))
    fewer, fewer_df = pooled_noise([(x[1] - x[0])[:2], x[2] - x[0], np.array([1.0, np.nan])])
    assert fewer_df == (5 + 2 + 5 + 1) - (4 + 5 - 1) and 0 < fewer < 20
    assert np.isnan(pooled_noise([np.array([1.0])])[0])


def test_pooled_noise_tells_more_of_two_pairs_and_keeps_the_error_where_noise_is_alike() -> None:
    plan = RacePlan(2, 4, noise="pooled", futile=0.0)
    wrong = []
    for draw in range(100):
        told = decide_all(named(null_rows(1, 40, 4, draw)[0]), plan).values()
        wrong.append(any(each.status in ("better", "worse") for each in told))
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)
    rows = null_rows(1, 40, 2, 0)[0] + np.repeat([0.0, 10.0], 20)[:, None]
    counts = [
        sum(each.status == "worse" for each in decide_all(named(rows), RacePlan(2, 4, noise=noise)).values())
        for noise in ("own", "pooled")
    ]
    assert counts == [0, 20]


# races


def test_a_race_asks_step_by_step_for_what_it_would_have_seen() -> None:
    rows = named(null_rows(1, 12, 12, 1)[0] + np.repeat([0.0, -4.0, 10.0], 4)[:, None])
    plan = RacePlan(3, 12)
    known = {name: each[:0] for name, each in rows.items()}
    counts = []
    while wanted := standing(known, plan).wanted:
        counts.append(len(wanted))
        known |= {name: rows[name][:count] for name, count in wanted.items()}
    whole = standing(rows, plan)
    assert whole.decisions == standing(known, plan).decisions
    assert whole.seen == {name: len(each) for name, each in known.items()}
    assert counts[0] == 12 and counts == sorted(counts, reverse=True) and counts[-1] < 9


def test_rows_that_are_ahead_wait_for_the_others_and_the_most_promising_come_first() -> None:
    rows = named(np.array([[0.1, 0.9, 0.4], [1.0, 1.3, 1.1], [0.5, 1.2, 0.7]]))
    plan = RacePlan(2, 12, futile=0.0)
    known = {name: each[:2] for name, each in rows.items()}
    ahead = known | {("", "s", "", "", "v0"): rows["", "s", "", "", "v0"]}
    first, then = standing(known, plan), standing(ahead, plan)
    assert [name[-1] for name in first.wanted] == ["v1", "v2", "v0"] and set(first.wanted.values()) == {3}
    assert [name[-1] for name in then.wanted] == ["v1", "v2"]


def test_pairs_of_a_table(tmp_path: Path) -> None:
    def loss(label: dict[str, object]) -> float | str | None:
        variant, seed = label["variant"], label["seed"]
        if variant == "rope" and seed == 1:
            return "diverged"
        if variant == "alibi" and seed == 2:
            return None
        return {"base": 2.0, "rope": 1.9, "alibi": 2.3}[str(variant)] + 0.01 * int(str(seed)) ** 2

    fabricate.study(tmp_path, loss, ("base", "rope", "alibi"), seeds=(0, 1, 2, 3))
    table = study_table(tmp_path, "made")
    found = {name[-1]: each for name, each in pairs(table, "base").items()}
    assert found["rope"] == pytest.approx([-0.1, np.nan, -0.1, -0.1], nan_ok=True)
    assert found["alibi"] == pytest.approx([0.3, 0.3])  # the third has not ended
    better = table.assign(better="higher")
    assert {k[-1]: v for k, v in pairs(better, "base").items()}["alibi"] == pytest.approx([-0.3, -0.3])
    with pytest.raises(BadRace, match="no baseline 'gpt' in the table; variants: base, rope, alibi"):
        pairs(table, "gpt")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"first": 1}, "first = 1 must be at least 2 pairs"),
        ({"first": 5, "most": 4}, "most = 4 must be at least first = 5"),
        ({"level": 0.7}, "level = 0.7 must be between 1e-07 and 0.5"),
        ({"smallest": -1.0}, "smallest = -1.0 must be 0 or more"),
        ({"bounds": "haybittle"}, "bounds = 'haybittle' must be pocock or obrien_fleming"),
        ({"futile": 1.0}, "futile = 1.0 must be from 0"),
        ({"noise": "none"}, "noise = 'none' must be own or pooled"),
    ],
)
def test_plans_that_make_no_race(given: dict[str, object], said: str) -> None:
    with pytest.raises(AnalysisError, match=said):
        RacePlan(**given)  # type: ignore[arg-type]


# promotion


def ladder(
    tmp_path: Path, slopes: dict[str, tuple[float, float]], seeds: int = 4, noise: float = 0.002
) -> pd.DataFrame:
    """log L_variant - log L_base = a + b log(C / C_largest): (a, b) of each variant, over four sizes."""
    rng = np.random.default_rng(0)

    def loss(label: dict[str, object]) -> float:
        params = fabricate.PARAMS[str(label["size"])]
        a, b = slopes.get(str(label["variant"]), (0.0, 0.0))
        return float(3 * params**-0.05 * np.exp(a + b * np.log(params / 64_000) + noise * rng.standard_normal()))

    fabricate.study(tmp_path, loss, ("base", *slopes), tuple(fabricate.PARAMS), seeds=range(seeds))
    return study_table(tmp_path, "made")


LADDER = {"ahead": (-0.03, 0.0), "behind": (0.03, 0.0), "fades": (0.02, 0.012), "grows": (-0.02, -0.001)}


def test_two_gates(tmp_path: Path) -> None:
    """`fades` is ahead at small scales, and its law says that it is behind at the largest."""
    table = ladder(tmp_path, LADDER, noise=0.0004)
    top, flops = largest(table, "base")
    assert set(table["size"][top]) == {"xl"} and flops == 6.0 * 64_000 * 100_000
    found = promote(table[~top], "base", flops).set_index("variant")
    assert found["promoted"].to_dict() == {"ahead": True, "behind": False, "fades": False, "grows": True}
    assert found["verdict"].to_dict() == {"ahead": "", "behind": "worse", "fades": "worse", "grows": ""}
    assert found["small"].to_dict() == {"ahead": "better", "behind": "worse", "fades": "better", "grows": "better"}
    for name, (a, _) in LADDER.items():
        row = found.loc[name]
        assert row["below"] < a < row["above"] and row["predicted"] == pytest.approx(a, abs=0.002)


def test_the_law_is_least_squares_over_the_cells(tmp_path: Path) -> None:
    table = ladder(tmp_path, LADDER)
    top, flops = largest(table, "base")
    means = finished(table[~top]).groupby(["variant", "size"])["loss"].apply(lambda each: np.log(each).mean())
    y = np.array([means["grows", size] - means["base", size] for size in "sml"])
    x = np.log([fabricate.PARAMS[size] for size in "sml"]) - np.log(64_000)
    design = np.stack((np.ones(3), x), 1)  # its intercept is the prediction at the largest
    covariance = np.linalg.inv(design.T @ design)
    theta = covariance @ design.T @ y
    error = np.sqrt(((y - design @ theta) ** 2).sum() * covariance[0, 0])
    row = promote(table[~top], "base", flops).set_index("variant").loc["grows"]
    assert row["predicted"] == pytest.approx(theta[0]) and row["scales"] == 3
    assert row["above"] - row["predicted"] == pytest.approx(stats.t.isf(0.025, 1) * error)
    assert row["ahead"] == pytest.approx(stats.t.cdf(-theta[0] / error, 1))


def test_gates_may_be_narrower(tmp_path: Path) -> None:
    table = ladder(tmp_path, LADDER | {"same": (0.0, 0.0)})
    top, flops = largest(table, "base")
    for gates, passed in (
        (Gates(smallest=0.025), {"ahead"}),
        (Gates(level=1e-30, sure=0.0), set(LADDER) | {"same"}),
        (Gates("better", sure=0.0), {"ahead", "fades", "grows"}),
    ):
        found = promote(table[~top], "base", flops, gates)
        assert set(found["variant"][found["promoted"]]) == passed


def test_a_variant_without_enough_scales_is_not_promoted(tmp_path: Path) -> None:
    table = ladder(tmp_path, LADDER)
    top, flops = largest(table, "base")
    lost = (table["variant"] == "grows") & table["size"].isin(["s", "m"])
    found = promote(table[~top].assign(status=table["status"].mask(lost, "diverged")), "base", flops)
    row = found.set_index("variant").loc["grows"]
    assert (row["verdict"], row["promoted"], row["scales"]) == ("unknown", False, 1)
    assert found["promoted"].sum() == 1


def test_ladders_that_do_not_do(tmp_path: Path) -> None:
    table = ladder(tmp_path, LADDER, seeds=2)
    with pytest.raises(BadLadder, match=r"^2 scales below the largest: a law needs at least 3"):
        promote(table[table["size"].isin(["s", "m"])], "base", 1e12)
    with pytest.raises(BadLadder, match="no finished trial of the baseline 'gpt'; variants: base, ahead"):
        promote(table, "gpt", 1e12)
    with pytest.raises(BadLadder, match="2 ladders, by stage and axes"):
        largest(pd.concat((table, table.assign(axes="lr=1"))), "base")
    with pytest.raises(BadLadder, match="no FLOPs of the baseline 'gpt'"):
        largest(table, "gpt")
    with pytest.raises(BadLadder, match="wanted = 'best' must be 'not worse' or 'better'"):
        Gates("best")
    with pytest.raises(BadLadder, match=r"sure = 1.0 must be from 0 to below 1"):
        Gates(sure=1.0)


# replays


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """12 variants with 16 seeds: four as the baseline, four better and four worse, by five deviations of a pair."""
    folder, rng = tmp_path_factory.mktemp("grid"), np.random.default_rng(1)
    shift = {f"v{k}": (0.0, -0.05, 0.05)[k % 3] for k in range(12)}

    def loss(label: dict[str, object]) -> float:
        return 2.0 + shift.get(str(label["variant"]), 0.0) + 0.007 * float(rng.standard_normal())

    fabricate.study(folder, loss, ("base", *shift), seeds=range(16))
    return study_table(folder, "made")


def test_a_race_reaches_the_full_grids_verdicts_for_less(grid: pd.DataFrame) -> None:
    own = replay(grid, "base", RacePlan(3, 16, bounds="pocock"), "made", orders=3)
    assert list(own["order"]) == [0, 1, 2] and set(own["rows"]) == {12} and set(own["study"]) == {"made"}
    assert own["agreement"].mean() >= 0.95 and own["flops_share"].max() < 0.45
    late = replay(grid, "base", RacePlan(3, 16), orders=3)
    assert late["agreement"].mean() >= 0.95 and own["flops_share"].mean() < late["flops_share"].mean() < 0.55
    pooled = replay(grid, "base", RacePlan(2, 16, noise="pooled", bounds="pocock"), orders=2)
    assert pooled["agreement"].mean() >= 0.95 and pooled["flops_share"].mean() <= 0.30
    assert not own["flipped"].any() and len(set(own["flops_share"])) > 1


def test_the_share_of_flops_is_counted_by_trial(grid: pd.DataFrame) -> None:
    """All have the same FLOPs: 12 rows as far as each was seen, and the baseline as far as the longest."""
    plan = RacePlan(3, 16)
    seen = standing(pairs(grid, "base"), plan).seen.values()
    found = replay(grid, "base", plan).iloc[0]
    assert found["flops_share"] == pytest.approx((sum(seen) + max(seen)) / (13 * 16))
    nothing = replay(grid, "base", RacePlan(16, 16)).iloc[0]
    assert nothing["flops_share"] == 1.0 and nothing["agreement"] == 1.0


def test_kinds_of_disagreement(grid: pd.DataFrame) -> None:
    """A race to two pairs tells little: what it misses is what the full grid tells."""
    found = replay(grid, "base", RacePlan(2, 2)).iloc[0]
    told = (compare(finished(grid), "base")["verdict"] != "indistinguishable").mean()
    assert found["missed"] == pytest.approx(told) and found["extra"] == found["flipped"] == 0
    assert found["agreement"] == pytest.approx(1 - told) and found["flops_share"] == pytest.approx(2 / 16)


def test_a_promotion_trains_at_the_largest_what_is_ahead(tmp_path: Path) -> None:
    table = ladder(tmp_path, LADDER, seeds=6)
    found = replay(table, "base", Promotion()).iloc[0]
    small, top = 1_000 + 4_000 + 16_000, 64_000
    assert found["flops_share"] == pytest.approx((5 * small + 3 * top) / (5 * (small + top)))
    assert found["rows"] == 4 and found["agreement"] == 1.0
    raced = replay(table, "base", Promotion(seeds=3, race=RacePlan(3, 6))).iloc[0]
    assert raced["flops_share"] < found["flops_share"] and raced["rows"] == 4
