"""What goes wrong, told to the person who can mend it: the value, the place, and what would have been legal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches

from analysis.typed import did_you_mean

MOST_NAMED = 60  # more names than this are for a command to list


class UserError(Exception):
    """Wrong input. The command line prints the message, without a traceback, and exits with 2."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: the same message."""
        return [f"ablate: {self}"]


class PlaceError(UserError):
    """Wrong input at a place of a file: `path`, as `("variants", "rope")`, and `problem` without the place."""

    def __init__(self, message: str, path: Iterable[str], problem: str):
        self.path = tuple(path)
        self.problem = problem
        super().__init__(message)


class SpecError(UserError):
    """A value that a specification cannot hold. `path` says where, as `("arch", "position", "base")`."""

    def __init__(self, path: Iterable[str], problem: str):
        self.path = tuple(path)
        self.problem = problem
        super().__init__(f"{'.'.join(self.path)}: {problem}" if self.path else problem)


class MaxLenError(UserError):
    """A sequence longer than the model was built for."""


def unknown(what: str, word: object, names: Iterable[str], listed: str = "") -> str:
    """`unknown position 'ropee'; did you mean 'rope'? known: alibi, learned, ...`

    Of very many names the nearest are told, and `listed`, a command that has them all.
    """
    names = sorted(set(names))
    hint = did_you_mean(word, names)
    if listed and len(names) > MOST_NAMED:
        near = get_close_matches(str(word), names, n=6, cutoff=0.0)
        return f"unknown {what} {word!r};{hint} near: {', '.join(near)}; `{listed}` has all {len(names)}"
    return f"unknown {what} {word!r};{hint} known: {', '.join(names)}"


def within(what: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `UserError` unless low <= value <= high."""
    if not low <= value <= high:
        legal = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise UserError(f"{what} {value:g} must be {legal}")


def plural(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
