"""A grid with `promote` trains at the largest scale what the smaller ones speak for, and decides the same again."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import new_results, run_here, run_study, with_database

from ablate import promoting
from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.promoting import Promote
from ablate.rows import Plan, PlannedTrial
from ablate.run.ledger import Ledger
from ablate.run.promote_planner import PromotePlanner
from ablate.run.status import study_status
from ablate.run.study import write_study
from analysis import promotion
from analysis.promotion import Gates

GRID = """\
study: climbed
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {batch_tokens: 64, tokens: 640, lr: 3e-3}
variants: {gpt: {}, rope: {arch.position: rope}, alibi: {arch.position: alibi}, none: {arch.position: none}}
sizes: {s1: {arch.d_model: 8}, s2: {arch.d_model: 16}, s3: {arch.d_model: 24}, s4: {arch.d_model: 48}}
match: none
seeds: 8
promote: {}
"""
TOLD = "1 of 3 variants promoted to s4: rope; not promoted: alibi (worse), none (indistinguishable)"
Effect = Callable[[PlannedTrial], float]
Made = tuple[Plan, Ledger]
Make = Callable[..., Made]


def effect(trial: PlannedTrial) -> float:
    """log L of a variant over the baseline's: `none` loses what it gains a scale at a time, 0 between s3 and s4."""
    scale = int(trial.row.size[1])
    return {"gpt": 0.0, "rope": -0.05, "alibi": 0.05, "none": -0.08 + 0.025 * (scale - 1)}[trial.row.variant]


@pytest.fixture
def make(tmp_path: Path, token_cache: Path) -> Make:
    """`make(promote="{}", more="")`: the plan of the grid and a results folder."""

    def made(promote: str = "{}", more: str = "") -> Made:
        file = tmp_path / "grid.yaml"
        file.write_text(GRID.replace("promote: {}", f"promote: {promote}") + more)
        plan, ledger = make_plan(load_grid(file), token_cache), Ledger(tmp_path / "results")
        write_study(ledger, plan)
        return plan, ledger

    return made


def finish(ledger: Ledger, trial: PlannedTrial, effect: Effect, status: str = "finished", **metrics: float) -> None:
    """Leave a record as a trial would: its noise of 0.2 % is its own, and the same whenever it is run."""
    rng = np.random.default_rng([ord(each) for each in trial.id])
    level = math.log(3.0) - 0.05 * math.log(trial.row.flops / 1e7)
    value = math.exp(level + effect(trial) + 0.002 * float(rng.standard_normal()))
    folder = ledger.trial(trial.id)
    folder.folder.mkdir(parents=True, exist_ok=True)
    told = {"id": trial.id, "status": status, "steps": 10, "tokens": 640, "tokens_per_s": 1e3, "wall_s": 1.0}
    measured: dict[str, Any] = {"loss": value if status == "finished" else None, **metrics}
    if metrics:
        told["metric"] = {"name": "bits_per_byte", "better": "lower"}
        measured["bits_per_byte"] *= value
    folder.commit(told | {"train_flops": trial.row.flops, "metrics": measured})


def ran(
    made: Made, effect: Effect = effect, status: Callable[[PlannedTrial], str] = lambda trial: "finished"
) -> tuple[list[list[PlannedTrial]], str]:
    """The batches that a planner asks for until it ends, and what it says then."""
    ledger = made[1]
    planner, done, batches = planner_of(made), dict[str, str](), []
    while batch := planner.next(done):
        for ask in batch:
            done[ask.trial.id] = status(ask.trial)
            finish(ledger, ask.trial, effect, done[ask.trial.id])
        batches.append([ask.trial for ask in batch])
    return batches, planner.told


def planner_of(made: Made) -> PromotePlanner:
    plan, ledger = made
    assert plan.grid.promote is not None
    return PromotePlanner(plan, plan.grid.promote, ledger)


def rows_of(trials: list[PlannedTrial]) -> set[tuple[str, str]]:
    return {(trial.row.variant, trial.row.size) for trial in trials}


