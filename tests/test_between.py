"""Variants compared by their laws: joint fits against separate ones, known crossovers and gains, and coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq, minimize_scalar

from analysis.between import VariantLaws, compare_laws, crossover_words, frontier, preferred
from analysis.fit import BadPoints, NotEnoughPoints, ScalingLaw
from analysis.forms import law_of
from analysis.joint import SharedLaw, paired_resamples
from analysis.table import TableError

Power = tuple[float, float, float]  # E, the power term at 1e18 FLOPs, alpha
E, CROSS = 1.7, 3e18
BASE: Power = (E, 1.0, 0.20)
ROPE: Power = (E, 3.0 ** (0.26 - 0.20), 0.26)  # meets BASE at 3e18
HALF: Power = (E, 2.0**-0.20, 0.20)  # BASE at twice the compute


def loss_of(law: Power, c: Any) -> Any:
    return law[0] + law[1] * (c / 1e18) ** -law[2]


def table(
    laws: Mapping[str, Power], noise: float = 0.0, common: float = 0.0, cells: int = 8, seeds: int = 3, draw: int = 0
) -> pd.DataFrame:
    """Trials of sizes from 1e17 to 1e20 FLOPs; `common` is noise that all variants of a size and seed share."""
    rng = np.random.default_rng(draw)
    rows = []
    for k, c in enumerate(np.geomspace(1e17, 1e20, cells)):
        for seed in range(seeds):
            same = common * rng.standard_normal()
            for variant, law in laws.items():
                loss = loss_of(law, c) * np.exp(same + noise * rng.standard_normal())
                rows.append({"variant": variant, "size": f"d{k}", "seed": seed, "train_flops": c, "loss": loss})
    return pd.DataFrame(rows)


def sizes_table(laws: Mapping[str, tuple[float, float]], noise: float = 0.0, **columns: float) -> pd.DataFrame:
    """Trials of n and d. A variant (s, t) has the loss of a plain model with s n parameters and t d tokens."""
    rng = np.random.default_rng(5)
    rows = []
    for i, n in enumerate(np.geomspace(1e6, 3e8, 6)):
        for j, ratio in enumerate((5.0, 20.0, 80.0)):
            for variant, (s, t) in laws.items():
                loss = 1.7 + 60 * (s * n) ** -0.3 + 300 * (t * ratio * n) ** -0.35
                row = {"variant": variant, "size": f"n{i}", "budget": f"r{j}", "seed": 0}
                row |= {"params_non_embedding": n, "tokens": ratio * n, "loss": loss * np.exp(noise * rng.normal())}
                rows.append(row | {name: value * n * ratio * n for name, value in columns.items()})
    return pd.DataFrame(rows)


def fitted(rows: pd.DataFrame, **options: Any) -> VariantLaws:
    return VariantLaws(**{"objective": "l2_log", "resamples": 40} | options).fit(rows)


# joint fits


def joint(rows: pd.DataFrame, form: str, shared: tuple[str, ...], **options: Any) -> ScalingLaw:
    law = SharedLaw(law_of(form), tuple(dict.fromkeys(rows["variant"])), shared)
    named = rows.rename(columns={"train_flops": "c", "params_non_embedding": "n", "tokens": "d"})
    return ScalingLaw(law, **options).fit(law.numbered(named), rows["loss"])


@pytest.mark.parametrize("objective", ["l2_log", "huber", "l2"])
def test_with_nothing_shared_every_group_has_its_own_fit(objective: str) -> None:
    rows = table({"base": BASE, "rope": ROPE, "half": HALF}, noise=0.01)
    together, total = joint(rows, "power_offset", (), objective=objective), 0.0
    for variant, part in rows.groupby("variant"):
        alone = ScalingLaw("power_offset", objective).fit(part["train_flops"].to_numpy(), part["loss"])
        mine = {name: together.params_[f"{name}[{variant}]"] for name in ("E", "A", "alpha")}
        assert mine == pytest.approx(alone.params_, rel=1e-4)
        total += alone.objective_
    assert together.objective_ == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("objective", ["l2_log", "huber"])
def test_a_shared_offset_is_the_best_one_for_all_groups(objective: str) -> None:
    """Against fits of each group with E given, and a search over E."""
    rows = table({"base": BASE, "rope": ROPE, "half": HALF}, noise=0.01)
    together = joint(rows, "power_offset", ("E",), objective=objective)
    parts = [part for _, part in rows.groupby("variant", sort=False)]

    def objective_at(offset: float) -> float:
        fits = (ScalingLaw("power_offset", objective, pinned={"E": offset}) for _ in parts)
        return sum(
            fit.fit(part["train_flops"].to_numpy(), part["loss"]).objective_
            for fit, part in zip(fits, parts, strict=True)
        )

    grid = np.linspace(0.1, rows["loss"].min() * 0.999, 25)
    k = int(np.argmin([objective_at(each) for each in grid]))
    found = minimize_scalar(
        objective_at, bounds=(grid[k - 1], grid[k + 1]), method="bounded", options={"xatol": 1e-7}
    )
    assert together.objective_ <= found.fun * (1 + 1e-9)
    assert together.params_["E"] == pytest.approx(found.x, rel=1e-4)
    assert set(together.params_) == {"E", *(f"{p}[{v}]" for p in ("A", "alpha") for v in ("base", "rope", "half"))}


def test_known_laws_of_n_and_d_with_shared_offset_and_exponents() -> None:
    rows = sizes_table({"plain": (1.0, 1.0), "better": (1.5, 2.0)})
    law = joint(rows, "chinchilla", ("E", "alpha", "beta"))
    A, B = 60 * 1.5**-0.3, 300 * 2.0**-0.35
    expected = {"E": 1.7, "alpha": 0.3, "beta": 0.35, "A[plain]": 60, "B[plain]": 300, "A[better]": A, "B[better]": B}
    assert law.params_ == pytest.approx(expected, rel=1e-4)
    assert law.derived_.keys() == {"n_c[plain]", "d_c[plain]", "n_c[better]", "d_c[better]"}
    assert law.named(law.law.theta(law.params_, law.centre_)) == pytest.approx(law.params_)
    at = pd.DataFrame({"n": [1e9], "d": [2e10], "variant": ["better"]})
    said = 1.7 + 60 * 1.5e9**-0.3 + 300 * 4e10**-0.35
    assert law.predict(law.law.numbered(at)) == pytest.approx([said], rel=1e-5)


@pytest.mark.parametrize(
    ("form", "shared"),
    [("power_offset", ("E",)), ("chinchilla", ("E", "beta")), ("kaplan_nd", ()), ("shifted", ("E", "g"))],
)
def test_derivatives(form: str, shared: tuple[str, ...]) -> None:
    """Against central differences of the values."""
    law, rng = SharedLaw(law_of(form), ("a", "b", "c"), shared), np.random.default_rng(0)
    x = np.column_stack((rng.normal(size=(9, len(law.inputs) - 1)), np.log(np.tile([1, 2, 3], 3))))
    theta = rng.uniform(0.2, 0.8, size=(2, len(law.parameters)))
    for value, slope in ((law.log_value, law.log_jacobian), (law.value, law.jacobian)):
        steps = 1e-6 * np.eye(theta.shape[1])
        numeric = np.stack([(value(theta + step, x) - value(theta - step, x)) / 2e-6 for step in steps], -1)
        assert slope(theta, x) == pytest.approx(numeric, abs=1e-7)


def test_resamples_by_weights_are_fits_to_repeated_rows() -> None:
    rows = table({"base": BASE, "rope": ROPE}, noise=0.01)
    law = joint(rows, "power_offset", ("E",), objective="l2_log")
    counts = np.random.default_rng(1).integers(0, 3, (3, len(rows)))
    drawn = law.bootstrap(counts)
    for count, (_, sample) in zip(counts, drawn.iterrows(), strict=True):
        again = joint(rows.iloc[np.repeat(np.arange(len(rows)), count)], "power_offset", ("E",), objective="l2_log")
        assert sample.to_dict() == pytest.approx(again.params_, rel=1e-4)


@pytest.mark.parametrize(
    ("form", "groups", "shared", "message"),
    [
        ("power_offset", ("a", "b"), ("gamma",), "power_offset has no parameter 'gamma' to share; its: A, E, alpha"),
        ("power_offset", ("a", "b"), ("A",), "A of power_offset cannot be shared while E, alpha are not"),
        ("routing", ("a", "b"), ("e_max",), "e_max of routing cannot be shared while"),
        ("power_offset", ("a", "a"), ("E",), "groups must differ: a, a"),
    ],
)
def test_what_cannot_be_shared(form: str, groups: tuple[str, ...], shared: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadPoints, match=message):
        SharedLaw(law_of(form), groups, shared)


def test_groups_must_be_known() -> None:
    law = SharedLaw(law_of("power_offset"), ("a", "b"))
    rows = pd.DataFrame({"c": [1e18, 1e19], "variant": ["a", "z"]})
    with pytest.raises(BadPoints, match="variant 'z' is no group; known: a, b"):
        law.numbered(rows)
    with pytest.raises(BadPoints, match="no column 'model' that says the group; columns: c, variant"):
        law.numbered(rows, "model")
    for wrong in (3, 0.5, 1.5):
        points = pd.DataFrame({"c": np.geomspace(1, 1e6, 12), "group": [1, 2] * 5 + [1, wrong]})
        with pytest.raises(BadPoints, match="group must be an integer from 1 to 2"):
            ScalingLaw(law).fit(points, np.linspace(4, 3, 12))


def test_a_group_needs_points_for_its_own_parameters() -> None:
    rows = table({"base": BASE, "rope": ROPE})
    few = rows[(rows["variant"] == "base") | (rows["size"] == "d3")]
    with pytest.raises(NotEnoughPoints, match="rope: 1 distinct x for 2 parameters of its own"):
        joint(few, "power_offset", ("E",))


def test_doubts_say_of_which_variant() -> None:
    """One variant does not bend: only its own offset is at zero."""
    rows = table({"base": BASE, "straight": (0.0, 2.0, 0.05)})
    told = [each for each in fitted(rows, shared=()).warnings_ if each.startswith(("base", "straight"))]
    assert told == ["straight: the offset E is at zero: the points do not bend"]
    assert fitted(table({"base": BASE, "rope": ROPE})).warnings_ == []


# resamples


def paired(rows: pd.DataFrame, **options: Any) -> np.ndarray:
    points = rows.assign(cell=pd.factorize(rows["size"])[0], scale=rows["train_flops"]).reset_index(drop=True)
    points = points[["variant", "cell", "seed", "loss", "scale"]]
    return paired_resamples(points, 200, np.random.default_rng(0), 4, **options)[0]


def test_pairs_are_drawn_together() -> None:
    rows = table({"base": BASE, "rope": ROPE})
    weights = pd.DataFrame(paired(rows).T, index=pd.MultiIndex.from_frame(rows[["variant", "size", "seed"]]))
    pd.testing.assert_frame_equal(weights.loc["base"], weights.loc["rope"])
    assert (weights.loc["base"].sum() == 24).all()
    whole = weights.loc["base"].groupby(level="size").sum()
    assert (whole % 3 == 0).all(axis=None) and weights.loc["base"].std(axis=1).gt(0).all()
    assert ((whole > 0).sum() >= 4).all()


def test_all_seeds_of_a_drawn_cell() -> None:
    rows = table({"base": BASE, "rope": ROPE})
    weights = pd.DataFrame(paired(rows, seeds=False).T, index=pd.MultiIndex.from_frame(rows[["size", "seed"]]))
    assert (weights.groupby(level="size").nunique() == 1).all(axis=None)


def test_cells_of_one_variant_are_drawn_apart() -> None:
    """Each variant keeps its number of cells in every resample."""
    rows = table({"base": BASE, "rope": ROPE})
    rows = rows[(rows["variant"] == "base") | ~rows["size"].isin(["d0", "d1", "d2"])].reset_index(drop=True)
    weights = paired(rows)
    alone = rows["size"].isin(["d0", "d1", "d2"]).to_numpy()
    assert (weights[:, alone].sum(1) == 9).all() and (weights[:, ~alone].sum(1) == 30).all()


def test_resamples_need_cells() -> None:
    rows = table({"base": BASE, "rope": ROPE}, cells=4)
    assert len(fitted(rows, resamples=20).fit_.samples_) == 20  # 1 resample of 11 has all four
    with pytest.raises(NotEnoughPoints, match="resamples seldom have 4 distinct x"):
        fitted(table({"base": BASE, "rope": ROPE}, cells=3))
    lonely = pd.concat((rows[rows["variant"] == "base"], rows[(rows["variant"] == "rope") & (rows["size"] != "d0")]))
    with pytest.raises(NotEnoughPoints, match="resamples seldom have 4 distinct x of each variant"):
        fitted(lonely)


def test_what_pairs_share_cancels() -> None:
    """Noise that both variants of a size and seed share: far narrower than when nobody knows which are pairs."""
    rows = table({"base": BASE, "half": HALF}, noise=0.0002, common=0.003)
    unpaired = rows.assign(size=rows["size"] + rows["variant"])
    gains = [fitted(each).gain("base", "half", [1e18]).iloc[0] for each in (rows, unpaired)]
    widths = [each["hi"] - each["lo"] for each in gains]
    assert widths[0] < 0.5 * widths[1]


# crossovers and gains


@pytest.mark.parametrize("shared", [(), ("E",)])
def test_a_known_crossover_without_noise(shared: tuple[str, ...]) -> None:
    laws = fitted(table({"base": BASE, "rope": ROPE}), shared=shared)
    found = laws.crossover("base", "rope")
    assert found["at"] == pytest.approx(CROSS, rel=1e-3)
    assert (found["status"], found["share"], found["distance"]) == ("overtakes", 1.0, 1.0)
    assert laws.crossover("rope", "base")["status"] == "falls behind"
    assert laws.crossover("rope", "base")["at"] == pytest.approx(CROSS, rel=1e-3)
    difference = laws.differences("base", "rope").set_index("parameter")
    assert list(difference.index) == (["alpha"] if shared else ["E", "alpha"])
    assert difference.loc["alpha", "difference"] == pytest.approx(0.06, rel=1e-3)


def test_crossover_and_gain_follow_from_the_parameters() -> None:
    """With noise: by scipy's root finder on the fitted parameters."""
    laws = fitted(table({"base": BASE, "rope": ROPE}, noise=0.01))
    p = laws.fit_.params_

    def curve(variant: str, c: float) -> float:
        return p["E"] + p[f"A[{variant}]"] * c ** -p[f"alpha[{variant}]"]

    cross = brentq(lambda decade: curve("base", 10**decade) - curve("rope", 10**decade), 16, 21)
    assert laws.crossover("base", "rope")["at"] == pytest.approx(10**cross, rel=1e-4)
    for _, row in laws.gain("base", "rope", [1e17, 2e19]).iterrows():
        assert curve("base", row["gain"] * row["c"]) == pytest.approx(curve("rope", row["c"]), rel=1e-6)
        assert row["lo"] < row["gain"] < row["hi"] and row["sampled"]


