"""Speed-ups with known truths: by laws, by curves, on three axes, with scale, and why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import brentq

from analysis.errors import AnalysisError
from analysis.speedup import Options, speedups
from analysis.table import validated

Power = tuple[float, float, float]  # E, the power term at 1e6 tokens, alpha
BASE: Power = (1.7, 1.0, 0.25)
HALF: Power = (1.7, 2.0**-0.25, 0.25)  # BASE at twice the tokens
STEEP: Power = (1.7, 0.9, 0.32)
BUDGETS = tuple(np.geomspace(1e5, 3.2e6, 6))
FEW = Options(resamples=60)


def loss_of(law: Power, d: Any) -> Any:
    return law[0] + law[1] * (d / 1e6) ** -law[2]


def table(
    laws: Mapping[str, Power],
    budgets: Sequence[float] = BUDGETS,
    sizes: Sequence[str] = ("s",),
    seeds: int = 2,
    noise: float = 0.0,
    draw: int = 0,
    schedule: str = "cosine",
) -> pd.DataFrame:
    """Finished trials. A token costs `other` variants 1.25 times the baseline's FLOPs, and they are half as fast."""
    rng = np.random.default_rng(draw)
    rows = []
    for size in sizes:
        for tokens in budgets:
            for seed in range(seeds):
                same = noise * rng.standard_normal()
                for variant, law in laws.items():
                    loss = loss_of(law, tokens) * np.exp(same + noise * rng.standard_normal())
                    first = variant == "base"
                    rows.append({
                        "trial_id": f"{variant}-{size}-{tokens:g}-{seed}", "variant": variant, "size": size,
                        "axes": "", "budget": f"tokens={tokens:g}", "seed": seed, "status": "finished", "loss": loss,
                        "tokens": tokens, "train_flops": tokens * (600 if first else 750), "schedule": schedule,
                        "tokens_per_s": 2000.0 if first else 1000.0, "hardware": "a processor",
                    })  # fmt: skip
    return validated(pd.DataFrame(rows), "made")


def curves_of(trials: pd.DataFrame, laws: Mapping[str, Power], points: int = 40) -> pd.DataFrame:
    """What `compute_curves` gives, for losses that follow the law at every step."""
    rows = []
    for trial in trials.to_dict("records"):
        for d in np.geomspace(1e4, trial["tokens"], points):
            last = bool(d == trial["tokens"])
            shift = trial["loss"] / loss_of(laws[trial["variant"]], trial["tokens"])
            rows.append({
                "trial": trial["trial_id"], "variant": trial["variant"], "size": trial["size"],
                "budget": trial["budget"], "seed": trial["seed"], "n": 100.0, "d": d,
                "c": d * trial["train_flops"] / trial["tokens"], "loss": loss_of(laws[trial["variant"]], d) * shift,
                "schedule": trial["schedule"], "cooled": last and trial["schedule"] == "cosine",
            })  # fmt: skip
    return pd.DataFrame(rows)


def axis(found: pd.DataFrame, name: str) -> pd.DataFrame:
    return found[found["axis"] == name].reset_index(drop=True)


def true_gain(base: Power, other: Power, d: float) -> float:
    wanted = loss_of(other, d)
    return float(np.exp(brentq(lambda log_k: loss_of(base, np.exp(log_k) * d) - wanted, -8, 8)))


def test_the_same_gain_on_three_axes() -> None:
    """Worth 2 in tokens; at 1.25 times the FLOPs a token 1.6; at half the throughput nothing."""
    found = speedups(table({"base": BASE, "half": HALF}), "base", options=FEW)
    assert len(found) == 18 and set(found["method"]) == {"law"} and set(found["n"]) == {12}
    for name, gain, cost in (("tokens", 2.0, 1.0), ("flops", 1.6, 750.0), ("seconds", 1.0, 1e-3)):
        mine = axis(found, name)
        assert mine["at"].to_numpy() == pytest.approx(np.array(BUDGETS) * cost)
        assert mine["gain"].to_numpy() == pytest.approx([gain] * 6, rel=1e-3)
        assert set(mine["verdict"]) == {"flat"} and mine["trend"][0] == pytest.approx(0, abs=1e-3)
    assert (found["reason"][:5] == "").all()
    assert found["reason"][5] == "the baseline would need 2 times its largest run"


