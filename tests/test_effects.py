"""Paired differences, corrections for many of them and verdicts: by hand and against scipy."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis.effects
from analysis.effects import (
    benjamini_hochberg,
    bootstrap_interval,
    compare,
    holm,
    judged,
    paired_difference,
    tost,
    verdict,
)
from analysis.errors import AnalysisError

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
    with pytest.raises(AnalysisError, match=r"no baseline 'gpt' in the table; variants: base, rope"):
        compare(table(rope=BASE, base=BASE), "gpt")


def test_columns_and_values_that_do_not_do() -> None:
    one = table(base=BASE, rope=BASE)
    with pytest.raises(AnalysisError, match="no column bits in the table; its columns: variant, size, seed, loss"):
        compare(one, "base", metric="bits")
    with pytest.raises(AnalysisError, match="no column fold in the table"):
        compare(one, "base", pair_on=["fold"])
    with pytest.raises(AnalysisError, match="clusters: 'fold' is no column that pairs agree in; known: seed, size"):
        compare(one, "base", clusters="fold")
    with pytest.raises(AnalysisError, match="smallest effect of interest: 0; it must be above 0"):
        compare(one, "base", smallest=0)


def test_a_loss_that_is_not_finite_is_missing() -> None:
    found = row(compare(table(base={**BASE, 3: 2.0}, rope={0: 1.90, 1: 1.97, 2: 2.09, 3: np.inf}), "base"), "rope")
    assert (found["n"], found["diff"]) == (3, pytest.approx(-0.13))
    again = pd.concat([table(base=BASE, rope={0: 1.90, 1: 1.97, 2: 2.09}), table(rope={1: np.inf})])
    assert row(compare(again, "base"), "rope")["n"] == 3


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


# noise units, a smallest effect of interest, other corrections


def test_noise_units_by_hand() -> None:
    """Within sizes the baseline's values are 0.1 apart (sd 0.0707, 1 df) and 1, 2, 3 tenths (sd 0.1, 2 df): pooled
    sqrt((0.005 + 0.02) / 3). That the sizes differ by 1 is no noise."""
    base = {("s", 0): 3.0, ("s", 1): 3.1, ("l", 0): 2.1, ("l", 1): 2.2, ("l", 2): 2.3}
    rows = [{"variant": "base", "size": size, "seed": seed, "loss": loss} for (size, seed), loss in base.items()]
    rows += [{**each, "variant": "rope", "loss": each["loss"] - 0.05 * (1 + each["seed"])} for each in rows]
    found = row(compare(pd.DataFrame(rows), "base"), "rope")
    assert found["noise_units"] == pytest.approx(found["diff"] / np.sqrt(0.025 / 3))
    d = [-0.05, -0.10, -0.05, -0.10, -0.15]
    assert found["sd"] == pytest.approx(np.std(d, ddof=1)) and found["diff"] == pytest.approx(np.mean(d))


def test_noise_units_are_missing_without_replicates() -> None:
    found = compare(table(base={0: 2.0}, rope={0: 1.9}), "base")
    assert np.isnan(row(found, "rope")["noise_units"])


@pytest.mark.parametrize("n", [2, 3, 12])
@pytest.mark.parametrize("mean", [0.0, 0.3, 1.4])
def test_two_one_sided_tests_are_scipys(n: int, mean: float) -> None:
    d = np.random.default_rng(n).normal(mean, 0.5, n)
    low = stats.ttest_1samp(d, -1.0, alternative="greater").pvalue
    high = stats.ttest_1samp(d, +1.0, alternative="less").pvalue
    assert tost(d, 1.0) == pytest.approx(max(low, high), rel=1e-9)


def test_two_one_sided_tests_are_an_interval_within_the_margin() -> None:
    for seed in range(200):
        d = np.random.default_rng(seed).normal(0.3, 0.5, 4)
        inside = paired_difference(d, 0.90)
        assert (tost(d, 1.0) < 0.05) == (-1.0 < inside["lo"] and inside["hi"] < 1.0)


def test_two_one_sided_tests_of_what_does_not_vary() -> None:
    assert [tost(np.full(3, each), 0.5) for each in (0.25, -0.25, 0.5, -0.75)] == [0, 0, 1, 1]
    assert np.isnan(tost(np.array([0.1]), 0.5)) and np.isnan(tost(np.array([]), 0.5))


def test_verdicts_with_a_smallest_effect() -> None:
    """d by hand: `small` is surely below 0 and surely above -0.05; `large` is neither; `noisy` tells nothing."""
    losses = {
        "base": dict.fromkeys(range(4), 2.0),
        "small": {0: 1.989, 1: 1.990, 2: 1.991, 3: 1.990},
        "large": {0: 1.899, 1: 1.900, 2: 1.901, 3: 1.900},
        "noisy": {0: 1.8, 1: 2.2, 2: 1.9, 3: 2.1},
        "single": {0: 2.0},
    }
    plain = compare(table(**losses), "base").set_index("variant")
    found = compare(table(**losses), "base", smallest=0.05).set_index("variant")
    assert plain["verdict"].tolist() == ["better", "better", "indistinguishable", "unknown"]
    assert found["verdict"].tolist() == ["equivalent", "better", "indistinguishable", "unknown"]
    assert found["equivalent"].tolist() == [True, False, False, False] and not plain["equivalent"].any()
    assert plain["p_tost"].isna().all() and plain["p_tost_holm"].isna().all()
    assert found["p_tost_holm"]["small"] == pytest.approx(3 * found["p_tost"]["small"])
    pd.testing.assert_frame_equal(found[["p", "p_holm", "lo", "hi"]], plain[["p", "p_holm", "lo", "hi"]])


def test_an_equivalence_at_the_level_itself_is_not_shown() -> None:
    assert verdict(-0.1, 0.9, 5, p_tost=0.0499) == "equivalent"
    assert verdict(-0.1, 0.9, 5, p_tost=0.05) == "indistinguishable"
    assert verdict(-0.1, 0.01, 5, p_tost=0.01) == "equivalent"
    assert verdict(-0.1, 0.01, 1, p_tost=0.01) == "unknown"


def test_rows_of_several_comparisons_are_judged_together() -> None:
    """Two tables of one variant each: p stays, the correction is over both; a sign turns better into worse."""
    two = [compare(table(base=BASE, rope={0: 1.90, 1: 1.97, 2: 2.09}), "base", smallest=0.3) for _ in range(2)]
    rows = pd.concat(two, ignore_index=True)
    found = judged(rows)
    for name in ("p", "p_tost"):
        assert found[f"{name}_holm"].tolist() == pytest.approx((2 * rows[name]).tolist())
    assert found["p_bh"].tolist() == pytest.approx(rows["p"].tolist())
    higher = judged(rows.assign(p_tost=np.nan), sign=np.array([1, -1]))
    assert higher["verdict"].tolist() == ["better", "worse"]


def test_benjamini_and_hochberg_by_hand() -> None:
    """p = .01 .04 .03 .005 (ranks 2 4 3 1): 4 p / rank = .02 .04 .04 .02, each at most what follows it."""
    assert benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    found = benjamini_hochberg(np.array([np.nan, 0.01, 0.02]))
    assert np.isnan(found[0]) and found[1:] == pytest.approx([0.02, 0.02])
    assert len(benjamini_hochberg(np.array([]))) == 0


# the bootstrap


def test_three_values_resampled_by_hand() -> None:
    """One of the 27 resamples is three times the least value, 3.7 % > 2.5 %: the percentiles are the least and the
    greatest, and their distances are multiplied by 4.302653 / 1.959964 sqrt(3 / 2) = 2.688647."""
    low, high = bootstrap_interval(np.array([-0.10, -0.13, -0.17]))
    mean = -0.40 / 3
    assert (low, high) == pytest.approx(
        (mean + 2.688647 * (-0.17 - mean), mean + 2.688647 * (-0.10 - mean)), rel=1e-6
    )


def test_resampled_means_are_scipys() -> None:
    d = np.random.default_rng(0).exponential(size=12)
    plain = stats.bootstrap((d,), np.mean, n_resamples=100_000, method="percentile", rng=1).confidence_interval
    stretch = stats.t.ppf(0.975, 11) / stats.norm.ppf(0.975) * np.sqrt(12 / 11)
    expected = d.mean() + stretch * (np.array(plain) - d.mean())
    assert bootstrap_interval(d) == pytest.approx(expected, abs=0.03 * np.ptp(expected))


def test_two_values_are_not_resampled() -> None:
    assert np.isnan(bootstrap_interval(np.array([0.1, 0.2]))).all()
    assert bootstrap_interval(np.full(4, -0.5)) == (-0.5, -0.5)


def test_clusters_by_hand() -> None:
    """d of sizes s and l: seed 0 -0.1 -0.3, seed 1 -0.2 -0.5; seed 2 has 0.3 and lacks l. The sizes' means are 0 and
    -0.4, so the mean is -0.2; seeds add to it, thrice over, -0.1/6 + 0.1/4, -0.2/6 - 0.1/4 and 0.3/6. The sizes'
    own means are 0 and -0.4."""
    d = {("s", 0): -0.1, ("l", 0): -0.3, ("s", 1): -0.2, ("l", 1): -0.5, ("s", 2): 0.3}
    keys = [(size, seed) for size in ("s", "l") for seed in (0, 1, 2)]
    rows = [{"variant": "base", "size": size, "seed": seed, "loss": 2.0} for size, seed in keys]
    rows += [{"variant": "rope", "size": size, "seed": seed, "loss": 2.0 + each} for (size, seed), each in d.items()]
    for clusters, means in (("seed", [-0.175, -0.375, -0.05]), ("size", [0.0, -0.4])):
        found = row(compare(pd.DataFrame(rows), "base", clusters=clusters), "rope")
        expected = paired_difference(np.array(means))
        assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_examples_in_the_docstrings() -> None:
    found = doctest.testmod(analysis.effects)
    assert found.attempted > 0 and found.failed == 0
