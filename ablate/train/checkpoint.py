"""Checkpoints: everything a trial needs to go on with the same numbers, written by rename."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import torch

from ablate.run.files import write_whole

State = dict[str, Any]


def save(file: Path, state: State) -> None:
    """Write a state of tensors, numbers, text, and lists and dicts of them. Raises `OSError` when it cannot."""
    try:
        write_whole(file, lambda part: torch.save(state, part))
    except RuntimeError as error:  # torch's writer hides a full disk in one
        raise OSError(errno.EIO, f"writing a checkpoint failed: {error}", str(file)) from error


def load(file: Path) -> State | None:
    """The state in a file, on the CPU; None where there is none or it cannot be read as one."""
    if not file.is_file():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) else None
