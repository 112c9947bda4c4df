"""SIGKILL in the middle, with the local executor: the same command goes on, to the same numbers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import (
    LONG,
    Command,
    curves,
    events,
    in_the_middle,
    new_results,
    run_here,
    trainer,
    undisturbed,
    with_database,
)

from ablate.run.ledger import Ledger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    return undisturbed(LONG, tmp_path_factory.mktemp("long"), token_cache)


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


def test_a_killed_driver(ledger: Ledger, expected: Ledger, write: Callable[..., Path]) -> None:
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
    left = [each for each in expected.trial_ids() if each not in done]
    assert done and left
    assert {ledger.trial(each).status() for each in left} == {"pending"}
    written = {each: (ledger.trial(each).folder / "record.json").stat().st_mtime_ns for each in done}
    resumable = [each for each in left if ledger.trial(each).checkpoint.exists()]
    assert resumable

    code, said = run_here(*command)
    assert code == 0 and f"trained {len(left)}, reused {len(done)}: 4 finished" in said
    assert_as_undisturbed(ledger, expected)
    for trial_id, time_ns in written.items():
        assert (ledger.trial(trial_id).folder / "record.json").stat().st_mtime_ns == time_ns
        assert events(ledger.trial(trial_id)) == ["start", "end"]
    for trial_id in resumable:
        assert events(ledger.trial(trial_id)) == ["start", "resume", "end"]


def test_a_killed_worker(ledger: Ledger, expected: Ledger, write: Callable[..., Path]) -> None:
    """The command itself goes on: another worker resumes the trial."""
    grid = write(LONG)
    command = ("run", grid, "--results", ledger.root, "--workers", 2, "--checkpoint-every", 0.1)
    with Command(grid.parent, *command) as driver:
        (hit, *_) = driver.wait_for(lambda: in_the_middle(ledger), "a record and a checkpoint")
        worker = trainer(hit)
        assert worker != driver.process.pid and worker in driver.alive()
        os.kill(worker, signal.SIGKILL)
        assert driver.wait() == 0, driver.output()
        driver.wait_until_alone()
        said = driver.output()
    assert "trained 4, reused 0: 4 finished" in said and "Traceback" not in said
    assert events(hit) == ["start", "lost", "resume", "end"]
    (lost,) = [each for each in hit.history() if each["event"] == "lost"]
    assert lost["by"] == "SIGKILL"
    assert trainer(hit) != worker
    assert_as_undisturbed(ledger, expected)


def test_a_killed_idle_worker(ledger: Ledger, write: Callable[..., Path]) -> None:
    """A worker that dies between two trials costs none: while one trial takes both CPUs, the other worker waits."""
    variants = "  plain: {}\n  both: {train.tokens: 25_600, resources.cpus: 2}\n"
    short = LONG.replace("tokens: 51_200", "tokens: 12_800").replace("  plain: {}\n  rope: rope\n", variants)
    grid = write(short + "match: none\n")
    with Command(grid.parent, "run", grid, "--results", ledger.root, "--workers", 2) as driver:

        def one_has_begun() -> list[int]:
            found = [ledger.trial(each) for each in ledger.trial_ids()]
            return [trainer(each) for each in found if len(each.rows()) > 5]

        (busy,) = driver.wait_for(one_has_begun, "a trial that has begun")
        siblings = [pid for pid, name in driver.alive().items() if parent_of(pid) == parent_of(busy) and pid != busy]
        (idle,) = siblings
        os.kill(idle, signal.SIGKILL)
        assert driver.wait() == 0, driver.output()
        driver.wait_until_alone()
        assert "trained 4, reused 0: 4 finished" in driver.output() and "Traceback" not in driver.output()
    assert all(events(ledger.trial(each)) == ["start", "end"] for each in ledger.trial_ids())


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
