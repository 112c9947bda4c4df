"""Do gains stack: by hand, by least squares, with planted effects and aliases, and under no effect."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.effects import holm
from analysis.errors import AnalysisError
from analysis.stacking import factorial, stacking
from analysis.table import validated

On = dict[str, dict[str, bool]]


def runs_of(factors: str, keep: Callable[[Mapping[str, bool]], bool] = lambda on: True) -> On:
    """A variant for every combination of one-letter factors that `keep` lets through; `none` has no factor on."""
    found = {}
    for run in itertools.product((False, True), repeat=len(factors)):
        on = dict(zip(factors, run, strict=True))
        if keep(on):
            found["".join(name for name in factors if on[name]) or "none"] = on
    return found


def one_at_a_time(factors: str) -> On:
    return runs_of(factors, lambda on: sum(on.values()) in (0, 1, len(factors) - 1, len(factors)))


def table(
    on: On,
    effects: Mapping[str, float],
    noise: float = 0.0,
    common: float = 0.0,
    seeds: int = 3,
    sizes: Sequence[str] = ("s",),
    draw: int = 0,
    better: str = "lower",
) -> pd.DataFrame:
    """Losses 3 + the sum of `effects` ("a", "ab", ...) whose factors are all on; `common` noise is the seed's."""
    rng = np.random.default_rng(draw)
    rows = []
    for size, seed in itertools.product(sizes, range(seeds)):
        same = common * rng.standard_normal()
        for name, mine in on.items():
            value = 3 + sum(each for which, each in effects.items() if all(mine[factor] for factor in which))
            loss = value + same + noise * rng.standard_normal()
            rows.append({"variant": name, "size": size, "axes": "", "budget": "b", "seed": seed, "loss": loss,
                         "status": "finished", "better": better})  # fmt: skip
    return validated(pd.DataFrame(rows), "made")


def estimates(found: pd.DataFrame) -> dict[tuple[str, str], float]:
    return {(row["kind"], row["effect"]): row["estimate"] for row in found.to_dict("records")}


def row(found: pd.DataFrame, kind: str, effect: str) -> dict:
    (only,) = found[(found["kind"] == kind) & (found["effect"] == effect)].to_dict("records")
    return only


TWO = {"a": -0.1, "b": -0.2, "ab": 0.05}


def test_two_factors_by_hand() -> None:
    """y = 3.0, 2.9, 2.8, 2.75: alone -0.1 and -0.2, as the last -0.05 and -0.15; together -0.25, above the sum."""
    rows = table(runs_of("ab"), TWO)
    assert estimates(stacking(rows, runs_of("ab"))) == pytest.approx({
        ("add_one_in", "a"): -0.1, ("leave_one_out", "a"): -0.05,
        ("add_one_in", "b"): -0.2, ("leave_one_out", "b"): -0.15,
        ("stack", "a+b"): -0.25,
        ("sum_of_effects", "add_one_in"): -0.3, ("stack_against_sum", "add_one_in"): 0.05,
    })  # fmt: skip
    mains = {("main", "a"): -0.075, ("main", "b"): -0.175, ("interaction", "a:b"): 0.025}
    assert estimates(factorial(rows, runs_of("ab"))) == pytest.approx(mains)


def test_three_factors_against_both_sums() -> None:
    """Each pair costs 0.02: alone -0.1 each, as the last -0.06; the stack of -0.24 lies between the sums."""
    effects = {"a": -0.1, "b": -0.1, "c": -0.1, "ab": 0.02, "ac": 0.02, "bc": 0.02}
    found = estimates(stacking(table(one_at_a_time("abc"), effects), one_at_a_time("abc")))
    assert [found["leave_one_out", name] for name in "abc"] == pytest.approx([-0.06] * 3)
    assert found["stack_against_sum", "add_one_in"] == pytest.approx(-0.24 + 0.30)
    assert found["stack_against_sum", "leave_one_out"] == pytest.approx(-0.24 + 0.18)


