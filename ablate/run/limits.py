"""How long a trial may take: `resources.hours` of wall time, over its attempts since it last ended."""

from __future__ import annotations

import time
from pathlib import Path

from ablate.run.executor import give_up
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.process import Worker
from ablate.train.cohort import members as cohort
from ablate.train.job import Event, Job

STOP_PATIENCE_S = 20.0  # from the request to stop until the worker is killed
BEGIN, END = ("start", "resume"), ("stop", "pause", "lost", "end")


class Limit:
    """The time limit of a trial that begins now."""

    def __init__(self, job: Job):
        self.job = job
        self.folder = Ledger(Path(job.results)).trial(job.trial_id)
        self.ends: float | None = None
        if job.hours is not None:
            left = job.hours * 3600 - sum(attempts_s(self.folder, since_end=True))
            self.ends = time.monotonic() + max(0.0, left)
        self._asked: float | None = None

    def over(self) -> bool:
        return self.ends is not None and time.monotonic() >= self.ends

    def enforce(self, worker: Worker) -> None:
        """Ask a worker whose time is over to stop; kill it when it has not. To be called every second or so."""
        if not self.over():
            return
        if self._asked is None:
            self._asked = time.monotonic()
            worker.ask_to_stop()
        elif time.monotonic() > self._asked + STOP_PATIENCE_S:
            worker.kill()

    @property
    def enforced(self) -> bool:
        """Whether the worker was asked to stop."""
        return self._asked is not None

    def fail(self) -> Event | None:
        """Record the trial as failed; None where it has ended after all."""
        return None if self.folder.record() else give_up(self.folder, f"time limit: {self.job.hours:g} h")


def attempts_s(folder: TrialFolder, since_end: bool = False, study: str | None = None) -> list[float]:
    """Seconds of each attempt at a trial; `since_end`: of those after it last ended; `study`: of those it made.

    The latest one may have no end, as its driver was killed: it counts up to what it wrote last. In a cohort the
    seconds are shared equally among those with which it began.
    """
    found: list[float] = []
    begun: float | None = None
    sharers = 1
    for note in folder.history():
        if note["event"] in BEGIN:
            begun = note["time"] if study in (None, note.get("study")) else None
            sharers = 1
        elif note["event"] == cohort.EVENT:
            sharers = max(1, len(note.get("of") or ()))
        elif note["event"] in END and begun is not None:
            found.append(max(0.0, note["time"] - begun) / sharers)
            begun = None
        if note["event"] == "end" and since_end:
            found = []
    if begun is not None:
        written = [file.stat().st_mtime for file in (folder.metrics, folder.checkpoint) if file.exists()]
        found.append(max([0.0, *(each - begun for each in written)]) / sharers)
    return found
