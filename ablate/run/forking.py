"""The server that workers are forked from: it has torch loaded. Nothing that takes long is imported here, so that a
command can start it first of all, and it loads while the command does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from types import ModuleType

LONGEST_SOCKET, SOCKET, SHORT_TEMP = 100, "/pymp-12345678/listener-12345678", "/tmp"
# glibc gives large blocks back to the system and faults them in again at every step; this keeps them
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
_starting = threading.Lock()


def server() -> multiprocessing.context.ForkServerContext:
    """What processes are forked from: one that has torch loaded, started if it is not."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ablate.run.preload"])
    os.environ.update({key: os.environ.get(key, value) for key, value in ALLOCATOR.items()})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with _without_interrupts(), _room_for_sockets():
        forkserver.ensure_running()
    return context


def start(process: BaseProcess) -> None:
    """Start a process of the server's, which does not import the program that starts it: a script that runs a study
    outside of `if __name__ == "__main__"` would begin that study again there."""
    with _starting:
        program = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = program


@contextmanager
def _room_for_sockets() -> Iterator[None]:
    """The server listens in a folder of the temporary files, by a path that the system takes: on clusters TMPDIR can
    be too long for one."""
    if len(os.fsencode(tempfile.gettempdir())) + len(SOCKET) <= LONGEST_SOCKET:
        yield
        return
    chosen = tempfile.tempdir
    tempfile.tempdir = SHORT_TEMP
    try:
        yield
    finally:
        tempfile.tempdir = chosen


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
