"""Trials that hang, die or run out of something: the driver ends them, records them, and the rest goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY
from runs import FAULTS, Command, events, faulty, new_results, with_database

from ablate.run.ledger import Ledger

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
'''
ONE_SEED = ("--set", "seeds=[1]", "--set", "match=params")


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
