"""SIGKILL in the middle, with the local executor: the same command goes on, to the same numbers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from runs import (
    LONG,
    Command,
    curves,
    events,
    in_the_middle,
    job,
    new_results,
    run_here,
    spec,
    trainer,
    wait_for,
    with_database,
)

from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.local import LocalExecutor
from ablate.spec import Resources
from ablate.train.job import Event

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    return with_database(new_results(tmp_path / "results", token_cache))


def assert_as_undisturbed(ledger: Ledger, expected: Ledger) -> None:
    """Every curve is the same, byte for byte (so no row is doubled), and so is what the records say of the result."""
    assert curves(ledger) == curves(expected)
    for trial_id in expected.trial_ids():
        ours, theirs = ledger.trial(trial_id).record(), expected.trial(trial_id).record()
        assert ours is not None and theirs is not None
        for key in ("status", "metrics", "spec", "params_total", "train_flops", "tokens", "steps"):
            assert ours[key] == theirs[key]
        assert ledger.trial(trial_id).weights.read_bytes() == expected.trial(trial_id).weights.read_bytes()


def test_a_killed_driver(ledger: Ledger, undisturbed_long: Ledger, write: Callable[..., Path]) -> None:
    """Its workers notice and leave; what was done is kept, what was under way is resumed."""
    grid = write(LONG)
    command = ("run", grid, "--results", ledger.root, "--workers", 2, "--checkpoint-every", 0.1)
    with Command(grid.parent, *command) as driver:
        driver.wait_for(lambda: in_the_middle(ledger), "a record and a checkpoint")
        trainers = {trainer(each) for each in in_the_middle(ledger)}
        assert trainers <= driver.alive().keys() - {driver.process.pid}
        os.kill(driver.process.pid, signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
        driver.wait_until_alone()
    done = {each for each in ledger.trial_ids() if ledger.trial(each).record()}
    left = [each for each in undisturbed_long.trial_ids() if each not in done]
    assert done and left
    assert {ledger.trial(each).status() for each in left} == {"pending"}
    written = {each: (ledger.trial(each).folder / "record.json").stat().st_mtime_ns for each in done}
    resumable = [each for each in left if ledger.trial(each).checkpoint.exists()]
    assert resumable

    code, said = run_here(*command)
    assert code == 0 and f"trained {len(left)}, reused {len(done)}: 4 finished" in said
    assert_as_undisturbed(ledger, undisturbed_long)
    for trial_id, time_ns in written.items():
        assert (ledger.trial(trial_id).folder / "record.json").stat().st_mtime_ns == time_ns
        assert events(ledger.trial(trial_id)) == ["start", "end"]
    for trial_id in resumable:
        assert events(ledger.trial(trial_id)) == ["start", "resume", "end"]


def test_a_killed_worker(ledger: Ledger, undisturbed_long: Ledger, write: Callable[..., Path]) -> None:
    """The command goes on: another worker resumes the trial."""

    def kill() -> tuple[TrialFolder, int]:
        (hit, *_) = wait_for(lambda: in_the_middle(ledger), "a record and a checkpoint")
        worker = trainer(hit)
        assert worker != os.getpid()
        os.kill(worker, signal.SIGKILL)
        return hit, worker

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        command = ("run", write(LONG), "--results", ledger.root, "--workers", 2, "--checkpoint-every", 0.1)
        code, said = run_here(*command)
        hit, worker = killed.result()
    assert code == 0 and "trained 4, reused 0: 4 finished" in said
    assert events(hit) == ["start", "lost", "resume", "end"] and trainer(hit) != worker
    (lost,) = [each for each in hit.history() if each["event"] == "lost"]
    assert lost["by"] == "SIGKILL"
    assert_as_undisturbed(ledger, undisturbed_long)
    assert multiprocessing.active_children() == []


def test_a_killed_idle_worker(ledger: Ledger) -> None:
    """While one trial takes both CPUs the other worker waits; that it dies then costs no trial anything."""
    first = spec({"train.tokens": 64 * 100})
    jobs = [(job(ledger, first, progress_every_s=0), Resources(cpus=2))]
    jobs += [(job(ledger, spec(seed=seed)), Resources()) for seed in (1, 2, 3)]
    killed, ended = [], []

    def on_event(event: Event) -> None:
        if not killed:
            busy = trainer(ledger.trial(first.trial_id))
            killed.extend(each.pid for each in multiprocessing.active_children() if each.pid != busy)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        if "status" in event:
            ended.append(event["status"])

    LocalExecutor(2).run(jobs, on_event, threading.Event())
    assert len(killed) == 1 and ended == ["finished"] * 4
    assert all(events(ledger.trial(each)) == ["start", "end"] for each in ledger.trial_ids())
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("error", "told"), [("EOFError", False), ("ValueError('x')", True)])
def test_a_server_without_a_driver_says_nothing(error: str, told: bool) -> None:
    """Of that alone: the driver was killed while it asked for a worker."""
    code = f"import ablate.run.preload; raise {error}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ("Traceback" in found.stderr) == told
