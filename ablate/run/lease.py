"""Leases: who holds a trial or a study, on one machine or on several that share a file system.

A holder has the kernel's lock on `lock`, which is freed when its process dies, and beside it a numbered file
`lease.N.json`, because that lock is not known to other machines everywhere. The file's number is one more than the
highest, and it is created exclusively: of several that take over a dead holder's lease one succeeds. The holder
touches its file again and again; one that was not touched for long is stale.

Clocks are not compared between machines: ages are taken from the file system's own clock, and a lease that looks
stale is watched for two renewals before it is taken, so that a clock which jumps frees nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

from ablate.errors import UserError
from ablate.run.files import names
from analysis.records import is_time

RENEW_S = 15.0  # a holder touches its lease this often
STALE_S = 120.0  # one that was not touched for so long is nobody's
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what a file system without them answers


def _machine() -> str:
    """Names the running kernel: two processes with the same one see each other's kernel locks."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


MACHINE = _machine()


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, by its own account; `when` in seconds since 1970 by its clock."""

    host: str
    pid: int
    when: float
    machine: str = ""
    token: str = ""

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid}) since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.when))}"


class Busy(UserError):
    """Somebody else holds it. `who` is None where that cannot be told."""

    def __init__(self, message: str, who: Holder | None):
        super().__init__(message)
        self.who = who


class Lost(Busy):
    """The lease was taken over: its holder writes nothing more."""


class Lease:
    """A lease that is held. `check` before every write that must not be another holder's."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        self.file = folder / f"lease.{number}.json"
        self.me = Holder(platform.node(), os.getpid(), time.time(), MACHINE, uuid.uuid4().hex)
        self._end = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def create(self) -> None:
        """Write its file. Raises `FileExistsError` where another one came first."""
        handle = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            with names(self.file):
                os.write(handle, json.dumps(asdict(self.me)).encode())
        except OSError:
            self.file.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)

    def keep(self) -> None:
        """Renew it from now on."""
        self._renewing.start()

    def check(self) -> None:
        """Renew it, and raise `Lost` unless it is still the highest and one's own."""
        with suppress(FileNotFoundError):
            os.utime(self.file)
        number, _ = _highest(self.folder)
        if number != self.number or _read(self.file) != self.me:
            who = _read(self.folder / f"lease.{number}.json")
            raise Lost(f"{self.folder}: the lease was taken over by {who or 'another process'}", who)

    def release(self) -> None:
        """Let go of it."""
        self._end.set()
        if self._renewing.is_alive():
            self._renewing.join()
        if _read(self.file) == self.me:
            self.file.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._end.wait(RENEW_S):
            with suppress(OSError):  # a file system that does not answer may do so next time
                os.utime(self.file)


@contextmanager
def held(folder: Path) -> Iterator[Lease]:
    """Hold a folder. Raises `Busy` at once when another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as stream:
        try:
            known = _lock(stream, fcntl.LOCK_EX)
        except BlockingIOError:
            raise _busy(folder) from None
        lease = _take(folder, known)
        try:
            yield lease
        finally:
            lease.release()


def holder(folder: Path) -> Holder | None:
    """Who holds a folder now; None when nobody does. Writes nothing but the file system's clock."""
    try:
        with open(folder / "lock", "rb") as stream:
            known = _lock(stream, fcntl.LOCK_SH)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _busy(folder).who or Holder("a process of this machine", 0, time.time())
    _, file = _highest(folder)
    if file is None:
        return None
    who, touched = _read(file), _touched(file)
    if touched is None or (known and who is not None and who.machine == MACHINE) or _old(folder, touched):
        return None
    return who or Holder("another process", 0, touched)


def _take(folder: Path, known: bool) -> Lease:
    """The next lease of a folder. With `known`, a lease of this machine is a dead process': the kernel's lock is
    free."""
    number, last = _highest(folder)
    before = None if last is None else _touched(last)
    if last is not None:
        who = _read(last)
        dead = known and who is not None and who.machine == MACHINE
        if not dead and not _abandoned(last):
            raise _busy(folder)
    lease = Lease(folder, number + 1)
    try:
        lease.create()
    except FileExistsError:
        raise _busy(folder) from None
    # Whoever was taken for dead may have woken up just then, or another one been faster: the latest look decides
    highest, _ = _highest(folder)
    if highest != lease.number or (last is not None and _touched(last) not in (None, before)):
        lease.release()
        raise _busy(folder)
    for old in folder.glob("lease.*.json"):
        if _number(old) < lease.number:
            old.unlink(missing_ok=True)
    lease.keep()
    return lease


def _abandoned(file: Path) -> bool:
    """Whether nobody renews a lease: it looks old, and stays as it is for two renewals of this process' own clock."""
    before = _touched(file)
    if before is None:
        return True
    if not _old(file.parent, before):
        return False
    until = time.monotonic() + 2 * RENEW_S
    while time.monotonic() < until:
        time.sleep(RENEW_S / 4)
        if (touched := _touched(file)) != before:
            return touched is None
    return True


def _old(folder: Path, touched: float) -> bool:
    """Whether a time is far from the present one, in either direction, by the clock of the folder's file system."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as probe:
            present = os.fstat(probe.fileno()).st_mtime
    except OSError:  # read only: whoever asks cannot take the lease either
        present = time.time()
    return abs(present - touched) > STALE_S


def _lock(stream: IO[bytes], kind: int) -> bool:
    """Take the kernel's lock; False where the file system has none. Raises `BlockingIOError` when it is taken."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _busy(folder: Path) -> Busy:
    _, file = _highest(folder)
    who = None if file is None else _read(file)
    return Busy(f"{folder} is held by {who or 'another process'}", who)


def _highest(folder: Path) -> tuple[int, Path | None]:
    """The lease with the highest number; (0, None) where there is none."""
    found = max(((_number(file), file) for file in folder.glob("lease.*.json")), default=(0, None))
    return found if found[0] else (0, None)


def _number(file: Path) -> int:
    digits = file.name.split(".")[1]
    return int(digits) if digits.isdecimal() and digits.isascii() else 0


def _touched(file: Path) -> float | None:
    """When a lease was last renewed, None where it is gone."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return None


def _read(file: Path) -> Holder | None:
    """Who wrote a lease; None where it is gone, or its writer is at it or died at it."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        found = Holder(**{each.name: tree[each.name] for each in fields(Holder)})
        return found if isinstance(found.pid, int) and is_time(found.when) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