def seeds_of(trials: list[PlannedTrial], variant: str, size: str = "s4") -> list[int]:
    return sorted(trial.spec.seed for trial in trials if (trial.row.variant, trial.row.size) == (variant, size))


# what is asked for


def test_the_largest_scale_is_for_what_the_smaller_ones_speak_for(make: Make) -> None:
    plan, _ = made = make()
    (small, large), told = ran(made)
    assert {trial.id for trial in small} == {trial.id for trial in plan.trials if trial.row.size != "s4"}
    assert rows_of(large) == {("gpt", "s4"), ("rope", "s4")} and len(large) == 2 * 8
    costs = [trial.row.flops for trial in small]
    assert costs == sorted(costs, reverse=True)  # the last worker to finish ends early
    assert told == TOLD


def test_gates_are_those_of_the_grid(make: Make) -> None:
    """`none` is better over all smaller scales, and its line meets the baseline's before s4: a gate that asks for no
    prediction lets it pass, one that asks for a gain of 10 % lets nothing pass."""
    _, told = ran(make("{wanted: better, sure: 0}"))
    assert told == "2 of 3 variants promoted to s4: rope, none; not promoted: alibi (worse)"
    (_, large), told = ran(make("{smallest: 0.1}"))
    assert rows_of(large) == {("gpt", "s4")}
    left = "rope (indistinguishable), alibi (worse), none (indistinguishable)"
    assert told == f"0 of 3 variants promoted to s4; not promoted: {left}"


def test_every_ladder_is_decided_by_its_own_scales(make: Make) -> None:
    """At the higher learning rate rope and alibi have changed places."""

    def turned(trial: PlannedTrial) -> float:
        return effect(trial) * (-1 if trial.row.axes == "lr=0.01" else 1)

    (small, large), told = ran(make(more="axes: {train.lr: [1e-3, 1e-2]}\n"), turned)
    assert all(trial.row.size != "s4" for trial in small) and len(small) == 2 * 4 * 3 * 8
    assert {(trial.row.axes, trial.row.variant) for trial in large} == {
        *(("lr=0.001", name) for name in ("gpt", "rope")),
        *(("lr=0.01", name) for name in ("gpt", "alibi")),
    }
    assert told == (
        f"lr=0.001: {TOLD}. lr=0.01: 1 of 3 variants promoted to s4: alibi; not promoted: rope (worse), none (worse)"
    )


def test_budgets_are_scales_as_well(make: Make) -> None:
    """Of sizes crossed with budgets the largest is one cell, and the others are below it."""
    (small, large), told = ran(make(more="budgets: {tokens: [640, 1280]}\n"))
    assert {(trial.row.size, trial.row.budget) for trial in large} == {("s4", "tokens=1280")}
    assert ("s4", "tokens=640") in {(trial.row.size, trial.row.budget) for trial in small}
    assert told.startswith("1 of 3 variants promoted to s4, tokens=1280: rope; ")


