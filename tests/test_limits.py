"""Trials that hang, die or run out of something: the driver ends them, records them, and the rest goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY
from runs import FAULTS, Command, events, faulty, job, new_results, own_registry, run_here, spec, with_database

from ablate import registry
from ablate.run import limits
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.limits import attempts_s
from ablate.run.local import LocalExecutor
from ablate.spec import Resources
from ablate.train.job import Event

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

Write = Callable[..., Path]

HANGS = '''

import ctypes
import subprocess


@register("norm", "hangs", paper="made up")
class Hangs(Passing):
    """Starts a process, and then sleeps for ever with the interpreter's lock held: no thread of its process runs."""

    def fault(self):
        subprocess.Popen(["sleep", "1234"])
        ctypes.PyDLL(None).sleep(5678)


@register("norm", "leaves", paper="made up")
class Leaves(Passing):
    """Leaves the interpreter."""

    def fault(self):
        raise SystemExit(5)


@register("norm", "fills", paper="made up")
class Fills(Passing):
    """Asks for more memory than there is."""

    def fault(self):
        raise MemoryError("8 TB")


@register("norm", "spoils", paper="made up")
class Spoils(Passing):
    """Returns what is no number."""

    def forward(self, x):
        return x * float("nan") if self.training and x.device.type != "meta" else x
