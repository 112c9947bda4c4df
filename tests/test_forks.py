"""Trials that differ in how long they train run their first steps once, to the numbers that each would come to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from runs import LADDER, events, new_results, plan_of, run_here, spec, train, with_database

from ablate.rows import PlannedTrial, Row
from ablate.run.alike import own_flops, own_seconds
from ablate.run.budget import Budget, Budgeted
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.planner import GridPlanner
from ablate.run.trunks import forks_of, saved_flops
from ablate.spec import TrialSpec, canonical
from ablate.train import checkpoint
from ablate.train.forks import shared_steps
from ablate.train.job import Fork
from ablate.train.trial import plan_trial

Write = Callable[..., Path]
WSD = {"name": "wsd", "warmup": 2, "decay": 0.2}


def of_length(tokens: int, **settings: Any) -> TrialSpec:
    changes = {"train.schedule": WSD, "train.batch_tokens": 256, "train.tokens": tokens}
    return spec({**changes, **{f"train.{name}": value for name, value in settings.items()}})


def forks(*specs: TrialSpec) -> dict[str, tuple[str, int]]:
    """Whose steps each of these trials goes on from, and how many; what a row costs has no part in it."""
    found = forks_of([PlannedTrial(spec.trial_id, spec, cast(Row, object())) for spec in specs])
    assert all(fork.steps == {spec.trial_id: spec for spec in specs}[fork.trial].train.steps for _, fork in found)
    return {fork.trial: (trunk, fork.step) for trunk, fork in found}


def record_of(folder: TrialFolder) -> dict[str, Any]:
    record = folder.record()
    assert record is not None
    return record


def result(folder: TrialFolder) -> dict[str, Any]:
    """What a trial came to, without what says how it came there."""
    record = record_of(folder)
    keys = ("status", "metrics", "params_total", "train_flops", "tokens", "steps", "layers", "diagnostics")
    return {key: record[key] for key in keys}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    """The ladder trained without forks."""
    ledger = with_database(new_results(tmp_path_factory.mktemp("alone") / "results", token_cache))
    grid = ledger.root / "grid.yaml"
    grid.write_text(LADDER)
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 0, "--no-forks")
    assert code == 0 and "10 finished" in said
    assert all(record_of(ledger.trial(each))["forked"] is None for each in ledger.trial_ids())
    return ledger


@pytest.mark.parametrize("workers", [0, 2])
def test_a_ladder_is_trained_on_one_trunk(
    workers: int, alone: Ledger, ledger: Ledger, write: Write, tmp_path: Path
) -> None:
    """Curves, weights and layers are bit for bit those of independent runs, for about half of the steps."""
    code, said = run_here("run", write(LADDER), "--results", with_database(ledger).root, "--workers", workers)
    assert code == 0 and "10 finished" in said, said
    steps = {True: 0, False: 0}
    for trial_id in alone.trial_ids():
        assert result(ledger.trial(trial_id)) == result(alone.trial(trial_id))
        assert ledger.trial(trial_id).metrics.read_bytes() == alone.trial(trial_id).metrics.read_bytes()
        assert ledger.trial(trial_id).weights.read_bytes() == alone.trial(trial_id).weights.read_bytes()
        record = record_of(ledger.trial(trial_id))
        forked = record["forked"]
        longest = record["tokens"] == 12_800
        assert (forked is None) == longest
        assert events(ledger.trial(trial_id)) == (["start", "end"] if longest else ["fork", "resume", "end"])
        steps[False] += record["steps"]
        steps[True] += record["steps"] - (forked["step"] if forked else 0)
        if forked:
            assert record_of(ledger.trial(forked["trial"]))["tokens"] == 12_800
            assert 0 < forked["wall_s"] < record["wall_s"]
            assert own_seconds(record) == record["wall_s"] - forked["wall_s"]
    assert steps[True] <= 0.55 * steps[False]
    assert not list(ledger.root.glob("trials/*/checkpoint*.pt"))
    plan = plan_of(LADDER, tmp_path, ledger.cache.resolve())
    spent = Budgeted(GridPlanner(plan), Budget(1e18, "flops"), ledger, print).spent()
    assert spent == pytest.approx(plan.total_flops - saved_flops(plan, ()))
    own = sum(own_flops(record_of(ledger.trial(each))) or 0.0 for each in ledger.trial_ids())
    assert own == pytest.approx(spent)
    code, said = run_here("status", "ladder", "--results", ledger.root, "--json")
    taken = [own_seconds(record_of(ledger.trial(each))) or 0.0 for each in ledger.trial_ids()]
    assert json.loads(said)["hours"]["taken"] == pytest.approx(sum(taken) / 3600)
    told = (ledger.study_folder("ladder") / "report" / "report.md").read_text()
    assert "8 of 10 trials went on from the first steps of longer ones" in told
    assert "Shared first steps" not in (alone.study_folder("ladder") / "report" / "report.md").read_text()


def test_the_plan_says_what_is_not_run(tmp_path: Path, token_cache: Path, write: Write) -> None:
    plan = plan_of(LADDER, tmp_path, token_cache)
    saved = saved_flops(plan, ())
    shorter = 3200 + 4480 + 6400 + 8960
    assert saved / plan.total_flops == pytest.approx(0.8 * shorter / (shorter + 12_800), rel=0.03)
    code, said = run_here("plan", write(LADDER), "--results", tmp_path / "results")
    assert code == 0 and f"{saved / plan.total_flops:.0%} of the FLOPs to come are not run" in said
    code, said = run_here("plan", write(LADDER), "--results", tmp_path / "results", "--json")
    assert json.loads(said)["shared_flops"] == saved
    longest = [trial.id for trial in plan.trials if trial.spec.train.tokens == 12_800]
    after = saved_flops(plan, longest)  # the next longest is the trunk then
    assert after / plan.total_flops == pytest.approx(0.8 * (shorter - 8960) / (shorter + 12_800), rel=0.04)
    for other in (
        LADDER.replace("warmup: 2", "warmup: 0.1"),
        LADDER.replace("seeds: 1", "seeds: 2\nrungs: {keep: 0.5, at: [0.25]}").replace("points: 3", "points: 6"),
        LADDER + "promote: {}\n",
        LADDER + "predict: {flops: 1e12}\n",
    ):
        code, said = run_here("plan", write(other), "--results", tmp_path / "results")
        assert code == 0 and "not run" not in said, said


def test_what_has_steps_in_common() -> None:
    short, long = of_length(2560), of_length(5120)
    assert shared_steps(short, long) == 8 and shared_steps(long, short) == 8
    assert forks(short, long) == {short.trial_id: (long.trial_id, 8)}
    assert forks(short) == forks(short, short) == forks() == {}
    for other in (
        of_length(5120, lr=1e-3),
        of_length(5120, dropout=0.3),
        of_length(5120, eval_tokens=256),
        replace(long, seed=7),
        of_length(5120, schedule={**WSD, "warmup": 3}),
        of_length(5120, schedule={**WSD, "decay": 0.3}),
    ):
        assert forks(short, other) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "cosine"},
        {"schedule": {**WSD, "warmup": 0.1}},
        {"batch_ramp": 0.5},
        {"seq_warmup": 0.5},
        {"schedule": {**WSD, "warmup": 0, "decay": 0.95}},  # half a step is not worth waiting
    ],
)
def test_what_knows_its_end_from_the_beginning(settings: dict[str, Any]) -> None:
    assert forks(of_length(2560, **settings), of_length(5120, **settings)) == {}


@pytest.mark.parametrize("schedule", ["constant", {"name": "inverse_sqrt", "warmup": 2}])
def test_a_schedule_without_an_end_shares_all_but_the_last_step(
    schedule: Any, ledger: Ledger, tmp_path: Path
) -> None:
    short, long = of_length(2560, schedule=schedule), of_length(5120, schedule=schedule)
    assert forks(short, long) == {short.trial_id: (long.trial_id, 9)}
    expected = train(new_results(tmp_path / "alone", ledger.cache.resolve()), short)
    folder = plan_trial(ledger, short)
    train(ledger, long, forks=(Fork(folder.id, 9, 10),))
    assert result(train(ledger, short)) == result(expected) and events(folder) == ["fork", "resume", "end"]


def test_a_model_that_is_told_how_much_is_done_does_not_fork(ledger: Ledger) -> None:
    """Its constraints follow the share of the run."""
    settings = {"arch.sublayers": {"s": "weighted"}, "arch.order": "s"}
    short, long = (spec({**settings, "train.schedule": WSD, "train.tokens": each}) for each in (2560, 5120))
    folder = plan_trial(ledger, short)
    train(ledger, long, forks=(Fork(folder.id, 4, 10),))
    assert folder.history() == [] and not folder.checkpoint.exists()


def test_a_trunk_leaves_nothing_where_a_trial_has_begun(ledger: Ledger) -> None:
    """Nor to one that another process holds, or that has ended."""
    short, long = of_length(2560), of_length(5120)
    folder = plan_trial(ledger, short)
    with folder.locked():
        trunk = train(ledger, long, forks=(Fork(folder.id, 8, 10),))
    assert not folder.checkpoint.exists() and folder.history() == []
    checkpoint.save(folder.checkpoint, {"step": 1})
    trunk.forget_record()
    train(ledger, long, forks=(Fork(folder.id, 8, 10),))
    assert checkpoint.load(folder.checkpoint) == {"step": 1} and folder.history() == []


@pytest.mark.parametrize("where", ["write_bytes", "save", "note"])
def test_an_end_while_the_state_is_left(
    where: str, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a kill: the trunk goes on, and the trial from what is whole, or from its own first step."""

    def end(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    short, long = of_length(2560), of_length(5120)
    folder = plan_trial(ledger, short)
    note, write_bytes = TrialFolder.note, Path.write_bytes

    def end_of_fork(self: TrialFolder, event: str, **facts: object) -> None:
        (end if event == "fork" else note)(self, event, **facts)

    def end_of_curve(self: Path, content: bytes) -> int:
        if self == folder.metrics:
            end()
        return write_bytes(self, content)

    places = {"write_bytes": (Path, "write_bytes", end_of_curve), "save": (checkpoint, "save", end)}
    with monkeypatch.context() as patch:
        patch.setattr(*places.get(where, (TrialFolder, "note", end_of_fork)))
        with pytest.raises(KeyboardInterrupt):
            train(ledger, long, forks=(Fork(folder.id, 8, 10),))
    assert not folder.checkpoint.exists() and not folder.running()
    train(ledger, long, forks=(Fork(folder.id, 8, 10),))
    train(ledger, short)
    assert result(folder) == result(train(new_results(tmp_path / "alone", ledger.cache.resolve()), short))


def test_a_trunk_that_was_stopped_follows_on(ledger: Ledger, tmp_path: Path) -> None:
    """From its checkpoint, between two evaluations of the fork; one that is new to it has lost its first rows."""
    short, other, long = of_length(2560), of_length(3840), of_length(5120)
    folders = [plan_trial(ledger, each) for each in (short, other)]
    ours, theirs = (Fork(each.id, step, steps) for each, step, steps in zip(folders, (8, 12), (10, 15), strict=True))
    train(ledger, long, forks=(ours,), until=3)
    train(ledger, long, forks=(ours, theirs))
    assert events(folders[0]) == ["fork"] and folders[1].history() == []
    alone = train(new_results(tmp_path / "alone", ledger.cache.resolve()), short)
    assert train(ledger, short).metrics.read_bytes() == alone.metrics.read_bytes()
    assert result(folders[0]) == result(alone)


def test_a_fork_that_is_damaged_begins_anew(ledger: Ledger, tmp_path: Path) -> None:
    short, long = of_length(2560), of_length(5120)
    folder = plan_trial(ledger, short)
    train(ledger, long, forks=(Fork(folder.id, 8, 10),))
    content = folder.checkpoint.read_bytes()
    folder.checkpoint.write_bytes(content[:-100] + b"x" + content[-99:])
    train(ledger, short)
    assert events(folder) == ["fork", "start", "end"] and record_of(folder)["forked"] is None
    assert result(folder) == result(train(new_results(tmp_path / "alone", ledger.cache.resolve()), short))


def test_how_long_it_trains_is_the_only_difference(ledger: Ledger) -> None:
    """So that a new setting of a trial is never taken for none: all of the identity counts but the length."""
    short, long = of_length(2560), of_length(5120)
    one, two = canonical(short), canonical(long)
    differ = [key for key in one["train"] if one["train"][key] != two["train"][key]]
    assert differ == ["tokens"] and {**one, "train": 0} == {**two, "train": 0}
