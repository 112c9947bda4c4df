"""Points for a fit, from anybody's table: parameters n, tokens d, compute c, loss, and what else a law reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.typed import did_you_mean

OURS = {"n": "params_non_embedding", "d": "tokens", "c": "train_flops", "s": "steps", "loss": "loss"}
FLOPS = 6.0  # C = 6 N D: two for the forward pass and four for the backward, of every parameter and token
READERS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def read(source: Path | str) -> pd.DataFrame:
    """Any table: .csv, .tsv, .jsonl, .json (a list of rows) or .parquet, also packed (.gz, .xz).

    The index counts rows as a person does, from 1 below the header. Raises `AnalysisError`.
    """
    path = Path(source)
    kind = next((suffix for suffix in path.suffixes if suffix in READERS), None)
    if kind is None:
        raise AnalysisError(f"{path}: not a table; known: {', '.join(READERS)}, also packed as .gz or .xz")
    try:
        if kind in (".csv", ".tsv"):
            table = pd.read_csv(path, sep="\t" if kind == ".tsv" else ",", low_memory=False)
        elif kind == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_json(path, lines=kind == ".jsonl")
    except FileNotFoundError:
        raise AnalysisError(f"{path}: there is no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise AnalysisError(f"{path}: cannot be read as {kind}: {error}") from None
    if not isinstance(table, pd.DataFrame) or not len(table):
        raise AnalysisError(f"{path}: has no rows")
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def where(table: pd.DataFrame, query: str) -> pd.DataFrame:
    """The rows that a pandas query keeps. Raises `AnalysisError`."""
    try:
        kept = table.query(query)
    except Exception as error:  # of pandas' parser and of the query itself, in many classes
        raise AnalysisError(f"--where {query!r}: {error}; columns: {', '.join(map(str, table))}") from None
    if not isinstance(kept, pd.DataFrame) or not len(kept):
        raise AnalysisError(f"--where {query!r}: keeps no row of {len(table)}")
    return kept


def points(
    table: pd.DataFrame, columns: Mapping[str, str], needed: Sequence[str], flops: float = FLOPS
) -> pd.DataFrame:
    """The table with columns by their letters: those that `needed` names, and n, d and c where two of them are there.

    `columns` says which column has n, d, c, s, u, e, l or loss; those of our own tables are known. Of n, d and c the
    third follows by c = `flops` n d. Raises `AnalysisError` naming a column and a row.
    """
    chosen = dict(columns)
    for letter, name in OURS.items():
        if letter not in chosen and letter not in table and name in table:
            chosen[letter] = name
        elif letter not in chosen and letter in table:
            chosen[letter] = letter
    for letter in ("u", "e", "l"):
        if letter not in chosen and letter in table:
            chosen[letter] = letter
    _refuse_unknown(chosen, table)
    if len({"n", "d", "c"} & set(columns)) >= 2:  # what a person named decides, not a third column that happens to be
        chosen = {
            letter: name for letter, name in chosen.items() if letter in columns or letter not in ("n", "d", "c")
        }
    found = table.copy()
    used = {letter for letter in chosen if letter in ("n", "d", "c", "loss") or letter in needed}
    for letter in sorted(used):
        found[letter] = _numbers(table, chosen[letter])
    have = {"n", "d", "c"} & used
    if len(have) == 2:
        (third,) = {"n", "d", "c"} - have
        found[third] = (
            flops * found["n"] * found["d"] if third == "c" else found["c"] / flops / found[min(have - {"c"})]
        )
    missing = [
        letter for letter in needed if letter not in used and not (letter in ("n", "d", "c") and len(have) == 2)
    ]
    if missing:
        known = ", ".join(map(str, table.columns))
        raise AnalysisError(f"no column for {missing[0]}: name it with --{missing[0]} COL; columns: {known}")
    return found


def no_column(option: str, name: str, table: pd.DataFrame) -> AnalysisError:
    """What is said of a column that a table has not."""
    known = ", ".join(map(str, table.columns))
    return AnalysisError(f"--{option} {name!r}: no such column;{did_you_mean(name, table.columns)} columns: {known}")


def _refuse_unknown(chosen: Mapping[str, str], table: pd.DataFrame) -> None:
    for letter, name in chosen.items():
        if name not in table:
            raise no_column(letter, name, table)


def _numbers(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as positive numbers. Raises `AnalysisError` naming the first row that is not one."""
    values = pd.to_numeric(table[name], errors="coerce")
    for what, wrong in (
        ("is missing", table[name].isna()),
        ("is not a number", values.isna()),
        ("is not finite", ~np.isfinite(values.astype(float))),
        ("must be above 0", ~(values.astype(float) > 0)),
    ):
        if wrong.any():
            row = wrong.idxmax()
            more = f", and {int(wrong.sum()) - 1} rows more" if wrong.sum() > 1 else ""
            raise AnalysisError(f"column {name!r}, row {row}: {_shown(table[name].loc[row])} {what}{more}")
    return values.astype(float)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"{value}"


def drop_highest(table: pd.DataFrame, count: int) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Without the `count` rows of the highest loss, and which they are."""
    if count >= len(table):
        raise AnalysisError(f"--drop-highest {count}: there are {len(table)} points")
    highest = table["loss"].rank(ascending=False, method="first") <= count
    return table[~highest], [
        {"row": int(row), "reason": f"one of the {count} highest losses"} for row in table.index[highest]
    ]


def averaged(table: pd.DataFrame, column: str, keys: Sequence[str]) -> pd.DataFrame:
    """Rows that differ in `column` alone among the law's inputs and the group, as one: means of all numbers."""
    if column not in table:
        raise no_column("average", column, table)
    rows = table.reset_index(names="row").groupby(list(keys), sort=False, dropna=False)
    letters = [name for name in table if name in ("n", "d", "c", "s", "u", "e", "l", "loss") and name not in keys]
    found = rows.agg(dict.fromkeys(letters, "mean") | {"row": "min"})
    found = found.reset_index().set_index("row")
    found.index.name = None
    return found
