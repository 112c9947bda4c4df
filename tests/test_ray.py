"""The Ray executor: the same results as the local one, whatever is killed, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from runs import (
    FAULTS,
    LADDER,
    LONG,
    Command,
    curves,
    events,
    faulty,
    in_the_middle,
    new_results,
    own_registry,
    run_here,
    trainer,
    under_way,
    undisturbed,
    with_database,
)

from ablate.run import ray_executor
from ablate.run.ledger import Ledger

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

Write = Callable[..., Path]
VOLATILE = ("wall_s", "tokens_per_s", "ended", "peak_memory_bytes")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    return undisturbed(TINY, tmp_path_factory.mktemp("tiny"), token_cache)


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    return with_database(new_results(tmp_path / "results", token_cache))


def ray_command(ledger: Ledger, grid: Path, *options: object) -> tuple[object, ...]:
    return ("run", grid, "--results", ledger.root, "--executor", "ray", "--workers", 2, *options)


def log_of(ledger: Ledger, study: str) -> Path:
    return ledger.study_folder(study) / "ray.log"


def lasting(record: dict[str, Any] | None) -> dict[str, Any]:
    """A record without times, and without the commit, which can be another one by the time of a test's second run."""
    assert record is not None
    kept = {key: value for key, value in record.items() if key not in VOLATILE}
    kept["environment"] = {key: value for key, value in record["environment"].items() if key != "git_commit"}
    return kept


def daemons(command: Command) -> list[str]:
    return [name for name in command.alive().values() if "raylet" in name or "gcs_server" in name]


def test_the_same_trials_give_the_same_results(
    ledger: Ledger, write: Write, tiny: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curves to the byte and records, against trials trained without executor; and one that kills its worker.

    That one is given up after three deaths, as under the local executor. Nothing is started for nothing.
    """
    write(FAULTS, "faults.py")
    grid = write(faulty(TINY, "dies").replace("  plain: {}\n", "  plain: {}\n  rope: rope\n"))
    one_seed = ("--set", "seeds=[1]", "--set", "match=params")
    with Command(grid.parent, *ray_command(ledger, grid, *one_seed)) as driver:
        assert driver.wait() == 1, driver.output() + log_of(ledger, "tiny").read_text()[-3000:]
        driver.wait_until_alone()
        said = driver.output()
    assert "trained 3, reused 0: 2 finished, 1 failed" in said and "\x1b" not in said and "raylet" not in said
    alike = set(ledger.trial_ids()) & set(tiny.trial_ids())
    assert len(alike) == 2
    for trial_id in alike:
        ours, theirs = ledger.trial(trial_id), tiny.trial(trial_id)
        assert ours.metrics.read_bytes() == theirs.metrics.read_bytes()
        assert lasting(ours.record()) == lasting(theirs.record())
        assert ours.weights.read_bytes() == theirs.weights.read_bytes()
        assert events(ours) == ["start", "end"]
        assert trainer(ours) != driver.process.pid
    (dead,) = [ledger.trial(each) for each in ledger.trial_ids() if each not in alike]
    record = dead.record()
    assert record is not None and record["status"] == "failed"
    assert record["error"] == "lost: its worker died 3 times, last by SIGKILL" and events(dead).count("start") == 3

    monkeypatch.setattr(ray_executor.subprocess, "Popen", lambda *_, **__: pytest.fail("Ray was started"))
    with own_registry():
        code, said = run_here(*ray_command(ledger, grid, *one_seed))
    assert code == 1 and "trained 0, reused 3" in said


def test_killed_workers_and_a_killed_driver(ledger: Ledger, undisturbed_long: Ledger, write: Write) -> None:
    """A lane that dies is given its trial again; a driver that dies takes its cluster with it."""
    grid = write(LONG)
    command, log = ray_command(ledger, grid, "--checkpoint-every", 0.1), log_of(ledger, "long")
    with Command(grid.parent, *command) as driver:
        (hit, *_) = driver.wait_for(lambda: under_way(ledger), "a checkpoint", log)
        worker = trainer(hit)
        assert worker != driver.process.pid and worker in driver.alive()
        os.kill(worker, signal.SIGKILL)
        driver.wait_for(lambda: "resume" in events(hit), "the trial goes on", log)
        assert events(hit)[:3] == ["start", "lost", "resume"]
        driver.wait_for(lambda: in_the_middle(ledger), "a record and a checkpoint", log)
        assert daemons(driver)
        os.kill(driver.process.pid, signal.SIGKILL)
        driver.wait()
        driver.wait_until_alone()
    done = {each for each in ledger.trial_ids() if ledger.trial(each).record()}
    left = {each for each in undisturbed_long.trial_ids() if each not in done}
    assert done and left
    for trial_id in done:
        assert ledger.trial(trial_id).metrics.read_bytes() == undisturbed_long.trial(trial_id).metrics.read_bytes()

    with Command(grid.parent, *command) as driver:
        assert driver.wait() == 0, driver.output() + log.read_text()[-3000:]
        assert f"trained {len(left)}, reused {len(done)}: 4 finished" in driver.output()
        driver.wait_until_alone()
    assert curves(ledger) == curves(undisturbed_long)
    for trial_id in undisturbed_long.trial_ids():
        expected = undisturbed_long.trial(trial_id).record()
        assert lasting(ledger.trial(trial_id).record()) == lasting(expected)
    assert any("resume" in events(ledger.trial(each)) for each in left)


def test_an_interrupted_cluster_ends_and_another_executor_goes_on(
    ledger: Ledger, undisturbed_long: Ledger, write: Write
) -> None:
    """Ctrl-C: the trials under way leave checkpoints, no process of Ray's is left, and the ledger is all there is."""
    grid = write(LONG)
    with Command(grid.parent, *ray_command(ledger, grid)) as driver:
        driver.wait_for(
            lambda: [each for each in ledger.trial_ids() if len(ledger.trial(each).rows()) > 5],
            "a trial that has begun",
            log_of(ledger, "long"),
        )
        assert daemons(driver)
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.wait() == 130, driver.output()
        driver.wait_until_alone()
        assert "the same command goes on from here" in driver.output() and "Traceback" not in driver.output()
    assert under_way(ledger)  # without the stop there would be no checkpoint yet
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 2)
    assert code == 0 and "4 finished" in said
    assert curves(ledger) == curves(undisturbed_long)
    assert any("resume" in events(ledger.trial(each)) for each in undisturbed_long.trial_ids())


