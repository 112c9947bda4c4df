"""Agreement of orders: by scipy and by hand, and on planted orders that noise blurs, reverses or hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import PARAMS, study
from scipy import stats

from analysis.errors import AnalysisError
from analysis.published import load
from analysis.ranking import against_published, agreement_lines, proxies, proxy_lines, rank_agreement
from analysis.table import study_table, validated

NAMES = [f"v{index}" for index in range(8)]


def scores(effects: object, noise: float, rng: np.random.Generator, seeds: int = 3) -> pd.DataFrame:
    """Names by seeds: effects, what a seed gives to all (3), and noise of each run's own."""
    effects = np.asarray(effects, dtype=float)
    own = noise * rng.standard_normal((len(effects), seeds))
    return pd.DataFrame(
        effects[:, None] + 3 * rng.standard_normal(seeds) + own, index=[f"v{k}" for k in range(len(own))]
    )


def alike(tau: float, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n rows of two scores whose population has this Kendall's tau."""
    r = np.sin(np.pi / 2 * tau)
    z, other = rng.standard_normal((2, n))
    return z, r * z + np.sqrt(1 - r**2) * other


def first(found: pd.DataFrame) -> pd.Series:
    return found.iloc[0]


# rank agreement


def test_correlations_are_scipy_s_with_ties() -> None:
    rng = np.random.default_rng(0)
    for n in (5, 12, 30):
        x, y = rng.integers(0, 6, (2, n)).astype(float)
        found = first(rank_agreement(pd.Series(x), pd.Series(y), draws=20))
        assert found["tau"] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-6)
        assert found["rho"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-6)
        assert found["rows"] == n and np.isnan(found["ceiling"])


def test_two_rows_say_next_to_nothing() -> None:
    """Two rows have the same order with probability (1 + tau) / 2: under 2.5 % below tau = -0.95."""
    found = first(rank_agreement(pd.Series([1.0, 2.0]), pd.Series([5.0, 9.0]), draws=5000))
    assert (found["tau"], found["tau_hi"]) == (1, 1)
    assert found["tau_lo"] == pytest.approx(-0.95, abs=0.02)
    reversed_ = first(rank_agreement(pd.Series([2.0, 1.0]), pd.Series([5.0, 9.0]), draws=5000))
    assert (reversed_["tau"], reversed_["tau_lo"]) == (-1, -1)
    assert reversed_["tau_hi"] == pytest.approx(0.95, abs=0.02)


def test_with_many_rows_the_interval_is_fieller_s() -> None:
    """Fieller, Hartley and Pearson 1957: the variance of atanh(tau) is 0.437 / (n - 4)."""
    x, y = alike(0.5, 60, np.random.default_rng(1))
    found = first(rank_agreement(pd.Series(x), pd.Series(y), draws=400))
    reach = 1.96 * np.sqrt(0.437 / 56)
    ends = np.tanh(np.arctanh(found["tau"]) + np.array([-reach, reach]))
    assert (found["tau_lo"], found["tau_hi"]) == pytest.approx(ends, abs=0.03)
    assert found["rho_lo"] < found["rho"] < found["rho_hi"]


def test_planted_orders() -> None:
    rng, order = np.random.default_rng(2), np.arange(12.0)
    for sign in (1, -1):
        found = first(rank_agreement(scores(order, 0.05, rng), pd.Series(sign * order, [f"v{k}" for k in range(12)])))
        ends = sorted((sign * found["tau_lo"], sign * found["tau_hi"]))
        assert found["tau"] == sign and ends[0] > 0.7 and ends[1] == 1
        assert found["ceiling"] > 0.95


def test_monotone_changes_of_scores_change_nothing() -> None:
    x, y = alike(0.4, 15, np.random.default_rng(3))
    one = rank_agreement(pd.Series(x), pd.Series(y), draws=100)
    pd.testing.assert_frame_equal(one, rank_agreement(pd.Series(np.exp(x)), pd.Series(y**3), draws=100))


def test_what_a_seed_gives_to_all_is_no_noise() -> None:
    rng = np.random.default_rng(4)
    ours, theirs = scores(rng.standard_normal(8), 0.5, rng), pd.Series(rng.standard_normal(8), NAMES)
    shifted = ours + np.array([100.0, -50.0, 0.0])
    names = ["tau", "tau_lo", "tau_hi", "ceiling"]
    one, two = (first(rank_agreement(each, theirs, draws=100)) for each in (ours, shifted))
    assert list(one[names]) == pytest.approx(list(two[names]), abs=1e-9)


