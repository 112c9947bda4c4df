"""Paired differences, Holm's correction and verdicts: by hand, against scipy, and on simulated studies."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis.effects
from analysis.effects import compare, holm, paired_difference, verdict

BASE = {0: 2.00, 1: 2.10, 2: 2.25}


def table(**losses: dict[int, float]) -> pd.DataFrame:
    """`table(base={seed: loss})`, one size."""
    rows = [
        {"variant": name, "size": "s", "seed": seed, "loss": loss}
        for name, each in losses.items()
        for seed, loss in each.items()
    ]
    return pd.DataFrame(rows)


def row(found: pd.DataFrame, variant: str) -> dict:
    (only,) = found[found["variant"] == variant].to_dict("records")
    return only


def holm_by_hand(p: list[float]) -> list[float]:
    """Holm 1979, its definition: the i-th smallest p times m - i + 1, and never below the one before."""
    ranks = {index: rank for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__))}
    return [min(1.0, max((len(p) - ranks[j]) * p[j] for j in ranks if ranks[j] <= ranks[i])) for i in range(len(p))]


def test_a_difference_by_hand() -> None:
    """d = -0.10, -0.13, -0.16: mean -0.13, sd 0.03, t(0.975, 2) = 4.302653."""
    found = row(compare(table(base=BASE, rope={0: 1.90, 1: 1.97, 2: 2.09}), "base"), "rope")
    reach = 4.302653 * 0.03 / np.sqrt(3)
    assert found["n"] == 3
    assert found["diff"] == pytest.approx(-0.13)
    assert (found["lo"], found["hi"]) == pytest.approx((-0.13 - reach, -0.13 + reach), rel=1e-6)
    assert found["p"] == found["p_holm"] == pytest.approx(2 * stats.t.cdf(-0.13 / (0.03 / np.sqrt(3)), 2))
    assert found["verdict"] == "better"


@pytest.mark.parametrize("n", [2, 3, 10, 60])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_a_difference_is_the_paired_t_test(n: int, level: float) -> None:
    rng = np.random.default_rng(n)
    base, mine = rng.normal(2, 0.1, n), rng.normal(1.97, 0.1, n)
    found = paired_difference(mine - base, level)
    expected = stats.ttest_rel(mine, base)
    interval = expected.confidence_interval(level)
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-10)
    assert (found["lo"], found["hi"]) == pytest.approx((interval.low, interval.high), rel=1e-10)


def test_pairs_agree_in_all_keys() -> None:
    """The same seeds at two sizes are four pairs; the offset between the sizes is in both of a pair, and cancels."""
    rows = [
        {"variant": variant, "size": size, "seed": seed, "loss": at + shift + 0.01 * seed}
        for size, at in (("small", 3.0), ("large", 2.0))
        for seed in (0, 1)
        for variant, shift in (("base", 0.0), ("rope", -0.1 - 0.02 * seed))
    ]
    shuffled = pd.DataFrame(rows).sample(frac=1, random_state=0)
    found = row(compare(shuffled, "base"), "rope")
    assert (found["n"], found["diff"]) == (4, pytest.approx(-0.11))
    assert found["hi"] - found["lo"] < 0.05


def test_unbalanced_pairs_use_what_both_have() -> None:
    """Seeds 2 and 3 are common: what the others say must not matter, and neither must a missing loss."""
    rope = {2: 2.05, 3: 2.10, 9: 0.0, 4: np.nan}
    found = row(compare(table(base={**BASE, 3: 2.2, 4: 2.0}, rope=rope), "base"), "rope")
    assert (found["n"], found["diff"]) == (2, pytest.approx(-0.15))


def test_repeated_rows_of_a_pair_are_one_observation() -> None:
    one = table(base=BASE, rope={0: 1.90, 1: 1.97, 2: 2.09})
    pd.testing.assert_frame_equal(compare(pd.concat([one, one]), "base"), compare(one, "base"))


def test_a_key_that_is_missing_everywhere_still_pairs() -> None:
    one = table(base=BASE, rope={0: 1.90, 1: 1.97, 2: 2.09}).assign(size=None)
    assert row(compare(one, "base"), "rope")["n"] == 3


@pytest.mark.parametrize(("losses", "n"), [({}, 0), ({7: 1.0}, 0), ({0: 1.0}, 1), ({0: 1.0, 1: np.nan}, 1)], ids=str)
def test_fewer_than_two_pairs_are_unknown(losses: dict[int, float], n: int) -> None:
    both = pd.concat([table(base=BASE, rope=losses or {0: np.nan}), table(swiglu={0: 1.0, 1: 1.1, 2: 1.25})])
    found = compare(both, "base")
    assert row(found, "rope")["n"] == n
    assert row(found, "rope")["verdict"] == "unknown"
    assert np.isnan([row(found, "rope")[name] for name in ("lo", "hi", "p", "p_holm")]).all()
    assert row(found, "swiglu")["p"] == row(found, "swiglu")["p_holm"]  # what is unknown is not counted


def test_identical_values() -> None:
    """Equal losses are indistinguishable; an equal difference in every pair is sure, its interval of no width."""
    losses = {0: 2.0, 1: 2.5, 2: 3.0}
    found = compare(table(base=losses, same=losses, lower={k: v - 0.5 for k, v in losses.items()}), "base")
    same, lower = row(found, "same"), row(found, "lower")
    assert (same["diff"], same["lo"], same["hi"], same["p"], same["verdict"]) == (0, 0, 0, 1, "indistinguishable")
    assert (lower["lo"], lower["hi"], lower["p"], lower["verdict"]) == (-0.5, -0.5, 0, "better")


def test_another_metric_and_another_key() -> None:
    one = table(base=BASE, rope={0: 1.90, 1: 1.97, 2: 2.09}).rename(columns={"loss": "bits", "seed": "fold"})
    assert row(compare(one, "base", metric="bits", pair_on=["fold"]), "rope")["diff"] == pytest.approx(-0.13)


def test_no_baseline_names_the_variants() -> None:
    with pytest.raises(ValueError, match=r"no baseline 'gpt' in the table; variants: base, rope"):
        compare(table(rope=BASE, base=BASE), "gpt")


def test_a_baseline_alone_gives_an_empty_comparison() -> None:
    assert list(compare(table(base=BASE), "base")["variant"]) == []


def test_holm_by_hand() -> None:
    """p = .01 .04 .03 .005: 4 x .005 = .02, 3 x .01 = .03, 2 x .03 = .06, 1 x .04 -> .06."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("m", [1, 2, 5, 30])
