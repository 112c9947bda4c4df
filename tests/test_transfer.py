"""The table of transfer: what survives of a difference on other tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.table import read_table
from analysis.tables import comparison_table, overall_table
from analysis.transfer import columns_of, downstream, pretrained, wide

SEEDS = range(4)
ACCURACY = {"base": [0.70, 0.72, 0.71, 0.69], "rope": [0.75, 0.78, 0.76, 0.74], "same": [0.70, 0.73, 0.70, 0.69]}
LOSS = {"base": [2.0, 2.1], "rope": [1.9, 1.95], "same": [2.0, 2.12]}


def trials(**changed: object) -> pd.DataFrame:
    """Two models of each variant, each fine-tuned with two seeds on two tasks."""
    rows = []
    for variant in LOSS:
        for parent, loss in enumerate(LOSS[variant]):
            common = {"variant": variant, "size": "s", "axes": "", "budget": "", "status": "finished"}
            pre = {"trial_id": f"{variant}{parent}", "stage": "pretrain", "seed": parent, "loss": loss, "score": loss}
            costs = {"params_total": 1000.0, "flops_per_token": 10.0, "train_flops": 1e6, "tokens_per_s": 4096.0}
            costs |= {"steps_per_s": 2.0, "early_loss": loss + 1, "metric": "loss", "better": "lower"}
            rows.append(common | pre | costs)
            for seed in range(2):
                value = ACCURACY[variant][2 * parent + seed]
                for stage, score in (("polarity", value), ("edits", 10 - 10 * value)):
                    child = {
                        "trial_id": f"{stage}-{variant}{parent}{seed}",
                        "stage": stage,
                        "seed": seed,
                        "loss": 0.5,
                    }
                    child |= {
                        "parent": f"{variant}{parent}",
                        "parent_seed": parent,
                        "score": 9.9,
                        "test_score": score,
                    }
                    named = {"polarity": ("accuracy", "higher"), "edits": ("error_rate", "lower")}[stage]
                    rows.append(common | child | dict(zip(("metric", "better"), named, strict=True)) | changed)
    empty = dict.fromkeys(("bits_per_byte", "test_loss", "generalisation_gap", "error"), np.nan)
    return read_table(pd.DataFrame([empty | row for row in rows]))


def test_downstream_by_hand() -> None:
    table = downstream(trials(), "base", "pretrain")
    assert columns_of(table) == [("polarity", "accuracy"), ("edits", "error_rate")]
    for column, sign in (("polarity", 1), ("edits", -10)):
        for variant, scores in ACCURACY.items():
            values = np.array(scores) if sign == 1 else 10 - 10 * np.array(scores)
            (row,) = table[(table["column"] == column) & (table["variant"] == variant)].to_dict("records")
            assert row["mean"] == pytest.approx(values.mean()) and row["sd"] == pytest.approx(values.std(ddof=1))
            models = values.reshape(2, 2).mean(axis=1)  # two trials began from each
            half = stats.t.ppf(0.975, 1) * models.std(ddof=1) / np.sqrt(2)
            assert (row["lo"], row["hi"]) == pytest.approx((values.mean() - half, values.mean() + half))
            assert (row["n"], row["trials"], row["parents"]) == (4, 4, 2)
            if variant != "base":
                d = sign * (np.array(scores) - np.array(ACCURACY["base"]))
                assert row["diff"] == pytest.approx(d.mean())
                assert row["p"] == pytest.approx(stats.ttest_1samp(d.reshape(2, 2).mean(axis=1), 0).pvalue)
    verdicts = table.set_index(["column", "variant"])["verdict"].to_dict()
    assert {verdicts[column, "rope"] for column in ("polarity", "edits")} == {
        "indistinguishable"
    }  # two models say little
    assert {verdicts[column, "same"] for column in ("polarity", "edits")} == {"indistinguishable"}
    assert {verdicts[column, "base"] for column in ("polarity", "edits")} == {"baseline"}


def test_of_one_model_intervals_are_over_its_trials() -> None:
    made = trials()
    table = downstream(made[(made["stage"] == "pretrain") | (made["parent_seed"] == 0)], "base", "pretrain")
    for variant, scores in ACCURACY.items():
        (row,) = table[(table["column"] == "polarity") & (table["variant"] == variant)].to_dict("records")
        half = stats.t.ppf(0.975, 1) * np.std(scores[:2], ddof=1) / np.sqrt(2)
        assert (row["mean"] - row["lo"], row["parents"]) == pytest.approx((half, 1))


def test_a_difference_that_all_models_show_is_better_whichever_way_is() -> None:
    """Four models of each variant, one trial each."""
    made = trials()
    made.loc[made["parent"].notna(), "parent_seed"] = 2 * made["parent_seed"] + made["seed"]
    table = downstream(made, "base", "pretrain")
    verdicts = table.set_index(["column", "variant"])["verdict"].to_dict()
    assert {verdicts[column, "rope"] for column in ("polarity", "edits")} == {"better"}


def test_pretraining_by_hand() -> None:
    table = pretrained(trials(), "pretrain").set_index("variant")
    assert table["loss"].to_dict() == pytest.approx({name: np.mean(each) for name, each in LOSS.items()})
    assert table["early_loss"].to_dict() == pytest.approx({name: np.mean(each) + 1 for name, each in LOSS.items()})
    reach = stats.t.ppf(0.975, 1) * np.std(LOSS["base"], ddof=1) / np.sqrt(2)
    assert table.loc["base", "loss_hi"] - table.loc["base", "loss"] == pytest.approx(reach)
    assert (table["steps_per_s"] == 2).all() and (table["params_total"] == 1000).all()


def test_failures_stay_in_the_denominator() -> None:
    """A fine-tuning that fails is not one that was never asked for."""
    table = trials()
    lost = (table["stage"] == "polarity") & (table["variant"] == "rope") & (table["seed"] == 1)
    table.loc[lost, ["status", "score", "test_score", "loss"]] = ["diverged", np.nan, np.nan, np.nan]
    found = downstream(table, "base", "pretrain")
    (row,) = found[(found["column"] == "polarity") & (found["variant"] == "rope")].to_dict("records")
    assert (row["n"], row["trials"]) == (2, 4) and row["mean"] == pytest.approx(np.mean([0.75, 0.76]))


def test_as_one_wide_table() -> None:
    made = trials()
    table = wide(pretrained(made, "pretrain"), downstream(made, "base", "pretrain"))
    assert list(table["variant"]) == list(LOSS)
    assert {"polarity", "polarity lo", "polarity hi", "polarity verdict", "edits", "edits verdict"} <= set(table)
    assert table.set_index("variant").loc["rope", "polarity"] == pytest.approx(np.mean(ACCURACY["rope"]))


def test_a_stage_with_axes_has_a_column_for_each_setting() -> None:
    both = pd.concat([trials(), trials(axes="lr=0.1").query("stage != 'pretrain'")], ignore_index=True)
    both.loc[both["axes"] == "", "axes"] = [
        "" if stage == "pretrain" else "lr=0.2" for stage in both.loc[both["axes"] == "", "stage"]
    ]
    names = [name for name, _ in columns_of(downstream(both, "base", "pretrain"))]
    assert sorted(names) == ["edits (lr=0.1)", "edits (lr=0.2)", "polarity (lr=0.1)", "polarity (lr=0.2)"]


def test_stages_are_compared_each_in_its_own_metric() -> None:
    """Paired on the seed of the model that they began from, which is one value; losses and accuracies never mix."""
    table = trials()
    cells = comparison_table(table, "base").set_index(["stage", "variant"])
    assert cells.loc[("polarity", "rope"), "metric"] == "accuracy"
    assert cells.loc[("pretrain", "rope"), "diff"] == pytest.approx(np.mean([-0.1, -0.15]))
    overall = overall_table(table, "base")
    assert set(zip(overall["stage"], overall["metric"], strict=True)) == {
        ("pretrain", "loss"), ("polarity", "accuracy"), ("edits", "error_rate"),
    }  # fmt: skip
    assert (overall["n"] == [2, 2, 2, 2, 2, 2]).all()
    later = overall.set_index(["stage", "variant"])
    assert later.loc[("polarity", "rope"), "test_diff"] == pytest.approx(0.0525)
    assert later.loc[("edits", "rope"), "test_diff"] == pytest.approx(-0.525)
