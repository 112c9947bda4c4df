"""The report's section on noise: how the baseline varies by seed alone, and which differences that leaves to see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import CELL, cell_name
from analysis.power import minimum_detectable_effect, noise_floor, paired_noise, pooled_sd


def noise_table(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """A row a cell (stage, size, axes, budget): the baseline's finished runs n and their standard deviation sd with
    its 95 % chi-square interval, all in the headline metric's units; pairs, the fewest seeds of its comparisons;
    paired_sd, the standard deviation of paired differences, pooled over variants; detectable, the true difference
    that so many pairs show with 80 % probability after Holm's correction over all rows of the study.
    """
    rows = []
    tests = max(1, len(table[[*CELL, "variant"]].drop_duplicates()) - len(table[list(CELL)].drop_duplicates()))
    for stage, part in table.groupby("stage", sort=False, dropna=False, observed=True):
        floor = noise_floor(part, baseline, "score")
        pairs = paired_noise(part, baseline, "score")
        for row in floor[floor["scope"] == "cell"].to_dict("records"):
            mine = pairs[(pairs[list(CELL)] == [row[name] for name in CELL]).all(axis=1) & (pairs["scope"] == "cell")]
            sd = pooled_sd(mine["sd"], mine["df"])
            n = int(mine["n"].min()) if len(mine) else 0
            seen = minimum_detectable_effect(sd, n, tests) if np.isfinite(sd) else np.nan
            labels = {name: str(row[name]) for name in CELL} | {"stage": str(stage)}
            rows.append(
                labels
                | {name: row[name] for name in ("n", "sd", "lo", "hi")}
                | {"pairs": n, "paired_sd": sd, "detectable": seen}
            )
    return pd.DataFrame(rows)


def noise_cells(rows: pd.DataFrame, baseline: str) -> list[list[str]]:
    """As printed."""
    found = []
    for row in rows.to_dict("records"):
        sd = f"{_short(row['sd'])} [{_short(row['lo'])}, {_short(row['hi'])}]" if np.isfinite(row["sd"]) else ""
        numbers = [str(row["pairs"]), _short(row["paired_sd"]), _short(row["detectable"])]
        found.append([cell_name(row), baseline, str(row["n"]), sd, *numbers])
    return found


def _short(value: Any) -> str:
    return f"{value:.2g}" if np.isfinite(value) else ""
