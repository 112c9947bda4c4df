"""Which other trial is nearest to one, and in which fields they differ: every trial's specification, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablate.run.files import read_json
from ablate.run.ledger import Ledger, TrialFolder
from ablate.spec import flatten

IGNORED = ("resources.", "data.path", "data.corpus", "data.hub", "data.hub_config", "data.column")
MEANING = (".version", ".code")  # of a component: in `identity.json` alone
UNKNOWN, ABSENT = -1, 0  # codes of what no file says, and of what a specification has not
Difference = tuple[str, Any, Any]  # path, there, here


@dataclass(frozen=True)
class Index:
    """The specifications of many trials as small numbers: a row a trial, a column a field in which some differ, equal
    where their values are."""

    ids: tuple[str, ...]
    rows: Mapping[str, int]  # by id
    codes: np.ndarray
    paths: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]  # by column and code
    alike: Mapping[str, Any]  # fields in which none differ

    def row(self, trial_id: str) -> int | None:
        """Where a trial stands; None for one without a specification."""
        return self.rows.get(trial_id)

    def nearest(self, row: int, among: np.ndarray) -> int | None:
        """The row with the fewest differing fields, of the rows in `among`; at equal numbers one that differs in what
        a component or the data mean rather than in a setting."""
        among = among[among != row]
        if not len(among):
            return None
        weights = [0.9 if path.endswith(MEANING) or path == "data.content" else 1.0 for path in self.paths]
        return int(among[np.argmin(self._differ(among, row) @ np.array(weights))])

    def differences(self, there: int, here: int) -> list[Difference]:
        """The fields in which two trials differ, by path. What a component means is not compared between components
        of different names."""
        columns = np.flatnonzero(self._differ(np.array([there]), here)[0])
        found = [(self.paths[k], self._value(there, int(k)), self._value(here, int(k))) for k in columns]
        named = {path.removesuffix("name") for path, _, _ in found if path.endswith(".name")}
        return sorted(
            each for each in found if not (each[0].endswith(MEANING) and each[0].rpartition(".")[0] + "." in named)
        )

    def name(self, path: str, row: int) -> str:
        """The component whose version or code `path` is, in a trial's specification."""
        where = path.rpartition(".")[0]
        key = f"{where}.name"
        return f"{where} {self._value(row, self.paths.index(key)) if key in self.paths else self.alike.get(key)}"

    def _differ(self, rows: np.ndarray, row: int) -> np.ndarray:
        theirs, mine = self.codes[rows], self.codes[row]
        return (theirs != mine) & (theirs != UNKNOWN) & (mine != UNKNOWN)

    def _value(self, row: int, column: int) -> Any:
        return self.values[column][self.codes[row, column]]


def index(ledger: Ledger) -> Index:
    """The specifications of all trials of a ledger, by id."""
    paths: dict[str, int] = {}
    codes: list[dict[str, int]] = []
    values: list[list[Any]] = []
    ids, rows, blind = [], [], []
    for trial_id in ledger.trial_ids():
        found = fields(ledger.trial(trial_id))
        if not found:
            continue
        row: dict[int, int] = {}
        for path, value in found.items():
            k = paths.setdefault(path, len(paths))
            if k == len(codes):
                codes.append({})
                values.append([None])
            text = value if isinstance(value, str) else json.dumps(value)
            code = codes[k].setdefault(text, len(values[k]))
            if code == len(values[k]):
                values[k].append(value)
            row[k] = code
        ids.append(trial_id)
        rows.append(row)
        blind.append(not any(path.endswith(MEANING) for path in found))
    matrix = np.full((len(ids), len(paths)), ABSENT, dtype=np.int32)
    meaning = [k for path, k in paths.items() if path.endswith(MEANING)]
    for number, row in enumerate(rows):
        if blind[number]:
            matrix[number, meaning] = UNKNOWN
        matrix[number, list(row)] = list(row.values())
    differ = (matrix != matrix[:1]).any(axis=0)
    alike = {path: values[k][matrix[0, k]] for path, k in paths.items() if not differ[k]}
    kept = np.flatnonzero(differ)
    names = list(paths)
    columns = tuple(tuple(values[k]) for k in kept)
    return Index(
        tuple(ids),
        {each: k for k, each in enumerate(ids)},
        matrix[:, kept],
        tuple(names[k] for k in kept),
        columns,
        alike,
    )


def fields(folder: TrialFolder) -> dict[str, Any]:
    """What a trial was asked to be, by path, with the version or the code of each of its components where that was
    kept. Resources and places of data are left out."""
    asked = read_json(folder.spec) or {}
    found = {path: value for path, value in flatten(asked) if value is not None and not path.startswith(IGNORED)}
    meant = {path: value for path, value in flatten(read_json(folder.identity) or {}) if path.endswith(MEANING)}
    return found | meant


def sentences(specs: Index, differences: Sequence[Difference], here: int) -> list[str]:
    """What each difference means, for a person."""
    return [_sentence(specs, each, here) for each in differences] or [
        "their specifications say the same: what a component means has changed, and was not kept of the other"
    ]


def _sentence(specs: Index, difference: Difference, here: int) -> str:
    path, there, mine = difference
    if path.endswith(".version") and there is not None and mine is not None:
        return f"component {specs.name(path, here)} version {there} there, {mine} here: its meaning changed"
    if path.endswith(MEANING):
        if there is None or mine is None:
            return f"component {specs.name(path, here)} is of a plugin in one and of this package in the other"
        return f"component {specs.name(path, here)}: the plugin's code changed ({there} there, {mine} here)"
    if path == "data.content":
        return f"the data's content changed ({there} there, {mine} here)"
    return f"{path}: {_shown(there)} there, {_shown(mine)} here"


def _shown(value: Any) -> Any:
    return "not set" if value is None else value


def earlier(specs: Index, begun: Mapping[str, float], when: float) -> np.ndarray:
    """The rows of the trials that some run had trained before `when`; those of no run's log count too."""
    return np.array([k for k, each in enumerate(specs.ids) if begun.get(each, 0.0) < when], dtype=int)
