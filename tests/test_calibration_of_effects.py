"""Verdicts on simulated studies are wrong as seldom as they say, and intervals hold the truth as often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis.effects import bootstrap_interval, compare, holm, judged, paired_difference, tost, verdict


def study(rng: np.random.Generator, effects: list[float], seeds: int = 5) -> pd.DataFrame:
    """Losses with a part that a seed's runs share, and noise of 0.01 of each run's own."""
    names = ["base", *(f"v{index}" for index in range(len(effects)))]
    common = rng.normal(0, 0.05, seeds)
    loss = 2 + np.array([0.0, *effects])[:, None] + common + rng.normal(0, 0.01, (len(names), seeds))
    return pd.DataFrame(
        {"variant": np.repeat(names, seeds), "seed": np.tile(range(seeds), len(names)), "loss": loss.ravel()}
    )


def three_sigma(p: float, n: int) -> float:
    return 3 * np.sqrt(p * (1 - p) / n)


def test_eight_variants_without_effect_are_seldom_called_different() -> None:
    """Some verdict is wrong in near 5 % of studies, rather fewer: the shared baseline ties the comparisons."""
    rng, n = np.random.default_rng(0), 60
    wrong = [
        compare(study(rng, [0.0] * 8), "base", pair_on=["seed"])["verdict"].isin(("better", "worse")).any()
        for _ in range(n)
    ]
    assert 0.01 < np.mean(wrong) < 0.05 + three_sigma(0.05, n)


def test_the_family_wise_error_of_independent_comparisons_is_what_is_said() -> None:
    """1 - (1 - 0.05 / 8)^8 = 0.049."""
    rng, n = np.random.default_rng(1), 1500
    wrong = 0
    for _ in range(n):
        found = [paired_difference(d) for d in rng.normal(0, 1, (8, 4))]
        p = holm(np.array([each["p"] for each in found]))
        verdicts = {verdict(each["diff"], q, each["n"]) for each, q in zip(found, p, strict=True)}
        wrong += bool(verdicts & {"better", "worse"})
    assert wrong / n == pytest.approx(0.049, abs=three_sigma(0.049, n))


def test_real_effects_are_found_and_have_the_right_sign() -> None:
    """Four noise levels of difference, five seeds: nearly always found, beside five variants without effect."""
    rng, n = np.random.default_rng(2), 40
    verdicts = [
        compare(study(rng, [-0.06, 0.06, 0, 0, 0, 0, 0]), "base", pair_on=["seed"])["verdict"].tolist()
        for _ in range(n)
    ]
    first, second, *others = zip(*verdicts, strict=True)
    assert set(first) <= {"better", "indistinguishable"} and first.count("better") > 0.9 * n
    assert set(second) <= {"worse", "indistinguishable"} and second.count("worse") > 0.9 * n
    assert sum(each.count("indistinguishable") for each in others) > 0.9 * 5 * n


@pytest.mark.parametrize(("seeds", "level"), [(2, 0.95), (5, 0.95), (5, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds: int, level: float) -> None:
    rng, n, truth = np.random.default_rng(3), 1500, -0.02
    covered = 0
    for d in rng.normal(truth, 0.01, (n, seeds)):
        found = paired_difference(d, level)
        covered += found["lo"] <= truth <= found["hi"]
    assert covered / n == pytest.approx(level, abs=three_sigma(level, n))


Draws = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
NORMAL: Draws = np.random.Generator.standard_normal
HEAVY: Draws = lambda rng, shape: rng.standard_t(3, shape)  # noqa: E731
noise = pytest.mark.parametrize("draws", [NORMAL, HEAVY], ids=["normal", "heavy-tailed"])


@noise
@pytest.mark.parametrize("n", [3, 4, 6, 12])
def test_bootstrap_intervals_cover_at_few_pairs(draws: Draws, n: int) -> None:
    rng, samples = np.random.default_rng(n), 1500
    ends = np.array([bootstrap_interval(d) for d in draws(rng, (samples, n))])
    covered = np.mean((ends[:, 0] <= 0) & (0 <= ends[:, 1]))
    assert covered == pytest.approx(0.95, abs=three_sigma(0.95, samples))


# forty rows


def forty(d: np.ndarray, smallest: float | None = None) -> pd.DataFrame:
    """The verdicts on differences, one row of `d` a comparison."""
    rows = [paired_difference(each) | {"p_tost": tost(each, smallest) if smallest else np.nan} for each in d]
    return judged(pd.DataFrame(rows))


def differences(rng: np.random.Generator, draws: Draws, seeds: int, truth: np.ndarray | float) -> np.ndarray:
    """Of 40 variants from one baseline, run with the same seeds: all have the baseline's noise in common."""
    runs = draws(rng, (41, seeds))
    return runs[1:] - runs[0] + np.broadcast_to(truth, 40)[:, None]


@noise
@pytest.mark.parametrize("seeds", [3, 6])
def test_forty_rows_without_effect(draws: Draws, seeds: int) -> None:
    """The family-wise error is at most 5 %."""
    rng, n = np.random.default_rng(seeds), 250
    wrong = [forty(differences(rng, draws, seeds, 0.0))["verdict"].isin(("better", "worse")).any() for _ in range(n)]
    assert np.mean(wrong) <= 0.05 + three_sigma(0.05, n)
    assert np.mean(wrong) > 0  # the rows are correlated: less than 5 %, and not never


