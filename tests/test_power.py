"""The noise of seeds and the seeds that a difference needs: by hand, against published counts, and by simulation."""

from __future__ import annotations

from pathlib import Path

import fabricate
import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from analysis.effects import holm, paired_difference, verdict
from analysis.errors import AnalysisError
from analysis.power import (
    minimum_detectable_effect,
    noise_floor,
    paired_noise,
    power_lines,
    power_of,
    power_table,
    sd_interval,
    seeds_needed,
)
from analysis.table import study_table

Losses = dict[str, dict[int, float]]
SMALL: Losses = {"base": {0: 2.0, 1: 2.1, 2: 2.2}, "rope": {0: 1.9, 1: 2.05, 2: 2.1}, "half": {0: 2.3}}
LARGE: Losses = {"base": {0: 1.5, 1: 1.52}, "rope": {0: 1.4, 1: 1.46}, "half": {0: 1.6, 1: 1.61}}


def table(**sizes: Losses) -> pd.DataFrame:
    """`table(SIZE={variant: {seed: loss}})`."""
    rows = [
        {"variant": variant, "size": size, "seed": seed, "loss": loss}
        for size, variants in sizes.items()
        for variant, each in variants.items()
        for seed, loss in each.items()
    ]
    return pd.DataFrame(rows)


def three_sigma(p: float, n: int) -> float:
    return 3 * np.sqrt(p * (1 - p) / n)


# power, effects and seeds


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_of_the_textbook(effect: float, n: int) -> None:
    """Paired t test, two-sided 5 %, power 0.8: Cohen's small, medium and large effect need 199, 34 and 15 pairs."""
    assert seeds_needed(effect, 1.0) == n


@pytest.mark.parametrize("n", [2, 3, 8, 40])
@pytest.mark.parametrize("tests", [1, 40])
def test_power_is_an_integral_over_the_sd(n: int, tests: int) -> None:
    """Given that the sample's sd is s, the mean must exceed t s / sqrt(n); s sqrt(n - 1) is chi."""
    delta, df = 1.3, n - 1
    t = stats.t.isf(0.025 / tests, df)

    def shown(s: float) -> float:
        return float(stats.norm.cdf(delta * np.sqrt(n) - t * s) * stats.chi.pdf(s * np.sqrt(df), df) * np.sqrt(df))

    expected = integrate.quad(shown, 0, 1, limit=200)[0] + integrate.quad(shown, 1, 12, limit=200)[0]
    assert power_of(delta, 1.0, n, tests) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "tests", "delta"), [(3, 1, 2.5), (3, 6, 6.0), (8, 40, 2.0), (30, 40, 0.8)])
def test_power_is_what_is_found_in_a_table(n: int, tests: int, delta: float) -> None:
    """One variant differs; of the others nothing is shown, so that Holm's correction of it is Bonferroni's."""
    rng, studies = np.random.default_rng(n), 2000
    found = 0
    for d in rng.normal(-delta, 1.0, (studies, n)):
        one = paired_difference(d)
        corrected = holm(np.array([one["p"], *[1.0] * (tests - 1)]))[0]
        found += verdict(one["diff"], corrected, n) == "better"
    said = power_of(delta, 1.0, n, tests)
    assert 0.4 < said < 0.99
    assert found / studies == pytest.approx(said, abs=three_sigma(said, studies))


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("tests", [1, 24])
@pytest.mark.parametrize("n", [2, 3, 5, 50])
def test_the_minimum_detectable_effect_is_detected(n: int, tests: int, power: float) -> None:
    effect = minimum_detectable_effect(0.03, n, tests, 0.9, power)
    assert power_of(effect, 0.03, n, tests, 0.9) == pytest.approx(power, abs=1e-4)


@pytest.mark.parametrize("tests", [1, 40])
@pytest.mark.parametrize("delta", [0.001, 0.01, 0.1, 1.0])
def test_seeds_needed_are_the_least(delta: float, tests: int) -> None:
    n = seeds_needed(delta, 0.02, tests, 0.95, 0.9)
    assert power_of(delta, 0.02, n, tests) >= 0.9
    assert n == 2 or power_of(delta, 0.02, n - 1, tests) < 0.9


def test_the_ends_of_the_range() -> None:
    assert power_of(0.1, 0.1, 1) == 0.0 and np.isnan(minimum_detectable_effect(0.1, 1))
    assert (power_of(0.1, 0.0, 2), minimum_detectable_effect(0.0, 2), seeds_needed(0.1, 0.0)) == (1.0, 0.0, 2)
    normal = ((stats.norm.isf(0.025) + stats.norm.isf(0.2)) * 1e5) ** 2
    assert seeds_needed(1e-5, 1.0) == pytest.approx(normal, rel=1e-3)


