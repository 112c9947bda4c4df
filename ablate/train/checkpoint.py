"""Checkpoints: everything a trial needs to go on with the same numbers, written by rename."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ablate.run.files import write_whole

State = dict[str, Any]


def save(file: Path, state: State, check: Callable[[], None] | None = None) -> None:
    """Write a state of tensors, numbers, text, and lists and dicts of them; `check` is `files.write_whole`'s. Raises
    `OSError` when it cannot."""

    def write(part: Path) -> None:
        with open(part, "wb") as stream:  # an open file, because torch's own writer does not say why it failed
            torch.save(state, stream)

    try:
        write_whole(file, write, check)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(file: Path) -> State | None:
    """The state in a file, on the CPU; None where there is none or it cannot be read as one."""
    if not file.is_file():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) else None