def test_a_variant_worth_a_factor_of_compute_is_worth_it_at_all_scales() -> None:
    laws = fitted(table({"base": BASE, "half": HALF}))
    gains = laws.gain("base", "half")
    assert gains["c"].to_numpy() == pytest.approx(np.geomspace(1e17, 1e20, 5))
    assert gains["gain"].to_numpy() == pytest.approx(2.0, rel=1e-3)
    beyond = laws.gain("base", "half", [3e15, 3e21])
    assert beyond["gain"].to_numpy() == pytest.approx(2.0, rel=1e-2) and not beyond["sampled"].any()
    assert laws.gain("half", "base")["gain"].to_numpy() == pytest.approx(0.5, rel=1e-3)
    found = laws.crossover("base", "half")
    assert found["status"] == "ahead" and np.isnan(found["at"])
    assert laws.crossover("half", "base")["status"] == "behind"


@pytest.mark.parametrize("columns", [{}, {"train_flops": 8.0}])
def test_gains_of_laws_in_n_and_d_are_along_the_best_n(columns: dict[str, float]) -> None:
    """A variant that is a plain model of s n parameters and t d tokens is worth s t of compute."""
    rows = sizes_table({"plain": (1.0, 1.0), "better": (1.5, 2.0)}, **columns)
    laws = fitted(rows, form="chinchilla", resamples=20)
    assert laws.gain("plain", "better")["gain"].to_numpy() == pytest.approx(3.0, rel=1e-3)
    assert laws.kappa_ == pytest.approx(dict.fromkeys(("plain", "better"), columns.get("train_flops", 6.0)))
    assert laws.sampled("plain", "better")[0] == pytest.approx(columns.get("train_flops", 6.0) * 5e12)


