"""Gates: each drops a point made to be bad, with its reason, leaves good ones alone, and says when it cannot look."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from designs import SCALING, reference

from analysis.errors import AnalysisError
from analysis.gates import GATES, Limits, applied, gate
from analysis.table import read_table

RATES = (1e-3, 2e-3, 4e-3)
BEST = 2e-3


def sweep(n: float, d: float, variant: str = "base", best: float = BEST) -> list[dict[str, Any]]:
    """Trials of one cell at three learning rates and two seeds."""
    return [
        {
            "trial_id": f"{variant}-{n:g}-{lr:g}-{seed}",
            "variant": variant,
            "seed": seed,
            "status": "finished",
            "loss": 3.0 + 0.1 * abs(np.log(lr / best)) + 0.01 * seed + 1e-9 * n,
            "params_non_embedding": n,
            "tokens": d,
            "train_flops": 6 * n * d,
            "target_flops": 6 * n * d,
            "lr": lr,
            "epochs": 0.5,
            "schedule": "cosine",
            "steps": 1000.0,
            "steps_done": 1000.0,
            "cooled": 200.0,
        }
        for lr in RATES
        for seed in (0, 1)
    ]


def trials() -> pd.DataFrame:
    return pd.DataFrame([*sweep(1e6, 2e7), *sweep(4e6, 8e7), *sweep(1e6, 2e7, "rope")])


def good() -> pd.DataFrame:
    """Two cells and two variants that are tuned: one learning rate each."""
    table = trials()
    return table[table["lr"] == BEST].reset_index(drop=True)


def with_bad(**values: Any) -> pd.DataFrame:
    """Good trials and a fourth cell, whose two seeds have these values."""
    bad = [row | values for row in sweep(9e6, 2e8) if row["lr"] == BEST]
    return pd.concat((good(), pd.DataFrame(bad)), ignore_index=True)


def test_good_points_are_kept_as_they_are() -> None:
    kept, dropped = gate(good())
    pd.testing.assert_frame_equal(kept, good())
    assert len(dropped) == 0 and {"gate", "reason"} <= set(dropped)


BAD = [
    ("unfinished", {"status": "diverged"}, "diverged"),
    ("unfinished", {"status": "failed", "loss": np.nan}, "failed"),
    ("unfinished", {"loss": np.nan}, "no loss"),
    ("unfinished", {"loss": np.inf}, "no loss"),
    ("unfinished", {"loss": 0.0}, "no loss"),
    ("under_cooled", {"steps_done": 700.0}, "stopped at 70% of its schedule"),
    ("under_cooled", {"cooled": 50.0}, "cooled for 5% of its steps, less than 10%"),
    ("under_cooled", {"cooled": 50.0, "schedule": None}, "cooled for 5% of its steps, less than 10%"),
    ("repeated", {"epochs": 4.0}, "data seen 4 times"),
    ("off_target", {"target_flops": 6 * 9e6 * 2e8 / 1.08}, "compute is +8.0% off its target"),
    ("off_target", {"target_flops": 6 * 9e6 * 2e8 / 0.9}, "compute is -10.0% off its target"),
    (
        "off_convention",
        {"train_flops": 24 * 9e6 * 2e8, "target_flops": np.nan},
        "c is 4 times 6 n d (n without embeddings)",
    ),
    (
        "off_convention",
        {"train_flops": 1.5 * 9e6 * 2e8, "target_flops": np.nan},
        "c is 0.25 times 6 n d (n without embeddings)",
    ),
]


@pytest.mark.parametrize(("name", "values", "reason"), BAD)
def test_each_gate_drops_its_bad_points_alone(name: str, values: dict[str, Any], reason: str) -> None:
    kept, dropped = gate(with_bad(**values))
    pd.testing.assert_frame_equal(kept[good().columns], good(), check_dtype=False)
    assert list(dropped["gate"]) == [name, name]
    assert list(dropped["reason"]) == [reason, reason]
    assert set(dropped["params_non_embedding"]) == {9e6}


FINE = [
    {"steps_done": 700.0, "schedule": "constant"},
    {"cooled": 0.0, "schedule": "inverse_sqrt"},
    {"cooled": 100.0},
    {"epochs": 1.0},
    {"epochs": np.nan},
    {"target_flops": 6 * 9e6 * 2e8 / 1.04},
    {"train_flops": 2.9 * 6 * 9e6 * 2e8, "target_flops": np.nan},
    {"train_flops": 6 * 9e6 * 2e8 / 2.9, "target_flops": np.nan},
    {"status": None},
    {"lr": np.nan},
]


@pytest.mark.parametrize("values", FINE, ids=str)
def test_what_is_within_the_limits_is_kept(values: dict[str, Any]) -> None:
    assert len(gate(with_bad(**values))[1]) == 0


def test_cooled_may_be_yes_or_no() -> None:
    table = good().drop(columns=["steps", "steps_done"]).assign(cooled=[True, False, True, None, True, False])
    table["schedule"] = ["cosine"] * 5 + ["constant"]
    _, dropped = gate(table)
    assert list(dropped.index) == [1] and list(dropped["gate"]) == ["under_cooled"]
    assert list(dropped["reason"]) == ["its learning rate did not come to its end"]


def test_limits_can_be_set() -> None:
    assert len(gate(with_bad(epochs=4.0), limits=Limits(form="data_constrained"))[1]) == 0
    assert len(gate(with_bad(epochs=4.0), limits=Limits(form="chinchilla"))[1]) == 2
    assert len(gate(with_bad(epochs=1.5), limits=Limits(epochs=2.0))[1]) == 0
    assert len(gate(with_bad(cooled=50.0), limits=Limits(cooled=0.05))[1]) == 0
    assert len(gate(good(), limits=Limits(cooled=0.3))[1]) == len(good())
    off = with_bad(train_flops=24 * 9e6 * 2e8, target_flops=np.nan)
    assert len(gate(off, limits=Limits(nd_factor=5.0))[1]) == 0
    reason = gate(off, limits=Limits(flops=12.0, nd_factor=1.9, convention="all parameters"))[1]["reason"].iloc[-1]
    assert reason == "c is 2 times 12 n d (all parameters)"


def test_of_several_learning_rates_the_best_is_kept_with_its_seeds() -> None:
    kept, dropped = gate(trials())
    assert set(kept["lr"]) == {BEST} and len(kept) == 6
    assert set(dropped["gate"]) == {"not_the_best_rate"} and len(dropped) == 12
    assert set(dropped["reason"]) == {"learning rate 0.002 has a lower loss"}


def test_the_best_rate_is_by_the_mean_over_seeds() -> None:
    """One lucky seed at another learning rate is not enough."""
    table = trials()
    lucky = (table["trial_id"] == "base-1e+06-0.001-0").to_numpy()
    table.loc[lucky, "loss"] = table["loss"].min() - 0.01
    assert set(gate(table)[0]["lr"]) == {BEST}


@pytest.mark.parametrize(("best", "word"), [(RATES[0], "smallest"), (RATES[-1], "largest")])
def test_a_cell_whose_best_rate_is_at_the_edge_is_dropped(best: float, word: str) -> None:
    table = pd.concat((good(), pd.DataFrame(sweep(9e6, 2e8, best=best))), ignore_index=True)
    kept, dropped = gate(table)
    pd.testing.assert_frame_equal(kept[good().columns], good())
    assert len(dropped) == 6 and set(dropped["gate"]) == {"edge_of_sweep"}
    assert set(dropped["reason"]) == {f"the best learning rate, {best:.3g}, is the {word} of its sweep"}


def test_a_rate_that_diverged_is_an_end_of_the_sweep_but_one_that_failed_is_not() -> None:
    higher = [row | {"loss": np.nan, "trial_id": row["trial_id"] + "x", "lr": 8e-3} for row in sweep(9e6, 2e8)[:2]]
    cell = sweep(9e6, 2e8, best=RATES[-1])
    for status, untuned in (("diverged", False), ("failed", True)):
        table = pd.DataFrame([*cell, *(row | {"status": status} for row in higher)])
        kept, dropped = gate(table)
        assert ("edge_of_sweep" in set(dropped["gate"])) is untuned
        assert len(kept) == (0 if untuned else 2)


def test_variants_are_swept_each_for_itself() -> None:
    """The edge of one variant's sweep says nothing of the other's."""
    table = pd.DataFrame([*sweep(1e6, 2e7), *sweep(1e6, 2e7, "rope", best=RATES[-1])])
    kept, dropped = gate(table)
    assert set(kept["variant"]) == {"base"} and len(kept) == 2
    assert set(dropped.loc[dropped["gate"] == "edge_of_sweep", "variant"]) == {"rope"}


def test_gates_look_at_what_those_before_them_left() -> None:
    """The best learning rate's trials diverged late: the next best is at the edge of what remains."""
    table = trials()
    table.loc[(table["variant"] == "rope") & (table["lr"] < RATES[-1]), "epochs"] = 3.0
    dropped = gate(table)[1]
    rope = dropped[dropped["variant"] == "rope"].groupby("gate").size()
    assert rope.to_dict() == {"repeated": 4}
    assert len(gate(table)[0]) == 4 + 2


