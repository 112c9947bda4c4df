"""Files that are whole or absent: written beside their place, synced, and renamed into it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(file: Path, write: Callable[[Path], None], check: Callable[[], None] | None = None) -> None:
    """Let `write` make a temporary file next to `file`, then rename it. A crash leaves the old file or the new.

    `check` is called before the rename, and what it raises leaves the old file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.part")  # machines can have equal process ids
    try:
        with names(file):
            write(part)
            _sync(part)
        if check is not None:
            check()
        os.replace(part, file)
        _sync(file.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def names(path: Path) -> Iterator[None]:
    """An `OSError` in here names this path where it names none: the system says which file only when it opens one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def full_disk(error: OSError) -> str:
    """What to do about a full disk, with the space that is left; empty where the error is another one."""
    if error.errno not in FULL:
        return ""
    place = Path(error.filename or ".")
    while not place.exists():
        place = place.parent
    left = os.statvfs(place)
    free = left.f_bavail * left.f_frsize / 1e6
    return (
        f"; the disk has {free:,.1f} MB free: free some space and run the command again, nothing that ended is lost"
    )


def not_allowed(error: OSError) -> str:
    """What to do about a place that may not be written; empty where the error is another one."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ""
    return "; `--results DIR` names a folder for results that may be written"


def own_folder(name: str) -> Path:
    """This user's folder of that name among the temporary files. Raises `PermissionError` where it is another's."""
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to somebody else", str(folder))
    return folder


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it. The kernel frees it when its holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_json(file: Path, value: Any, check: Callable[[], None] | None = None) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(file, lambda part: _write_text(part, text + "\n"), check)


def write_text(file: Path, text: str) -> None:
    write_whole(file, lambda part: _write_text(part, text))


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def append_json(file: Path, row: dict[str, Any]) -> None:
    """One more line, whole or not at all; those of several processes stay apart. A crash can tear the last line only,
    which `analysis.records.read_lines` leaves out; the next one begins a line of its own."""
    line = json_line(row).encode()
    with open(file, "ab+", buffering=0) as stream:
        with contextlib.suppress(OSError):  # a file system without locks has one writer a file, by the leases
            fcntl.flock(stream, fcntl.LOCK_EX)
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        try:
            written = 0
            with names(file):
                while written < len(line):
                    written += stream.write(line[written:]) or 0
        except OSError:
            stream.truncate(size)
            raise


def read_json(file: Path) -> Any:
    """The value in a file, None where it is absent or not whole."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _write_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