def test_rows_without_some_seeds_are_compared_within_seeds() -> None:
    """Seed 1 lifts all by 100: of plain means, v0 to v3, which lack seed 0, would come last."""
    ours = pd.DataFrame({0: np.arange(8.0), 1: 100 + np.arange(8.0)}, index=NAMES)
    ours.loc[NAMES[:4], 0] = np.nan
    found = first(rank_agreement(ours, pd.Series(range(8), NAMES, dtype=float), draws=50))
    assert found["tau"] == 1 and stats.kendalltau(ours.mean(axis=1), range(8)).statistic < 0


@pytest.mark.parametrize(("tau", "noise"), [(0.0, 0.5), (0.6, 20.0), (-1.0, 2.0)], ids=str)
def test_the_interval_covers_the_agreement_without_noise(tau: float, noise: float) -> None:
    """Of 40 studies at 95 %, fewer than 34 cover once in 290 times. At noise 20 nothing of the order is left."""
    rng, covered, widths = np.random.default_rng(5), 0, []
    for draw in range(40):
        x, y = alike(tau, 8, rng)
        found = first(rank_agreement(scores(x, noise, rng), pd.Series(y, NAMES), draws=100, seed=draw))
        covered += found["tau_lo"] - 1e-9 <= tau <= found["tau_hi"] + 1e-9
        widths.append(found["tau_hi"] - found["tau_lo"])
    assert covered >= 34
    assert np.median(widths) > 1.9 if noise == 20 else np.median(widths) < 1.6


def test_the_ceiling_is_what_the_same_order_measures() -> None:
    rng, found = np.random.default_rng(6), []
    for draw in range(30):
        x, _ = alike(0, 8, rng)
        found.append(first(rank_agreement(scores(x, 0.8, rng), pd.Series(x, NAMES), draws=100, seed=draw)))
    table = pd.DataFrame(found)
    off = table["ceiling"] - table["tau"]
    assert abs(off.mean()) < 3 * off.std() / np.sqrt(30) < 0.1  # three standard errors
    assert 0.5 < table["tau"].mean() < 0.9


SIGNED = pd.DataFrame(  # differences from base: -1, -1, +1, and one that is noise
    [[2.0, 2.1, 2.2], [1.0, 1.11, 1.19], [1.0, 1.09, 1.21], [3.0, 3.11, 3.19], [2.9, 2.1, 1.3]],
    index=["base", "right", "wrong", "near", "noisy"],
)
THEIRS = pd.Series({"base": 5.0, "right": 4.0, "wrong": 6.0, "near": 5.05, "noisy": 4.0})


def test_signs_of_differences_by_hand() -> None:
    """right agrees, wrong does not, near is inside their noise of 0.1, noisy inside ours."""
    groups = {"right": "a", "wrong": "a", "near": "b", "noisy": "b"}
    found = rank_agreement(SIGNED, THEIRS, groups, "base", 0.1, draws=50).set_index("group")
    assert list(found.index) == ["all", "a", "b"] and found["rows"].to_dict() == {"all": 5, "a": 2, "b": 2}
    assert found[["counted", "agree", "inside"]].loc["all"].tolist() == [2, 1, 2]
    assert found[["counted", "agree", "inside"]].loc["b"].tolist() == [0, 0, 2]
    exact = stats.beta.ppf([0.025, 0.975], [1, 2], [2, 1])  # Clopper and Pearson: 1 of 2
    assert (found["share"]["all"], found["share_lo"]["all"], found["share_hi"]["all"]) == pytest.approx((0.5, *exact))
    assert np.isnan(found["share"]["b"]) and (found["share_lo"]["b"], found["share_hi"]["b"]) == (0, 1)


def test_noise_of_each_published_row_and_one_seed() -> None:
    noise = pd.Series({"near": 0.01, "wrong": 2.0})
    found = first(rank_agreement(SIGNED, THEIRS, None, "base", noise, draws=50))
    assert (found["counted"], found["agree"], found["inside"]) == (2, 2, 2)  # right and near
    found = first(rank_agreement(SIGNED[[0]], THEIRS, None, "base", draws=50))
    assert (found["counted"], found["inside"]) == (0, 4) and np.isnan(found["ceiling"])


