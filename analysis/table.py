"""Trials as one tidy DataFrame, from a results folder or from anybody's file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import BY_NAME, COLUMNS, LABELS
from analysis.errors import AnalysisError
from analysis.records import BadRecord, BadStudy, read_curve, read_study_file, read_values


class TableError(AnalysisError):
    """A table that cannot be read as one of trials. The message says which file and what is wrong."""


CURVE = ("step", "tokens", "split", "loss")


def read_study(results: Path, study: str) -> dict[str, Any]:
    """The study as it was resolved: labels of its trials, baseline, question, data."""
    try:
        return read_study_file(Path(results) / "studies" / study / "study.json")
    except FileNotFoundError:
        raise TableError(f"no study {study!r} in {results}") from None
    except BadStudy as error:
        raise TableError(str(error)) from None


def study_table(results: Path, study: str) -> pd.DataFrame:
    """One row a trial of a study, with the columns of `analysis.columns` and one for each axis.

    Trials without a record are `pending`; a record that cannot be read is named in `error` and left out of
    everything else.
    """
    rows, labels = [], read_study(results, study)["trials"]
    seeds = {label["id"]: label["seed"] for label in labels}
    trials, blank = Path(results) / "trials", dict.fromkeys(BY_NAME)
    for label in labels:
        begun = {"parent_seed": seeds.get(label.get("parent"))}
        rows.append({**blank, **begun, **_labels(label), **_record_values(trials / label["id"])})
    return on_one_scale(validated(pd.DataFrame(rows), f"study {study!r}"))


def on_one_scale(table: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte as the headline metric of every stage whose trials read their text through different tokenizers:
    a loss per token says nothing where the tokens differ."""
    for _, part in finished(table).groupby("stage", observed=True):
        told = set(part["metric"]) == {"loss"} and part["bits_per_byte"].notna().all()
        if told and part["tokens_of"].nunique() > 1:
            mine = table["stage"] == part["stage"].iloc[0]
            table.loc[mine, "metric"] = "bits_per_byte"
            table.loc[mine, "score"] = table.loc[mine, "bits_per_byte"]
            table.loc[mine, "test_score"] = table["test_bits_per_byte"] if "test_bits_per_byte" in table else np.nan
    return table


def study_curves(results: Path, study: str) -> pd.DataFrame:
    """One row an evaluation of a trial: trial_id, its labels, seed, step, tokens, split, loss."""
    labels, found, counts = read_study(results, study)["trials"], [], []
    for label in labels:
        rows = trial_rows(results, label["id"])
        found += [[row.get(key) for key in CURVE] for row in rows]
        counts.append(len(rows))
    named = pd.DataFrame([_labels(label) for label in labels]).iloc[np.repeat(np.arange(len(labels)), counts)]
    curves = pd.concat([named.reset_index(drop=True), pd.DataFrame(found, columns=list(CURVE))], axis=1)
    curves["loss"] = pd.to_numeric(curves["loss"])
    return curves


def read_table(source: Path | str | pd.DataFrame) -> pd.DataFrame:
    """A validated table from a DataFrame, or a .csv, .parquet or .jsonl file. Raises `TableError`."""
    if isinstance(source, pd.DataFrame):
        return validated(source.copy(), "the table")
    path = Path(source)
    readers: dict[str, Any] = {".csv": _read_csv, ".parquet": pd.read_parquet, ".jsonl": _read_jsonl}
    kind = next((suffix for suffix in path.suffixes if suffix in readers), None)
    if kind is None:
        raise TableError(f"{path}: not a table; known: {', '.join(readers)}")
    try:
        table = readers[kind](path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from None
    return validated(table, str(path))


def _read_csv(file: Path) -> pd.DataFrame:
    """Text stays text: `012e4` is the id of a trial, not a number."""
    text = {column.name: "string" for column in COLUMNS if column.dtype == "string"}
    return pd.read_csv(file, dtype=text)


def _read_jsonl(file: Path) -> pd.DataFrame:
    return pd.read_json(file, lines=True, dtype=False)


def validated(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Known columns in their types, labels that are missing as "". Unknown ones are kept as they are.

    Raises `TableError`.
    """
    if "variant" not in table:
        raise TableError(f"{name}: no column variant; its columns: {', '.join(map(str, table.columns))}")
    for name_, value in (("stage", ""), ("parent_seed", pd.NA), ("metric", "loss"), ("better", "lower")):
        if name_ not in table:
            table[name_] = value
    if "score" not in table and "loss" in table:
        table["score"] = table["loss"]
    for column in table.columns:
        known = BY_NAME.get(str(column))
        if known is None:
            continue
        try:
            table[column] = (
                pd.to_numeric(table[column]).astype(known.dtype)  # type: ignore[call-overload]
                if known.dtype != "string"
                else table[column].astype("string")
            )
        except (ValueError, TypeError) as error:
            raise TableError(f"{name}: column {column} must be {known.dtype}: {error}") from None
        if known.name in LABELS:
            table[column] = table[column].fillna("")
    return table


def _labels(label: dict[str, Any]) -> dict[str, Any]:
    axes = {path: _scalar(value) for path, value in label["axis_values"].items()}
    names = ("group_id", "variant", "size", "axes", "budget", "seed")
    kept = {name: label[name] for name in names} | {"stage": label.get("stage") or "", "parent": label.get("parent")}
    return {"trial_id": label["id"], **kept, **axes}


def _scalar(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)


def _record_values(folder: Path) -> dict[str, Any]:
    try:
        found = read_values(folder)
    except BadRecord as error:
        return {"status": "pending", "error": str(error)}
    if found is None:
        return {"status": "pending"}
    record, values = found
    environment = record.get("environment") or {}
    values["hardware"] = environment.get("gpu") or environment.get("cpu")
    values |= _scores(record.get("metrics") or {}, values)
    return {"status": record["status"], **values}


def _scores(metrics: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The headline metric on validation and test data, and every other metric under its own name, as `metrics.NAME`
    where a column has that name."""
    name = values["metric"] or "loss"
    found: dict[str, Any] = {"metric": name, "better": values["better"] or "lower"}
    found |= {"score": metrics.get(name), "test_score": metrics.get(f"test_{name}")}
    if values["tokens_per_s"] and values["tokens"] and values["steps"]:
        found["steps_per_s"] = values["tokens_per_s"] * values["steps"] / values["tokens"]
    numbers = {key: each for key, each in metrics.items() if isinstance(each, int | float)}
    others = {f"metrics.{key}" if key in BY_NAME else key: each for key, each in numbers.items() if not _known(key)}
    return {**others, **found}


def _known(metric: str) -> bool:
    return metric in BY_NAME and BY_NAME[metric].where == f"metrics.{metric}"


def trial_rows(results: Path, trial_id: str) -> list[dict[str, Any]]:
    """Every evaluation of a trial, in order."""
    return read_curve(Path(results) / "trials" / trial_id / "metrics.jsonl")


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The trials with a final loss."""
    return table[(table["status"] == "finished") & np.isfinite(table["loss"].astype(float))]


def require(table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raises `TableError` for the first column that is not there."""
    missing = [name for name in columns if name not in table]
    if missing:
        raise TableError(f"the table has no column {missing[0]}; its columns: {', '.join(map(str, table))}")