'''
ERRORS = {  # of what every executor can record
    "raises": "RuntimeError: the norm [/is upset]",
    "reads": "FileNotFoundError: [Errno 2] No such file or directory: 'no such table'",
    "leaves": "SystemExit: 5",
    "fills": "out of memory: smaller pieces of a batch would be another experiment: they could not be compared with "
    "the whole, by MemoryError: 8 TB (8 TB)",
}
DEADLY = {  # of what a worker process of its own can record besides
    "exits": "lost: its worker died 3 times, last by exit code 7",
    "dies": "lost: its worker died 3 times, last by SIGKILL",
    "hangs": "time limit: 0.005 h",
}
ONE_SEED = ("--set", "seeds=[1]", "--set", "match=params")


@pytest.fixture(autouse=True, scope="module")
def _components_are_loaded() -> None:
    """A registry of a test's own forgets the classes that were first imported meanwhile."""
    for entry in registry.catalogue():
        registry.load(entry)


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    return with_database(new_results(tmp_path / "results", token_cache))


def grid_of(write: Write, *norms: str) -> Path:
    """TINY with the variants `plain` and these."""
    write(FAULTS + HANGS, "faults.py")
    return write(faulty(TINY, *norms))


def asleep(driver: Command) -> list[int]:
    return [pid for pid, name in driver.alive().items() if name == "sleep 1234"]


def test_a_hung_trial_does_not_outlive_its_driver(ledger: Ledger, write: Write) -> None:
    """Nor does what it has started."""
    with Command(ledger.root.parent, "run", grid_of(write, "hangs"), "--results", ledger.root, *ONE_SEED) as driver:
        driver.wait_for(lambda: asleep(driver), "a trial that hangs")
        os.kill(driver.process.pid, signal.SIGKILL)
        driver.wait_until_alone()


def test_what_a_dead_trial_has_started_goes_with_it(ledger: Ledger, write: Write) -> None:
    """The hung worker is killed three times, as a kernel short of memory would, and given up: no process is left."""
    with Command(ledger.root.parent, "run", grid_of(write, "hangs"), "--results", ledger.root, *ONE_SEED) as driver:
        for _ in range(3):
            (pid, *_) = driver.wait_for(lambda: asleep(driver), "a trial that hangs")
            os.kill(os.getpgid(pid), signal.SIGKILL)
            driver.wait_for(lambda gone=pid: gone not in driver.alive(), "the end of what it had started")
        assert driver.wait() == 1, driver.output()
        driver.wait_until_alone()
    assert "1 finished, 1 failed" in driver.output()
    (hung,) = [each for each in map(ledger.trial, ledger.trial_ids()) if each.status() == "failed"]
    assert (hung.record() or {})["error"] == "lost: its worker died 3 times, last by SIGKILL"
    assert events(hung) == ["start", "lost", "start", "lost", "start", "end"]


def failed(ledger: Ledger) -> TrialFolder:
    (found,) = [each for each in map(ledger.trial, ledger.trial_ids()) if each.status() == "failed"]
    return found


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_hung_trial_is_ended_at_its_time_limit(
    ledger: Ledger, write: Write, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """It cannot leave a checkpoint: it is killed, with its group. The others finish; tried again it fails again."""
    monkeypatch.setattr(limits, "STOP_PATIENCE_S", 0.5)
    grid = grid_of(write, "hangs")
    grid.write_text(grid.read_text().replace("{arch.norm: hangs}", "{arch.norm: hangs, resources.hours: 0.005}"))
    command = ("run", grid, "--results", ledger.root, "--workers", 2, "--executor", executor, *ONE_SEED)
    with own_registry():
        code, said = run_here(*command)
        hung = failed(ledger)
        assert code == 1 and "trained 2, reused 0: 1 finished, 1 failed" in said and "time limit: 0.005 h" in said
        assert (hung.record() or {})["error"] == "time limit: 0.005 h"
        assert events(hung).count("end") == 1
        if executor == "local":
            code, said = run_here(*command, "--retry-failed")
            assert code == 1, said
            assert events(hung).count("end") == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_trial_goes_on_from_where_its_time_ended(ledger: Ledger, workers: int) -> None:
    """Nothing of what was trained is lost; the hours begin anew once it has been recorded."""
    slow = spec({"train.tokens": 64 * 4000, "train.eval_points": 200})
    ended: list[Event] = []

    def run(**settings: float) -> str | None:
        begun = job(ledger, slow, progress_every_s=0, **settings)
        LocalExecutor(workers).run([(begun, Resources())], ended.append, threading.Event())
        return str(ended[-1].get("status"))

    folder = ledger.trial(slow.trial_id)
    assert run(hours=0.1 / 3600) == "failed" and ended[-1]["error"].startswith("time limit: ")
    assert folder.checkpoint.exists() and attempts_s(folder, since_end=True) == []
    assert len(attempts_s(folder)) == 1
    folder.forget_record()
    assert run(hours=1.0) == "finished"
    assert events(folder) == ["start", "stop", "end", "resume", "end"]
    reached = [each.get("step") for each in folder.history() if each["event"] == "resume"]
    assert reached[0] and len(folder.rows()) == len({(row["split"], row["step"]) for row in folder.rows()})


def test_attempts_are_counted_until_the_last_write(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an attempt whose driver was killed there is no end; one that was lost counts to its loss."""
    folder = ledger.trial("a" * 12)
    folder.folder.mkdir(parents=True)
    for now, event in ((100.0, "start"), (130.0, "lost"), (500.0, "resume")):
        monkeypatch.setattr("ablate.run.ledger.time.time", lambda now=now: now)
        folder.note(event)
    assert attempts_s(folder) == [30.0, 0.0]
    folder.metrics.touch()
    os.utime(folder.metrics, (507.0, 507.0))
    assert attempts_s(folder) == [30.0, 7.0]


def test_seconds_of_a_cohort_are_shared(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """By those that it began with, for the attempt that it was."""
    folder = ledger.trial("b" * 12)
    folder.folder.mkdir(parents=True)
    for now, event, more in (
        (100.0, "start", {}),
        (101.0, "cohort", {"of": ["a", "b", "c", "d"]}),
        (140.0, "stop", {}),
        (200.0, "resume", {}),
        (205.0, "end", {}),
    ):
        monkeypatch.setattr("ablate.run.ledger.time.time", lambda now=now: now)
        folder.note(event, **more)
    assert attempts_s(folder) == [10.0, 5.0]


@pytest.mark.parametrize(
    ("executor", "workers"), [("local", 0), ("local", 2), pytest.param("ray", 2, marks=pytest.mark.ray)]
)
def test_whatever_a_trial_does_is_recorded_and_the_rest_goes_on(
    ledger: Ledger, write: Write, monkeypatch: pytest.MonkeyPatch, executor: str, workers: int
) -> None:
    """Without workers a trial that ends its process ends the command, as its help says; all else is its own."""
    monkeypatch.setattr(limits, "STOP_PATIENCE_S", 0.5)
    expected = ERRORS | DEADLY if workers else ERRORS
    grid = grid_of(write, *expected, "spoils")
    grid.write_text(grid.read_text().replace("{arch.norm: hangs}", "{arch.norm: hangs, resources.hours: 0.005}"))
    command = ("run", grid, "--results", ledger.root, "--workers", workers, "--executor", executor, *ONE_SEED)
    with own_registry():
        code, said = run_here(*command)
        names = {trial["id"]: trial["variant"] for trial in ledger.study("tiny")["trials"]}
        records = {names[each]: ledger.trial(each).record() or {} for each in names}
        assert code == 1, said
        assert {name: records[name].get("error") for name in expected} == expected
        assert records["plain"]["status"] == "finished" and records["spoils"]["status"] == "diverged"
        assert f"1 finished, 1 diverged, {len(expected)} failed" in said and "Traceback" not in said
        if executor == "local" and workers:
            code, said = run_here(*command, "--retry-failed")
            assert code == 1 and f"trained {len(expected)}, reused 2" in said
            for trial_id, name in names.items():
                notes = events(ledger.trial(trial_id))
                assert notes.count("end") == (2 if name in expected else 1)
                assert notes.count("lost") == (4 if name in ("exits", "dies") else 0)