def test_it_decides_the_same_again(make: Make) -> None:
    """Killed between two batches, or in the middle of one: the rest of that batch comes next, and nothing else."""
    for more in ("", "race: {first: 3, most: 8}\n"):
        made = make(more=more)
        batches, told = ran(made, close)
        assert len(batches) >= 2
        ids = [[trial.id for trial in batch] for batch in batches]
        for cut in range(len(ids)):
            for half in (0, 1, len(ids[cut]) // 2):
                done = dict.fromkeys([*(name for batch in ids[:cut] for name in batch), *ids[cut][:half]], "finished")
                assert [ask.trial.id for ask in planner_of(made).next(done)] == ids[cut][half:]
        again = planner_of(made)
        assert again.next(dict.fromkeys((name for batch in ids for name in batch), "finished")) == []
        assert again.told == told


def test_what_was_trained_at_the_largest_scale_before_decides_nothing(make: Make) -> None:
    """As by another study of the same trials: alibi is far ahead of the baseline there."""
    plan, ledger = made = make()
    done = {}
    for trial in plan.trials:
        if trial.row.size == "s4" and trial.row.variant in ("gpt", "alibi"):
            finish(ledger, trial, lambda each: -2.0 if each.row.variant == "alibi" else 0.0)
            done[trial.id] = "finished"
    planner = planner_of(made)
    while batch := planner.next(done):
        last = [ask.trial for ask in batch]
        for trial in last:
            finish(ledger, trial, effect)
            done[trial.id] = "finished"
    assert rows_of(last) == {("rope", "s4")} and planner.told == TOLD


def test_what_was_asked_for_is_not_asked_for_again(make: Make) -> None:
    """As where an executor comes back without a record: there is nothing to promote by, and it ends."""
    planner = planner_of(make())
    assert len(planner.next({})) == 4 * 3 * 8
    assert rows_of([ask.trial for ask in planner.next({})]) == {("gpt", "s4")}
    assert planner.next({}) == [] and planner.told.startswith(
        "0 of 3 variants promoted to s4; not promoted: rope (unk"
    )


def test_failed_trials_hang_nothing(make: Make) -> None:
    """A variant without a law is unknown; where the baseline has none, nothing is promoted and the reason is told."""

    def at_one_scale(trial: PlannedTrial) -> str:
        return "failed" if trial.row.variant == "rope" and trial.row.size != "s1" else "finished"

    batches, told = ran(make(), status=at_one_scale)
    assert rows_of(batches[1]) == {("gpt", "s4")} and "rope (unknown), alibi (worse)" in told
    batches, told = ran(make(), status=lambda trial: "diverged" if trial.row.variant == "gpt" else "finished")
    assert len(batches) == 2 and rows_of(batches[1]) == {("gpt", "s4")}
    assert told.startswith("0 of 3 variants promoted") and "no finished trial of the baseline 'gpt'" in told


def test_losses_compare_in_bits_per_byte_where_only_those_do(make: Make) -> None:
    """rope's loss per token is 5 % lower, its loss per byte 5 % higher."""
    plan, ledger = made = make()
    done = {}
    for trial in plan.trials:
        if trial.row.size != "s4":
            finish(ledger, trial, effect, bits_per_byte=math.exp(0.1) if trial.row.variant == "rope" else 1.0)
            done[trial.id] = "finished"
    assert rows_of([ask.trial for ask in planner_of(made).next(done)]) == {("gpt", "s4")}


# with a race at the largest scale


def close(trial: PlannedTrial) -> float:
    """`none` is ahead by a tenth of its noise at the smaller scales, and at the largest by nothing."""
    if trial.row.variant == "none":
        return -0.0002 * (trial.row.size != "s4")
    return effect(trial)


def test_seeds_at_the_largest_scale_are_raced(make: Make) -> None:
    made = make("{sure: 0}", "race: {first: 3, most: 8, futile: 0, bounds: pocock}\n")
    (small, first, *later), told = ran(made, close)
    assert len(small) == 4 * 3 * 8  # all seeds of the smaller scales
    assert [seeds_of(first, name) for name in ("gpt", "rope", "none", "alibi")] == [[0, 1, 2]] * 3 + [[]]
    more = [trial for batch in later for trial in batch]
    assert seeds_of(more, "rope") == [] and seeds_of(more, "none") == [3, 4, 5, 6, 7] == seeds_of(more, "gpt")
    assert told.startswith(
        "2 of 3 variants promoted to s4: rope, none; not promoted: alibi (worse). the race is over"
    )
    assert "1 better" in told


def test_a_ladder_without_a_promoted_variant_has_the_baselines_first_seeds(make: Make) -> None:
    def one_ladder(trial: PlannedTrial) -> float:
        return abs(effect(trial)) if trial.row.axes == "lr=0.01" else effect(trial)

    made = make(more="axes: {train.lr: [1e-3, 1e-2]}\nrace: {first: 3, most: 8}\n")
    (_, *large), told = ran(made, one_ladder)
    up = {axes: [t for batch in large for t in batch if t.row.axes == axes] for axes in ("lr=0.001", "lr=0.01")}
    assert rows_of(up["lr=0.01"]) == {("gpt", "s4")} and seeds_of(up["lr=0.01"], "gpt") == [0, 1, 2]
    assert seeds_of(up["lr=0.001"], "rope") == seeds_of(up["lr=0.001"], "gpt") == [0, 1, 2]
    assert "lr=0.01: 0 of 3 variants" in told and told.endswith("the race is over: 1 better")


# the key of the grid


def test_the_key_of_the_grid(make: Make) -> None:
    assert make()[0].grid.promote == Promote("not worse", 0.5, 0.05, 0.0)
    plan, ledger = make("{wanted: better, sure: 0.9, level: 0.1, smallest: 0.01}")
    assert plan.grid.promote == Promote("better", 0.9, 0.1, 0.01)
    assert ledger.study("climbed")["promote"] == {"wanted": "better", "sure": 0.9, "level": 0.1, "smallest": 0.01}
    assert make("{smallest: 0, sure: 0}")[0].grid.promote == Promote(sure=0.0)
    assert make("null")[0].grid.promote is None


@pytest.mark.parametrize(
    ("promote", "more", "said"),
    [
        ("7", "", "grid.yaml:10: promote: 7 must be a mapping, as {wanted: not worse, sure: 0.5}"),
        ("{shure: 0.5}", "", "grid.yaml:10: promote.shure: unknown key 'shure'; did you mean 'sure'?"),
        ("{sure: 1}", "", "grid.yaml:10: promote.sure: 1 must be a probability from 0 to below 1"),
        ("{sure: yes}", "", "grid.yaml:10: promote.sure: 'yes' must be a probability from 0 to below 1"),
        ("{level: 0}", "", "grid.yaml:10: promote.level: 0 must be a probability above 0 and below 1"),
        (
            "{smallest: -0.1}",
            "",
            "grid.yaml:10: promote.smallest: -0.1 must be a share of the loss, from 0 to below 1",
        ),
        ("{wanted: best}", "", "grid.yaml:10: promote.wanted: unknown wanted 'best'; did you mean 'better'?"),
        ("{}", "predict: {flops: 1e18}", "grid.yaml:11: predict: predict and promote do not go together: both say"),
        (
            "{}",
            "rungs: {at: [0.3]}",
            "grid.yaml:11: rungs: rungs and promote do not go together: the gates read final",
        ),
        ("{}", "stages: {a: {}}", "grid.yaml:11: stages: stages and promote do not go together: a stage begins from"),
        ("{}", "tune: {train.lr: [1, 2, 3]}", "grid.yaml:11: tune: tune and promote do not go together: what is"),
    ],
)
def test_mistakes(make: Make, promote: str, more: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make(promote, more)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        (", s3: {arch.d_model: 24}", "", "promote: 2 scales below the largest, s4: a law needs at least 3"),
        ("s2: {arch.d_model: 16}, s3: {arch.d_model: 24}, ", "", "promote: 1 scale below the largest, s4"),
        (
            "match: none\n",
            "match: none\nbudgets: {flops: [1e8]}\naxes: {train.lr: [1e-3]}\n",
            "promote: at lr=0.001: s",
        ),
        (", rope: {arch.position: rope}, alibi: {arch.position: alibi}, none: {arch.position: none}", "",
         "promote: needs a variant besides the baseline"),
    ],
)  # fmt: skip
def test_grids_without_a_ladder(tmp_path: Path, token_cache: Path, there: str, instead: str, said: str) -> None:
    """When the grid is planned, and so before anything is trained."""
    assert there in GRID
    text = GRID.replace(there, instead)
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        make_plan(load_grid(tmp_path / "grid.yaml"), token_cache)
    line = text.splitlines().index("promote: {}") + 1
    assert f"grid.yaml:{line}: {said}" in str(caught.value)
    if instead:
        assert "take the same FLOPs, within 5%: none is the largest scale" in str(caught.value)


