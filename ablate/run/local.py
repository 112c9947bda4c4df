"""The local executor: warm worker processes on this machine, forked from a server that has torch loaded.

No Ray here. Each worker trains one trial at a time, with as many threads as the trial asks for CPUs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path

from ablate.run.executor import MAX_DEATHS, Deaths, Fatal, OnEvent
from ablate.run.ledger import Ledger
from ablate.run.limits import STOP_PATIENCE_S, Limit
from ablate.run.places import Place, Places
from ablate.run.process import Worker
from ablate.run.worker import work
from ablate.spec import Resources
from ablate.train.job import Event, Job
from ablate.train.trial import OUT_OF_MEMORY

Work = tuple[Job, Resources]


@dataclass
class Slot:
    """A worker and what it is doing."""

    worker: Worker = field(default_factory=Worker)
    work: Work | None = None
    limit: Limit | None = None
    again: bool = False  # what it has just done is to be done again


class LocalExecutor:
    """`workers` processes (0: this process, one trial after another) over this machine's CPUs and GPUs."""

    def __init__(self, workers: int, gpus: int = 0, pack: int = 0):
        self.workers = workers
        self.places = Places(max(1, workers), gpus, pack)
        self.deaths = Deaths()
        self.idle_deaths = 0

    def run(self, jobs: Sequence[Work], on_event: OnEvent, stop: threading.Event) -> None:
        self.places.refuse_impossible(jobs)
        if self.workers == 0:
            self._run_here(jobs, on_event, stop)
            return
        waiting: deque[Work] = deque(jobs)
        pool = [Slot() for _ in range(min(self.workers, len(jobs)))]
        try:
            while not stop.is_set() and (waiting or any(slot.work for slot in pool)):
                self._assign(pool, waiting)
                self._listen(pool, waiting, on_event)
        finally:
            self._end(pool)

    def _run_here(self, jobs: Sequence[Work], on_event: OnEvent, stop: threading.Event) -> None:
        for job, need in jobs:
            if stop.is_set():
                return
            device = "cuda" if need.gpus else "cpu"
            events, limit = work(replace(job, device=device, threads=need.cpus)), Limit(job)
            for event in events:
                if "fatal" in event:
                    raise Fatal(event["fatal"], event["code"])
                on_event(event)
                if stop.is_set():
                    events.close()
                    return
                if limit.over():
                    events.close()
                    if (ended := limit.fail()) is not None:
                        on_event(ended)
                    break

    def _assign(self, pool: list[Slot], waiting: deque[Work]) -> None:
        """Give idle workers the first trials whose resources are free."""
        for slot in pool:
            if slot.work is not None:
                continue
            found = next((index for index, each in enumerate(waiting) if self.places.fits(*each)), None)
            if found is None:
                return
            job, need = slot.work = waiting[found]
            del waiting[found]
            place, slot.limit = self.places.take(job, need), Limit(job)
            try:
                told = replace(job, device=place.device, threads=need.cpus, cores=place.cores)
                slot.worker.send(replace(told, crowded=self.places.crowded(job, need)))
            except OSError:  # it died while it was idle: no fault of the trial
                waiting.appendleft(self._release(slot)[0])
                self._replace_idle(slot, len(pool))

    def _replace_idle(self, slot: Slot, workers: int) -> None:
        self.idle_deaths += 1
        if self.idle_deaths >= MAX_DEATHS * workers:
            raise Fatal("worker processes end before they are given a trial: the reason is printed above", 1)
        self._replace(slot)

    @staticmethod
    def _replace(slot: Slot) -> None:
        slot.worker.discard()
        slot.worker = Worker()

    def _listen(self, pool: list[Slot], waiting: deque[Work], on_event: OnEvent) -> None:
        """Wait for events and deaths; whatever a dead worker was doing goes back to the front."""
        busy = {slot.worker.pipe: slot for slot in pool if slot.work}
        for slot in busy.values():
            if slot.limit is not None:
                slot.limit.enforce(slot.worker)
        for pipe in wait(list(busy), timeout=0.5):
            slot = busy[pipe]  # type: ignore[index]
            try:
                event = slot.worker.recv()
            except (EOFError, ConnectionResetError):
                self._after_death(slot, waiting, on_event)
                continue
            if "fatal" in event:
                raise Fatal(event["fatal"], event["code"])
            if "idle" in event:
                again = slot.again
                done, _ = self._release(slot)
                if again:
                    waiting.appendleft(done)
            elif slot.work and self._was_crowded(event, *slot.work):
                slot.again = True
            else:
                on_event(event)

    def _was_crowded(self, event: Event, job: Job, need: Resources) -> bool:
        """Whether a trial ran out of memory on a GPU that is shared: it is tried once more, without others."""
        out = str(event.get("error") or "").startswith(OUT_OF_MEMORY)
        if not out or not self.places.crowded(job, need):
            return False
        self.places.alone.add(job.trial_id)
        folder = Ledger(Path(job.results)).trial(job.trial_id)
        folder.forget_record()
        folder.note("crowded", error=event["error"])
        return True

    def _release(self, slot: Slot) -> tuple[Work, Place]:
        assert slot.work is not None
        done, slot.work, slot.again = slot.work, None, False
        return done, self.places.leave(done[0])

    def _after_death(self, slot: Slot, waiting: deque[Work], on_event: OnEvent) -> None:
        """Another worker, and what the dead one was doing again, or its end."""
        (job, need), _ = self._release(slot)
        how = slot.worker.fate()
        self._replace(slot)
        again: list[Job] = []
        out_of_time = slot.limit is not None and slot.limit.enforced
        if slot.limit and out_of_time:
            event = slot.limit.fail()
        else:
            again, event = self.deaths.after(job, how)
        if event is not None:
            on_event(event)
        waiting.extendleft((each, need) for each in reversed(again))

    def _end(self, pool: list[Slot]) -> None:
        """Ask every worker to stop (a trial under way leaves a checkpoint), and end those that do not."""
        for slot in pool:
            slot.worker.ask_to_stop()
        deadline = time.monotonic() + STOP_PATIENCE_S
        for slot in pool:
            slot.worker.end(deadline - time.monotonic())
            if slot.work is not None:
                self._release(slot)