def test_a_gain_that_grows_and_its_slope() -> None:
    """By scipy's root finder on the true laws, and its regression."""
    rows = table({"base": BASE, "steep": STEEP}, noise=0.0005)
    mine = axis(speedups(rows, "base", options=FEW), "tokens")
    truth = [true_gain(BASE, STEEP, d) for d in BUDGETS]
    assert mine["gain"].to_numpy() == pytest.approx(truth, rel=0.03)
    assert ((mine["lo"] < mine["gain"]) & (mine["gain"] < mine["hi"])).all()
    slope = stats.linregress(np.log(BUDGETS), np.log(truth)).slope
    assert mine["trend"][0] == pytest.approx(slope, rel=0.05)
    assert mine["trend_lo"][0] < mine["trend"][0] < mine["trend_hi"][0] and set(mine["verdict"]) == {"grows"}
    back = axis(speedups(rows, "steep", options=FEW), "tokens")
    assert set(back["verdict"]) == {"shrinks"} and (back["gain"][:4] < 1).sum() > 0


def test_noise_makes_a_trend_unknown() -> None:
    mine = axis(speedups(table({"base": BASE, "half": HALF}, noise=0.01), "base", options=FEW), "tokens")
    assert set(mine["verdict"]) == {"unknown"} and mine["trend_lo"][0] < 0 < mine["trend_hi"][0]


def test_sizes_of_one_budget_each_are_a_ladder() -> None:
    """Sizes differ in tokens and in the cost of one: every axis has a law of its own."""
    parts = [table({"base": BASE, "half": HALF}, [d], [f"d{k}"]) for k, d in enumerate(BUDGETS)]
    for k, part in enumerate(parts):
        part["train_flops"] *= 2.0**k
    found = speedups(pd.concat(parts, ignore_index=True), "base", options=FEW)
    assert set(found["family"]) == {"sizes"} and axis(found, "tokens")["gain"].to_numpy() == pytest.approx(
        2, rel=1e-3
    )
    # tokens double and a token's cost doubles: FLOPs go as tokens^2, twice the tokens are four times the FLOPs
    assert axis(found, "flops")["gain"].to_numpy() == pytest.approx(4 / 1.25, rel=1e-3)
    assert axis(found, "seconds")["gain"].to_numpy() == pytest.approx(1, rel=1e-3)


def test_each_size_is_a_family_of_its_budgets() -> None:
    found = speedups(table({"base": BASE, "half": HALF}, sizes=("s", "m")), "base", options=FEW)
    assert found.groupby("family", sort=False).size().to_dict() == {"s": 18, "m": 18}


def test_a_loss_below_the_baselines_offset_is_worth_any_compute() -> None:
    rows = table({"base": (1.7, 0.05, 0.5), "low": (1.2, 0.05, 0.5)}, noise=1e-5)
    mine = axis(speedups(rows, "base", options=FEW), "tokens")
    assert np.isinf(mine["gain"]).all() and set(mine["verdict"]) == {"unknown"}
    assert mine["reason"].str.startswith("the baseline would need inf times").all()


# by curves


def test_ends_of_runs_at_few_budgets_are_interpolated() -> None:
    """Three budgets, cosine: at the two smaller ones the baseline's ends are on both sides; what lies below its
    lowest loss is asked for at that loss."""
    laws = {"base": (0.0, 1.0, 0.25), "half": (0.0, 2.0**-0.25, 0.25)}  # straight lines in logarithms
    rows = table(laws, [1e5, 4e5, 1.6e6], seeds=3)
    found = speedups(rows, "base", curves_of(rows, laws), FEW)
    mine = axis(found, "tokens")
    assert set(mine["method"]) == {"curve"} and set(mine["n"]) == {3}
    assert mine["at"].to_numpy() == pytest.approx([1e5, 4e5, 8e5]) and mine["gain"].to_numpy() == pytest.approx(2)
    assert axis(found, "seconds")["gain"].to_numpy() == pytest.approx(1)
    worse = axis(speedups(rows, "half", curves_of(rows, laws), FEW), "tokens")
    assert worse["at"].to_numpy() == pytest.approx([4e5, 1.6e6])  # 1e5 is above all that `half` has lost
    assert worse["gain"].to_numpy() == pytest.approx(0.5)


def test_curves_that_never_cool_are_read_at_one_budget() -> None:
    laws = {"base": BASE, "half": HALF}
    rows = table(laws, [1e6], seeds=2, schedule="constant")
    mine = axis(speedups(rows, "base", curves_of(rows, laws), FEW), "tokens")
    assert mine["at"].to_numpy() == pytest.approx([5e5], rel=1e-3)
    assert mine["gain"].to_numpy() == pytest.approx([2], rel=1e-3) and set(mine["verdict"]) == {"unknown"}
    assert mine["reason"][0].startswith("no learning rate has come down")
    back = axis(speedups(rows, "half", curves_of(rows, laws), FEW), "tokens")
    assert (back["at"][0], back["gain"][0]) == (pytest.approx(1e6), pytest.approx(0.5, rel=1e-3))


