"""Divergence, spikes, gradients and learning rates: by hand, by Wilson's formula, and on studies on disk."""

from __future__ import annotations

import json
from pathlib import Path

import fabricate
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.sensitivity import sensitivity
from analysis.stability import gradient_tail, spikes, stability, training_rows
from analysis.table import study_table, validated

FLAT = [2.0, 2.01, 1.99, 2.0, 2.02, 1.98, 2.0, 2.01]


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson 1927: the p for which |k / n - p| is z of its standard errors."""
    z = stats.norm.ppf(0.975)
    centre, root = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    return centre - root, centre + root


def test_all_that_ended_stay_in_the_denominator(tmp_path: Path) -> None:
    """rope: 2 diverged and 1 failed of 5 that ended, 1 runs; the rate is 2 / 5, and 3 / 5 did not finish."""

    def loss(label: dict) -> float | str:
        outcomes = {1: "diverged", 2: "diverged", 3: "failed", 5: "running"}
        return outcomes.get(label["seed"], 2.0) if label["variant"] == "rope" else 2.1

    fabricate.study(tmp_path, loss, seeds=range(6))
    table = study_table(tmp_path, "made")
    found = stability(table, training_rows(tmp_path, table["trial_id"])).set_index("variant")
    rope, base = found.loc["rope"], found.loc["base"]
    assert [rope[name] for name in ("trials", "ended", "finished", "diverged", "failed")] == [6, 5, 2, 2, 1]
    assert (rope["rate"], rope["not_finished"]) == (0.4, pytest.approx(0.6))
    assert (rope["lo"], rope["hi"]) == pytest.approx(wilson(2, 5))
    assert (base["rate"], base["lo"], base["hi"]) == (0, pytest.approx(0, abs=1e-12), pytest.approx(wilson(0, 6)[1]))
    assert (base["curves"], base["spikes"], base["size"]) == (6, 0, "s") and np.isnan(base["grad_tail"])


def test_nothing_has_ended() -> None:
    table = validated(pd.DataFrame([{"trial_id": "a", "variant": "v", "size": "s", "axes": "", "budget": "",
                                     "status": "pending"}]), "made")  # fmt: skip
    (row,) = stability(table).to_dict("records")
    assert row["ended"] == 0 and np.isnan([row["rate"], row["lo"], row["spikes"]]).all()


# spikes


def test_a_spike_that_comes_back() -> None:
    found = spikes([*FLAT, 3.0, 2.5, 2.0, 2.01])
    assert (found.count, found.recovered) == (1, 1)
    assert found.largest == pytest.approx(1.0)  # above 2.0, the median of the five before


def test_a_loss_that_jumps_and_stays_is_one_spike_without_recovery() -> None:
    found = spikes([*FLAT, *[3.0, 3.01, 2.99] * 5])
    assert (found.count, found.recovered) == (1, 0)


def test_spikes_are_counted_one_by_one() -> None:
    found = spikes([*FLAT, 3.0, *FLAT, 4.5, 4.0, *FLAT, 3.0])
    assert (found.count, found.recovered) == (3, 2) and found.largest == pytest.approx(2.5, abs=0.02)


def test_what_is_no_spike() -> None:
    assert spikes([]) == spikes([5.0, 9.0]) == spikes([2.0] * 20) == spikes([*FLAT, 2.03]) == spikes(FLAT)
    assert spikes([*[2.0] * 8, 2.019]).count == 0 and spikes([*[2.0] * 8, 2.021]).count == 1  # 1 % of the median
    assert spikes([*FLAT, np.nan, np.inf]).count == 0  # divergence is counted apart
    assert spikes(np.geomspace(9, 2, 14)).count == 0


def test_the_threshold_is_robust_deviations_of_the_changes() -> None:
    """Changes alternate between 0.1 and -0.1: their deviation is 1.4826 x 0.1; six of it above the median, 1.1."""
    even = [1.0, 1.1] * 8 + [1.1]
    changes = np.diff(even)[-15:]
    k = 6 * 1.4826 * np.median(np.abs(changes - np.median(changes)))
    edge = np.median(even[-5:]) + k
    assert spikes([*even, edge - 1e-6]).count == 0 and spikes([*even, edge + 1e-6]).count == 1


def test_noise_alone_spikes_seldom() -> None:
    """Falling losses with noise of 0.02: of 20 runs of 400 rows fewer than four have a spike."""
    rng = np.random.default_rng(0)
    steps = np.arange(1, 401) * 5.0
    runs = [1.6 + 8 * (steps + 5) ** -0.35 + 0.02 * rng.standard_normal(400) for _ in range(20)]
    assert sum(spikes(run).count > 0 for run in runs) < 4
    planted = [np.where(np.arange(400) == 300, run + 0.5, run) for run in runs]
    assert sum(spikes(run).recovered > 0 for run in planted) >= 19


def test_spikes_of_a_cell(tmp_path: Path) -> None:
    """One of two trials has two spikes, of which one comes back."""
    fabricate.study(tmp_path, lambda label: 2.0, variants=("base",), seeds=(0, 1))
    table = study_table(tmp_path, "made")
    losses = [*FLAT, 3.0, *FLAT, 5.0]
    rows = [{"step": k + 1, "tokens": k, "split": "batch", "loss": x, "grad_norm": 1.0} for k, x in enumerate(losses)]
    file = tmp_path / "trials" / table["trial_id"][1] / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = stability(table, training_rows(tmp_path, table["trial_id"])).to_dict("records")
    assert [found[name] for name in ("curves", "spikes", "spiked", "recovered")] == [2, 1.0, 0.5, 0.5]
    assert found["largest_spike"] == pytest.approx(3.0, abs=0.02) and found["grad_tail"] == 1.0


def write_rows(root: Path, trial: str, rows: list[dict[str, float]]) -> None:
    told = [{"step": k + 1, "tokens": k, "split": "batch", "grad_norm": 1.0} | row for k, row in enumerate(rows)]
    (root / "trials" / trial / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))


def test_a_spike_of_one_step_shows_in_the_largest_of_a_row(tmp_path: Path) -> None:
    """The mean of a row of a hundred steps hides it. One trial without maxima, and all are measured by means; one
    that diverged has none in its last row, and one that is fitted has none at all: they have no say."""
    fabricate.study(tmp_path, lambda label: 2.0, variants=("base", "ngram"), seeds=(0, 1))
    table = study_table(tmp_path, "made")
    means = [*FLAT, 2.01, 2.0, 2.0]
    largest = [x + 0.1 for x in [*FLAT, 3.0, 2.0, 2.0]]
    both = [{"loss": x, "loss_max": y, "grad_norm_max": 2.0} for x, y in zip(means, largest, strict=True)]
    one, other, *fitted = table["trial_id"]
    write_rows(tmp_path, one, both)
    write_rows(tmp_path, other, [*both, {"loss": None, "grad_norm": None}])
    for trial in fitted:
        write_rows(tmp_path, trial, [{"loss": x, "grad_norm": None} for x in means])

    def of(variant: str) -> dict[str, float]:
        found = stability(table, training_rows(tmp_path, table["trial_id"])).set_index("variant")
        return found.loc[variant].to_dict()

    base, ngram = of("base"), of("ngram")
    assert (base["curves"], base["spikes"], base["recovered"], base["grad_tail"]) == (2, 1.0, 1.0, 2.0)
    assert base["largest_spike"] == pytest.approx(1.0, abs=0.02)
    assert (ngram["curves"], ngram["spikes"]) == (2, 0) and np.isnan(ngram["grad_tail"])
    write_rows(tmp_path, other, [{"loss": x} for x in means])
    assert (of("base")["spikes"], of("base")["grad_tail"]) == (0, 1.0)


# gradients


def test_the_tail_of_gradients_is_that_after_warm_up() -> None:
    """With the learning rate warm-up ends at its maximum, step 3; without, after a tenth of the steps, at 2."""
    norms = [50.0, 20.0, 1.0, 1.2, 0.8, 4.0, 1.0, 1.0]
    rates = [1.0, 2.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0]
    rows = pd.DataFrame({"step": [1, 2, 3, 4, 5, 6, 7, 20], "grad_norm": norms, "lr": rates})
    found = gradient_tail(rows)
    assert found["grad_tail"] == 4.0 and found["grad_p99"] == pytest.approx(np.quantile(norms[2:], 0.99) / 1.0)
    assert gradient_tail(rows.drop(columns="lr"))["grad_tail"] == 20.0 / 1.0
    assert gradient_tail(rows.assign(lr=np.nan))["grad_tail"] == 20.0
    assert np.isnan(gradient_tail(rows.iloc[:5])["grad_tail"]) and np.isnan(gradient_tail(rows.iloc[:0])["grad_p99"])


def test_the_tail_is_of_the_largest_gradient_of_a_step() -> None:
    """The row in which warm-up ends has steps from before it: its own largest is not taken."""
    rows = pd.DataFrame({"step": [1, 2, 3, 4, 5, 6, 7, 20], "grad_norm": [50.0, 20.0, 1.0, 1.2, 0.8, 4.0, 1.0, 1.0],
                         "lr": [1.0, 2.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0]})  # fmt: skip
    largest = [60.0, 40.0, 30.0, 2.0, 1.0, 4.5, 9.0, 1.5]
    found = gradient_tail(rows.assign(grad_norm_max=largest))
    assert found["grad_tail"] == 9.0 and found["grad_p99"] == gradient_tail(rows)["grad_p99"]


# learning rates


def sweep(losses: dict[str, dict[float, list[float | str]]]) -> pd.DataFrame:
    """`sweep({variant: {lr: [loss or status of each seed]}})`, with the learning rate as an axis."""
    rows = [
        {"trial_id": f"{variant}-{lr}-{seed}", "variant": variant, "size": "s", "axes": f"dropout=0.1, lr={lr:g}",
         "budget": "b", "seed": seed, "lr": lr, "loss": np.nan if isinstance(loss, str) else loss,
         "status": loss if isinstance(loss, str) else "finished"}
        for variant, rates in losses.items() for lr, each in rates.items() for seed, loss in enumerate(each)
    ]  # fmt: skip
    return validated(pd.DataFrame(rows), "made")


def starts(table: pd.DataFrame, loss: float) -> pd.DataFrame:
    rows = [{"trial_id": trial, "split": "valid", "step": 0, "loss": loss} for trial in table["trial_id"]]
    return pd.DataFrame(rows)


STEADY = {1e-4: [2.2, 2.3], 1e-3: [2.0, 2.0], 1e-2: [2.1, 2.3]}


def test_sensitivity_by_hand() -> None:
    """Seed 0: (0.2 + 0 + 0.1) / 3 = 0.1; seed 1: (0.3 + 0 + 0.3) / 3 = 0.2; the mean is 0.15."""
    found = sensitivity(sweep({"base": STEADY})).iloc[0]
    interval = stats.ttest_1samp([0.1, 0.2], 0).confidence_interval(0.95)
    assert (found["n"], found["tried"], found["low"], found["high"], found["best"]) == (2, 3, 1e-4, 1e-2, 1e-3)
    assert [found[name] for name in ("sensitivity", "lo", "hi")] == pytest.approx([0.15, *interval])
    assert found["axes"] == "dropout=0.1" and found["reason"] == ""


def test_a_trial_that_diverged_has_the_loss_at_initialisation() -> None:
    """2 diverged, and 7.0 is above the start of 5.0: both count as 5. (0.2 + 0 + 3) / 3 and (0.3 + 0 + 3) / 3."""
    table = sweep({"wild": STEADY | {1e-2: ["diverged", 7.0]}})
    found = sensitivity(table, starts(table, 5.0)).iloc[0]
    assert found["sensitivity"] == pytest.approx((3.2 / 3 + 3.3 / 3) / 2)
    unknown = sensitivity(table).iloc[0]
    assert unknown["n"] == 1 and unknown["sensitivity"] == pytest.approx((0.3 + 5.0) / 3)  # seed 1, not capped
    lost = sensitivity(sweep({"wild": STEADY | {1e-2: ["diverged", "failed"]}})).iloc[0]
    assert lost["n"] == 0 and lost["reason"].endswith("3 values, and the loss at initialisation is not known")


def test_a_failed_trial_leaves_its_seed_out() -> None:
    table = sweep({"base": STEADY | {1e-2: [2.1, "failed"]}})
    found = sensitivity(table, starts(table, 5.0)).iloc[0]
    assert (found["n"], found["sensitivity"]) == (1, pytest.approx(0.1)) and np.isnan(found["lo"])


def test_variants_are_measured_on_the_rates_that_all_have() -> None:
    """An extended sweep counts where the other was; a variant of one rate has no sensitivity and changes nothing."""
    table = sweep({"base": STEADY, "wide": {1e-5: [9.0, 9.0]} | STEADY, "one": {1e-3: [2.0, 2.0]}})
    found = sensitivity(table).set_index("variant")
    assert found.loc["wide", "sensitivity"] == found.loc["base", "sensitivity"] == pytest.approx(0.15)
    assert found.loc["one", "reason"] == "1 values: a sweep has at least 3"
    apart = sweep({"base": STEADY, "other": {2e-4: [2.0], 1e-3: [2.0], 2e-2: [2.0]}})
    assert set(sensitivity(apart)["reason"]) == {"1 values in common with the others: a sweep has at least 3"}


def test_tables_that_do_not_do() -> None:
    table = sweep({"base": STEADY})
    with pytest.raises(AnalysisError, match="no column status; its columns: trial_id, variant"):
        stability(table.drop(columns="status"))
    with pytest.raises(AnalysisError, match="no column lr"):
        sensitivity(table.drop(columns="lr"))