def test_names_that_do_not_meet() -> None:
    with pytest.raises(AnalysisError, match=r"no baseline 'gpt' in both; ours: base, right.*; theirs: base"):
        rank_agreement(SIGNED, THEIRS, baseline="gpt")
    with pytest.raises(AnalysisError, match="fewer than two names in both; ours: base; theirs: right"):
        rank_agreement(SIGNED[:1], THEIRS[["right"]])


# beside a published table


def trials(effects: dict[str, float], noise: float = 0.001, seeds: int = 3, **columns: object) -> pd.DataFrame:
    """A table of trials of one cell: each variant's loss over seeds."""
    rng = np.random.default_rng(len(effects))
    rows = [
        {"variant": name, "seed": seed, "loss": 3 + effect + 0.1 * seed + noise * rng.standard_normal()}
        for name, effect in effects.items()
        for seed in range(seeds)
    ]
    more = {"size": "s", "axes": "", "budget": "", "status": "finished", "train_flops": 1e12, **columns}
    table = pd.DataFrame(rows).assign(trial_id="t", **more)
    return validated(table, "made")


OURS = {"base": 0.0, "swiglu": -0.04, "geglu": -0.05, "elu": 0.08, "gelu": 0.02, "rope": -0.1}


def test_ours_beside_narang_s() -> None:
    found = against_published(trials(OURS), "narang_table1", "base", "early_loss", draws=50)
    rows = found.rows.set_index("variant")
    assert list(rows.index) == ["base", "swiglu", "geglu", "elu", "gelu"] and found.unmatched == ["rope"]
    assert rows["published"].to_dict()["base"] == "Vanilla Transformer"
    assert rows["theirs"].tolist() == pytest.approx([0, 2.127 - 2.182, 2.130 - 2.182, 2.270 - 2.182, 2.179 - 2.182])
    assert rows["ours"].tolist() == pytest.approx([0, -0.04, -0.05, 0.08, 0.02], abs=0.003)
    assert (rows["ours_lo"] <= rows["ours"]).all() and (rows["ours"] <= rows["ours_hi"]).all()
    assert rows["sign"].tolist() == ["", "agrees", "agrees", "agrees", "inside their noise"]
    assert rows["rank_ours"].tolist() == [3, 2, 1, 5, 4] and rows["rank_theirs"].tolist() == [4, 1, 2, 5, 3]
    assert rows["doubtful"].tolist() == [True, False, True, True, False]
    assert (rows["n"] == 3).all()
    summary = found.summary.set_index("group")
    assert list(summary.index) == ["all", "activations"]
    assert summary.loc["all", ["counted", "agree", "inside"]].tolist() == [3, 3, 1]
    lines = agreement_lines(found)
    assert lines[0].startswith("all, 5 rows: tau 0.60 [") and "3 of 3 signs agree [0.29, 1.00], 1 inside" in lines[0]
    assert lines[-1] == "3 published values rest on one reading."


def test_scores_of_which_higher_is_better() -> None:
    """An accuracy of ours that rises with a published one: differences in their units, the highest is first."""
    table = trials({"base": 0.0, "swiglu": 2.0, "fixup": -3.0})
    table = validated(table.assign(metric="accuracy", better="higher", score=table["loss"]), "made")
    for score, theirs in (("sglue", [0, 76.00 - 71.66, 58.56 - 71.66]), ("final_loss", [0, -0.049, 0.229])):
        rows = against_published(table, "narang_table1", "base", score, draws=20).rows
        assert rows["ours"].tolist() == pytest.approx([0, 2, -3], abs=0.01)
        assert (rows["ours_lo"] <= rows["ours"]).all() and (rows["ours"] <= rows["ours_hi"]).all()
        assert rows["theirs"].tolist() == pytest.approx(theirs)
        assert rows["sign"].tolist() == ["", "agrees", "agrees"]
        assert rows["rank_ours"].tolist() == rows["rank_theirs"].tolist() == [2, 1, 3]


