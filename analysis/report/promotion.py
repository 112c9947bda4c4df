"""The report's section on promotion: what the smaller scales said of each variant, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.compared import ladders
from analysis.errors import AnalysisError
from analysis.promotion import Gates, promote
from analysis.tables import by_comparable_loss


def promotion_table(table: pd.DataFrame, facts: Mapping[str, Any]) -> tuple[pd.DataFrame, list[str]]:
    """`analysis.promotion.promote` of every ladder: its columns, `axes`, and `at`, the FLOPs of the largest scale; a
    line for each ladder whose smaller scales say nothing."""
    found, lines = [pd.DataFrame()], list[str]()
    for axes, part, here, flops in ladders(by_comparable_loss(table), facts):
        try:
            told = promote(part[~here], facts["baseline"], flops, Gates(**facts["promote"]))
        except AnalysisError as error:
            lines.append(f"{axes + ': ' if axes else ''}nothing was promoted: {error}")
            continue
        found.append(told.assign(axes=axes, at=flops))
    return pd.concat(found, ignore_index=True), lines


def promotion_cells(rows: pd.DataFrame) -> list[list[str]]:
    """As printed: differences of log loss are shares of the loss."""
    return [
        [
            row["axes"],
            row["variant"],
            _share(row["diff"], row["lo"], row["hi"]),
            _share(row["predicted"], row["below"], row["above"]),
            f"{row['ahead']:.2f}" if np.isfinite(row["ahead"]) else "",
            "promoted" if row["promoted"] else f"not promoted: {row['verdict']}",
        ]
        for row in rows.to_dict("records")
    ]


def _share(value: float, lo: float, hi: float) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:+.2%}" + (f" [{lo:+.2%}, {hi:+.2%}]" if np.isfinite([lo, hi]).all() else "")
