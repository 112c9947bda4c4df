"""Sweeps: the best value and its interval, an edge that is extended, and what speaks against a comparison."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.rows import Plan, PlannedTrial
from ablate.run.ledger import Ledger
from ablate.run.study import write_study
from ablate.run.tune_planner import TunePlanner
from analysis.report import write_report
from analysis.table import study_table
from analysis.tuning import certificate, expected_best, optimum, reported, sweep_sensitivity, sweep_table, unfair

GRID = """\
study: tuned
base:
  arch: {{d_model: 8, n_heads: 2, depth: 1, position: learned}}
  data: {{corpus: kjv, tokenizer: bytes, seq_len: 16}}
  train: {{batch_tokens: 64, tokens: 1_000}}
variants: {{gpt: {{}}, rope: {{arch.position: rope}}}}
match: none
seeds: 2
tune: {tune}
"""
THREE = "{train.lr: [1e-3, 2e-3, 4e-3]}"
Planned = Callable[[str], tuple[Plan, Ledger]]


# -- the best value --------------------------------------------------------------------------------------------------


def parabola(v: np.ndarray, best: float, bend: float = 0.1) -> np.ndarray:
    return 2.0 + bend * np.log(v / best) ** 2


def test_the_vertex_of_a_parabola_in_the_logarithm() -> None:
    v = np.geomspace(1e-4, 1e-2, 9)
    found = optimum(v, parabola(v, 1.3e-3))
    assert found is not None and found.value == pytest.approx(1.3e-3) and found.edge == ""
    assert found.best == v[np.abs(np.log(v / 1.3e-3)).argmin()]


def test_its_interval_holds_the_truth() -> None:
    """Fieller's interval of 95 %, of three seeds at five values, in 400 made-up sweeps."""
    rng, v, inside = np.random.default_rng(0), np.repeat(np.geomspace(2.5e-4, 4e-3, 5), 3), 0
    for _ in range(400):
        found = optimum(v, parabola(v, 1e-3) + 0.01 * rng.standard_normal(len(v)))
        assert found is not None
        inside += found.lo <= 1e-3 <= found.hi
    assert 0.92 <= inside / 400 <= 0.98


def test_a_flat_sweep_knows_no_best_value() -> None:
    v = np.repeat(np.geomspace(2.5e-4, 4e-3, 5), 3)
    rng = np.random.default_rng(3)
    found = optimum(v, parabola(v, 1e-3, bend=1e-4) + 0.01 * rng.standard_normal(len(v)))
    assert found is not None and (np.isnan(found.lo) or (found.lo == 0 and np.isinf(found.hi)))


@pytest.mark.parametrize(("best", "edge"), [(1e-5, "low"), (1.0, "high"), (1e-3, "")])
def test_a_best_value_at_an_end(best: float, edge: str) -> None:
    v = np.geomspace(1e-4, 1e-2, 5)
    found = optimum(v, parabola(v, best))
    assert found is not None and found.edge == edge
    assert v[0] <= found.value <= v[-1]  # never beyond what was tried


def test_a_value_that_diverges_is_an_end_that_was_seen() -> None:
    found = optimum([1e-3, 2e-3, 4e-3, 8e-3], [2.3, 2.2, 2.1, np.inf])
    assert found is not None and found.best == 4e-3 and found.edge == ""
    seeds = optimum([1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 4e-3], [2.3, 2.3, 2.2, 2.2, 1.9, np.inf])
    assert seeds is not None and seeds.best == 2e-3  # one of its seeds diverged: 4e-3 is not to be chosen
    assert optimum([1e-3, 2e-3], [np.inf, np.inf]) is None


def test_tuning_curves_are_those_of_all_subsets() -> None:
    losses = np.array([2.0, 2.5, 2.2, 3.0, 2.1])
    curve = expected_best(losses)
    for k in range(1, 6):
        brute = [min(each) for each in itertools.combinations(losses, k)]
        assert curve["mean"][k - 1] == pytest.approx(np.mean(brute))
        ends = [np.quantile(brute, share, method="inverted_cdf") for share in (0.1, 0.9)]
        assert list(curve.loc[k - 1, ["lo", "hi"]]) == pytest.approx(ends)
    broken = expected_best([*losses, np.inf])
    assert np.isnan(broken["mean"][0]) and broken["mean"][5] == 2.0


