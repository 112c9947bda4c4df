"""Checkpoints: everything a trial needs to go on with the same numbers, written by rename.

A file is what `torch.save` writes, then one line with the SHA-256 of that, so that what a disk has changed is found.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from ablate.run.files import write_whole

State = dict[str, Any]
MARK = b"\nsha256 "
TRAILER = len(MARK) + 64 + 1  # its hexadecimal digits, and the end of the line


class _Hashed:
    """A stream that counts what is written to it into a hash."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.hash = stream, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        return self.stream.write(content)

    def flush(self) -> None:
        self.stream.flush()


def save(file: Path, state: State, check: Callable[[], None] | None = None) -> None:
    """Write a state of tensors, numbers, text, and lists and dicts of them; `check` is `files.write_whole`'s. Raises
    `OSError` when it cannot."""

    def write(part: Path) -> None:
        with open(part, "wb") as stream:  # an open file, because torch's own writer does not say why it failed
            hashed = _Hashed(stream)
            try:
                torch.save(_compact(state), hashed)  # type: ignore[arg-type]
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            stream.write(MARK + hashed.hash.hexdigest().encode() + b"\n")

    write_whole(file, write, check)


def _compact(tree: Any) -> Any:
    """A tensor that is a part of a larger one is written without the rest."""
    if isinstance(tree, dict):
        found = copy.copy(tree)  # with what torch hangs on a `state_dict`
        found.update((key, _compact(each)) for key, each in tree.items())
        return found
    if isinstance(tree, list | tuple):
        return type(tree)(_compact(each) for each in tree)
    if isinstance(tree, torch.Tensor) and tree.untyped_storage().nbytes() > tree.numel() * tree.element_size():
        return tree.clone()
    return tree


def load(file: Path) -> State | None:
    """The state in a file, on the CPU; None where there is none, or it is not what was written."""
    if not file.is_file() or not is_whole(file):
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) else None


def is_whole(file: Path) -> bool:
    """Whether a file ends with the checksum of what is before it."""
    left = file.stat().st_size - TRAILER
    content = hashlib.sha256()
    with open(file, "rb") as stream:
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            content.update(block)
            left -= len(block)
        return left == 0 and stream.read() == MARK + content.hexdigest().encode() + b"\n"


def hash_of(file: Path, size: int) -> str:
    """SHA-256 of the first `size` bytes of a file."""
    with open(file, "rb") as stream:
        return hashlib.sha256(stream.read(size)).hexdigest()
