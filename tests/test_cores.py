"""Trials on CPUs are pinned: each has cores of its own while there are enough of them, among all drivers here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from runs import job, spec, trainer

from ablate.run import cores
from ablate.run.cores import Cores
from ablate.run.ledger import Ledger
from ablate.run.local import LocalExecutor
from ablate.spec import Resources
from ablate.train.job import Event

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "FOLDER", tmp_path / "cores")


def test_no_core_is_claimed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by another driver; where there are too few, none is; those that are released are claimed again."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 5})
    ours, theirs = Cores(), Cores()
    first = ours.claim(2)
    assert first == (3, 4) and ours.claim(2) == () and theirs.claim(2) == ()
    other = theirs.claim(1)
    assert other == (5,) and ours.claim(1) == ()
    ours.release(first)
    assert theirs.claim(2) == (3, 4)


def test_cores_of_a_killed_driver_are_free(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from ablate.run import cores\n"
        f"cores.FOLDER = Path({str(tmp_path / 'cores')!r}); mine = cores.Cores()\n"
        "print(len(mine.claim(len(mine.known))), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert int(driver.stdout.readline()) == len(Cores().known)
        assert Cores().claim(1) == ()
        driver.kill()
        driver.wait()
        assert len(Cores().claim(1)) == 1


def test_trials_side_by_side_share_no_core(ledger: Ledger) -> None:
    """All threads of a worker are on the trial's cores, and other cores come with other trials."""
    known = os.sched_getaffinity(0)
    if len(known) < 2:
        pytest.skip("there is one core")
    trials = [spec({"train.tokens": 64 * 300, "train.eval_points": 40}, seed=seed) for seed in (1, 2)]
    seen: dict[str, set[frozenset[int]]] = {}

    def on_event(event: Event) -> None:
        if "status" in event:
            return
        threads = Path(f"/proc/{trainer(ledger.trial(event['id']))}/task")
        found = {frozenset(os.sched_getaffinity(int(each.name))) for each in threads.iterdir()}
        seen.setdefault(event["id"], set()).update(found)

    jobs = [(job(ledger, each, progress_every_s=0), Resources()) for each in trials]
    executor = LocalExecutor(2)
    executor.run(jobs, on_event, threading.Event())
    assert executor.places.cores.claim(2)  # they are released at the end
    assert len(seen) == 2 and all(len(sets) == 1 for sets in seen.values())
    assert {frozenset().union(*sets) for sets in seen.values()} == {frozenset({core}) for core in sorted(known)[:2]}
