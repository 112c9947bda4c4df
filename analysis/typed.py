"""Names that people type: which one was meant, and a parser of options that says so."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

NEAR = 0.6  # how alike two names are that may be meant for each other, of `difflib`


def did_you_mean(word: object, names: Iterable[object]) -> str:
    """` did you mean 'rope'?`, with a blank before it; empty where no name is near.

    Capitals do not count, nor whether words are joined by - or _; the beginning of one name alone is near to it.
    """
    known = {_plain(name): str(name) for name in names}
    typed = _plain(word)
    close = get_close_matches(typed, known, n=1, cutoff=NEAR)
    if not close and typed:
        begun = [name for name in known if name.startswith(typed)]
        close = begun if len(begun) == 1 else []
    return f" did you mean {known[close[0]]!r}?" if close else ""


def _plain(name: object) -> str:
    return str(name).lower().replace("-", "_")


class Parser(argparse.ArgumentParser):
    """Says of a wrong command, value or option which one is near. A command refuses by itself what it does not know,
    so that the usage that is shown is its own."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but nothing unknown is left over."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            hints = dict.fromkeys(self._hint(word) for word in left)
            self.error(f"unrecognized arguments: {' '.join(left)}" + f";{''.join(hints)}" * any(hints))
        return found, left

    def _hint(self, word: str) -> str:
        options = [name for name in self._option_string_actions if name.startswith("--")]
        return did_you_mean(word.split("=")[0], options) if word.startswith("-") else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices: Sequence[Any] = list(action.choices or ())
        if choices and value not in choices:
            hint, legal = did_you_mean(value, choices), ", ".join(map(str, choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r};{hint} choose from {legal}")
