"""A grid with `race` adds seeds only to rows that are not decided, and decides the same after it was killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ablate.choices import seeds
from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.races import Race, race
from ablate.rows import Plan, PlannedTrial
from ablate.run.ledger import Ledger
from ablate.run.race_planner import RacePlanner
from ablate.run.study import write_study
from ablate.yamlfile import read_yaml
from analysis.racing import RacePlan, pairs, standing
from analysis.table import study_table

GRID = """\
study: raced
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {batch_tokens: 64, tokens: 640, lr: 3e-3}
variants: {gpt: {}, rope: {arch.position: rope}, alibi: {arch.position: alibi}, none: {arch.position: none}}
sizes: {arch.d_model: [8, 16]}
match: none
seeds: 8
"""
SHIFT = {"gpt": 0.0, "rope": -0.6, "alibi": 0.02, "none": 0.4}  # noise of one trial is 0.02
Planned = tuple[Plan, Ledger]


@pytest.fixture
def planned(tmp_path: Path, token_cache: Path) -> Planned:
    file = tmp_path / "grid.yaml"
    file.write_text(GRID)
    plan, ledger = make_plan(load_grid(file), token_cache), Ledger(tmp_path / "results")
    write_study(ledger, plan)
    return plan, ledger


def finish(ledger: Ledger, trial: PlannedTrial, status: str = "finished") -> None:
    """Leave a record as a trial would: its noise is its own, and the same whenever it is run."""
    rng = np.random.default_rng([ord(each) for each in trial.id])
    value = 3.0 + SHIFT[trial.row.variant] + 0.02 * float(rng.standard_normal())
    folder = ledger.trial(trial.id)
    folder.folder.mkdir(parents=True, exist_ok=True)
    metrics = {"loss": value if status == "finished" else None}
    told = {
        "id": trial.id,
        "status": status,
        "metrics": metrics,
        "steps": 10,
        "tokens": 640,
        "tokens_per_s": 1e3,
        "wall_s": 1.0,
    }
    folder.commit(told | {"train_flops": trial.row.flops})


def ran(planned: Planned, asked: Race, status: Callable[[PlannedTrial], str]) -> tuple[list[list[str]], str]:
    """The batches that a planner asks for until it ends, and what it says then."""
    plan, ledger = planned
    planner, done, batches = RacePlanner(plan, asked, ledger), dict[str, str](), []
    while batch := planner.next(done):
        for ask in batch:
            done[ask.trial.id] = status(ask.trial)
            finish(ledger, ask.trial, done[ask.trial.id])
        batches.append([ask.trial.id for ask in batch])
    return batches, planner.told


def finished(trial: PlannedTrial) -> str:
    return "finished"


def test_seeds_go_where_nothing_is_decided(planned: Planned) -> None:
    plan, ledger = planned
    batches, told = ran(planned, Race(3, 8), finished)
    by_id = {trial.id: trial for trial in plan.trials}
    counts = dict.fromkeys(SHIFT, 0)
    for name in (name for batch in batches for name in batch):
        counts[by_id[name].row.variant] += 1
    assert len(batches[0]) == 4 * 2 * 3 and {by_id[name].spec.seed for name in batches[0]} == {0, 1, 2}
    assert counts["rope"] < counts["gpt"] and sum(counts.values()) < len(plan.trials)
    assert told.startswith("the race is over: ") and "2 better" in told and "2 worse" in told and "spend" not in told
    reached = standing(pairs(study_table(ledger.root, "raced"), "gpt"), RacePlanner(plan, Race(3, 8), ledger).rule)
    assert {name[-1]: each.status for name, each in reached.decisions.items()}["rope"] == "better"


def test_it_decides_the_same_again(planned: Planned) -> None:
    """Killed between two batches, or in the middle of one: the rest of that batch comes next, and nothing else."""
    plan, ledger = planned
    batches, _ = ran(planned, Race(3, 8), finished)
    assert len(batches) > 2
    for cut in range(len(batches)):
        before = [name for batch in batches[:cut] for name in batch]
        for half in (0, len(batches[cut]) // 2):
            done = dict.fromkeys([*before, *batches[cut][:half]], "finished")
            asked = RacePlanner(plan, Race(3, 8), ledger).next(done)
            assert [ask.trial.id for ask in asked] == batches[cut][half:]


def test_what_was_asked_for_is_not_asked_for_again(planned: Planned) -> None:
    """As where an executor comes back without a record."""
    planner = RacePlanner(planned[0], Race(3, 8), planned[1])
    assert len(planner.next({})) == 4 * 2 * 3 and planner.next({}) == []


def test_what_may_be_spent_is_kept_to(planned: Planned) -> None:
    plan, _ = planned
    flops = {trial.id: trial.row.flops for trial in plan.trials}
    every, _ = ran(planned, Race(3, 8), finished)
    most = 0.6 * sum(flops[name] for batch in every for name in batch)
    batches, told = ran(planned, Race(3, 8, spend=most), finished)
    spent = sum(flops[name] for batch in batches for name in batch)
    assert 0.4 * most < spent <= most and "no more fits in the FLOPs to spend" in told
    done = dict.fromkeys(batches[0][::2], "finished")
    rest = RacePlanner(*_with(planned, Race(3, 8, spend=most))).next(done)
    assert {ask.trial.id for ask in rest} == set(batches[0]) - set(done)


def _with(planned: Planned, asked: Race) -> tuple[Plan, Race, Ledger]:
    return planned[0], asked, planned[1]


def test_a_variant_that_diverges_is_left_alone_after_the_first_look(planned: Planned) -> None:
    plan, _ = planned
    batches, told = ran(planned, Race(3, 8), lambda trial: "diverged" if trial.row.variant == "none" else "finished")
    ids = [name for batch in batches for name in batch]
    assert len(ids) == len(set(ids))
    assert sum(trial.id in ids for trial in plan.trials if trial.row.variant == "none") == 2 * 3
    assert "futile" in told


def test_a_baseline_alone_has_nothing_to_race(tmp_path: Path, token_cache: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("\n".join(line for line in GRID.splitlines() if not line.startswith("variants")))
    plan = make_plan(load_grid(file), token_cache)
    with pytest.raises(UserError, match="race: needs a variant besides the baseline"):
        RacePlanner(plan, Race(3, 8), Ledger(tmp_path))


def parsed(tmp_path: Path, lines: str) -> Race | None:
    file = tmp_path / "grid.yaml"
    file.write_text(f"{GRID}{lines}\n")
    document = read_yaml(file)
    assert len(seeds(document)) == 8
    return race(document)


def test_the_key_of_the_grid(tmp_path: Path) -> None:
    assert parsed(tmp_path, "") is None
    assert parsed(tmp_path, "race: {}") == Race(3, 8)
    text = "race: {first: 2, most: 6, level: 0.1, smallest: 0.01, futile: 0, bounds: obrien_fleming, spend: 1e16}"
    assert parsed(tmp_path, text) == Race(2, 6, 0.1, 0.01, 0.0, "obrien_fleming", spend=1e16)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("race: 7", "race: 7 must be a mapping, as {first: 3, most: 12}"),
        ("race: {frist: 3}", "unknown key 'frist'; did you mean 'first'?"),
        ("race: {most: 12}", "race.most: 12 must be a whole number from 2 to 8: the grid's seeds are 8"),
        ("race: {first: 1}", "race.first: 1 must be a whole number from 2 to 8: most is 8"),
        ("race: {first: 5, most: 4}", "race.first: 5 must be a whole number from 2 to 4: most is 4"),
        ("race: {level: 0.5}", "race.level: 0.5 must be a probability above 1e-7 and below 0.5"),
        ("race: {smallest: -1}", "race.smallest: -1 must be a number from 0"),
        ("race: {futile: 1}", "race.futile: 1 must be a probability from 0 (never) to below 1"),
        ("race: {spend: 0}", "race.spend: 0 must be a number above 0"),
        ("race: {spend: much}", "race.spend: 'much' must be a number above 0"),
        ("race: {bounds: haybittle}", "unknown bounds 'haybittle'"),
        ("race: {noise: loud}", "unknown noise 'loud'"),
        ("race: {}\nrungs: {at: [0.3]}", "rungs: rungs and race do not go together"),
        ("race: {}\npredict: {flops: 1e18}", "predict: predict and race do not go together"),
    ],
)
def test_mistakes(tmp_path: Path, lines: str, said: str) -> None:
    with pytest.raises(UserError, match=r"grid.yaml:\d+: ") as caught:
        parsed(tmp_path, lines)
    assert said in str(caught.value)


def test_a_grid_s_defaults_are_those_of_the_race_itself() -> None:
    ours, theirs = asdict(Race(3, 8)), asdict(RacePlan(3, 8))
    assert {name: ours[name] for name in theirs} == theirs