def test_a_baseline_that_was_published_five_times_is_their_mean() -> None:
    table = trials({"interleaved": 0.0, "sandwich_6": -0.1, "press_table1_01": 0.3, "press_table1_02": 0.2})
    rows = against_published(table, "sandwich_table", "interleaved", draws=20).rows.set_index("variant")
    assert rows.loc["sandwich_6", "theirs"] == pytest.approx(17.84 - 18.648)
    assert rows["sign"].tolist() == ["", "inside their noise", "agrees", "agrees"]


def test_variants_by_other_names() -> None:
    names = {"mine": "swiglu", "other": "Fixup"}
    table = trials({"gpt": 0.0, "mine": -0.1, "other": -0.2})
    rows = against_published(table, "narang_table1", "gpt", names=names, draws=20).rows
    assert rows["published"].tolist() == ["Vanilla Transformer", "SwiGLU", "Fixup"]
    assert rows["sign"].tolist() == ["", "agrees", "disagrees"]
    with pytest.raises(AnalysisError, match="narang_table1 has no row and no overlay 'swish2'; its rows: Vanilla"):
        against_published(table, "narang_table1", "gpt", names={"mine": "swish2"})


def test_what_cannot_be_set_beside_a_table() -> None:
    two = pd.concat([trials(OURS), trials(OURS, size="l")])
    with pytest.raises(AnalysisError, match="the finished trials of one cell, not of: s; l"):
        against_published(two, "narang_table1", "base")
    with pytest.raises(AnalysisError, match=r"fewer than two of base, rope; it has vanilla, gelu.*say in `names`"):
        against_published(trials({"base": 0.0, "rope": 0.1}), "narang_table1", "base")
    with pytest.raises(AnalysisError, match="no baseline 'plain' in both"):
        against_published(trials(OURS), "narang_table1", "plain")


def test_one_published_table_against_the_other() -> None:
    """The paper's two tables, of models that differ in their positions alone."""
    one, two = (load(name).set_index("variant") for name in ("narang_table1", "narang_table2_learned_pe"))
    found = rank_agreement(one["final_loss"], two["final_loss"], one["group"], draws=100).set_index("group")
    both = one.index.intersection(two.index)
    tau = stats.kendalltau(one.loc[both, "final_loss"], two.loc[both, "final_loss"]).statistic
    assert found.loc["all", "tau"] == pytest.approx(tau, abs=1e-6) and found.loc["all", "tau_lo"] > 0.7
    assert found.loc["activations", "rows"] == 11 and found.loc["depth", "tau_lo"] < 0 < found.loc["depth", "tau_hi"]


# proxies

EFFECTS = dict(zip(NAMES, (0.0, -0.3, 0.1, 0.25, -0.15, 0.4, -0.45, 0.55), strict=True))


def scaled(root: Path, noise: float, diverged: str = "", seeds: int = 3) -> pd.DataFrame:
    """Eight variants at three sizes: the middle one orders them as the largest does, the smallest in reverse."""
    rng = np.random.default_rng(7)
    sign = {"s": -1.0, "m": 0.5, "l": 1.0}

    def loss(label: dict) -> float | str:
        if (label["variant"], label["size"]) == (diverged, "m"):
            return "diverged"
        return (
            3 + 0.2 * label["seed"] + sign[label["size"]] * EFFECTS[label["variant"]] + noise * rng.standard_normal()
        )

    study(root, loss, NAMES, sizes=("s", "m", "l"), seeds=range(seeds))
    return study_table(root, "made")


def test_the_smallest_proxy_that_can_be_trusted(tmp_path: Path) -> None:
    found = proxies(scaled(tmp_path, 0.002), "v0", draws=300)
    small, middle = found.to_dict("records")
    assert [small["size"], middle["size"]] == ["s", "m"] and {small["against"]} == {"l, tokens=100000"}
    assert middle["flops_share"] == pytest.approx(PARAMS["m"] / PARAMS["l"])
    assert (small["tau"], middle["tau"]) == (-1, 1)
    assert small["hi"] < -0.5 and middle["lo"] > 0.5 and middle["hi"] == 1
    assert not small["trusted"] and middle["trusted"]
    assert (small["variants"], small["seeds"]) == (8, 3) and middle["ceiling"] > 0.9
    assert (small["agree"], small["disagree"], small["inside"]) == (0, 7, 0)
    assert (middle["agree"], middle["disagree"], middle["inside"]) == (7, 0, 0)
    lines = proxy_lines(found)
    assert lines[0] == "Order of the variants against l, tokens=100000, Kendall's tau with its 95 % interval:"
    assert lines[1].startswith("  s, tokens=100000: -1.00 [-1.00, -0.")
    assert lines[-1].startswith(
        "m, tokens=100000 is the cheapest proxy to trust: its interval lies above 0.5, at 25 %"
    )