def test_planners_ask_ray_as_they_ask_any_executor(ledger: Ledger, other_ledger: Ledger, write: Write) -> None:
    """Rungs: trials stand still at a step, some go on, others end where they stand."""
    grid = write(TINY.replace("eval_points: 3", "eval_points: 6") + "rungs: {keep: 0.5, at: [0.25]}\n")
    code, said = run_here(*ray_command(ledger, grid))
    assert code == 0 and "2 finished, 2 stopped" in said
    code, said = run_here("run", grid, "--results", with_database(other_ledger).root, "--workers", 0)
    assert code == 0 and "2 finished, 2 stopped" in said
    assert curves(ledger) == curves(other_ledger)


def test_trials_go_on_from_a_trunk(ledger: Ledger, other_ledger: Ledger, write: Write) -> None:
    code, said = run_here(*ray_command(ledger, grid := write(LADDER)))
    assert code == 0 and "10 finished" in said, said
    code, said = run_here("run", grid, "--results", with_database(other_ledger).root, "--workers", 0, "--no-forks")
    assert code == 0 and "10 finished" in said, said
    for trial_id in other_ledger.trial_ids():
        ours, theirs = (each.trial(trial_id).record() for each in (ledger, other_ledger))
        assert ours is not None and theirs is not None and ours["metrics"] == theirs["metrics"]
        assert (ours["forked"] is None) == (ours["tokens"] == 12_800) and theirs["forked"] is None


def test_a_trial_that_asks_for_more_than_there_is(
    ledger: Ledger, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor.subprocess, "Popen", lambda *_, **__: pytest.fail("Ray was started"))
    for ask, words in (
        ("resources.cpus=64", "64 CPUs, but there are 2"),
        ("resources.gpus=9", "9 GPUs, but there are"),
    ):
        code, said = run_here(*ray_command(ledger, write(TINY), "--set", ask))
        assert code == 2 and f"a trial asks for {words}" in said
    assert all(ledger.trial(each).record() is None for each in ledger.trial_ids())