def test_values_that_make_no_sense() -> None:
    for call, message in (
        (lambda: power_of(0, 1, 3), "delta: 0; it must be above 0, in the metric's units"),
        (lambda: power_of(np.nan, 1, 3), "delta: nan"),
        (lambda: seeds_needed(0.1, -1), "sd: -1; it must be 0 or above, and known"),
        (lambda: seeds_needed(0.1, 1, tests=0), "tests: 0; it must be 1 or more"),
        (lambda: minimum_detectable_effect(1, 3, level=95), "level: 95; it must be between 0 and 1"),
        (lambda: seeds_needed(0.1, 1, power=1), "power: 1; it must be at least 0.5 and below 1"),
        (lambda: power_table(table(s=SMALL), "base", delta=-1), "delta: -1"),
        (lambda: power_table(table(s=SMALL), "base", delta=1, tests=0), "tests: 0"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()


# the noise


def test_an_interval_of_a_standard_deviation_by_hand() -> None:
    """chi-square of 2 degrees of freedom: quantile -2 ln(1 - q); 0.05064 and 7.37776 at 2.5 and 97.5 %."""
    assert sd_interval(0.1, 2) == pytest.approx((0.1 * np.sqrt(2 / 7.37776), 0.1 * np.sqrt(2 / 0.0506356)), rel=1e-5)
    assert np.isnan(sd_interval(0.1, 0)).all()


def test_the_noise_floor_by_hand() -> None:
    """sd 0.1 (2 df) and 0.01414 (1 df), pooled sqrt((0.02 + 0.0002) / 3)."""
    found = noise_floor(table(s=SMALL, l=LARGE), "base")
    assert found["scope"].tolist() == ["cell", "cell", "all"] and found["size"].tolist() == ["s", "l", ""]
    assert found["n"].tolist() == [3, 2, 5] and found["df"].tolist() == [2, 1, 3]
    assert found["sd"].tolist() == pytest.approx([0.1, np.sqrt(0.0002), np.sqrt(0.0202 / 3)])
    assert found.loc[0, ["lo", "hi"]].tolist() == pytest.approx(sd_interval(0.1, 2))


def test_the_noise_of_pairs_by_hand() -> None:
    """d = -0.1 -0.05 -0.1 and -0.1 -0.06; half has one pair at s, d = 0.1 0.09 at l."""
    found = paired_noise(table(s=SMALL, l=LARGE), "base")
    assert found["variant"].tolist() == ["rope", "half", "rope", "half", ""]
    assert found["n"].tolist() == [3, 1, 2, 2, 8]
    sd = [np.std([2, 1, 2], ddof=1) * 0.05, np.nan, np.sqrt(0.0008), np.sqrt(0.00005)]
    assert found["sd"].tolist()[:4] == pytest.approx(sd, nan_ok=True)
    # at l two variants of 1 df: 2^2 / (2 + 2 / 4) = 1.6; at s rope alone has 2
    assert found["df"].iloc[-1] == pytest.approx(3.6)
    assert found["sd"].iloc[-1] == pytest.approx(np.sqrt((2 * sd[0] ** 2 + 0.0008 + 0.00005) / 4))
    apart = 0.1**2 + np.var([1.9, 2.05, 2.1], ddof=1)
    assert found.loc[0, "unpaired_sd"] == pytest.approx(np.sqrt(apart))
    assert found.loc[0, "correlation"] == pytest.approx(1 - sd[0] ** 2 / apart)


def test_what_pairing_takes_away_is_the_correlation() -> None:
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=400), rng.normal(size=(2, 400))
    base, rope = 2 + 0.3 * common + 0.1 * own
    found = paired_noise(table(s={"base": dict(enumerate(base)), "rope": dict(enumerate(rope))}), "base")
    assert found["correlation"].iloc[0] == pytest.approx(np.corrcoef(base, rope)[0, 1], abs=0.01)


def test_pooled_intervals_of_pairs_that_share_the_baseline_cover() -> None:
    """Six variants, three seeds: 12 df if they were independent, 12 / (1 + 5 / 4) as they are."""
    rng, n = np.random.default_rng(1), 150
    held = naive = 0
    for _ in range(n):
        runs = rng.normal(size=(7, 3))
        losses = {name: dict(enumerate(each)) for name, each in zip(["base", *"abcdef"], runs, strict=True)}
        whole = paired_noise(table(s=losses), "base").iloc[-1]
        held += whole["lo"] <= np.sqrt(2) <= whole["hi"]
        low, high = sd_interval(whole["sd"], 12)
        naive += low <= np.sqrt(2) <= high
    assert held / n == pytest.approx(0.95, abs=three_sigma(0.95, n))
    assert naive / n < 0.95 - three_sigma(0.95, n)


def test_cells_and_models_of_a_study(tmp_path: Path) -> None:
    """Failed and diverged runs are no values; cells keep their labels; models stand for their fine-tuned runs."""
    losses = {("base", 0): 2.0, ("base", 1): 2.2, ("rope", 0): 1.9, ("rope", 1): "diverged"}
    fabricate.study(tmp_path, lambda label: losses[label["variant"], label["seed"]], seeds=(0, 1), name="made")
    made = study_table(tmp_path, "made")
    found = paired_noise(made, "base")
    assert found[["size", "budget", "variant", "n"]].iloc[0].tolist() == ["s", "tokens=100000", "rope", 1]
    tuned = pd.concat([made.assign(parent_seed=parent, loss=made["loss"] + parent) for parent in (0, 1, 2)])
    floor = noise_floor(tuned[tuned["variant"] == "base"], "base")
    assert (floor["n"].iloc[0], floor["sd"].iloc[0]) == (3, pytest.approx(1.0))


# the table


def test_a_power_table_by_hand() -> None:
    found = power_table(table(s=SMALL, l=LARGE), "base", delta=0.1)
    rope = found.iloc[0]
    sd = np.std([2, 1, 2], ddof=1) * 0.05
    upper = sd * np.sqrt(2 / (-2 * np.log(0.8)))  # 20 % of chi-square of 2 df is below -2 ln 0.8
    assert (rope["n"], rope["source"], rope["df"], rope["tests"]) == (3, "pairs", 2, 4)
    assert (rope["sd"], rope["sd_hi"]) == pytest.approx((sd, upper))
    assert rope["mde"] == pytest.approx(minimum_detectable_effect(sd, 3, 4))
    assert rope["power_now"] == pytest.approx(power_of(0.1, sd, 3, 4))
    assert (rope["seeds"], rope["seeds_hi"]) == (seeds_needed(0.1, sd, 4), seeds_needed(0.1, upper, 4))
    whole = found.iloc[-1]
    assert (whole["scope"], whole["variant"], whole["n"], whole["source"]) == ("all", "", 1, "all pairs")
    assert whole["sd"] == pytest.approx(paired_noise(table(s=SMALL, l=LARGE), "base")["sd"].iloc[-1])


def test_where_the_sd_comes_from() -> None:
    """The first known of the row's pairs, the cell's, the cell's baseline, all pairs, all baselines."""
    base, one = {0: 2.0, 1: 2.2}, {0: 2.0}
    few = table(s=SMALL, m={"base": base, "half": one}, l={"base": one, "half": one})
    found = power_table(few, "base", 0.1)
    assert found["source"].tolist() == ["pairs", "cell's pairs", "cell's baseline", "all pairs", "all pairs"]
    assert found["sd"].tolist()[1:4] == pytest.approx(
        [found["sd"][0], np.sqrt(2) * np.std([0, 0.2], ddof=1), found["sd"][0]]
    )
    unpaired = power_table(table(m={"base": base, "half": one}, l={"base": one, "half": one}), "base", 0.1)
    assert unpaired["source"].tolist() == ["cell's baseline", "all baselines", "all baselines"]
    alone = power_table(table(m={"base": base}), "base", 0.1)
    assert alone[["scope", "n", "tests", "source"]].to_numpy().tolist() == [["all", 0, 1, "all baselines"]]
    nothing = power_table(table(l={"base": one, "half": one}), "base", 0.1)
    assert nothing[["sd", "mde", "seeds", "seeds_hi"]].isna().all(axis=None)


def test_the_seeds_of_a_pilot_give_the_power_asked_for() -> None:
    """A pilot of many pairs knows the sd, 0.01 sqrt(2); of new studies with the seeds that it asks for 80 % show the
    difference."""
    rng, studies = np.random.default_rng(3), 2000

    def runs(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the baseline and of a variant better by 0.01: what a seed's runs share is five times their own noise."""
        shared = 2 + rng.normal(0, 0.05, shape)
        return shared + rng.normal(0, 0.01, shape), shared - 0.01 + rng.normal(0, 0.01, shape)

    base, rope = runs(3000)
    pilot = table(s={"base": dict(enumerate(base)), "rope": dict(enumerate(rope))})
    n = int(power_table(pilot, "base", delta=0.01, tests=1)["seeds"].iloc[0])
    assert n == seeds_needed(0.01, 0.01 * np.sqrt(2)) == 18
    base, rope = runs(studies, n)
    effects = [paired_difference(d) for d in rope - base]
    found = np.mean([verdict(each["diff"], each["p"], n) == "better" for each in effects])
    assert found == pytest.approx(power_of(0.01, 0.01 * np.sqrt(2), n), abs=three_sigma(0.8, studies))
    assert 0.8 < power_of(0.01, 0.01 * np.sqrt(2), n) < 0.83


def test_seeds_at_the_upper_limit_are_enough_in_four_pilots_of_five() -> None:
    """Pilots of three pairs: their sd asks for too few seeds in 1 - 1 / e = 63 % and less what rounding up adds."""
    rng, pilots = np.random.default_rng(4), 600
    d = rng.normal(0.0, 0.02, (pilots, 3))
    losses = {"base": dict.fromkeys(range(3), 0.0)} | {f"v{k}": dict(enumerate(each)) for k, each in enumerate(d)}
    found = power_table(table(s=losses), "base", delta=0.005, tests=1).iloc[:-1]
    needed = seeds_needed(0.005, 0.02)
    assert (found["seeds_hi"] >= needed).mean() == pytest.approx(0.8, abs=three_sigma(0.8, pilots))
    assert (found["seeds"] < needed).mean() == pytest.approx(1 - np.exp(-1), abs=three_sigma(0.63, pilots))


def test_tables_that_do_not_do() -> None:
    one = table(s=SMALL)
    with pytest.raises(AnalysisError, match="no baseline 'gpt' in the table; variants: base, half, rope"):
        noise_floor(one, "gpt")
    with pytest.raises(AnalysisError, match="no column score in the table; its columns: variant, size, seed, loss"):
        power_table(one, "base", 0.1, metric="score")
    with pytest.raises(AnalysisError, match="no column seed"):
        paired_noise(one.drop(columns="seed"), "base")
    two = one.assign(score=one["loss"], metric=np.where(one["seed"] == 0, "loss", "accuracy"))
    with pytest.raises(
        AnalysisError, match=r"score is of several metrics \(accuracy, loss\): choose the rows of one"
    ):
        power_table(two, "base", 0.1, metric="score")
    assert len(power_table(two, "base", 0.1)) == 3


# the words


def test_the_words() -> None:
    both = table(s=SMALL, l=LARGE)
    rows, floor = power_table(both, "base", 0.05), noise_floor(both, "base")
    whole, most, least = rows.iloc[4], rows.iloc[2], rows.iloc[3]
    assert power_lines(rows, floor, "base") == [
        "base's runs of one cell vary by 0.082 with the seed (sd; 5 runs, 2 cells; 95 % interval 0.046 to 0.31)",
        "to show a true difference of 0.05 with probability 0.8, at 95 % after Holm's correction over 4 comparisons:",
        f"  all: {whole['seeds']} seeds at sd {whole['sd']:.2g} (all pairs), {whole['seeds_hi']} at "
        f"{whole['sd_hi']:.2g}, its upper 80 % limit; 1 pair now, enough for nothing",
        f"  least, half, l: {least['seeds']} seeds at sd 0.0071 (pairs), {least['seeds_hi']} at 0.028, "
        f"its upper 80 % limit; 2 pairs now, enough for {least['mde']:.2g}",
        f"  most, rope, l: {most['seeds']} seeds at sd 0.028 (pairs), {most['seeds_hi']} at 0.11, "
        f"its upper 80 % limit; 2 pairs now, enough for {most['mde']:.2g}",
        "seeds enough in 0 of 4 comparisons if the sd is as measured, in 0 if it is at its upper 80 % limit",
    ]
    easy = power_table(both, "base", 1.0)
    assert power_lines(easy, floor, "base")[5].startswith(
        "seeds enough in 2 of 4 comparisons if the sd is as measured, in 1 "
    )


def test_the_words_where_little_is_known() -> None:
    one = table(l={"base": {0: 2.0}, "half": {0: 2.0}})
    assert power_lines(power_table(one, "base", 0.1), noise_floor(one, "base"), "base") == [
        "the noise of base's seeds is not known: 1 run in 1 cell",
        "what a difference needs is not known: run base with two seeds or more",
    ]
