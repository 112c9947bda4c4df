"""What counts as a readable file of a results folder: the one place that decides, for commands and analyses alike."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.columns import BY_NAME, COLUMNS
from analysis.errors import AnalysisError

ENDED = ("finished", "diverged", "failed", "stopped")
SECTIONS = (
    "spec",
    "metric",
    "environment",
    "data",
    "diagnostics",
    "layers",
    "forked",
    "cohort",
    "profile",
)  # objects, where a record has them
STUDY: dict[str, type | tuple[type, ...]] = {
    "study": str,
    "question": str,
    "baseline": str,
    "match": str,
    "tolerance": (int, float),
    "data": dict,
    "rows": list,
    "trials": list,
}
END_OF_9999 = 253402300800.0 - 2 * 86400  # whatever the time zone
LABEL: dict[str, type | tuple[type, ...]] = {
    "variant": str,
    "size": str,
    "axes": str,
    "budget": str,
}
TRIAL = LABEL | {"id": str, "group_id": str, "seed": int, "axis_values": dict}
ROW = LABEL | {"residuals": dict, "differs_in": list}

PATHS = tuple((each.name, (path := each.where.split("."))[0], tuple(path[1:])) for each in COLUMNS if each.where)


class BadRecord(AnalysisError):
    """A record that cannot be read as one. The message names it and says why."""


class BadStudy(AnalysisError):
    """A study's file that cannot be read as one."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """How the trial of a folder ended; None while it has no record. Raises `BadRecord`."""
    found = read_values(folder)
    return None if found is None else found[0]


def read_values(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The record with what it says for each column of the table, None where it says nothing. Raises `BadRecord`."""
    place = f"trials/{folder.name}/record.json"
    try:
        with open(os.path.join(folder, "record.json"), "rb") as stream:  # half the time of a Path's own
            record = json.loads(stream.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        raise BadRecord(f"{place} is not whole") from None
    if not isinstance(record, dict):
        raise BadRecord(f"{place} is not whole: it is no object")
    values = _values(record)
    if (found := _wrong(record, folder.name, values)) is not None:
        raise BadRecord(f"{place} is not whole: {found}")
    return record, values


def _wrong(record: dict[str, Any], trial: str, values: dict[str, Any]) -> str | None:
    """What a record says that none can say."""
    if record.get("id") != trial:
        return f"its id is {_short(record.get('id'))}"
    if record.get("status") not in ENDED:
        return f"its status is {_short(record.get('status'))}, which is none of {', '.join(ENDED)}"
    metrics = record.get("metrics")
    if not isinstance(metrics, dict):
        return "it has no metrics"
    for name in SECTIONS:
        if not isinstance(record.get(name), dict | None):
            return f"{name} is {_short(record[name])}, which is no object"
    if record["status"] == "finished" and not is_number(record.get("wall_s")):
        return f"wall_s is {_short(record.get('wall_s'))}"
    if record.get("ended") is not None and not is_time(record["ended"]):
        return f"ended is {_short(record['ended'])}"
    for name, value in metrics.items():
        if value is not None and not is_number(value):
            return f"metrics.{name} is {_short(value)}"
    for name, value in values.items():
        if value is not None and not FITS[name](value):
            return f"{BY_NAME[name].where} is {_short(value)}"
    return None


def _values(record: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, first, rest in PATHS:
        value = record.get(first)
        for key in rest:
            value = value.get(key) if isinstance(value, dict) else None
        found[name] = value
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    if type(value) is float:
        return math.isfinite(value)
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def is_time(value: Any) -> bool:
    """Whether a value is a time, in seconds since 1970, of the years that calendars write with four digits."""
    return is_number(value) and 0 <= value < END_OF_9999


KINDS = {"string": _is_text, "boolean": _is_truth}
FITS = {each.name: KINDS.get(each.dtype, is_number) for each in COLUMNS if each.where}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in the whole lines of a file; none where it does not exist."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_bytes().split(b"\n")[:-1]:  # what follows the last is torn
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # torn by a crash
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_curve(file: Path) -> list[dict[str, Any]]:
    """The evaluations in a trial's metrics.jsonl, in order. What is not one is left out."""
    return [row for row in read_lines(file) if _is_evaluation(row)]


def _is_evaluation(row: dict[str, Any]) -> bool:
    others = [value for name, value in row.items() if name not in ("step", "tokens", "split")]
    return (
        all(is_number(row.get(name)) and row[name] >= 0 for name in ("step", "tokens"))
        and isinstance(row.get("split"), str)
        and "loss" in row
        and all(value is None or is_number(value) for value in others)
    )


def read_study_file(file: Path) -> dict[str, Any]:
    """A study as `ablate run` resolved it. Raises `FileNotFoundError`, `BadStudy`."""
    try:
        study = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadStudy(f"{file}: not whole: {str(error)[:200]}") from None
    if not isinstance(study, dict):
        raise BadStudy(f"{file}: not whole: it is no object")
    _check(study, STUDY, file, "")
    for key, kinds in (("rows", ROW), ("trials", TRIAL)):
        for number, each in enumerate(study[key]):
            if not isinstance(each, dict):
                raise BadStudy(f"{file}: not whole: {key}.{number} is {_short(each)}")
            _check(each, kinds, file, f"{key}.{number}.")
    for trial in study["trials"]:
        if Path(trial["id"]).name != trial["id"] or trial["id"] in ("", "..") or "\0" in trial["id"]:
            raise BadStudy(f"{file}: {_short(trial['id'])} is no trial's id")
    return study


def _check(tree: dict[str, Any], kinds: dict[str, type | tuple[type, ...]], file: Path, place: str) -> None:
    for key, kind in kinds.items():
        value = tree.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadStudy(f"{file}: not whole: {place}{key} is {_short(value)}")
