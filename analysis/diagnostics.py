"""What trials recorded of the inside of their models (`train.diagnostics`), as tidy tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import LABELS
from analysis.records import BadRecord, read_record
from analysis.table import read_study

NEGLIGIBLE = 0.01  # of the loss: what pruned heads may cost and still not count


def study_diagnostics(results: Path, study: str) -> pd.DataFrame:
    """One row a trial, diagnostic and time: trial_id, labels, seed, name, at ("initial" or "final"), and `value`,
    the diagnostic as it was recorded."""
    rows = []
    for label in read_study(results, study)["trials"]:
        kept = {name: label.get(name) or "" for name in LABELS} | {"trial_id": label["id"], "seed": label["seed"]}
        for name, times in _recorded(Path(results) / "trials" / label["id"]).items():
            rows += [kept | {"name": name, "at": at, "value": value} for at, value in times.items() if value]
    return pd.DataFrame(rows, columns=["trial_id", *LABELS, "seed", "name", "at", "value"])


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        record = read_record(folder) or {}
    except BadRecord:  # the table of trials names it
        return {}
    return dict(record.get("diagnostics") or {})


def _final(diagnostics: pd.DataFrame, name: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """The labels and the final value of every trial that has one."""
    mine = diagnostics[(diagnostics["name"] == name) & (diagnostics["at"] == "final")]
    for row in mine.to_dict("records"):
        yield {key: row[key] for key in ("trial_id", *LABELS, "seed")}, row["value"]


def pruning_curves(diagnostics: pd.DataFrame) -> pd.DataFrame:
    """One row a trial and number of heads removed, least important first: labels, heads, removed, share, loss."""
    rows = []
    for labels, found in _final(diagnostics, "heads"):
        total = found["removed"][-1]
        for removed, loss in zip(found["removed"], found["loss"], strict=True):
            rows.append(labels | {"heads": total, "removed": removed, "share": removed / total, "loss": loss})
    columns = ["trial_id", *LABELS, "seed", "heads", "removed", "share", "loss"]
    return pd.DataFrame(rows, columns=columns).astype({"loss": float, "share": float})


def pruning_table(diagnostics: pd.DataFrame) -> pd.DataFrame:
    """One row a variant and cell, means over n seeds: heads; loss with all of them; spare, the largest share of heads
    that can go with all smaller ones while the loss stays within 1 % (NEGLIGIBLE) of that; one_each, the loss with
    the most important head of each attention alone; none, the loss without heads."""
    rows = []
    for labels, found in _final(diagnostics, "heads"):
        loss = [math.nan if each is None else each for each in found["loss"]]
        within = [each <= (1 + NEGLIGIBLE) * loss[0] for each in loss]
        kept = within.index(False) if False in within else len(within)
        spare = found["removed"][max(0, kept - 1)] / found["removed"][-1]
        one_each = math.nan if found["one_each"] is None else found["one_each"]
        rows.append(
            labels
            | {"heads": found["removed"][-1], "loss": loss[0], "spare": spare, "one_each": one_each, "none": loss[-1]}
        )
    columns = ["heads", "loss", "spare", "one_each", "none"]
    if not rows:
        return pd.DataFrame(columns=[*LABELS, "n", *columns])
    groups = pd.DataFrame(rows).groupby(list(LABELS), sort=False)
    return groups[columns].mean().assign(n=groups.size()).reset_index()[[*LABELS, "n", *columns]]


def gradient_distances(diagnostics: pd.DataFrame) -> pd.DataFrame:
    """One row a trial, time and distance: labels, at, distance, norm of the loss's gradient by the input there."""
    rows = []
    for row in diagnostics[diagnostics["name"] == "gradients"].to_dict("records"):
        labels = {key: row[key] for key in ("trial_id", *LABELS, "seed", "at")}
        for distance, norm in zip(row["value"]["distance"] or (), row["value"]["norm"] or (), strict=True):
            rows.append(labels | {"distance": distance, "norm": np.nan if norm is None else norm})
    return pd.DataFrame(rows, columns=["trial_id", *LABELS, "seed", "at", "distance", "norm"])
