"""What the options of `ablate fit` name: columns, points, values; and plain values for JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import points as reading
from analysis.errors import AnalysisError
from analysis.forms_user import LETTERS
from analysis.gates import Limits, gate

COLUMNS = {**LETTERS, "loss": "losses"}


def letters_of(options: argparse.Namespace) -> dict[str, str]:
    """Which column each option names."""
    return {letter: name for letter in COLUMNS if (name := getattr(options, letter))}


def letter_of(letters: dict[str, str]) -> str:
    """What a form of one input reads: the first of c, n, d, s, l that has a column."""
    return next((letter for letter in ("c", "n", "d", "s", "l") if letter in letters), "c")


def chosen(
    data: pd.DataFrame, inputs: Sequence[str], options: argparse.Namespace
) -> tuple[pd.DataFrame, list[dict[str, Any]], list[dict[str, Any]]]:
    """The points to fit, those left out with their reasons (by quality gates, by request, into means), and which
    gates were applied."""
    limits = Limits(form=options.form)
    columns = {name: name for name in ("n", "d", "c", "loss") if name in data}
    kept, bad = gate(data, options.keep, limits, columns)
    dropped = [{"row": int(row), "reason": f"{bad['gate'][row]}: {bad['reason'][row]}"} for row in bad.index]
    if not len(kept):
        raise AnalysisError(f"no point is left: {dropped[0]['reason']}; --keep GATE lets points through")
    if options.drop_highest:
        kept, highest = reading.drop_highest(kept, options.drop_highest)
        dropped += highest
    if options.average:
        kept = reading.averaged(kept, options.average, inputs)
    return kept, dropped, bad.attrs["gates"]


def pinned(given: Sequence[str]) -> dict[str, float]:
    """`["E=0"]` as a mapping."""
    return {name: value for text in given for name, value in assigned(text, "--pin").items()}


def assigned(text: str, option: str) -> dict[str, float]:
    """`n=1e9,d=2e10` as a mapping. Raises `AnalysisError`."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise AnalysisError(f"{option} {text!r}: {part!r} is not NAME=NUMBER") from None
    return found


def third(at: dict[str, float]) -> dict[str, float]:
    """n, d and c from two of them."""
    if "c" not in at:
        return at | {"c": reading.FLOPS * at["n"] * at["d"]}
    return at | ({"d": at["c"] / reading.FLOPS / at["n"]} if "n" in at else {"n": at["c"] / reading.FLOPS / at["d"]})


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; what is missing is None, which JSON has a word for."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): plain(value) for key, value in row.items()} for row in rows]


def plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value
