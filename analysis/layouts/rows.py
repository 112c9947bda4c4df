"""What the rows of layouts have in common: cells of a study, groups, the columns of a result, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.columns import CELL
from analysis.layouts.layout import Column, LayoutError

GROUP = "in_group"  # the column of a layout's data that rows are grouped by
HOLM = "paired t-tests at 5 %, after Holm's correction"


def checked(rows: pd.DataFrame, columns: Sequence[str], layout: str) -> pd.DataFrame:
    """A table that has these columns; one without rows gets them. Raises `LayoutError`."""
    if missing := [name for name in columns if name not in rows]:
        if not len(rows):
            return rows.reindex(columns=[*rows.columns, *missing])
        there = ", ".join(map(str, rows)) or "none"
        raise LayoutError(f"{layout}: the table has no column {missing[0]!r}; its columns: {there}")
    return rows


def grouped(rows: pd.DataFrame, groups: Mapping[str, str] | None) -> pd.DataFrame:
    """With the column `GROUP`: the cell, where there are several, and the group that `groups` gives the variant."""
    labels = [_joined([*cell, (groups or {}).get(variant, "")]) for cell, variant in _cells(rows)]
    return rows.assign(**{GROUP: pd.Series(labels, index=rows.index, dtype="object")})


def results(compared: pd.DataFrame, layout: str) -> tuple[pd.DataFrame, tuple[Column, ...], tuple[str, ...]]:
    """The rows of `analysis.tables.comparison_table` with a perplexity where the metric is the loss, the columns of
    their result and of its difference from the baseline, and notes.

    Raises `LayoutError` for missing columns and for several metrics.
    """
    wanted = (
        "variant",
        "metric",
        "loss",
        "score",
        "score_sd",
        "diff",
        "lo",
        "hi",
        "verdict",
        "n",
        "trials",
        "trial_ids",
    )
    compared = checked(compared, wanted, layout)
    metrics = list(dict.fromkeys(compared["metric"]))
    if len(metrics) > 1:
        named = ", ".join(map(str, metrics))
        raise LayoutError(f"{layout}: results in several metrics ({named}); pass the rows of one stage")
    metric = str(metrics[0]) if metrics else "loss"
    columns = [Column("score", *told(metric), ".4f", sd="score_sd", verdict="verdict", ids="trial_ids")]
    if metric == "loss":
        columns.append(Column("perplexity", "Perplexity", form=".4g", ids="trial_ids"))
    columns.append(Column("diff", "Difference", form="+.4f", lo="lo", hi="hi", ids="trial_ids"))
    columns.append(Column("n", "Seeds", form=".0f"))
    rows = compared.assign(perplexity=np.exp(compared["loss"].astype(float)))
    notes = ("± is the standard deviation over seeds; differences are paired, with their 95 % interval.",)
    return rows, tuple(columns), notes + unfinished(compared)


def told(metric: str) -> tuple[str, str]:
    """Heading and unit of a metric."""
    return {"loss": ("Loss", "nats/token"), "bits_per_byte": ("Bits per byte", "bits")}.get(metric, (metric, ""))


def unfinished(rows: pd.DataFrame) -> tuple[str, ...]:
    """Which rows rest on fewer trials than were begun: a note, or none."""
    counts = []
    for (cell, variant), row in zip(_cells(rows), rows.to_dict("records"), strict=True):
        if row["n"] < row["trials"]:
            name = _joined([variant, *cell, str(row.get("column", ""))])
            counts.append(f"{name}: {row['n']:.0f} of {row['trials']:.0f}")
    return (f"Trials that came to their end: {'; '.join(counts)}; all of the others.",) if counts else ()


def _cells(rows: pd.DataFrame) -> list[tuple[list[str], str]]:
    """Of every row the labels of its cell that are not the same in all rows, and the variant."""
    names = [name for name in CELL if name in rows and rows[name].nunique() > 1]
    return [([str(row[name]) for name in names], str(row["variant"])) for row in rows.to_dict("records")]


def _joined(labels: Sequence[str]) -> str:
    return ", ".join(label for label in labels if label)
