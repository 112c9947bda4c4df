"""Forms against each other: the right one wins, and where the good ones disagree nothing is predicted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from designs import SCALING, reference

from analysis.fit import BadPoints, ScalingLaw
from analysis.forms_user import UnknownForm
from analysis.heldout import held_out
from analysis.tournament import FORMS, OBJECTIVES, Contestant, Disagreement, crossed, tournament

C = np.geomspace(1e15, 1e21, 40)
BENT = 1.7 + 3000 * C**-0.2
PAIR = crossed([Contestant("power_offset"), Contestant("power")], ["l2_log"])


def noise(seed: int, n: int = 40) -> np.ndarray:
    return np.exp(0.005 * np.random.default_rng(seed).standard_normal(n))


def test_the_form_of_the_points_wins() -> None:
    found = tournament({"c": C}, BENT * noise(0), C, PAIR)
    assert list(found.table["form"]) == ["power_offset", "power"]
    assert list(found.table["k"]) == [3, 2]
    assert found.winner.law.name == "power_offset"
    assert found.winner.n_ == 40  # fitted to all points, those that were held out too


def test_a_parameter_that_is_not_needed_costs_accuracy() -> None:
    """Over several data sets: in one, the larger form may be lucky."""
    tables = [tournament({"c": C}, 60 * C**-0.07 * noise(seed), C, PAIR).table for seed in range(6)]
    errors = sum(table.set_index("form")["mean"] for table in tables)
    assert errors["power"] < 0.8 * errors["power_offset"]


def test_the_table_is_of_held_out_errors() -> None:
    y, splits = BENT * noise(0), (0.5, 0.25)
    found = tournament({"c": C}, y, C, PAIR, splits)
    for _, row in found.table.iterrows():
        parts = [held_out(row["form"], {"c": C}, y, C, each, objective=row["objective"]) for each in splits]
        assert row["mean"] == pytest.approx(np.mean([part.mean for part in parts]))
        assert row["largest"] == pytest.approx(max(part.largest for part in parts))
        assert row["signed"] == pytest.approx(np.mean([part.signed for part in parts]))
        assert row["distance"] == pytest.approx(C[-1] / C[19])  # of the split that holds out half
        assert row["failed"] == ""


def test_contestants_are_those_that_the_table_has_inputs_for() -> None:
    assert len(crossed()) == len(FORMS) * len(OBJECTIVES)
    table = tournament({"other": C}, BENT * noise(0), C, splits=(0.2,)).table
    assert sorted(set(table["form"])) == ["power", "power_offset"]
    assert sorted(set(table["objective"])) == sorted(OBJECTIVES)


def test_a_contestant_that_fails_says_why() -> None:
    few = np.geomspace(1e15, 1e21, 7)
    found = tournament({"c": few}, 1.7 + 3000 * few**-0.2, few, PAIR, splits=(0.5, 0.2))
    assert list(found.table["form"]) == ["power", "power_offset"]  # the one that failed is last
    assert found.table["failed"][1] == "without the top 50 %: 3 distinct x, power_offset needs at least 4"
    assert np.isnan(found.table["mean"][1]) and found.winner.law.name == "power"
    assert len(found.laws) == 1


def test_where_all_fail_there_is_no_winner() -> None:
    few = np.geomspace(1e15, 1e21, 4)
    with pytest.raises(BadPoints, match="no contestant could be judged: without the top 50 %: 2 distinct x"):
        tournament({"c": few}, 3 * few**-0.1, few, PAIR)
    with pytest.raises(UnknownForm):
        tournament({"c": C}, BENT, C, [Contestant("chinchila")])


def test_names_of_contestants() -> None:
    assert Contestant("chinchilla", pinned={"E": 0.0}).name == "chinchilla, E = 0"
    assert Contestant(ScalingLaw("power").law).name == "power"


def test_agreement_by_hand() -> None:
    """Predictions at twice the factor are not heard; the spread is of those that are."""
    found = tournament({"c": C}, BENT * noise(0), C, crossed([Contestant("power_offset"), Contestant("power")]))
    at = {"c": np.array([1e21, 1e22])}
    said = found.agreement(at)
    heard = [law for law in found.laws if law.law.name == "power_offset"]
    assert len(said.predictions) == len(heard) == 3
    values = np.array([law.predict(at) for law in heard])
    assert said.prediction == pytest.approx(found.winner.predict(at))
    assert said.spread == pytest.approx(((values.max(0) - values.min(0)) / values[0]).max())
    assert not said.refused and said.reason == ""
    assert found.predict(at) == pytest.approx(said.prediction)
    assert said.predictions.index[0] == f"power_offset ({found.table['objective'][0]})"


def test_contestants_that_disagree_are_not_believed() -> None:
    """With every contestant heard, the offset and the pure power part beyond the points."""
    found = tournament({"c": C}, BENT * noise(0), C, PAIR)
    far = {"c": np.array([1e27])}
    said = found.agreement(far, factor=1e9)
    assert said.refused and said.spread > 0.02
    assert said.reason.startswith("contestants disagree by ") and "over 2 %: power (l2_log) is lowest" in said.reason
    with pytest.raises(Disagreement, match="over 2 %"):
        found.predict(far, factor=1e9)
    assert not found.agreement(far, factor=1e9, tolerance=said.spread * 1.001).refused
    assert found.agreement(far, factor=1e9, tolerance=said.spread * 0.999).refused


def test_one_contestant_alone_agrees_with_nobody() -> None:
    found = tournament({"c": C}, BENT * noise(0), C, PAIR)
    with pytest.raises(
        Disagreement, match=r"power_offset \(l2_log\) stands alone: no other contestant's error is within 2"
    ):
        found.predict({"c": C[-1:]})


@reference("misfitting_final.csv")
def test_public_data_on_which_an_offset_does_not_help() -> None:
    """The best learning rates of Li et al. 2025: E = 0 predicts as well as a free E, and the two part far away."""
    table = pd.read_csv(SCALING / "misfitting_final.csv")
    best = table.loc[table.groupby(["N", "D"])["loss"].idxmin()]
    points = pd.DataFrame({"n": best["N"], "d": best["D"]}).astype(float)
    c = 6 * points["n"] * points["d"]
    forms = [Contestant("chinchilla"), Contestant("chinchilla", pinned={"E": 0.0}), Contestant("power")]
    found = tournament(points, best["loss"], c, crossed(forms, ["huber"]), splits=(0.2,))
    errors = found.table.set_index("form")["mean"]
    assert errors.to_dict() == pytest.approx({"chinchilla": 0.79, "chinchilla, E = 0": 0.81, "power": 14.75}, rel=0.1)
    assert found.agreement({"n": np.array([1e13]), "d": np.array([1e15])}).refused
