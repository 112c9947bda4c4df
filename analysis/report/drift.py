"""The report's section on machines and libraries, where trials were not all run on one set of them, or some again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.columns import CELL, cell_name
from analysis.drift import FIELDS, Set, pairs_across, reruns, said, sets_of, trials_of


def environments(results: Path, facts: dict[str, Any]) -> tuple[pd.DataFrame, list[str]] | None:
    """Every variant in every cell with its pairs, and how many of them are of two sets; and sentences: the sets, and
    what trials came to that were trained again on another. None where all were run alike and none again."""
    records = {each["id"]: record for each in facts["trials"] if (record := _record(results, each["id"]))}
    trials = trials_of(facts, records)
    sets, again = sets_of(trials), reruns(results, facts, records)
    if len(sets) < 2 and not again:
        return None
    rows = [
        dict(zip((*CELL, "variant"), key, strict=True)) | {"pairs": pairs, "across": across}
        for key, (pairs, across) in pairs_across(trials, facts["baseline"]).items()
    ]
    table = pd.DataFrame(rows, columns=[*CELL, "variant", "pairs", "across"])
    return table, [*_set_lines(sets), *(f"{each.words}." for each in again)]


def _set_lines(sets: dict[Set, int]) -> list[str]:
    if len(sets) < 2:
        return []
    differ = [FIELDS[k] for k in range(len(FIELDS)) if len({each[k] for each in sets}) > 1]
    counts = [f"{count} on {said(each)}" for each, count in sets.items()]
    return [
        f"Finished trials were run on {len(sets)} sets, which differ in {', '.join(differ)}: {'; '.join(counts)}."
    ]


def environment_cells(table: pd.DataFrame) -> list[list[str]]:
    """The variants that are compared across sets, as text."""
    return [
        [cell_name(row), row["variant"], str(row["pairs"]), str(row["across"])]
        for row in table[table["across"] > 0].to_dict("records")
    ]


def mark(rows: Iterable[dict[str, Any]], cells: pd.DataFrame, table: pd.DataFrame) -> None:
    """Add to the verdicts of the comparison how many of their pairs are of two sets; `rows` are those of `cells`."""
    across = {tuple(row[name] for name in (*CELL, "variant")): row for row in table.to_dict("records")}
    for row, cell in zip(rows, cells.to_dict("records"), strict=True):
        found = across.get(tuple(cell[name] for name in (*CELL, "variant")))
        if found is not None and found["across"]:
            row["verdict"] += f" ({found['across']} of {found['pairs']} pairs across machines or libraries)"


def _record(results: Path, trial_id: str) -> dict[str, Any] | None:
    try:
        record = json.loads((Path(results) / "trials" / trial_id / "record.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None  # the table says so
    return record if isinstance(record, dict) else None
