"""`ablate verify`: every number of a report recomputed from the ledger, and the records behind it looked at."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.columns import CELL
from analysis.errors import AnalysisError
from analysis.records import BadRecord, read_record
from analysis.report.files import BEHIND, hashes
from analysis.table import read_study, trial_rows

KEYS = ("trial_id", "trial", *CELL, "variant", "column", "path", "step", "metric")  # what names a row of a table
SHOWN = 20  # differences named of one file


def verify(report: Path) -> list[str]:
    """What differs between a report (its folder, or a file in it) and what its ledger says now; empty where nothing
    does: a number with its row and column, a line of a page, a figure, a record that has changed since, a record that
    is not what its own curve says. Raises `AnalysisError` where there is no report.
    """
    folder = report if report.is_dir() else report.parent
    if not (folder / BEHIND).is_file():
        raise AnalysisError(f"{report}: no report of `ablate run` or `ablate report`: {BEHIND} is not beside it")
    study, results = folder.resolve().parent.name, folder.resolve().parents[2]
    from analysis.report.build import write_report  # it writes what is verified here

    found = [*_changed_records(results, folder), *_torn_records(results, study)]
    with tempfile.TemporaryDirectory() as place:
        anew = Path(place)
        write_report(results, study, anew)
        for name in sorted({*_files(folder), *_files(anew)} - {BEHIND}):
            found += _compared(folder / name, anew / name, name)
    return found


def _files(folder: Path) -> Iterator[str]:
    """Also those in folders."""
    yield from (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def _changed_records(results: Path, folder: Path) -> Iterator[str]:
    try:
        behind = json.loads((folder / BEHIND).read_text(encoding="utf-8"))["trials"]
    except (json.JSONDecodeError, KeyError) as error:
        raise AnalysisError(f"{folder / BEHIND}: not whole: {error}") from None
    for trial, before in behind.items():
        now = hashes(results / "trials" / trial)
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                how = "is gone" if name not in now else "is new" if name not in before else "has changed"
                yield f"trials/{trial}/{name} {how} since the report was written"


def _torn_records(results: Path, study: str) -> Iterator[str]:
    """Records that do not say what their own curves end with."""
    for label in read_study(results, study)["trials"]:
        try:
            record = read_record(results / "trials" / label["id"])
        except BadRecord as error:
            yield str(error)
            continue
        if record is not None and record["status"] == "finished":
            yield from _against_curve(label["id"], record["metrics"], trial_rows(results, label["id"]))


def _against_curve(trial: str, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    last = {row["split"]: row for row in rows}
    for split, name in (("valid", "loss"), ("test", "test_loss")):
        if split in last and metrics.get(name) is not None and metrics[name] != last[split]["loss"]:
            yield f"trials/{trial}/record.json: {name} {metrics[name]!r}, its curve ends with {last[split]['loss']!r}"


def _compared(said: Path, anew: Path, name: str) -> list[str]:
    if not said.is_file() or not anew.is_file():
        return [f"{name}: {'missing from the report' if anew.is_file() else 'not what the ledger makes'}"]
    if said.read_bytes() == anew.read_bytes():
        return []
    if said.suffix == ".csv":
        found = _cells(said, anew, name)
    elif said.suffix in (".html", ".md", ".tex"):
        found = _lines(said, anew, name)
    else:
        return [f"{name}: the figure is not what the ledger draws"]
    more = [f"{name}: and {len(found) - SHOWN} differences more"] if len(found) > SHOWN else []
    return (found or [f"{name}: written otherwise, with the same values"])[:SHOWN] + more


def _cells(said: Path, anew: Path, file: str) -> list[str]:
    """`overall.csv, rope, diff: 0.01, recomputed -0.02`."""
    try:
        old, new = (pd.read_csv(each, dtype=str, keep_default_na=False) for each in (said, anew))
    except (ValueError, pd.errors.ParserError) as error:
        return [f"{file}: cannot be read: {error}"]
    if list(old) != list(new) or len(old) != len(new):
        shapes = [f"{len(each)} rows of {', '.join(each)}"[:200] for each in (old, new)]
        return [f"{file}: {shapes[0]}; recomputed {shapes[1]}"]
    found = []
    keys = [name for name in KEYS if name in new]
    for row, column in zip(*(old != new).to_numpy().nonzero(), strict=True):
        name = ", ".join(str(new.iloc[row][key]) for key in keys if new.iloc[row][key])
        was, now = old.iloc[row, column], new.iloc[row, column]
        found.append(f"{file}, {name or f'row {row + 1}'}, {new.columns[column]}: {was}, recomputed {now}")
    return found


def _lines(said: Path, anew: Path, file: str) -> list[str]:
    old, new = (each.read_text(encoding="utf-8", errors="replace").splitlines() for each in (said, anew))
    if len(old) != len(new):
        return [f"{file}: {len(old)} lines, recomputed {len(new)}"]
    pairs = enumerate(zip(old, new, strict=True), 1)
    return [f"{file}, line {k}: {_short(a, b)}, recomputed {_short(b, a)}" for k, (a, b) in pairs if a != b]


def _short(text: str, other: str) -> str:
    """What is around the first character that differs."""
    at = next((k for k, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return repr(text[max(0, at - 30) : at + 30])