def test_the_same_trial_twice() -> None:
    table = pd.concat((good(), good().iloc[[1]]), ignore_index=True)
    kept, dropped = gate(table)
    pd.testing.assert_frame_equal(kept, good())
    assert list(dropped["reason"]) == ["the same trial again"] and list(dropped.index) == [len(good())]


def test_the_same_numbers_under_another_name() -> None:
    again = good().iloc[[1]].assign(trial_id="other")
    kept, dropped = gate(pd.concat((good(), again), ignore_index=True))
    pd.testing.assert_frame_equal(kept, good())
    assert list(dropped["reason"]) == ["the same parameters, tokens, seed and loss again"]
    elsewhere = pd.concat((good(), again.assign(variant="alibi")), ignore_index=True)
    assert len(gate(elsewhere)[1]) == 0
    other_seed = pd.concat((good(), again.assign(seed=7)), ignore_index=True)
    assert len(gate(other_seed)[1]) == 0


def test_keep_overrides_a_gate_or_spares_a_trial() -> None:
    table = with_bad(epochs=4.0)
    assert len(gate(table, keep=["repeated"])[1]) == 0
    spared = table["trial_id"].iloc[-1]
    kept, dropped = gate(table, keep=[spared])
    assert spared in set(kept["trial_id"]) and len(dropped) == 1
    for rows in (table, table.drop(columns="trial_id")):
        kept, _ = gate(rows, keep=["7"])
        assert list(kept.index) == [*range(len(good())), 7]


