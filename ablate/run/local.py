"""The local executor: warm worker processes on this machine, forked from a server that has torch loaded.

No Ray here. Each worker trains one trial at a time, with as many threads as the trial asks for CPUs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from ablate.errors import UserError
from ablate.run.executor import MAX_DEATHS, Fatal, OnEvent, give_up
from ablate.run.ledger import Ledger
from ablate.run.worker import serve, work
from ablate.spec import Resources
from ablate.train.trial import Job

STOP_PATIENCE_S = 20.0
# glibc gives large blocks back to the system and faults them in again at every step; this keeps them
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
}

Work = tuple[Job, Resources]


@dataclass
class Worker:
    """A process, the driver's end of its pipe, and what it is doing."""

    process: BaseProcess
    pipe: Connection
    work: Work | None = None
    gpu: int | None = None


class LocalExecutor:
    """`workers` processes (0: this process, one trial after another) over this machine's CPUs and GPUs."""

    def __init__(self, workers: int, gpus: int = 0):
        self.workers = workers
        self.free_cpus = max(1, workers)
        self.free_gpus = [1.0] * gpus
        self.deaths: dict[str, int] = {}
        self.idle_deaths = 0

    def run(self, jobs: Sequence[Work], on_event: OnEvent, stop: threading.Event) -> None:
        for _, need in jobs:
            self._refuse_impossible(need)
        if self.workers == 0:
            self._run_here(jobs, on_event, stop)
            return
        waiting: deque[Work] = deque(jobs)
        pool = self._start(min(self.workers, len(jobs)))
        try:
            while not stop.is_set() and (waiting or any(worker.work for worker in pool)):
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

    def _start(self, count: int) -> list[Worker]:
        context = worker_context()
        return [self._spawn(context) for _ in range(count)]

    def _spawn(self, context: multiprocessing.context.BaseContext) -> Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        return Worker(process, ours)

    def _assign(self, pool: list[Worker], waiting: deque[Work]) -> None:
        """Give idle workers the first trials whose resources are free."""
        for worker in pool:
            if worker.work is not None:
                continue
            for _ in range(len(waiting)):
                job, need = waiting[0]
                gpu = self._free_gpu(need.gpus or 0)
                if need.cpus <= self.free_cpus and (not need.gpus or gpu is not None):
                    waiting.popleft()
                    self.free_cpus -= need.cpus
                    if gpu is not None:
                        self.free_gpus[gpu] -= need.gpus or 0
                    device = "cpu" if gpu is None else f"cuda:{gpu}"
                    worker.work, worker.gpu = (job, need), gpu
                    try:
                        worker.pipe.send(replace(job, device=device, threads=need.cpus))
                    except OSError:  # it died while it was idle: no fault of the trial
                        waiting.appendleft(self._release(worker))
                        self._replace_idle(pool, worker)
                    break
                waiting.rotate(-1)

    def _replace_idle(self, pool: list[Worker], worker: Worker) -> None:
        self.idle_deaths += 1
        if self.idle_deaths >= MAX_DEATHS * len(pool):
            raise Fatal("worker processes end before they are given a trial: the reason is printed above", 1)
        pool[pool.index(worker)] = self._spawn(multiprocessing.get_context("forkserver"))

    def _free_gpu(self, share: float) -> int | None:
        """The fullest GPU that still has this share free."""
        fitting = [index for index, free in enumerate(self.free_gpus) if share and free >= share - 1e-9]
        return min(fitting, key=lambda index: self.free_gpus[index], default=None)

    def _listen(self, pool: list[Worker], waiting: deque[Work], on_event: OnEvent) -> None:
        """Wait for events and deaths; whatever a dead worker was doing goes back to the front."""
        busy = {worker.pipe: worker for worker in pool if worker.work}
        for pipe in wait(list(busy), timeout=0.5):
            worker = busy[pipe]  # type: ignore[index]
            try:
                event = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._replace_dead(pool, worker, waiting, on_event)
                continue
            if "fatal" in event:
                raise Fatal(event["fatal"], event["code"])
            if "idle" in event:
                self._release(worker)
            else:
                on_event(event)

    def _release(self, worker: Worker) -> Work:
        assert worker.work is not None
        done = worker.work
        self.free_cpus += done[1].cpus
        if worker.gpu is not None:
            self.free_gpus[worker.gpu] += done[1].gpus or 0
        worker.work, worker.gpu = None, None
        return done

    def _replace_dead(self, pool: list[Worker], worker: Worker, waiting: deque[Work], on_event: OnEvent) -> None:
        job, need = self._release(worker)
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        pool[pool.index(worker)] = self._spawn(multiprocessing.get_context("forkserver"))
        self.deaths[job.trial_id] = self.deaths.get(job.trial_id, 0) + 1
        folder = Ledger(Path(job.results)).trial(job.trial_id)
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        if self.deaths[job.trial_id] >= MAX_DEATHS and folder.record() is None:
            on_event(give_up(folder, f"lost: its worker died {MAX_DEATHS} times, last by {how}"))
        else:
            folder.note("lost", by=how)
            waiting.appendleft((job, need))

    def _end(self, pool: list[Worker]) -> None:
        """Ask every worker to stop (a trial under way leaves a checkpoint), and end those that do not."""
        for worker in pool:
            try:
                worker.pipe.send(None)
            except (BrokenPipeError, OSError):
                continue
        deadline = time.monotonic() + STOP_PATIENCE_S
        for worker in pool:
            while worker.process.is_alive() and time.monotonic() < deadline:
                if worker.pipe.poll(0.05):  # drain, so that no worker blocks on a full pipe
                    try:
                        worker.pipe.recv()
                    except (EOFError, OSError):
                        break
            worker.process.join(timeout=max(0.1, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()


def worker_context() -> multiprocessing.context.BaseContext:
    """Where worker processes come from: a server that has torch loaded, started if it is not."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ablate.run.preload"])
    os.environ.update({key: os.environ.get(key, value) for key, value in ALLOCATOR.items()})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with _without_interrupts():
        forkserver.ensure_running()
    return context


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started here ignores Ctrl-C from its first instruction: that is the driver's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
