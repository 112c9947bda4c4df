"""Leases: a trial is trained by one process, however many drivers and machines share a results folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from runs import LONG, Command, events, job, run_here, spec, train, wait_for, with_database

from ablate.run import lease
from ablate.run.files import append_json, read_json, write_json
from ablate.run.lease import Busy, Holder, Lost, held, holder
from ablate.run.ledger import Ledger
from ablate.run.worker import work
from ablate.train.trial import run_trial
from analysis.records import read_lines

DAY = 86_400.0
DIE_HOLDING = """
import os, signal, sys
from pathlib import Path
from ablate.run.lease import held
with held(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's lock says nothing, as between machines; leases are stale after a part of a second."""
    monkeypatch.setattr(lease, "_lock", lambda stream, kind: False)
    monkeypatch.setattr(lease, "STALE_S", 0.5)
    monkeypatch.setattr(lease, "RENEW_S", 0.05)


def leave(folder: Path, number: int = 1, age_s: float = 0.0) -> Path:
    """The lease of a process on another machine, last renewed so long ago."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()
    file = folder / f"lease.{number}.json"
    who = {"host": "faraway", "pid": 77, "when": time.time(), "machine": "another kernel", "token": "t"}
    file.write_text(json.dumps(who))
    touched = file.stat().st_mtime - age_s
    os.utime(file, (touched, touched))
    return file


@contextmanager
def renewed(file: Path) -> Iterator[None]:
    """Its holder lives: by a clock that is a day ahead at one moment and a day behind at the next."""
    end = threading.Event()

    def renew(jump: float) -> None:
        touched = time.monotonic() + 1e9 + jump
        os.utime(file, (touched, touched))

    def live() -> None:
        jump = DAY
        while not end.wait(0.2):
            jump = -jump
            renew(jump)

    renew(DAY)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


# ---- who has it


def test_a_lease_is_held_by_one_and_gone_afterwards(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with held(tmp_path) as mine:
        mine.check()
        who = holder(tmp_path)
        assert who is not None and who.pid == os.getpid() and who.host == os.uname().nodename
        with pytest.raises(Busy, match=rf"is held by {who.host} [(]pid {who.pid}[)] since "), held(tmp_path):
            pass
    assert holder(tmp_path) is None and {each.name for each in tmp_path.iterdir()} == {"lock"}


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    died = subprocess.run([sys.executable, "-c", DIE_HOLDING, str(tmp_path)], env=env, check=False)
    assert died.returncode == -signal.SIGKILL and (tmp_path / "lease.1.json").is_file()
    assert holder(tmp_path) is None

    def never(file: Path) -> bool:
        raise AssertionError("it was waited for")

    monkeypatch.setattr(lease, "_abandoned", never)
    with held(tmp_path) as mine:
        mine.check()
        assert [each.name for each in tmp_path.glob("lease.*")] == ["lease.2.json"]


def test_a_lease_of_another_machine_counts_while_it_is_renewed(tmp_path: Path) -> None:
    """Though the kernel's lock is free here."""
    leave(tmp_path)
    assert holder(tmp_path) == Holder(**json.loads((tmp_path / "lease.1.json").read_text()))
    with pytest.raises(Busy, match=r"faraway [(]pid 77[)]"), held(tmp_path):
        pass
    leave(tmp_path, age_s=lease.STALE_S + 60)
    assert holder(tmp_path) is None


def test_a_stale_lease_is_taken_over_by_exactly_one(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight see at the same moment that it is stale, and none of them sees the kernel's lock."""
    together, look = threading.Barrier(8, timeout=60), lease._abandoned

    def at_once(file: Path) -> bool:
        found = look(file)
        together.wait()
        return found

    monkeypatch.setattr(lease, "_abandoned", at_once)
    for number in range(1, 6):
        folder = tmp_path / str(number)
        leave(folder, number, age_s=60)
        done = threading.Barrier(8, timeout=60)

        def take(folder: Path = folder, done: threading.Barrier = done) -> str:
            try:
                with held(folder) as mine:
                    done.wait()
                    mine.check()
                    return mine.file.name
            except Lost:
                raise
            except Busy:
                done.wait()
                return ""

        with ThreadPoolExecutor(8) as pool:
            taken = [each.result() for each in [pool.submit(take) for _ in range(8)]]
        assert sorted(taken) == [""] * 7 + [f"lease.{number + 1}.json"]


def test_a_clock_that_jumps_by_a_day_changes_nothing(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either direction, on this machine or the holder's: whoever renews keeps it, whoever does not loses it."""
    monkeypatch.setattr(lease, "RENEW_S", 1.0)
    there, now = leave(tmp_path / "there"), time.time
    with held(tmp_path / "here") as mine, renewed(there):
        for jump in (DAY, -DAY):
            monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
            with pytest.raises(Busy), held(tmp_path / "there"):
                pass
            with pytest.raises(Busy), held(tmp_path / "here"):
                pass
            mine.check()
    for jump in (DAY, -DAY):
        dead = leave(tmp_path / f"dead {jump}", age_s=jump)
        with held(dead.parent) as taken:
            taken.check()


def test_a_holder_that_wakes_up_as_it_is_taken_over_keeps_it(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 60)  # it slept: nobody renews
    with held(tmp_path) as mine:

        def wakes(file: Path) -> bool:
            mine.check()
            return True

        monkeypatch.setattr(lease, "_abandoned", wakes)
        with pytest.raises(Busy), held(tmp_path):
            pass
        mine.check()


def test_a_holder_that_was_taken_over_knows_it(tmp_path: Path, elsewhere: None) -> None:
    """Even where the next holders have come and gone, and one has its number."""
    with held(tmp_path) as mine:
        leave(tmp_path, 2)
        with pytest.raises(Lost, match="taken over by faraway"):
            mine.check()
        (tmp_path / "lease.2.json").unlink()
        leave(tmp_path, 1)
        with pytest.raises(Lost):
            mine.check()
    assert (tmp_path / "lease.1.json").is_file()  # it is not its own to remove


# ---- trials


@pytest.mark.parametrize("ending", ["going on", "asked to stop"])
def test_a_trainer_whose_trial_was_taken_over_writes_nothing_more(
    ending: str, ledger: Ledger, other_ledger: Ledger, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ledger.trial(spec().trial_id)
    monkeypatch.setattr(lease, "RENEW_S", 60)
    under_way = work(job(ledger, spec(), progress_every_s=0))
    for _ in range(5):
        next(under_way)
    (file,) = folder.folder.glob("lease.*")
    os.utime(file, (1, 1))  # the machine slept
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with held(folder.folder):
        before = {each: each.read_bytes() for each in folder.folder.iterdir()}
        if ending == "going on":
            last = [*under_way][-1]
            assert last.keys() == {"id", "busy"} and f"pid {os.getpid()}" in last["busy"]
        else:
            under_way.close()
        assert {each: each.read_bytes() for each in folder.folder.iterdir()} == before
    train(ledger, spec())
    assert folder.metrics.read_bytes() == train(other_ledger, spec()).metrics.read_bytes()


def test_a_trial_that_another_machine_trains_is_running(ledger: Ledger) -> None:
    request = job(ledger, spec())
    folder = ledger.trial(spec().trial_id)
    leave(folder.folder)
    assert folder.status() == "running"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ablate.run.ledger.LOCK_PATIENCE_S", 0.0)
        with pytest.raises(Busy, match=rf"trial {folder.id} is being trained by faraway [(]pid 77[)]"):
            next(run_trial(request))
    assert not folder.attempts.exists()


# ---- drivers


@pytest.mark.slow
def test_two_drivers_share_trials_and_train_each_once(
    ledger: Ledger, undisturbed_long: Ledger, write: Callable[..., Path]
) -> None:
    """A third one, at a study that has its driver, is sent away by name."""
    with_database(ledger)
    one = write(LONG.replace("study: long", "study: one"), "one.yaml")
    two = write(LONG.replace("study: long", "study: two"), "two.yaml")
    options = ("--results", ledger.root, "--workers", 1)
    with Command(one.parent, "run", one, *options) as first, Command(two.parent, "run", two, *options) as second:
        first.wait_for(lambda: holder(ledger.study_folder("one")), "the lease of its study")
        code, said = run_here("run", one, *options)
        assert code == 2 and f"(pid {first.process.pid}) since " in said and "is at study 'one'" in said
        assert (first.wait(), second.wait()) == (0, 0), first.output() + second.output()
    logs = [read_lines(ledger.study_folder(name) / "log.jsonl") for name in ("one", "two")]
    assert [len(each) for each in logs] == [1, 1]
    trained = [each[0]["trained"] for each in logs]
    assert sorted(trained[0] + trained[1]) == undisturbed_long.trial_ids()
    for (log,) in logs:
        assert sorted(log["trained"] + log["reused"]) == undisturbed_long.trial_ids()
    for trial_id in undisturbed_long.trial_ids():
        assert events(ledger.trial(trial_id)) == ["start", "end"]
        assert ledger.trial(trial_id).metrics.read_bytes() == undisturbed_long.trial(trial_id).metrics.read_bytes()


def test_a_trial_that_another_run_holds_is_waited_for(
    ledger: Ledger, other_ledger: Ledger, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its record, which is reused; or until the lease is stale, and then it is trained here."""
    from conftest import TINY
    from runs import plan_of, run_study

    from ablate.run import study

    monkeypatch.setattr("ablate.run.ledger.LOCK_PATIENCE_S", 0.0)
    monkeypatch.setattr(study, "ASK_AGAIN_S", 0.05)
    plan = plan_of(TINY.replace("seeds: 2", "seeds: 1"), write("").parent, ledger.cache)
    one, two = (ledger.trial(trial.id) for trial in plan.trials)
    for each in (one, two):
        leave(each.folder)
    end = threading.Thread(target=_end_elsewhere, args=(ledger, other_ledger, plan.trials[0].spec, two.folder))
    end.start()
    outcome = run_study(plan, ledger)
    end.join()
    assert (outcome.reused, outcome.trained, outcome.exit_code) == ([one.id], [two.id], 0)
    assert events(one) == [] and events(two) == ["start", "end"]


def _end_elsewhere(ledger: Ledger, scratch: Ledger, trial: Any, stale: Path) -> None:
    record = train(scratch, trial).record()
    folder = ledger.trial(trial.trial_id)
    assert record is not None
    write_json(folder.folder / "record.json", record)
    (folder.folder / "lease.1.json").unlink()
    (stale / "lease.1.json").unlink()


def _write_all(root: str, mine: int, jobs: list[Any]) -> None:
    """One of many drivers: trains what it can get of the same trials, and writes to the same study and log."""
    import ablate.run.ledger

    ablate.run.ledger.LOCK_PATIENCE_S = 0.0
    ledger = Ledger(Path(root))
    study = ledger.study_folder("shared")
    left = jobs[mine:] + jobs[:mine]
    while left:
        for each in left:
            for _ in work(each):
                pass
            append_json(study / "log.jsonl", {"by": mine, "trained": [each.trial_id] * 200})
            write_json(study / "study.json", {"by": mine, "rows": [mine] * 2000})
        left = [each for each in left if ledger.trial(each.trial_id).record() is None]


@pytest.mark.slow
def test_eight_processes_write_one_ledger(ledger: Ledger, other_ledger: Ledger) -> None:
    """No file is torn, no line is lost, every trial is trained once."""
    jobs = [job(ledger, spec(seed=seed)) for seed in range(10)]
    study = ledger.study_folder("shared")
    write_json(study / "study.json", {"by": 0, "rows": [0] * 2000})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ablate.run.preload"])
    writers = [context.Process(target=_write_all, args=(str(ledger.root), mine, jobs)) for mine in range(8)]
    for each in writers:
        each.start()

    def ended() -> bool:
        tree = read_json(study / "study.json")
        assert tree is not None and tree["rows"] == [tree["by"]] * 2000
        return not any(each.is_alive() for each in writers)

    wait_for(ended, "the end of the writers")
    assert [each.exitcode for each in writers] == [0] * 8
    lines = (study / "log.jsonl").read_bytes().splitlines()
    assert len(lines) == len(read_lines(study / "log.jsonl")) >= 80
    for each in jobs:
        folder = ledger.trial(each.trial_id)
        assert events(folder) == ["start", "end"] and folder.status() == "finished"
        assert not [*folder.folder.glob("lease.*")]
    folder = train(other_ledger, spec(seed=3))
    assert ledger.trial(folder.id).metrics.read_bytes() == folder.metrics.read_bytes()
