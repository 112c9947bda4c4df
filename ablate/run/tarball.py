"""A tar.gz of regular files, the manifest first, the same bytes for the same content.

What is read may come from anywhere: it is a manifest and then exactly the files that the manifest names, sorted, of
its sizes and checksums, or it is refused. No other kind of member is ever looked at, and no more is unpacked than
the manifest declares.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from ablate.errors import UserError

MANIFEST = "MANIFEST.json"
BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
MOST_MANIFEST = 256 << 20  # bytes; that of ten thousand trials has 6 MB
MOST_NAME = 200  # characters of a member's name, and 90 of its last part: what a plain tar header can hold
MOST_PART = 90

Manifest = dict[str, Any]


def checksum(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": stream.tell(), "sha256": digest}


def pack(archive: Path, root: Path, manifest: Manifest) -> None:
    """Write the files of a manifest, which lie in `root`. Raises `UserError` for one that has changed since."""
    text = (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    with open(archive, "wb") as raw, gzip.GzipFile("", "wb", 6, cast(BinaryIO, raw), mtime=0) as stream:
        stream.write(_header(MANIFEST, len(text)) + text + _padding(len(text)))
        for name, facts in sorted(manifest["files"].items()):
            stream.write(_header(name, facts["bytes"]))
            digest, left = hashlib.sha256(), facts["bytes"]
            try:
                with open(root / name, "rb") as source:
                    while chunk := source.read(min(CHUNK, left)):
                        digest.update(chunk)
                        stream.write(chunk)
                        left -= len(chunk)
            except FileNotFoundError:
                left = -1
            if left or digest.hexdigest() != facts["sha256"]:
                raise UserError(f"{root / name} changed while it was packed: run the command again")
            stream.write(_padding(facts["bytes"]))
        stream.write(b"\0" * 2 * BLOCK)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    try:
        return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        raise UserError(f"{name} does not fit into an archive: {error}") from None


def _padding(size: int) -> bytes:
    return b"\0" * (-size % BLOCK)


def unpack(archive: Path, folder: Path, check: Callable[[Manifest], None]) -> Manifest:
    """Write the archive's files into an empty folder, and return its manifest, which `check` may refuse before.

    Raises `UserError` naming the member that is not what the manifest says. What was written is then to be removed.
    """
    try:
        with gzip.open(archive, "rb") as opened:
            stream = cast(BinaryIO, opened)
            manifest = _read_manifest(archive, stream)
            check(manifest)
            _require_space(archive, folder, manifest)
            for name, facts in sorted(manifest["files"].items()):
                _read_member(archive, stream, name, facts, folder / name)
            if stream.read(2 * BLOCK) != b"\0" * 2 * BLOCK or stream.read(1):
                raise UserError(f"{archive}: there is more in it than {MANIFEST} names")
            return manifest
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{archive}: damaged, or no archive of `ablate export`: {error}") from None


def _read_manifest(archive: Path, stream: BinaryIO) -> Manifest:
    size = _member(archive, stream, MANIFEST)
    if size > MOST_MANIFEST:
        raise UserError(f"{archive}: {MANIFEST} has {size:,} bytes, more than the {MOST_MANIFEST:,} that it may have")
    try:
        manifest = json.loads(stream.read(size))
    except (ValueError, RecursionError):
        manifest = None
    stream.read(-size % BLOCK)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(_is_facts(each) for each in files.values()):
        raise UserError(f"{archive}: {MANIFEST} does not say the size and the SHA-256 of every file")
    for name in files:
        if problem := _problem_of(name, files):
            raise UserError(f"{archive}: member {name!r}: {problem}")
    return cast(Manifest, manifest)


def _is_facts(value: Any) -> bool:
    size, digest = (value.get("bytes"), value.get("sha256")) if isinstance(value, dict) else (None, None)
    return type(size) is int and 0 <= size < 8 << 30 and isinstance(digest, str)


def _problem_of(name: str, files: Mapping[str, Any]) -> str:
    """Why a file of that name is not written; empty when it is."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "it would lie outside of its folder"
    if not name.isprintable() or "\\" in name or any(part.startswith(".") for part in parts):
        return "it is no name that `ablate export` writes"
    if len(name.encode("utf-8", "replace")) > MOST_NAME or len(parts[-1].encode("utf-8", "replace")) > MOST_PART:
        return "its name is too long"
    if any("/".join(parts[:end]) in files for end in range(1, len(parts))):
        return "another member is the folder that it lies in"
    return ""


def _require_space(archive: Path, folder: Path, manifest: Manifest) -> None:
    needed = sum(facts["bytes"] for facts in manifest["files"].values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"unpacked it has {needed:,} bytes, and {free:,} are free", str(archive))


def _read_member(archive: Path, stream: BinaryIO, name: str, facts: Mapping[str, Any], target: Path) -> None:
    size = _member(archive, stream, name)
    if size != facts["bytes"]:
        raise UserError(f"{archive}: member {name!r} has {size:,} bytes, {MANIFEST} says {facts['bytes']:,}")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(target, "xb") as out:
        left = size
        while left:
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise UserError(f"{archive}: it ends within member {name!r}")
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    stream.read(-size % BLOCK)
    if digest.hexdigest() != facts["sha256"]:
        raise UserError(f"{archive}: member {name!r} is not what {MANIFEST} says: its SHA-256 differs")


def _member(archive: Path, stream: BinaryIO, name: str) -> int:
    """The size of the next member, which must be a regular file of that name."""
    header = stream.read(BLOCK)
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
    except tarfile.HeaderError:
        raise UserError(f"{archive}: no member where {name!r} should be") from None
    if member.name != name:
        raise UserError(f"{archive}: member {member.name!r} stands where {MANIFEST} has {name!r}")
    if member.type != tarfile.REGTYPE or member.size < 0:
        raise UserError(f"{archive}: member {name!r} is not a regular file")
    return member.size