# -- the planner -----------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path: Path, token_cache: Path) -> Planned:
    def make(tune: str) -> tuple[Plan, Ledger]:
        file = tmp_path / "grid.yaml"
        file.write_text(GRID.format(tune=tune))
        return make_plan(load_grid(file), token_cache), Ledger(tmp_path / "results")

    return make


def loss(trial: PlannedTrial, best: dict[str, float]) -> float:
    """A parabola around the variant's own best rate, and noise of the seed."""
    rate = trial.spec.train.lr
    return float(2.0 + 0.1 * np.log(rate / best[trial.row.variant]) ** 2 + 1e-3 * (trial.spec.seed % 3))


def finish(ledger: Ledger, trial: PlannedTrial, best: dict[str, float], diverges: float = np.inf) -> None:
    value = loss(trial, best)
    status = "diverged" if trial.spec.train.lr > diverges else "finished"
    folder = ledger.trial(trial.id)
    folder.folder.mkdir(parents=True, exist_ok=True)
    metrics = {"loss": value, "test_loss": value + 0.5} if status == "finished" else {"loss": None}
    record = {"id": trial.id, "status": status, "metrics": metrics, "wall_s": 1.0, "tokens": 1024, "steps": 16}
    spec = {"train": {"lr": trial.spec.train.lr}}
    folder.commit(record | {"spec": spec, "train_flops": trial.row.flops, "params_total": 100})


def ran(ledger: Ledger, planner: TunePlanner, best: dict[str, float], diverges: float = np.inf) -> list[list[str]]:
    done: dict[str, str] = {}
    batches = []
    while batch := planner.next(done):
        for ask in batch:
            finish(ledger, ask.trial, best, diverges)
            done[ask.trial.id] = "finished"
        batches.append([ask.trial.id for ask in batch])
    return batches


def rates(plan: Plan, variant: str, tuned: bool) -> list[float]:
    rows = [row for row in plan.rows if row.variant == variant and (row.stage == "tune") is tuned]
    return sorted(row.spec.train.lr for row in rows)


def test_an_edge_is_extended_until_the_best_is_inside(planned: Planned) -> None:
    """A planted optimum beyond either end of the sweep is found; a variant whose best is inside gets no more."""
    plan, ledger = planned(THREE)
    assert {trial.spec.seed for trial in plan.trials} == {1000} and len(plan.trials) == 6
    planner = TunePlanner(plan, ledger)
    batches = ran(ledger, planner, {"gpt": 2e-3, "rope": 1.1e-2})
    assert rates(planner.plan, "gpt", tuned=True) == [1e-3, 2e-3, 4e-3]
    assert rates(planner.plan, "rope", tuned=True) == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    assert rates(planner.plan, "gpt", tuned=False) == pytest.approx([2e-3], rel=0.02)
    assert rates(planner.plan, "rope", tuned=False) == pytest.approx([1.1e-2], rel=0.02)
    assert len(batches[0]) == 6 and sum(map(len, batches)) == 3 + 5 + 2 * 2
    seeds = {trial.spec.seed for trial in planner.plan.trials if trial.row.stage != "tune"}
    assert seeds == {0, 1}  # no sweep has seen them


def test_an_edge_that_is_never_left_is_flagged(planned: Planned) -> None:
    plan, ledger = planned("{train.lr: [1e-3, 2e-3, 4e-3], extend: 2}")
    planner = TunePlanner(plan, ledger)
    ran(ledger, planner, {"gpt": 1e-6, "rope": 2e-3})
    assert rates(planner.plan, "gpt", tuned=True) == [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]
    write_study(ledger, planner.plan)
    table = study_table(ledger.root, "tuned")
    (flag,) = [each for each in unfair(table, ["train.lr"], "gpt") if "under-tuned" in each]
    assert flag == "gpt (base) is under-tuned: the best train.lr, 0.00025, is the smallest that was tried"
    given = certificate(table, ["train.lr"]).set_index("variant")
    assert given.loc["gpt", "at_edge"] == 1 and given.loc["rope", "interior"] == 1
    assert given.loc["gpt", "most_values"] == 5 and given.loc["rope", "tuning_trials"] == 3


def test_rates_that_diverge_end_a_sweep(planned: Planned) -> None:
    plan, ledger = planned(THREE)
    planner = TunePlanner(plan, ledger)
    ran(ledger, planner, {"gpt": 1.0, "rope": 2e-3}, diverges=5e-3)
    assert rates(planner.plan, "gpt", tuned=True) == [1e-3, 2e-3, 4e-3, 8e-3]
    (chosen,) = rates(planner.plan, "gpt", tuned=False)
    assert 2e-3 < chosen <= 8e-3


