"""Cores of this machine, each for one trial at a time, among all the drivers of one user here."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection
from pathlib import Path
from typing import IO

from ablate.run.files import own_folder

FOLDER = "ablate-cores"


class Cores:
    """Claims of the cores that this process may use. The kernel frees those of a driver that was killed."""

    def __init__(self) -> None:
        self.known = sorted(allowed())
        self._claims: dict[int, IO[str]] = {}

    def claim(self, count: int) -> tuple[int, ...]:
        """So many cores that nobody has; none where there are not so many, and then the system shares them out."""
        found: list[int] = []
        for core in self.known:
            if len(found) < count and core not in self._claims and self._lock(core):
                found.append(core)
        if len(found) < count:
            self.release(found)
            return ()
        return tuple(found)

    def release(self, cores: tuple[int, ...] | list[int]) -> None:
        for core in cores:
            self._claims.pop(core).close()

    def _lock(self, core: int) -> bool:
        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context(open(own_folder(FOLDER) / str(core), "w"))
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # somebody has it, or the folder cannot be written
                return False
            stack.pop_all()
        self._claims[core] = stream
        return True


def allowed() -> set[int]:
    """The cores that this process may use, none where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def usable() -> int:
    """How many trials can have a core each: those that this process may use, else all of the machine."""
    return len(allowed()) or os.cpu_count() or 1


def pin(cores: Collection[int]) -> None:
    """Keep every thread of this process on these cores; nothing is done where none is named."""
    for thread in Path("/proc/self/task").iterdir() if cores else ():
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)
