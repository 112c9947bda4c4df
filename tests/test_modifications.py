"""The kept records of `experiments/modifications_transfer.yaml`, beside the table that they are compared with."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import ROOT

from analysis.ranking import against_published
from analysis.table import validated
from analysis.tuning import certificate, reported, unfair

RECORDS = ROOT / "experiments" / "records" / "modifications_transfer.csv.gz"


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    text = dict.fromkeys(("trial_id", "group_id", "variant", "stage", "axes", "budget", "size"), str)
    return validated(pd.read_csv(RECORDS, dtype=text), RECORDS.name)


def test_every_variant_was_given_the_same(trials: pd.DataFrame) -> None:
    given = certificate(trials, ["train.lr"])
    assert len(given) == 30 and set(given["sweeps"]) == {1} and set(given["trials"]) == {3}
    assert given["fewest_values"].min() >= 4 and given["most_values"].max() == 5
    flagged = unfair(trials, ["train.lr"], "vanilla")
    assert len(flagged) == 3 and all(each.startswith("rezero") for each in flagged)  # at the end of what was allowed


def test_the_order_of_the_paper_is_recovered_for_activations_alone(trials: pd.DataFrame) -> None:
    found = against_published(reported(trials, {"train.lr": 1}), "narang_table1", "vanilla", score="final_loss")
    summary = found.summary.set_index("group")
    assert summary.loc["activations", "rho"] == pytest.approx(0.80, abs=0.01)
    assert summary.loc["activations", "tau_lo"] > 0
    assert summary.loc["all", "rho"] == pytest.approx(0.17, abs=0.01) and summary.loc["all", "tau_lo"] < 0
    assert summary.loc["architectures", "tau"] < 0  # convolutions lead after 120,000 tokens, and trail in the paper
    assert summary.loc["all", "counted"] == summary.loc["all", "agree"] == 5