def test_several_settings_are_crossed_and_each_extended(planned: Planned) -> None:
    plan, ledger = planned("{train.lr: [1e-3, 2e-3, 4e-3], train.weight_decay: [0.05, 0.1, 0.2]}")
    assert len(plan.trials) == 2 * 9
    planner = TunePlanner(plan, ledger)
    ran(ledger, planner, {"gpt": 7e-3, "rope": 2e-3})
    assert len({row.spec.train.lr for row in planner.plan.rows if row.variant == "gpt" and row.stage == "tune"}) == 5


def test_it_decides_the_same_again(planned: Planned) -> None:
    """A killed study goes on with the plan that its records make."""
    plan, ledger = planned(THREE)
    planner = TunePlanner(plan, ledger)
    ran(ledger, planner, {"gpt": 2e-3, "rope": 1.1e-2})
    again = TunePlanner(plan, ledger)
    assert [trial.id for trial in again.plan.trials] and {trial.id for trial in again.plan.trials} == {
        trial.id for trial in planner.plan.trials
    }
    assert again.next({}) == []


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ("7", "7 must be a mapping, as {train.lr: {low: 1e-3, high: 1e-2}}"),
        ("{seeds: 2}", "names no setting"),
        ("{arch.d_model: [8, 16, 32]}", "'arch.d_model' cannot be tuned: give a number of `train`"),
        ("{train.lr: [1e-3, 2e-3]}", "at least 3 rising numbers above 0"),
        ("{train.lr: [1e-3, 2e-3, 2e-3]}", "at least 3 rising numbers above 0"),
        ("{train.lr: {low: 1e-2, high: 1e-3}}", "needs low and high, 0 < low < high"),
        ("{train.lr: {low: 1e-3, high: 1e-2, point: 5}}", "unknown key 'point'; did you mean 'points'?"),
        ("{train.lr: {low: 1e-3, high: 1e-2, points: 2}}", "2 must be a count of at least 3"),
        ("{train.lr: [1e-3, 2e-3, 4e-3], seeds: [1, 7]}", "1 is a seed of the study: sweeps need seeds of their own"),
        ("{train.lr: [1e-3, 2e-3, 4e-3], extend: -1}", "-1 must be a count"),
        (THREE + "\naxes: {train.lr: [1e-3, 1e-2]}", "train.lr is tuned: it cannot be an axis as well"),
        (THREE + "\nrungs: {at: [0.3]}", "rungs and tune do not go together"),
    ],
)
def test_mistakes(tmp_path: Path, tune: str, said: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(GRID.format(tune=tune))
    with pytest.raises(UserError, match=r"grid.yaml:\d+: ") as caught:
        load_grid(file)
    assert said in str(caught.value)


def test_a_setting_that_is_no_number_of_training_is_refused(tmp_path: Path, token_cache: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(GRID.format(tune="{train.rate: [1e-3, 2e-3, 4e-3]}"))
    with pytest.raises(UserError, match=r"unknown.*'rate'"):
        make_plan(load_grid(file), token_cache)


# -- the table and the report ----------------------------------------------------------------------------------------


def test_a_tuned_study_is_compared_on_test_data_and_fresh_seeds(planned: Planned) -> None:
    plan, ledger = planned(THREE)
    planner = TunePlanner(plan, ledger)
    ran(ledger, planner, {"gpt": 2e-3, "rope": 2e-3})
    tree = write_study(ledger, planner.plan)
    assert tree["tune"] == ["train.lr"]
    table = study_table(ledger.root, "tuned")
    compared = reported(table, tree["tune"])
    assert len(compared) == 4 and set(compared["stage"]) == {""} and set(compared["seed"]) == {0, 1}
    assert (compared["loss"] == compared["test_loss"]).all()
    assert reported(table, None) is table
    sweeps = sweep_table(table, ["train.lr"])
    assert len(sweeps) == 2 and (sweeps["edge"] == "").all()
    swept = table[(table["stage"] == "tune") & (table["variant"] == "gpt")]
    felt = sweep_sensitivity(table, ["train.lr"])
    assert felt["sensitivity"][0] == pytest.approx((swept["loss"] - swept["loss"].min()).mean())
    assert compared["test_score"].isna().all()  # said once: it is what is compared
    report = write_report(ledger.root, "tuned")
    assert json.loads((ledger.root / "studies/tuned/study.json").read_text())["tune"] == ["train.lr"]
    folder = report.html.parent
    assert {"sweeps.csv", "certificate.csv", "sweep_train.lr_0.svg", "tuning_0.svg"} <= {
        file.name for file in folder.iterdir()
    }
    assert "on the test split" in report.html.read_text() and "on the test split" in report.markdown.read_text()


def test_the_gap_of_a_tuned_study_is_that_of_validation_data(planned: Planned) -> None:
    """Although what is compared is the loss on test data."""
    plan, ledger = planned(THREE)
    planner = TunePlanner(plan, ledger)
    ran(ledger, planner, {"gpt": 2e-3, "rope": 2e-3})
    write_study(ledger, planner.plan)
    for trial in planner.plan.trials:
        record = ledger.trial(trial.id).record()
        assert record is not None
        ends = {"valid": record["metrics"]["loss"], "train": 1.0}
        ledger.trial(trial.id).commit(record | {"diagnostics": {"train_curve": {"final": ends}}})
    gaps = pd.read_csv(write_report(ledger.root, "tuned").html.parent / "capacity.csv")
    table = study_table(ledger.root, "tuned")
    mine = table[(table["stage"] != "tune") & (table["variant"] == "gpt")]
    assert gaps["loss"][0] == pytest.approx(mine["loss"].mean()) != pytest.approx(mine["test_loss"].mean())


def test_the_sensitivity_of_one_setting_is_at_the_best_of_the_others() -> None:
    """Of 3 x 3 settings, X + 10 Y + X Y with X = (x - 1)^2: the other is at 1, (1 + 0 + 1) / 3 and ten times that."""
    squares = [(x, y, (x - 1) ** 2, (y - 1) ** 2) for x in (0.0, 1.0, 2.0) for y in (0.0, 1.0, 2.0)]
    grid = [{"x": x, "y": y, "loss": X + 10 * Y + X * Y} for x, y, X, Y in squares]
    blank = {"variant": "a", "stage": "tune", "size": "s", "axes": "", "budget": "b", "status": "finished", "seed": 0}
    table = pd.DataFrame(grid).assign(**blank, trial_id=[f"t{k}" for k in range(9)])
    felt = sweep_sensitivity(table, ["x", "y"]).set_index("path")
    assert felt["sensitivity"].to_dict() == pytest.approx({"x": 2 / 3, "y": 20 / 3})


def trials(**rates_of: list[float]) -> pd.DataFrame:
    rows = [
        {"variant": name, "stage": "", "size": "s", "axes": f"lr={lr:g}", "budget": "b", "seed": 0, "lr": lr}
        for name, values in rates_of.items()
        for lr in values
    ]
    return pd.DataFrame(rows).assign(status="finished", loss=2.0, train_flops=1.0)


def test_a_treatment_that_was_tuned_beside_a_control_that_was_not() -> None:
    (flag,) = unfair(trials(base=[1e-3], rope=[1e-3, 2e-3, 4e-3]), [], "base")
    assert flag == "base: fewer learning rates were tried than of rope (1 against 3)"
    (told,) = unfair(trials(base=[1e-3], rope=[1e-3]), [], "base")
    assert told.startswith("nothing was tuned: every variant was trained at learning rate 0.001")
    assert unfair(trials(base=[1e-3, 2e-3], rope=[1e-3, 2e-3]), [], "base") == []


def test_fieller_is_that_of_a_ratio_of_normal_values() -> None:
    """With the noise known, -b / 2c is at an end of the interval where its t is the quantile."""
    v = np.geomspace(5e-4, 2e-3, 7)
    rng = np.random.default_rng(1)
    y = parabola(v, 1.1e-3) + 0.002 * rng.standard_normal(7)
    found = optimum(v, y)
    assert found is not None
    near = np.isin(v, v[max(0, np.argmin(y) - 2) : np.argmin(y) + 3])
    x = np.log(v[near] / found.best)
    design = np.vander(x, 3, increasing=True)
    beta, residual, *_ = np.linalg.lstsq(design, y[near], rcond=None)
    free = len(x) - 3
    covariance = residual[0] / free * np.linalg.inv(design.T @ design)
    for end in (found.lo, found.hi):
        slope = np.array([0.0, 1.0, 2 * np.log(end / found.best)])
        t = (slope @ beta) / np.sqrt(slope @ covariance @ slope)
        assert abs(t) == pytest.approx(stats.t.ppf(0.975, free), rel=1e-6)