def test_keep_must_name_something() -> None:
    with pytest.raises(AnalysisError, match="keep 'repeatd': neither a trial nor a gate; gates: unfinished, "):
        gate(good(), keep=["repeatd"])


def test_missing_columns_skip_a_gate_and_it_is_said() -> None:
    table = with_bad(epochs=4.0).drop(columns=["epochs", "target_flops", "steps"])
    kept, dropped = gate(table)
    assert len(dropped) == 0
    said = applied(table).set_index("gate")
    assert list(said.index) == list(GATES)
    skipped = said.loc[~said["applied"], "skipped"].to_dict()
    assert skipped == {
        "under_cooled": "no column cooled or steps_done",
        "repeated": "no column epochs",
        "off_target": "no column target",
    }
    assert (said.loc[said["applied"], "skipped"] == "").all() and (said["says"].str.len() > 20).all()
    assert kept.attrs["gates"] == dropped.attrs["gates"] == applied(table).to_dict("records")
    lean = table[["variant", "loss"]]
    assert applied(lean).set_index("gate")["skipped"]["edge_of_sweep"] == "no column lr, n, d"
    assert applied(table.assign(cooled=True)).set_index("gate")["applied"]["under_cooled"]
    assert applied(table, keep=["unfinished"]).set_index("gate")["skipped"]["unfinished"] == "kept on request"


def test_a_column_without_values_is_no_column() -> None:
    said = applied(good().assign(epochs=np.nan)).set_index("gate")
    assert said["skipped"]["repeated"] == "no column epochs"


def test_columns_can_be_named() -> None:
    table = with_bad(epochs=4.0).rename(columns={"epochs": "passes", "loss": "nll"})
    assert list(gate(table, columns={"epochs": "passes", "loss": "nll"})[1]["gate"]) == ["repeated"] * 2
    with pytest.raises(AnalysisError, match="no column 'pases' for epochs; columns: trial_id"):
        gate(table, columns={"epochs": "pases"})


def test_a_table_of_trials_with_its_own_types() -> None:
    """Texts, numbers that may be missing and whole numbers are columns of pandas' own types there."""
    bad = read_table(with_bad(status=None, epochs=4.0))
    bad.loc[0, "status"] = "diverged"
    kept, dropped = gate(bad)
    assert list(dropped["gate"]) == ["unfinished", "repeated", "repeated"] and len(kept) == len(good()) - 1


def test_row_labels_stay_even_where_they_repeat() -> None:
    table = with_bad(epochs=4.0)
    table.index = pd.Index([0, 0, 1, 1, 2, 2, 3, 3])
    kept, dropped = gate(table)
    assert list(kept.index) == [0, 0, 1, 1, 2, 2] and list(dropped.index) == [3, 3]


@reference("misfitting_final.csv")
def test_the_best_rates_of_published_sweeps() -> None:
    """Li et al. 2025: 81 cells of N and D are left, each with its lowest loss."""
    table = pd.read_csv(SCALING / "misfitting_final.csv")
    columns = {"n": "N", "d": "D", "lr": "peak_lr"}
    kept, dropped = gate(table, keep=["edge_of_sweep"], columns=columns)
    assert len(table) == 261 == len(kept) + len(dropped)
    assert kept.groupby(["N", "D"]).ngroups == 81 and (kept.groupby(["N", "D"])["peak_lr"].nunique() == 1).all()
    means = table.groupby(["N", "D", "peak_lr"])["loss"].mean()
    lowest = means.groupby(["N", "D"]).min()
    assert kept.groupby(["N", "D"])["loss"].mean().to_numpy() == pytest.approx(lowest.to_numpy())