def test_a_variant_that_costs_more_for_the_same_loss_gains_less_than_nothing() -> None:
    """The same losses at twice the FLOPs a parameter and token."""
    rows = sizes_table({"plain": (1.0, 1.0), "dear": (1.0, 1.0)}, train_flops=6.0)
    rows.loc[rows["variant"] == "dear", "train_flops"] *= 2
    gains = fitted(rows, form="chinchilla", resamples=20).gain("plain", "dear")
    assert gains["gain"].to_numpy() == pytest.approx(0.5, rel=1e-3)


def test_the_least_loss_at_a_compute() -> None:
    """Chinchilla's closed form, Hoffmann et al. 2022, equation 4, and a law of another shape by scipy."""
    law, centre = law_of("chinchilla"), np.array([18.0, 21.0])
    theta = law.theta({"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37}, centre)
    log_c = np.log(np.geomspace(1e15, 1e24, 50))
    G = (0.34 * 400 / (0.37 * 2000)) ** (1 / 0.71)
    n = G * (np.exp(log_c) / 6) ** (0.37 / 0.71)
    expected = 1.7 + 400 * n**-0.34 + 2000 * (np.exp(log_c) / 6 / n) ** -0.37
    assert np.exp(frontier(law, theta[None], centre, log_c, 6.0)[0]) == pytest.approx(expected, rel=1e-6)
    law = law_of("kaplan_nd")
    theta = law.theta({"n_c": 8.8e13, "d_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}, centre)

    def at(log_n: float, each: float) -> float:
        return float(law.log_value(theta, np.array([[log_n, each - np.log(6) - log_n]]) - centre)[0])

    least = [minimize_scalar(at, bounds=(5, 45), args=(each,), method="bounded").fun for each in log_c]
    assert frontier(law, theta[None], centre, log_c, 6.0)[0] == pytest.approx(least, rel=1e-6)


def test_a_crossover_outside_the_sampled_range_says_how_far() -> None:
    late: Power = (E, 1000.0**0.06, 0.26)  # meets BASE at 1e21, ten times the largest
    found = fitted(table({"base": BASE, "late": late})).crossover("base", "late")
    assert found["at"] == pytest.approx(1e21, rel=0.01) and found["distance"] == pytest.approx(10, rel=0.01)
    assert crossover_words(found, "base", "late").startswith(
        "late overtakes base at 1e+21, 90% interval 1e+21 to 1e+21"
    )
    assert crossover_words(found, "base", "late").endswith(
        "100% of resamples cross so; 10 times outside the sampled range"
    )
    early: Power = (E, 0.01**0.06, 0.26)  # at 1e16, a tenth of the smallest
    found = fitted(table({"base": BASE, "early": early})).crossover("base", "early")
    assert found["distance"] == pytest.approx(10, rel=0.01) and found["status"] == "overtakes"
    never: Power = (E, 1e6**0.06, 0.26)  # at 1e24, further than is looked
    assert fitted(table({"base": BASE, "never": never})).crossover("base", "never")["status"] == "behind"


def test_an_uncertain_crossover_has_open_ends() -> None:
    """Noise that hides the difference: not all resamples cross, and the interval does not end."""
    laws = fitted(table({"base": BASE, "same": BASE}, noise=0.01, draw=3), resamples=200)
    found = laws.crossover("base", "same")
    assert found["status"] in ("overtakes", "falls behind") and found["share"] < 0.9
    assert found["hi"] > 1000 * found["lo"]


@pytest.mark.parametrize(("at", "open_end"), [(10**14.5, "lo"), (10**22.8, "hi")])
def test_resamples_that_cross_beyond_where_is_looked_open_the_interval(at: float, open_end: str) -> None:
    """Near an end of what is searched: those that are ahead (or behind) all the way cross before (or after) it."""
    other: Power = (E, (at / 1e18) ** 0.06, 0.26)
    laws = fitted(table({"base": BASE, "other": other}, noise=0.003), resamples=100)
    found, mirrored = laws.crossover("base", "other"), laws.crossover("other", "base")
    assert (found["status"], mirrored["status"]) == ("overtakes", "falls behind")
    for each in (found, mirrored):
        assert 0.05 < each["share"] < 0.95 and 1e14 < each["at"] < 1e23
        assert each[open_end] == {"lo": 0.0, "hi": np.inf}[open_end]
        assert 1e14 < each["hi" if open_end == "lo" else "lo"] < 1e23


def test_crossovers_in_words() -> None:
    found = {"status": "overtakes", "at": 3e19, "lo": 1e19, "hi": 8.2e19, "share": 0.97, "distance": 1.0}
    assert crossover_words(found, "base", "rope") == (
        "rope overtakes base at 3e+19, 90% interval 1e+19 to 8.2e+19; 97% of resamples cross so"
    )
    open_ended = found | {"status": "falls behind", "lo": 0.0, "hi": np.inf}
    assert crossover_words(open_ended, "base", "rope", 0.8) == (
        "rope falls behind base at 3e+19, 80% interval before the range searched to never; 97% of resamples cross so"
    )
    for status, words in (("ahead", "ahead of base"), ("behind", "behind base")):
        said = crossover_words(found | {"status": status, "share": 0.02}, "base", "rope")
        assert said == f"rope is {words} everywhere; 2% of resamples cross"
    assert crossover_words({"status": "equal", "share": 0.0}, "base", "rope") == "rope and base are the same"


def test_equal_curves() -> None:
    laws = fitted(table({"base": BASE, "same": BASE}))
    assert laws.crossover("base", "same")["status"] == "equal"
    assert laws.gain("base", "same")["gain"].to_numpy() == pytest.approx(1.0)


def test_a_loss_that_the_baseline_never_reaches_is_worth_infinite_compute() -> None:
    low: Power = (1.2, 1.0, 0.2)
    laws = fitted(table({"base": BASE, "low": low}), shared=())
    assert np.isinf(laws.gain("base", "low", [1e20])["gain"]).all()
    assert (laws.gain("low", "base", [1.1e14])["gain"] < 1).all()


# coverage, on made-up truths


@pytest.fixture(scope="module")
def repetitions() -> list[VariantLaws]:
    """30 studies of 8 sizes and 2 seeds, 0.4 % noise each and 0.6 % that variants share."""
    laws = {"base": BASE, "rope": ROPE, "same": BASE}
    made = (table(laws, noise=0.004, common=0.006, seeds=2, draw=1000 + k) for k in range(30))
    return [fitted(rows, resamples=120, seed=k) for k, rows in enumerate(made)]


def covered(found: list[tuple[float, float]], truth: float) -> int:
    return sum(lo <= truth <= hi for lo, hi in found)


NOMINAL = range(23, 31)  # of 30 at 90 %: fewer than 23 happens once in 130 times


def test_the_crossovers_interval_covers_it(repetitions: list[VariantLaws]) -> None:
    found = [each.crossover("base", "rope") for each in repetitions]
    assert covered([(each["lo"], each["hi"]) for each in found], CROSS) in NOMINAL
    assert np.median([np.log(each["hi"] / each["lo"]) for each in found]) < np.log(3)


def test_the_difference_of_exponents_covers_the_truth(repetitions: list[VariantLaws]) -> None:
    for variant, truth, width in (("rope", 0.06, 0.03), ("same", 0.0, 0.03)):
        found = [each.differences("base", variant).iloc[0] for each in repetitions]
        assert covered([(each["lo"], each["hi"]) for each in found], truth) in NOMINAL
        assert np.median([each["hi"] - each["lo"] for each in found]) < width


def test_the_gain_covers_the_truth(repetitions: list[VariantLaws]) -> None:
    wanted = loss_of(ROPE, 1e19) - E
    rope = 1e18 * wanted ** (-1 / BASE[2]) / 1e19
    for variant, truth in (("rope", rope), ("same", 1.0)):
        found = [each.gain("base", variant, [1e19]).iloc[0] for each in repetitions]
        assert covered([(each["lo"], each["hi"]) for each in found], truth) in NOMINAL


# which fit to believe, and all pairs


def test_one_offset_is_preferred_where_there_is_one() -> None:
    choices = []
    for draw in range(6):
        rows = table({"base": BASE, "rope": ROPE}, noise=0.006, draw=draw)
        errors = [fitted(rows, shared=shared, resamples=2).held_out() for shared in ((), ("E",))]
        choices.append(preferred(*errors, ("base", "rope"))[0])
    assert choices.count("shared") >= 5


def test_separate_offsets_are_preferred_where_they_differ() -> None:
    rows = table({"base": BASE, "low": (1.2, 1.0, 0.2)}, noise=0.002)
    errors = [fitted(rows, shared=shared, resamples=2).held_out() for shared in ((), ("E",))]
    choice, mean, error = preferred(*errors, ("base", "low"))
    assert choice == "separate" and mean < -error < 0


def test_fits_that_are_the_same_are_one_shared_fit() -> None:
    """Where every offset is at zero, separate fits differ from a shared one by rounding alone."""
    rows = table({"base": (0.0, 2.0, 0.05), "rope": (0.0, 2.1, 0.06)}, noise=0.01)
    errors = [fitted(rows, shared=shared, resamples=2).held_out() for shared in ((), ("E",))]
    errors[1]["error"] = errors[0]["error"] * (1 + 1e-12)
    assert preferred(*errors, ("base", "rope"))[0] == "shared"


def test_held_out_errors_are_of_cells_that_were_left_out() -> None:
    rows = table({"base": BASE, "rope": ROPE}, noise=0.01, cells=6)
    found = fitted(rows, resamples=2).held_out().set_index(["cell", "variant"])["error"]
    rest = joint(rows[rows["size"] != "d5"], "power_offset", ("E",), objective="l2_log")
    left_out = rows[(rows["size"] == "d5") & (rows["variant"] == "rope")].rename(columns={"train_flops": "c"})
    said = rest.predict(rest.law.numbered(left_out))
    assert found[5, "rope"] == pytest.approx(np.abs(np.log(said / left_out["loss"])).mean(), rel=1e-4)
    assert len(found) == 12


def test_all_pairs_against_a_baseline() -> None:
    rows = table({"base": BASE, "rope": ROPE, "half": HALF}, noise=0.004)
    diverged = (rows["variant"] == "rope") & (rows["size"] == "d2") & (rows["seed"] == 1)
    rows["status"] = np.where(diverged, "diverged", "finished")
    found = compare_laws(rows, "base", VariantLaws(objective="l2_log", resamples=40), at=[1e18, 1e19])
    assert list(dict.fromkeys(found["variant"])) == ["rope", "half"] and set(found["baseline"]) == {"base"}
    assert found.groupby("variant")["pairs"].first().to_dict() == {"rope": 23, "half": 24}
    assert found.groupby("variant")["points"].first().to_dict() == {"rope": 47, "half": 48}
    per_fit = found[found["variant"] == "rope"].groupby("fit")["quantity"].agg(list)
    assert per_fit["separate"] == ["E", "alpha", "crossover", "gain", "gain"]
    assert per_fit["shared"] == ["alpha", "crossover", "gain", "gain"]
    assert (found.groupby(["variant", "fit"])["preferred"].nunique() == 1).all()
    assert (found.groupby(["variant", "quantity", "at"], dropna=False)["preferred"].sum() <= 1).all()
    laws = fitted(rows)
    mine = found[(found["variant"] == "rope") & (found["fit"] == "shared")].set_index("quantity")
    crossing = laws.crossover("base", "rope")
    assert mine.loc["crossover", ["value", "lo", "hi"]].tolist() == [crossing[name] for name in ("at", "lo", "hi")]
    assert found.attrs["warnings"] == {"separate": fitted(rows, shared=()).warnings_, "shared": laws.warnings_}
    assert mine.loc["gain", "value"].tolist() == laws.gain("base", "rope", [1e18, 1e19])["gain"].tolist()


# refusals


def test_tables_that_do_not_do() -> None:
    rows = table({"base": BASE, "rope": ROPE})
    for name, message in (
        ("variant", "no column variant"),
        ("seed", "no column seed"),
        (
            "size",
            "no column of a cell \\(stage, size, axes, budget\\); its columns: variant, seed, train_flops, loss",
        ),
        ("loss", "no column loss"),
        ("train_flops", "no column for c"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(rows.drop(columns=name))
    with pytest.raises(TableError, match="no column seed"):
        fitted(rows.drop(columns="seed"))
    assert len(fitted(rows.rename(columns={"train_flops": "spent"}), columns={"c": "spent"}).fit_.samples_) == 40
    with pytest.raises(BadPoints, match="one variant, 'base': nothing to compare it with"):
        fitted(rows[rows["variant"] == "base"])
    with pytest.raises(BadPoints, match="routing reads n, e: curves need one input, or n and d"):
        fitted(rows, form="routing")


def test_questions_that_cannot_be_answered() -> None:
    laws = fitted(table({"base": BASE, "rope": ROPE}))
    with pytest.raises(BadPoints, match="no variant 'alibi'; variants: base, rope"):
        laws.crossover("base", "alibi")
    with pytest.raises(BadPoints, match="gains are known from 1e\\+14 to 1e\\+23"):
        laws.gain("base", "rope", [1e24])
    rows = table({"base": BASE, "rope": ROPE}, cells=12)
    apart = rows[(rows["variant"] == "base") == (rows["train_flops"] < 3e18)]
    with pytest.raises(BadPoints, match="base and rope have no range of compute in common"):
        fitted(apart, resamples=2).gain("base", "rope")
    with pytest.raises(BadPoints, match="no variant 'alibi'; variants: base, rope"):
        compare_laws(rows, "alibi", VariantLaws(objective="l2_log", resamples=2))
