"""A grid with `predict` runs only what tells the loss at a larger compute, and says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.rows import Plan
from ablate.run.ledger import Ledger
from ablate.run.predict_planner import BATCH, PredictPlanner
from analysis.prediction import enough, law_of_variants, predicted, to_run

Write = Callable[..., Path]
GRID = """\
study: ahead
base:
  arch: {{d_model: 16, n_heads: 2, depth: 1, position: learned}}
  data: {{corpus: kjv, tokenizer: bytes, seq_len: 16}}
  train: {{batch_tokens: 64, lr: 3e-3}}
variants: {{gpt: {{}}, rope: {{arch.position: rope}}}}
sizes: {{arch.d_model: [8, 16, 32, 64]}}
budgets: {{tokens: [1_000, 4_000, 16_000]}}
match: none
seeds: 2
predict: {predict}
"""


@pytest.fixture
def planned(tmp_path: Path, token_cache: Path) -> Callable[[str], tuple[Plan, Ledger]]:
    def make(predict: str) -> tuple[Plan, Ledger]:
        file = tmp_path / "grid.yaml"
        file.write_text(GRID.format(predict=predict))
        return make_plan(load_grid(file), token_cache), Ledger(tmp_path / "results")

    return make


def loss(variant: str, c: float) -> float:
    return (1.4 if variant == "gpt" else 1.3) + 2.0 * (c / 1e9) ** -0.3


def finish(ledger: Ledger, trial: object, noise: float = 0.002, status: str = "finished") -> None:
    """Leave a record as a trial would."""
    rng = np.random.default_rng([ord(each) for each in trial.id])
    value = loss(trial.row.variant, trial.row.flops) * float(np.exp(noise * rng.standard_normal()))
    folder = ledger.trial(trial.id)
    folder.folder.mkdir(parents=True, exist_ok=True)
    folder.commit({"id": trial.id, "status": status, "metrics": {"loss": value}, "wall_s": trial.row.flops / 1e9})


def ran(plan: Plan, ledger: Ledger, planner: PredictPlanner, status: str = "finished") -> list[list[str]]:
    """The batches that a planner asks for until it ends."""
    done: dict[str, str] = {}
    batches = []
    while batch := planner.next(done):
        for ask in batch:
            finish(ledger, ask.trial, status=status)
            done[ask.trial.id] = status
        batches.append([ask.trial.id for ask in batch])
    return batches


def test_it_ends_when_the_prediction_is_narrow(planned: Callable[[str], tuple[Plan, Ledger]]) -> None:
    plan, ledger = planned("{flops: 1e10, within: 0.05}")
    planner = PredictPlanner(plan, plan.grid.predict, ledger)
    batches = ran(plan, ledger, planner)
    count = sum(map(len, batches))
    assert enough("power_offset") * 2 <= count < len(plan.trials)
    assert planner.told.startswith("every prediction at 1e+10 FLOPs is known within 5.00%")
    first = {trial.id: trial for trial in plan.trials}
    of = [first[name].row.variant for name in batches[0]]
    assert of.count("gpt") == of.count("rope") == enough("power_offset")  # the cheapest, and of different compute
    assert all(len(batch) <= BATCH for batch in batches[1:])


def test_it_decides_the_same_again(planned: Callable[[str], tuple[Plan, Ledger]]) -> None:
    """A killed study goes on: what is asked for next follows from the records alone."""
    plan, ledger = planned("{flops: 1e10, within: 0.05}")
    batches = ran(plan, ledger, PredictPlanner(plan, plan.grid.predict, ledger))
    for cut in range(1, len(batches)):
        done = {name: "finished" for batch in batches[:cut] for name in batch}
        asked = PredictPlanner(plan, plan.grid.predict, ledger).next(done)
        assert [ask.trial.id for ask in asked] == batches[cut]


def test_what_may_be_spent_is_kept_to(planned: Callable[[str], tuple[Plan, Ledger]]) -> None:
    plan, ledger = planned("{flops: 1e12, within: 1e-6, spend: 2e9}")
    planner = PredictPlanner(plan, plan.grid.predict, ledger)
    names = {name for batch in ran(plan, ledger, planner) for name in batch}
    spent = sum(trial.row.flops for trial in plan.trials if trial.id in names)
    left = [trial.row.flops for trial in plan.trials if trial.id not in names]
    assert 0 < spent <= 2e9 and spent + min(left) > 2e9 and "FLOPs to spend" in planner.told


def test_trials_that_fail_are_not_asked_for_again(planned: Callable[[str], tuple[Plan, Ledger]]) -> None:
    plan, ledger = planned("{flops: 1e10}")
    batches = ran(plan, ledger, PredictPlanner(plan, plan.grid.predict, ledger), status="diverged")
    names = [name for batch in batches for name in batch]
    assert len(names) == len(set(names)) == len(plan.trials)


@pytest.mark.parametrize(
    ("predict", "said"),
    [
        ("7", "7 must be a mapping, as {flops: 1e18, within: 0.02}"),
        ("{within: 0.02}", "needs flops"),
        ("{flops: -1}", "-1 must be a number above 0"),
        ("{flops: 1e18, within: often}", "'often' must be a number above 0"),
        ("{flops: 1e18, form: cubic}", "unknown form 'cubic'"),
        ("{flop: 1e18}", "unknown key 'flop'; did you mean 'flops'?"),
        ("{flops: 1e18}\nrungs: {at: [0.3]}", "rungs and predict do not go together"),
        ("{flops: 1e18}\naxes: {train.lr: [1e-3, 1e-2]}", "axes and predict do not go together"),
    ],
)
def test_mistakes(tmp_path: Path, predict: str, said: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(GRID.format(predict=predict))
    with pytest.raises(UserError, match=r"grid.yaml:\d+: ") as caught:
        load_grid(file)
    assert said in str(caught.value)


def test_too_few_candidates_are_refused(tmp_path: Path, token_cache: Path) -> None:
    file = tmp_path / "grid.yaml"
    text = GRID.format(predict="{flops: 1e18}").replace("[8, 16, 32, 64]", "[8]")
    file.write_text(text)
    plan = make_plan(load_grid(file), token_cache)
    with pytest.raises(UserError, match="power_offset needs 4 different computes of every variant: gpt has 3"):
        PredictPlanner(plan, plan.grid.predict, Ledger(tmp_path))


def points(variants: tuple[str, ...] = ("gpt", "rope")) -> pd.DataFrame:
    c = np.geomspace(1e8, 1e10, 8)
    rng = np.random.default_rng(0)
    parts = []
    for name in variants:
        y = np.array([loss(name, each) for each in c]) * np.exp(0.002 * rng.standard_normal(len(c)))
        parts.append(pd.DataFrame({"variant": name, "n": np.sqrt(c), "d": np.sqrt(c) / 6, "c": c, "loss": y}))
    return pd.concat(parts, ignore_index=True)


def test_predictions_hold_the_truth_and_widen_with_distance() -> None:
    near, far = (predicted(points(), "power_offset", c) for c in (1e11, 1e14))
    for found, c in ((near, 1e11), (far, 1e14)):
        for row in found.to_dict("records"):
            assert row["lo"] < row["loss"] < row["hi"] and row["distance"] == pytest.approx(c / 1e10)
    assert (far["width"] > 2 * near["width"]).all()
    alone = predicted(points(("gpt",)), "power_offset", 1e11)
    assert list(alone["variant"]) == ["gpt"] and law_of_variants(points(("gpt",)), "power").law.name == "power"


def test_the_next_run_narrows_the_widest_prediction() -> None:
    """Of a variant with few points, one of its own runs far out, when all cost the same."""
    rows = points()
    rows = rows[(rows["variant"] == "gpt") | (rows["c"] < 1.2e9)]
    now = predicted(rows, "power_offset", 1e12).set_index("variant")["width"]
    assert now["rope"] > now["gpt"]
    candidates = points().assign(cost=1.0, id=range(16))
    chosen = to_run(rows, candidates, "power_offset", 1e12, 1).iloc[0]
    assert chosen["variant"] == "rope" and chosen["c"] == pytest.approx(1e10)