@noise
def test_forty_rows_of_which_half_have_an_effect(draws: Draws) -> None:
    """Holm: a wrong row in at most 5 % of tables; Benjamini and Hochberg: at most 5 % of the rows named are wrong,
    on average, and no fewer are named."""
    rng, n = np.random.default_rng(7), 200
    truth = np.repeat([0.0, -6.0], 20)
    wrong, shares, named = [], [], []
    for _ in range(n):
        found = forty(differences(rng, draws, 6, truth))
        by_rate = found["p_bh"] < 0.05
        wrong.append((found["verdict"] != "indistinguishable")[:20].any())
        shares.append(by_rate[:20].sum() / max(1, by_rate.sum()))
        named.append((by_rate.sum(), (found["p_holm"] < 0.05).sum()))
    assert np.mean(wrong) <= 0.05 + three_sigma(0.05, n)
    assert np.mean(shares) <= 0.05 * 20 / 40 + 3 * np.std(shares) / np.sqrt(n)
    assert all(rate >= family for rate, family in named) and np.mean(named) > 10


@noise
def test_forty_rows_at_the_margin_are_seldom_equivalent(draws: Draws) -> None:
    """Differences of just the smallest effect of interest, the hardest case: any is equivalent in at most 5 %."""
    rng, n = np.random.default_rng(8), 200
    wrong = [forty(differences(rng, draws, 5, 3.0), smallest=3.0)["verdict"].eq("equivalent").any() for _ in range(n)]
    assert np.mean(wrong) <= 0.05 + three_sigma(0.05, n)


def test_one_difference_at_the_margin_is_equivalent_as_often_as_is_said() -> None:
    rng, n = np.random.default_rng(9), 4000
    said = np.mean([tost(d, 3.0) < 0.05 for d in rng.normal(3.0, 1.0, (n, 4))])
    assert said == pytest.approx(0.05, abs=three_sigma(0.05, n))


def test_what_is_equivalent_is_found_with_seeds_enough() -> None:
    found = forty(differences(np.random.default_rng(10), NORMAL, 12, 0.0), smallest=4.0)
    assert found["verdict"].eq("equivalent").mean() > 0.9


# pairs of several cells


def cells(rng: np.random.Generator, studies: int, spread: float, shared: float, sizes: int = 5) -> pd.DataFrame:
    """As many studies of one variant each, in one table: the baseline's losses are 0, so that a variant's are its
    differences. Every size has a true difference of its own, of mean 0 over them; a seed's runs share a part."""
    own = rng.normal(0, spread, (studies, sizes, 1))
    d = (
        own
        - own.mean(axis=1, keepdims=True)
        + rng.normal(0, shared, (studies, 1, 3))
        + rng.normal(size=(studies, sizes, 3))
    )
    losses = np.concatenate([np.zeros((1, sizes, 3)), d])
    variant, size, seed = np.indices(losses.shape)
    names = np.array(["base", *(f"v{index}" for index in range(studies))])
    return pd.DataFrame(
        {"variant": names[variant.ravel()], "size": size.ravel(), "seed": seed.ravel(), "loss": losses.ravel()}
    )


def coverage(found: pd.DataFrame) -> float:
    return float(((found["lo"] <= 0) & (0 <= found["hi"])).mean())


@pytest.mark.parametrize(("spread", "shared"), [(0, 0), (3, 0), (0, 0.5), (1, 1)], ids=str)
def test_means_over_cells_are_calibrated_whatever_seeds_share(spread: float, shared: float) -> None:
    n = 300
    found = compare(cells(np.random.default_rng(11), n, spread, shared), "base", clusters="seed")
    assert found["n"].eq(3).all()
    assert coverage(found) == pytest.approx(0.95, abs=three_sigma(0.95, n))


def test_means_over_cells_are_calibrated_where_runs_are_missing() -> None:
    """Two of fifteen pairs of every variant, at random: the 92 to 95 % of the docstring."""
    rng, n = np.random.default_rng(13), 300
    table = cells(rng, n, 0, 0.5)
    mine = table["variant"] != "base"
    lost = table[mine].groupby("variant").sample(2, random_state=14).index
    found = compare(table.drop(index=lost), "base", clusters="seed")
    assert found["n"].eq(3).all()
    assert 0.92 - three_sigma(0.92, n) < coverage(found) < 0.95 + three_sigma(0.95, n)


def test_plain_pairs_are_calibrated_where_cells_and_seeds_are_alike_alone() -> None:
    """The 95, 100 and 86 % of the docstring."""
    rng, n = np.random.default_rng(12), 300
    plain, uneven, sharing = (compare(cells(rng, n, *each), "base") for each in ((0, 0), (3, 0), (0, 0.5)))
    assert plain["n"].eq(15).all()
    assert coverage(plain) == pytest.approx(0.95, abs=three_sigma(0.95, n))
    assert coverage(uneven) > 0.98 and coverage(sharing) == pytest.approx(0.86, abs=three_sigma(0.86, n))