def test_a_contrast_for_each_seed_and_student_over_them() -> None:
    on = one_at_a_time("abc")
    rows = table(on, TWO, noise=0.01, common=1.0, seeds=5)
    found = stacking(rows, on)
    y = rows.pivot(index="seed", columns="variant", values="loss")
    contrasts = {
        ("add_one_in", "a"): y["a"] - y["none"],
        ("leave_one_out", "b"): y["abc"] - y["ac"],
        ("stack_against_sum", "add_one_in"): y["abc"] - y["none"] - (y["a"] + y["b"] + y["c"] - 3 * y["none"]),
    }
    for (kind, effect), d in contrasts.items():
        mine, test = row(found, kind, effect), stats.ttest_1samp(d, 0)
        interval = test.confidence_interval(0.95)
        assert (mine["n"], mine["estimate"], mine["p"]) == (5, pytest.approx(d.mean()), pytest.approx(test.pvalue))
        assert (mine["lo"], mine["hi"]) == pytest.approx((interval.low, interval.high))
        assert mine["hi"] - mine["lo"] < 0.2  # the noise of the seeds, of deviation 1, cancels
    assert found["p_holm"].to_numpy() == pytest.approx(holm(found["p"].to_numpy()), nan_ok=True)
    sums = found[found["kind"] == "sum_of_effects"]
    assert sums["p"].isna().all() and set(sums["verdict"]) == {""} and sums["lo"].notna().all()


def test_a_factorial_is_the_least_squares_fit() -> None:
    """Twice the coefficients of columns of -1 and 1."""
    on = runs_of("abc")
    rows = table(on, TWO | {"c": 0.3, "bc": -0.1, "abc": 0.2}, noise=0.02, seeds=4)
    x = {name: np.array([1 if on[v][name] else -1 for v in rows["variant"]]) for name in "abc"}
    names = ["a", "b", "c", "a:b", "a:c", "b:c"]
    design = np.stack([np.prod([x[letter] for letter in name.split(":")], axis=0) for name in names], -1)
    fit = np.linalg.lstsq(np.column_stack((np.ones(len(rows)), design)), rows["loss"].to_numpy(float), rcond=None)[0]
    found = factorial(rows, on)
    assert found["effect"].tolist() == names and found["estimate"].to_numpy() == pytest.approx(2 * fit[1:])
    assert set(found["aliases"]) == {""}


HALF = runs_of("abcd", lambda on: on["d"] == (on["a"] ^ on["b"] ^ on["c"]))
SMALL = runs_of("abc", lambda on: on["c"] == (on["a"] ^ on["b"]))


def test_aliases_of_a_half_fraction_are_named() -> None:
    """I = ABCD: main effects are aliases of triples, pairs of the other pair, each chain once."""
    found = factorial(table(HALF, {"a": -0.1}), HALF)
    said = found.set_index("effect")["aliases"].to_dict()
    assert said == {
        "a": "b:c:d", "b": "a:c:d", "c": "a:b:d", "d": "a:b:c", "a:b": "c:d", "a:c": "b:d", "a:d": "b:c",
    }  # fmt: skip


def test_an_alias_is_estimated_with_its_sign() -> None:
    """C = -AB: an interaction alone shows up as the opposite main effect; in the half fraction with its own sign."""
    assert factorial(table(SMALL, {"a": 0.0}), SMALL)["aliases"].tolist() == ["-b:c", "-a:c", "-a:b"]
    pair = runs_of("abc")  # by all eight runs the effects of ab: half of 0.08 for each main effect and the pair
    full, part = ({k: estimates(factorial(table(on, {"ab": 0.08}), on)).get(k) for k in
                   (("main", "a"), ("main", "c"), ("interaction", "a:b"))} for on in (pair, SMALL))  # fmt: skip
    assert full == pytest.approx({("main", "a"): 0.04, ("main", "c"): 0.0, ("interaction", "a:b"): 0.04})
    assert part["main", "c"] == pytest.approx(-0.04) and part["interaction", "a:b"] is None
    half = estimates(factorial(table(HALF, {"cd": 0.08}), HALF))
    assert half["interaction", "a:b"] == pytest.approx(0.04)


def test_verdicts_follow_the_metric() -> None:
    on = runs_of("ab")
    lower = factorial(table(on, TWO, noise=1e-4, seeds=4), on).set_index("effect")["verdict"].to_dict()
    assert lower == {"a": "better", "b": "better", "a:b": "less than the sum"}
    higher = stacking(table(on, TWO, noise=1e-4, seeds=4, better="higher"), on)
    assert row(higher, "add_one_in", "a")["verdict"] == "worse"
    assert row(higher, "stack_against_sum", "add_one_in")["verdict"] == "more than the sum"
    none = stacking(table(on, {"a": -0.1, "b": -0.1}, noise=0.01, seeds=4), on)
    assert row(none, "stack_against_sum", "add_one_in")["verdict"] == "indistinguishable"