# a study


def test_status_tells_what_is_not_needed_once_the_planner_has_ended(make: Make) -> None:
    plan, ledger = made = make()
    _, told = ran(made)
    found = study_status(ledger, "climbed")
    assert (found["pending"], found["not needed"], found["enough"]) == (2 * 8, 0, "")
    write_study(ledger, plan, told)
    found = study_status(ledger, "climbed")
    assert (found["pending"], found["not needed"], found["enough"]) == (0, 2 * 8, TOLD)
    left = {(each["variant"], each["size"]) for each in found["trials"] if each["status"] == "not needed"}
    assert left == {("alibi", "s4"), ("none", "s4")}
    write_study(ledger, plan)  # as another run begins, which may want them
    assert study_status(ledger, "climbed")["pending"] == 2 * 8


REAL = """\
study: real
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 2560, batch_tokens: 64, lr: 3e-3, eval_points: 2, eval_tokens: 256, final_eval_tokens: 512}
variants: {plain: {}, rope: rope, slow: {train.lr: 1e-6}}
sizes: {arch.d_model: [8, 12, 16, 24]}
match: none
seeds: 2
promote: {level: 0.005, sure: 0}
"""


def test_a_study_from_end_to_end(tmp_path: Path, token_cache: Path) -> None:
    """A learning rate of 1e-6 learns nothing, and is not trained at the largest scale: not a failure anywhere."""
    ledger = with_database(new_results(tmp_path / "results", token_cache))
    (tmp_path / "grid.yaml").write_text(REAL)
    code, said = run_here("run", tmp_path / "grid.yaml", "--results", ledger.root, "--workers", 0)
    told = "1 of 2 variants promoted to d_model=24: rope; not promoted: slow (worse)"
    assert code == 0 and f"{told}: 2 trials not run" in said and "22 finished" in said, said
    assert "24 to train at most" in said
    study = ledger.study("real")
    ended = {(each["variant"], each["size"]) for each in study["trials"] if ledger.trial(each["id"]).record()}
    assert ("rope", "d_model=24") in ended and ("slow", "d_model=16") in ended and ("slow", "d_model=24") not in ended
    assert study["enough"] == told
    code, said = run_here("status", "real", "--results", ledger.root)
    assert code == 0 and "24 trials: 22 finished, 2 not needed" in said and told in said and "pending" not in said
    page = (ledger.study_folder("real") / "report" / "report.md").read_text()
    assert "failed" not in page and "slow" in page
    assert _parents(ledger) == dict.fromkeys(("study", "variant:plain", "variant:rope", "variant:slow"), "FINISHED")
    _forget_the_largest_of(ledger, "rope")
    again = run_study(make_plan(load_grid(tmp_path / "grid.yaml"), ledger.cache), ledger)
    assert (len(again.trained), len(again.reused), again.exit_code, again.enough) == (1, 21, 0, told)


def _forget_the_largest_of(ledger: Ledger, variant: str) -> None:
    """As a study that was killed in its last trial."""
    labels = ledger.study("real")["trials"]
    (trial, *_) = [each for each in labels if (each["variant"], each["size"]) == (variant, "d_model=24")]
    ledger.trial(trial["id"]).forget_record()


def _parents(ledger: Ledger) -> dict[str, str]:
    """What MLflow says of the study and its variants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{ledger.root / 'mlflow.db'}")
        runs = client.search_runs([client.get_experiment_by_name("real").experiment_id], max_results=1000)
    found = {run.data.tags["ablate.key"]: run.info.status for run in runs}
    return json.loads(json.dumps({key: each for key, each in found.items() if not key.startswith("trial:")}))


def test_a_grid_s_defaults_are_those_of_the_gates_themselves() -> None:
    assert asdict(Promote()) == asdict(Gates())
    assert promoting.WANTED == promotion.WANTED
