"""Trials share a memory as far as it goes, GPUs and RAM alike; one that was crowded out is tried once alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY
from rich.console import Console
from runs import FAULTS, events, faulty, job, new_results, own_registry, plan_of, run_here, spec, with_database

from ablate import registry
from ablate.planview import memory_bytes
from ablate.run import memory
from ablate.run.ledger import Ledger
from ablate.run.local import LocalExecutor
from ablate.run.memory import CAUTION, Needs, Room
from ablate.run.places import Place, Places
from ablate.run.speeds import Speeds
from ablate.run.study import StudyRun
from ablate.spec import Resources, to_tree
from ablate.train.job import Job
from ablate.train.trial import plan_trial

Write = Callable[..., Path]
GPU = Resources(gpus=1.0)

CROWDED = '''

import torch
from pathlib import Path


@register("norm", "crowded", paper="made up")
class Crowded(Passing):
    """Runs out of memory, the first time."""

    def fault(self):
        mark = Path(__file__).with_name("tried")
        if not mark.exists():
            mark.touch()
            raise torch.OutOfMemoryError("CUDA out of memory")


@register("norm", "large", paper="made up")
class Large(Passing):
    """Runs out of memory."""

    def fault(self):
        raise torch.OutOfMemoryError("CUDA out of memory")
'''


def of(name: str, need: float = 0.0) -> Job:
    return Job(name, "nowhere", memory_bytes=need)


def test_a_room_holds_what_fits_in_nine_tenths_of_it() -> None:
    """What is free is asked while it is empty; alone every trial is tried."""
    free = [100.0]
    room = Room(lambda: free[0], most=3)
    assert room.fits(1000)
    room.take("a", 40)
    free[0] = 0.0  # it has begun to fill
    assert room.fits(50) and not room.fits(51)
    room.take("b", 10)
    room.take("c", 10)
    assert not room.fits(1)  # three at most
    room.leave("c")
    assert room.fits(40) and not room.fits(41)


def test_gpus_are_shared_by_memory_with_pack_and_by_share_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", {0: 100.0, 1: 50.0}.get)
    packed = Places(9, 2, pack=8)
    held = [packed.take(of(name, need), GPU) for name, need in (("a", 60.0), ("b", 30.0), ("c", 40.0))]
    assert [place.gpu for place in held] == [0, 0, 1]
    assert not packed.fits(of("d", 10.0), GPU)
    packed.alone.add("e")
    packed.leave(of("c"))
    assert packed.fits(of("e", 1.0), GPU)
    packed.take(of("e", 1.0), GPU)
    assert not packed.fits(of("d", 1.0), GPU)  # the one that was crowded keeps its GPU to itself
    alone = Places(9, 1)
    alone.take(of("a"), GPU)
    assert not alone.fits(of("b"), GPU)
    halves = Places(9, 1)
    halves.take(of("a"), Resources(gpus=0.5))
    assert halves.fits(of("b"), Resources(gpus=0.5)) and not halves.fits(of("b"), GPU)


@pytest.mark.parametrize(("need", "beside"), [(60.0, 1), (45.0, 2)])
def test_no_trial_begins_before_its_memory_is_free(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, need: float, beside: int
) -> None:
    """RAM of 100: of trials that need 60 one at a time runs, of those that need 45 two of three do."""
    monkeypatch.setattr(memory, "free_ram", lambda: 100.0)
    most = []
    take = Places.take

    def counted(places: Places, *work: object) -> Place:
        place = take(places, *work)  # type: ignore[arg-type]
        most.append(len(places.held))
        return place

    monkeypatch.setattr(Places, "take", counted)
    jobs = [(replace(job(ledger, spec(seed=seed)), memory_bytes=need), Resources()) for seed in range(3)]
    LocalExecutor(3).run(jobs, lambda _: None, threading.Event())
    assert max(most) == beside and all(ledger.trial(each).status() == "finished" for each in ledger.trial_ids())


def test_needs_are_those_of_trials_alike(tmp_path: Path, token_cache: Path, ledger: Ledger) -> None:
    """Whatever their seed; twice the plan's estimate where there are none."""
    plan = plan_of(TINY, tmp_path, token_cache)
    first, other, rope, *_ = plan.trials
    needs = Needs(ledger)
    assert needs.of(first) == CAUTION * memory_bytes(first.row)
    record = {"id": other.id, "status": "finished", "metrics": {}, "wall_s": 1.0, "peak_memory_bytes": 12345}
    record |= {"spec": to_tree(other.spec), "environment": {"device": "cpu"}}
    ledger.trial(other.id).commit(record)
    needs.refresh()
    odd = plan_trial(ledger, spec(seed=9))  # a record that can be read, and does not say what it trained
    odd.commit(record | {"id": odd.id, "spec": {"train": 3}, "train_flops": 1.0})
    needs.refresh()
    Speeds(ledger).refresh()
    assert needs.of(first) == 12345.0 and needs.of(rope) == CAUTION * memory_bytes(rope.row)


@pytest.mark.slow
@pytest.mark.parametrize("pack", [2, 1])
def test_a_trial_that_was_crowded_out_is_tried_once_alone(
    tmp_path: Path, token_cache: Path, write: Write, monkeypatch: pytest.MonkeyPatch, pack: int
) -> None:
    """One that has run out of memory beside another; alone, or alone again, it fails. (The GPU is made up.)"""
    for entry in registry.catalogue():
        registry.load(entry)  # else `own_registry` forgets them
    monkeypatch.setattr(Place, "device", "cpu")
    monkeypatch.setattr(memory, "free_memory", lambda gpu: 1e15)
    ledger = with_database(new_results(tmp_path / "results", token_cache))
    text = TINY.replace("seeds: 2", "seeds: 1").replace("lr: 3e-3", "lr: 3e-3, precision: fp32")
    with own_registry():
        write(FAULTS + CROWDED, "faults.py")
        plan = plan_of(faulty(text, "crowded", "large"), tmp_path, token_cache)
        executor = LocalExecutor(3, gpus=1, pack=pack)
        run = StudyRun(ledger, plan, executor, Console(quiet=True), checkpoint_every_s=1e9)
        monkeypatch.setattr(run, "_needs", lambda trial: GPU)
        outcome = run.run(f"sqlite:///{ledger.root / 'mlflow.db'}")
    status = {trial.row.variant: outcome.statuses[trial.id] for trial in plan.trials}
    notes = {trial.row.variant: events(ledger.trial(trial.id)) for trial in plan.trials}
    if pack == 1:
        assert status == {"plain": "finished", "crowded": "finished", "large": "failed"}  # in pieces, as it is alone
        assert notes["crowded"] == ["start", "oom", "start", "end"] and notes["large"] == ["start", "end"]
        return
    assert status == {"plain": "finished", "crowded": "finished", "large": "failed"}
    assert notes["crowded"].count("crowded") == notes["large"].count("crowded") == 1
    assert notes["large"] == ["start", "end", "crowded", "start", "end"]
    assert sorted(outcome.trained) == sorted(trial.id for trial in plan.trials)


def test_nothing_to_pack_on(ledger: Ledger, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    code, said = run_here("run", write(TINY), "--results", ledger.root, "--pack")
    assert code == 2 and "--pack 8: this machine has no GPU to share" in said
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    code, said = run_here("run", write(TINY), "--results", ledger.root, "--pack", "--cohorts", 2)
    assert code == 2 and "--cohorts 2 and --pack are two ways to fill a GPU: leave one out" in said