def test_cells_stand_apart() -> None:
    on = runs_of("ab")
    rows = table(on, TWO, sizes=("s", "m"))
    rows.loc[(rows["size"] == "m") & (rows["variant"] == "a"), "score"] += 1
    found = stacking(rows, on)
    alone = found[(found["kind"] == "add_one_in") & (found["effect"] == "a")].set_index("size")["estimate"]
    assert alone.to_dict() == pytest.approx({"s": -0.1, "m": 0.9})


def test_trials_that_are_missing() -> None:
    """A seed without one variant is left out of the contrasts of that variant alone; one that never finished is
    named."""
    on = one_at_a_time("abc")
    rows = table(on, TWO, noise=0.01, seeds=4)
    rows.loc[(rows["variant"] == "a") & (rows["seed"] == 2), ["status", "loss", "score"]] = ["failed", np.nan, np.nan]
    rows.loc[rows["variant"] == "ab", ["status", "loss", "score"]] = ["diverged", np.nan, np.nan]
    found = stacking(rows, on)
    n = {(each["kind"], each["effect"]): each["n"] for each in found.to_dict("records")}
    assert n["add_one_in", "a"] == n["stack_against_sum", "add_one_in"] == 3 and n["add_one_in", "b"] == 4
    lost = row(found, "leave_one_out", "c")
    assert (lost["n"], lost["verdict"], lost["reason"]) == (0, "unknown", "no finished trial of ab")
    one = stacking(table(on, TWO, seeds=1), on)
    assert set(one[one["kind"] != "sum_of_effects"]["verdict"]) == {"unknown"}
    assert row(one, "add_one_in", "a")["reason"] == "1 seeds have all 2 variants"


def test_models_that_trials_began_from_are_the_pairs() -> None:
    """Two trials of each of three parents are three values, not six."""
    on = runs_of("ab")
    rows = pd.concat([table(on, TWO, noise=0.01, draw=k) for k in (0, 1)], ignore_index=True)
    rows["parent_seed"] = rows["seed"]
    rows["seed"] = [k // 12 for k in range(24)]
    found = factorial(rows, on)
    y = rows.groupby(["parent_seed", "variant"])["score"].mean().unstack()
    assert set(found["n"]) == {3}
    assert row(found, "main", "a")["estimate"] == pytest.approx(((y["a"] + y["ab"] - y["b"] - y["none"]) / 2).mean())


def test_under_no_interaction_gains_are_said_to_stack() -> None:
    """The interval of stack - sum covers 0 in 95 of 100 studies, and one in twenty tables says anything at all."""
    on = one_at_a_time("abc")
    covered, spoke = 0, 0
    for draw in range(60):
        found = stacking(table(on, {}, noise=0.01, common=0.05, seeds=4, draw=draw), on)
        mine = row(found, "stack_against_sum", "add_one_in")
        covered += mine["lo"] <= 0 <= mine["hi"]
        spoke += not set(found["verdict"]) <= {"indistinguishable", ""}
    assert covered in range(52, 61)  # fewer once in 300 times
    assert spoke <= 8  # more once in 400 times, were the error exactly 5 %


def test_designs_that_do_not_do() -> None:
    on = runs_of("ab")
    rows = table(on, TWO)
    for wrong, message in (
        ({"x": {"a": True, "b": True}}, "no variant 'x' in the table; variants: a, ab, b, none"),
        ({"a": {"a": True, "b": False}, "b": {"a": True, "b": False}}, "'a' and 'b' have the same factors on"),
        ({"a": {"a": True, "b": False}, "b": {"b": True}}, "variant 'b' is of the factors b, others of a, b"),
        ({"a": {"a": True}, "b": {"a": False}}, "1 factors: a design has at least 2"),
        ({}, "0 factors"),
    ):
        with pytest.raises(AnalysisError, match=message):
            stacking(rows, wrong)
    with pytest.raises(AnalysisError, match="5 variants: a is not balanced over them; these effects need a full"):
        three = table(runs_of("abc"), TWO)
        factorial(three, runs_of("abc", lambda on: sum(on.values()) < 2 or all(on.values())))
    with pytest.raises(AnalysisError, match="a and b cannot be told apart"):
        same = runs_of("abc", lambda on: on["a"] == on["b"])
        factorial(three, same)
    with pytest.raises(AnalysisError, match="no variant has none or all of the factors on"):
        middle = runs_of("abc", lambda on: sum(on.values()) == 1)
        stacking(three, middle)