def test_noise_that_hides_the_order_gives_no_trust(tmp_path: Path) -> None:
    found = proxies(scaled(tmp_path, 5.0), "v0", draws=300)
    assert not found["trusted"].any() and (found["hi"] - found["lo"] > 1.5).all()
    assert (found["ceiling"] < 0.4).all()
    assert found[["agree", "disagree", "inside"]].to_numpy().tolist() == [[0, 0, 7]] * 2
    assert proxy_lines(found)[-1] == "No other cell is a proxy to trust: no interval lies above 0.5."


def test_no_false_trust_in_proxies_of_another_order() -> None:
    """Cells that have nothing to do with each other, in little noise and in much: of 16 studies, where less than one
    may be trusted, none is, and the interval holds 0 in at least 13 (fewer once in 140 times)."""
    rng, covered = np.random.default_rng(8), 0
    for draw in range(16):
        small, large = (
            trials(dict(zip(NAMES, rng.standard_normal(8), strict=True)), draw % 3, size=size, train_flops=flops)
            for size, flops in (("s", 1e12), ("l", 2e12))
        )
        found = first(proxies(pd.concat([small, large]), "v0", draws=50, seed=draw))
        covered += found["lo"] <= 0 <= found["hi"]
        assert not found["trusted"]
    assert covered >= 13


def test_one_seed_gives_no_interval(tmp_path: Path) -> None:
    found = proxies(scaled(tmp_path, 0.002, seeds=1), "v0", draws=50)
    assert found["tau"].tolist() == [-1, 1] and found[["lo", "hi", "ceiling"]].isna().all().all()
    assert not found["trusted"].any() and "1.00 no interval, one seed, 8 variants" in proxy_lines(found)[2]


def test_a_variant_that_diverged_in_a_cell_is_not_in_its_order(tmp_path: Path) -> None:
    found = proxies(scaled(tmp_path, 0.002, diverged="v3"), "v0", draws=50)
    assert found["variants"].tolist() == [8, 7] and found["agree"].tolist() == [0, 6]


def test_tasks_against_pre_training() -> None:
    """Accuracies of fine-tuned models, higher is better: the two seeds of one model are one value."""
    effects = dict(zip(NAMES, np.linspace(-1, 1, 8), strict=True))
    first_stage = trials(effects, stage="lm", train_flops=5e12)
    later = []
    for parent in range(3):
        each = trials({name: -effect for name, effect in effects.items()}, 0.01, 2, stage="task", train_flops=1e12)
        later.append(each.assign(parent_seed=parent, metric="accuracy", better="higher", score=each["loss"] + parent))
    table = validated(pd.concat([first_stage, *later], ignore_index=True), "made")
    found = first(proxies(table, "v0", {"stage": "lm"}, draws=100))
    assert (found["stage"], found["against"], found["metric"]) == ("task", "lm, s", "accuracy")
    assert found["tau"] == 1 and found["trusted"] and (found["agree"], found["seeds"]) == (7, 3)
    back = first(proxies(table, "v0", {"stage": "task"}, draws=100))
    assert (back["stage"], back["tau"], back["flops_share"]) == ("lm", 1, 5)


def test_a_threshold_of_ones_own(tmp_path: Path) -> None:
    found = proxies(scaled(tmp_path, 0.002), "v0", trusted=0.99, draws=50)
    assert not found["trusted"].any() and "above 0.99" in proxy_lines(found)[-1]


def test_cells_that_are_not_there() -> None:
    one = trials(OURS)
    with pytest.raises(AnalysisError, match="proxies need two cells with finished trials; there are: s"):
        proxies(one, "base")
    two = pd.concat([one, trials(OURS, size="l"), trials(OURS, size="l", budget="b")])
    for wanted in ({"size": "xl"}, {"size": "l"}, {"width": "l"}):
        with pytest.raises(AnalysisError, match=r"is not one of the cells, by stage, size, axes, budget: l; l, b; s"):
            proxies(two, "base", wanted)