def test_holm_is_its_definition(m: int) -> None:
    rng = np.random.default_rng(m)
    for p in (rng.uniform(size=m), rng.uniform(size=m) ** 6, np.round(rng.uniform(size=m), 1)):
        assert holm(p) == pytest.approx(holm_by_hand(list(p)))
        assert (holm(p) >= p).all() and (holm(p) <= np.minimum(1, m * p)).all()


def test_holm_leaves_missing_out() -> None:
    found = holm(np.array([np.nan, 0.01, np.nan, 0.02]))
    assert found[[1, 3]] == pytest.approx([0.02, 0.02])
    assert np.isnan(found[[0, 2]]).all()
    assert len(holm(np.array([]))) == 0


@pytest.mark.parametrize(
    ("diff", "p", "n", "expected"),
    [
        (-0.1, 0.0499, 2, "better"),
        (+0.1, 0.0499, 2, "worse"),
        (-0.1, 0.05, 2, "indistinguishable"),
        (-9.0, 1.0, 9, "indistinguishable"),
        (-0.1, 0.001, 1, "unknown"),
        (-0.1, np.nan, 5, "unknown"),
        (np.nan, np.nan, 0, "unknown"),
    ],
)
def test_verdicts(diff: float, p: float, n: int, expected: str) -> None:
    assert verdict(diff, p, n) == expected


def test_verdicts_follow_the_level() -> None:
    assert verdict(-1, 0.03, 5, level=0.95) == "better"
    assert verdict(-1, 0.03, 5, level=0.99) == "indistinguishable"


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
    rng, n = np.random.default_rng(0), 250
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
    rng, n = np.random.default_rng(2), 60
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


def test_the_examples_in_the_docstrings() -> None:
    found = doctest.testmod(analysis.effects)
    assert found.attempted > 0 and found.failed == 0
