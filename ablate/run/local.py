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

from ablate.errors import UserError
from ablate.run.executor import MAX_DEATHS, Deaths, Fatal, OnEvent
from ablate.run.process import Worker
from ablate.run.worker import work
from ablate.spec import Resources
from ablate.train.trial import Job

STOP_PATIENCE_S = 20.0

Work = tuple[Job, Resources]


@dataclass
class Slot:
    """A worker and what it is doing."""

    worker: Worker = field(default_factory=Worker)
    work: Work | None = None
    gpu: int | None = None


class LocalExecutor:
    """`workers` processes (0: this process, one trial after another) over this machine's CPUs and GPUs."""

    def __init__(self, workers: int, gpus: int = 0):
        self.workers = workers
        self.free_cpus = max(1, workers)
        self.free_gpus = [1.0] * gpus
        self.deaths = Deaths()
        self.idle_deaths = 0

    def run(self, jobs: Sequence[Work], on_event: OnEvent, stop: threading.Event) -> None:
        for _, need in jobs:
            self._refuse_impossible(need)
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

    def _refuse_impossible(self, need: Resources) -> None:
        if need.cpus > self.free_cpus:
            raise UserError(
                f"a trial asks for {need.cpus} CPUs, but there are {self.free_cpus} workers: "
                f"use --workers {need.cpus} or more, or lower resources.cpus"
            )
        if need.custom:
            names = ", ".join(name for name, _ in need.custom)
            raise UserError(f"resources.custom ({names}) are of a Ray cluster's nodes: use --executor ray --address")
        gpus = need.gpus or 0
        if gpus > 1 and len(self.free_gpus) >= gpus:
            raise UserError("the local executor gives a trial at most one GPU: use --executor ray")
        if gpus > len(self.free_gpus):
            raise UserError(f"a trial asks for {gpus:g} GPUs, but this machine has {len(self.free_gpus)}")

    def _run_here(self, jobs: Sequence[Work], on_event: OnEvent, stop: threading.Event) -> None:
        for job, need in jobs:
            device = "cuda" if need.gpus else "cpu"
            events = work(replace(job, device=device, threads=need.cpus))
            for event in events:
                if "fatal" in event:
                    raise Fatal(event["fatal"], event["code"])
                on_event(event)
                if stop.is_set():
                    events.close()
                    return

    def _assign(self, pool: list[Slot], waiting: deque[Work]) -> None:
        """Give idle workers the first trials whose resources are free."""
        for slot in pool:
            if slot.work is not None:
                continue
            found = next((index for index, (_, need) in enumerate(waiting) if self._fits(need)), None)
            if found is None:
                return
            job, need = slot.work = waiting[found]
            del waiting[found]
            slot.gpu = self._free_gpu(need.gpus or 0)
            self.free_cpus -= need.cpus
            if slot.gpu is not None:
                self.free_gpus[slot.gpu] -= need.gpus or 0
            device = "cpu" if slot.gpu is None else f"cuda:{slot.gpu}"
            try:
                slot.worker.send(replace(job, device=device, threads=need.cpus))
            except OSError:  # it died while it was idle: no fault of the trial
                waiting.appendleft(self._release(slot))
                self._replace_idle(slot, len(pool))

    def _fits(self, need: Resources) -> bool:
        return need.cpus <= self.free_cpus and (not need.gpus or self._free_gpu(need.gpus) is not None)

    def _replace_idle(self, slot: Slot, workers: int) -> None:
        self.idle_deaths += 1
        if self.idle_deaths >= MAX_DEATHS * workers:
            raise Fatal("worker processes end before they are given a trial: the reason is printed above", 1)
        self._replace(slot)

    @staticmethod
    def _replace(slot: Slot) -> None:
        slot.worker.kill()
        slot.worker = Worker()

    def _free_gpu(self, share: float) -> int | None:
        """The fullest GPU that still has this share free."""
        fitting = [index for index, free in enumerate(self.free_gpus) if share and free >= share - 1e-9]
        return min(fitting, key=lambda index: self.free_gpus[index], default=None)

    def _listen(self, pool: list[Slot], waiting: deque[Work], on_event: OnEvent) -> None:
        """Wait for events and deaths; whatever a dead worker was doing goes back to the front."""
        busy = {slot.worker.pipe: slot for slot in pool if slot.work}
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
                self._release(slot)
            else:
                on_event(event)

    def _release(self, slot: Slot) -> Work:
        assert slot.work is not None
        done = slot.work
        self.free_cpus += done[1].cpus
        if slot.gpu is not None:
            self.free_gpus[slot.gpu] += done[1].gpus or 0
        slot.work, slot.gpu = None, None
        return done

    def _after_death(self, slot: Slot, waiting: deque[Work], on_event: OnEvent) -> None:
        """Another worker, and what the dead one was doing again, or its end."""
        job, need = self._release(slot)
        how = slot.worker.fate()
        self._replace(slot)
        if (event := self.deaths.count(job, how)) is not None:
            on_event(event)
        else:
            waiting.appendleft((job, need))

    def _end(self, pool: list[Slot]) -> None:
        """Ask every worker to stop (a trial under way leaves a checkpoint), and end those that do not."""
        for slot in pool:
            slot.worker.ask_to_stop()
        deadline = time.monotonic() + STOP_PATIENCE_S
        for slot in pool:
            slot.worker.end(deadline - time.monotonic())