def test_the_interval_of_curves_is_students_over_seeds() -> None:
    """Losses of seed k are those at (1.0, 1.1, 1.3)[k] times the tokens: log k shifts by its logarithm."""
    law: Power = (0.0, 1.0, 0.25)
    laws = {"base": law, "half": law}
    rows = table(laws, [1e5, 4e5, 1.6e6], seeds=3)
    times = np.array([1.0, 1.1, 1.3])[rows["seed"].to_numpy(dtype=int)] ** -0.25
    rows["loss"] = rows["loss"].where(rows["variant"] == "base", rows["loss"] * times)
    mine = axis(speedups(rows, "base", curves_of(rows, laws), Options(level=0.9)), "tokens")
    logs = np.log([1.0, 1.1, 1.3])
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.9)
    found = mine.set_index(mine["at"].round()).loc[1e5]
    assert np.log(found[["gain", "lo", "hi"]].astype(float)).tolist() == pytest.approx([logs.mean(), *interval])
    assert mine["trend"].to_numpy() == pytest.approx(0, abs=1e-9)


def test_why_there_is_no_gain() -> None:
    laws = {"base": BASE, "half": HALF}
    rows = table(laws, [1e6])
    few = "scales that both have: 1, a law (power_offset) needs 5; "
    for curves, reason in (
        (None, "training curves were not given"),
        (curves_of(rows, laws).iloc[:0], "there are no training curves of these trials"),
        (curves_of(rows, laws), "cosine (ends of runs): of one size and seed there is no loss that both come to; "
         "before the end of such a learning rate losses do not compare"),
    ):  # fmt: skip
        found = speedups(rows, "base", curves, FEW)
        assert found["axis"].tolist() == ["tokens", "flops", "seconds"] and set(found["reason"]) == {few + reason}
        assert found["gain"].isna().all() and found["verdict"].isna().all()
    rows.loc[rows["variant"] == "half", ["status", "loss"]] = ["diverged", np.nan]
    assert set(speedups(rows, "base", options=FEW)["reason"]) == {"no finished trial of half"}


def test_what_is_fitted_by_counting_has_gains_in_tokens_alone() -> None:
    rows = table({"base": BASE, "half": HALF})
    rows.loc[rows["variant"] == "half", "train_flops"] = 0.0
    found = speedups(rows, "base", options=FEW)
    assert (axis(found, "tokens")["gain"] > 1).any() and axis(found, "flops")["gain"].isna().all()
    assert set(axis(found, "flops")["reason"]) == {"half is fitted by counting, without any"}


# wall-clock


def test_seconds_are_compared_on_one_kind_of_hardware() -> None:
    rows = table({"base": BASE, "half": HALF})
    for column, value, reason in (
        ("hardware", "another", "throughput was not measured on one kind of hardware: a processor, another"),
        ("hardware", pd.NA, "throughput was not measured on one kind of hardware: a processor, not known"),
        ("tokens_per_s", np.nan, "no tokens_per_s of half"),
    ):
        changed = rows.copy()
        changed.loc[changed["variant"] == "half", column] = value
        found = speedups(changed, "base", options=FEW)
        assert axis(found, "seconds")["reason"].tolist() == [reason] and len(axis(found, "flops")) == 6
        assert axis(found, "flops")["gain"].notna().all()
    rows.loc[rows["trial_id"] == rows["trial_id"].iloc[0], "tokens_per_s"] = 4000.0
    found = axis(speedups(rows, "base", options=FEW), "seconds")
    assert found["reason"][0] == "throughputs of one model differ up to 2.0 times"
    assert found["gain"].to_numpy() == pytest.approx(1, rel=1e-3)  # the median


# coverage


def test_the_interval_of_a_gain_covers_it() -> None:
    """10 studies of 6 budgets and 3 seeds: of 90 % intervals fewer than 7 of 10 hold the truth once in 80 times."""
    covered, flat = 0, 0
    for draw in range(10):
        rows = table({"base": BASE, "half": HALF}, seeds=3, noise=0.003, draw=100 + draw)
        mine = axis(speedups(rows, "base", options=Options(resamples=60, seed=draw)), "tokens")
        covered += mine["lo"][3] <= 2 <= mine["hi"][3]
        flat += mine["verdict"][0] in ("flat", "unknown")
    assert covered >= 7 and flat >= 7


def test_questions_that_cannot_be_answered() -> None:
    rows = table({"base": BASE, "half": HALF}, [1e6])
    with pytest.raises(AnalysisError, match="no baseline 'vanilla' in the table; variants: base, half"):
        speedups(rows, "vanilla")
    with pytest.raises(AnalysisError, match="form 'chinchilla': speed-ups are of one of power_offset, power"):
        speedups(rows, "base", options=Options(form="chinchilla"))
