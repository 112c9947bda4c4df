"""A worker: a process group of its own, which can be asked to stop and can be killed whatever its trial does.

Workers are forked from a server that has torch loaded. Beside each stands a guard, a process that runs nothing of a
trial's: once the worker has ended, or whoever started it, the guard kills what is left of the group. So no trial
outlives its driver, not even one that hangs with the interpreter's lock held.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import time
from multiprocessing.connection import Connection

from ablate.run.forking import server, start
from ablate.train.job import Event, Job

GUARD_EVERY_MS = 500
MAX_TRIES = 3  # to start a worker: the server that forks it can be killed at that moment


class Worker:
    """A warm process that trains the jobs it is sent, one after another; `pipe` is the driver's end."""

    def __init__(self) -> None:
        for left in reversed(range(MAX_TRIES)):
            try:
                self._start()
                return
            except (EOFError, OSError):
                if not left:
                    raise

    def _start(self) -> None:
        context = server()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(theirs,), daemon=True)
        start(self.process)
        theirs.close()

    def send(self, job: Job) -> None:
        """Begin a job. Raises `OSError` when the worker has ended."""
        self.pipe.send(job)

    def recv(self) -> Event:
        """The next event of the job. Raises `EOFError` or `ConnectionResetError` when the worker has ended."""
        event: Event = self.pipe.recv()
        return event

    def ask_to_stop(self) -> None:
        """Let it end: a trial under way leaves a checkpoint at its next report."""
        with contextlib.suppress(OSError):  # it has ended
            self.pipe.send(None)

    def end(self, patience_s: float) -> None:
        """Ask it to stop, and kill it when it has not after `patience_s` seconds."""
        self.ask_to_stop()
        deadline = time.monotonic() + patience_s
        with contextlib.suppress(EOFError, OSError):
            while (left := deadline - time.monotonic()) > 0 and self.pipe.poll(left):
                self.pipe.recv()  # drained, so that it does not block on a full pipe
        self.process.join(timeout=max(0.1, deadline - time.monotonic()))
        self.discard()

    def kill(self) -> None:
        """Kill it and everything that its trial has started; `recv` then raises."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may not have its group yet

    def discard(self) -> None:
        """Let go of a worker that is not to be used again."""
        self.kill()
        self.process.join()
        self.pipe.close()

    def fate(self) -> str:
        """How a worker that has ended came to its end: the name of a signal, or its exit code."""
        self.process.join(timeout=5)
        code = self.process.exitcode
        return signal.Signals(-code).name if code and code < 0 else f"exit code {code}"


def _main(pipe: Connection) -> None:
    """What a worker runs."""
    from ablate.run.worker import serve  # which the server has loaded; this process needs no torch

    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    guard = _guard(pipe)
    serve(pipe)
    os.kill(guard, signal.SIGKILL)
    os.waitpid(guard, 0)


def _guard(pipe: Connection) -> int:
    """Fork the guard of this worker; its process id."""
    driver, worker = multiprocessing.parent_process(), os.getpid()
    assert driver is not None
    if guard := os.fork():
        return guard
    try:
        pipe.close()  # else the driver would not see it closed when the worker ends
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        poll = select.poll()
        poll.register(driver.sentinel, 0)  # a closed end is always told
        while os.getppid() == worker and not poll.poll(GUARD_EVERY_MS):
            pass
    finally:
        os.killpg(worker, signal.SIGKILL)  # with this process
        os._exit(1)
