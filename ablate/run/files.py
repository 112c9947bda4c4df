"""Files that are whole or absent: written beside their place, synced, and renamed into it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(file: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a temporary file next to `file`, then rename it. A crash leaves the old file or the new."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        write(part)
        _sync(part)
        os.replace(part, file)
        _sync(file.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it. The kernel frees it when its holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_json(file: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(file, lambda part: _write_text(part, text + "\n"))


def write_text(file: Path, text: str) -> None:
    write_whole(file, lambda part: _write_text(part, text))


def append_json(file: Path, row: dict[str, Any]) -> None:
    """One more line. A crash can tear the last line only, which `read_jsonl` leaves out; this one stays apart."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with open(file, "ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                line = "\n" + line
        stream.write(line.encode())


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; none where it does not exist."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:  # what follows the last is torn
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by a crash
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_json(file: Path) -> Any:
    """The value in a file, None where it is absent or not whole."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _write_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
