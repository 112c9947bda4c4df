"""The contract of an executor, and the one rule for trials whose worker died."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ablate.errors import UserError
from ablate.run.lease import Busy
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.outcome import without_result
from ablate.spec import Resources
from ablate.train.job import Event, Job

MAX_DEATHS = 3  # a trial that takes its worker with it this often is given up

OnEvent = Callable[[Event], None]


class Executor(Protocol):
    """Runs jobs to their end and reports every event; knows nothing of grids, planners or trackers."""

    def run(self, jobs: Sequence[tuple[Job, Resources]], on_event: OnEvent, stop: threading.Event) -> None:
        """Return when every job has ended, or soon after `stop` is set. Raises `Fatal`."""


class Fatal(UserError):
    """The machine, not a trial, is at fault. `code` is the exit code to end with."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Deaths:
    """How often each trial has taken its worker with it, and what follows: it is tried again, or given up."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def after(self, job: Job, how: str) -> tuple[list[Job], Event | None]:
        """What is to be done again after a worker's death by `how`, and the event of a trial that is given up. Of
        a cohort each is tried by itself, which shows who it was; whoever dies so, without the program of cohorts."""
        if not job.beside:
            event = self.count(job, how)
            return ([] if event else [replace(job, beside=None)]), event
        folders = [Ledger(Path(each.results)).trial(each.trial_id) for each in job.each()]
        for folder in folders:
            if folder.record() is None:
                folder.note("lost", by=how)
        return job.each(), None

    def count(self, job: Job, how: str) -> Event | None:
        """One more, by `how`. The event of the trial's end where it is given up, None where it is tried again."""
        self.counts[job.trial_id] = self.counts.get(job.trial_id, 0) + 1
        folder = Ledger(Path(job.results)).trial(job.trial_id)
        if self.counts[job.trial_id] >= MAX_DEATHS and folder.record() is None:
            return give_up(folder, f"lost: its worker died {MAX_DEATHS} times, last by {how}")
        folder.note("lost", by=how)
        return None


def give_up(folder: TrialFolder, reason: str, status: str = "failed") -> Event:
    """Record a trial that cannot be trained, as one whose worker died again and again: the study goes on without.
    One that another process trains, or that has ended, is left as it is."""
    try:
        with folder.locked():
            if (record := folder.record()) is None:
                record = without_result(folder, status, reason)
                folder.commit(record)
                folder.note("end", status=status)
    except Busy as busy:
        return {"id": folder.id, "busy": str(busy.who or "another process")}
    loss, error = record["metrics"]["loss"], record.get("error")
    return {"id": folder.id, "status": record["status"], "loss": loss, "error": error}
