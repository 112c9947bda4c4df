"""The report's certificate: what each variant was given, what its sweep chose, and what speaks against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from analysis import plots_tuning
from analysis.columns import CELL as CELL_OF_STAGE
from analysis.columns import cell_name
from analysis.report.capacity import Draw
from analysis.report.words import interval
from analysis.tuning import certificate, sweep_sensitivity, sweep_table, unfair

CELL = list(CELL_OF_STAGE[1:])  # the sweep of a row
SHOWN = 4  # sweeps with a figure of their own: the cells with the most compute


@dataclass
class Tuning:
    """The section as printed; `sweeps` and `given` are its tables."""

    paths: Sequence[str] = ()
    sweeps: pd.DataFrame = field(default_factory=pd.DataFrame)
    given: pd.DataFrame = field(default_factory=pd.DataFrame)
    flags: list[str] = field(default_factory=list)
    figures: dict[str, Draw] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, str]]:
        return [
            {
                "variant": row["variant"],
                "cell": cell_name(row),
                "path": row["path"],
                "value": f"{row['value']:.3g}{_ends(row['lo'], row['hi'])}" if np.isfinite(row["value"]) else "none",
                "range": f"{row['low']:.3g} to {row['high']:.3g}, {row['tried']} values",
                "edge": {"low": "at the lower end", "high": "at the upper end", "": "inside"}.get(row["edge"], "-"),
                "sensitivity": interval(row["sensitivity"], row["sensitivity_lo"], row["sensitivity_hi"]),
                "diverged": str(row["diverged"]),
            }
            for row in self.sweeps.to_dict("records")
        ]

    @property
    def given_rows(self) -> list[dict[str, str]]:
        return [
            {
                "variant": row["variant"],
                "sweeps": str(row["sweeps"]),
                "values": f"{row['fewest_values']} to {row['most_values']}",
                "trials": f"{row['tuning_trials']} over {row['tuning_seeds']} seeds",
                "flops": f"{row['tuning_flops']:.3g}",
                "interior": f"{row['interior']} of {row['sweeps']}",
                "reported": f"{row['trials']} over {row['seeds']} seeds",
            }
            for row in self.given.to_dict("records")
        ]


def tuning_section(
    table: pd.DataFrame, paths: Sequence[str], baseline: str, rows: pd.DataFrame | None = None
) -> Tuning:
    """Of all trials of a study, those of its sweeps included; without sweeps only what speaks against that. `rows`
    are `analysis.stability.training_rows`, for the loss before the first step."""
    flags = unfair(table, paths, baseline)
    if not paths:
        return Tuning(flags=flags)
    found = Tuning(paths, _felt(table, paths, rows), certificate(table, paths), flags)
    swept = table[(table["stage"] == "tune")]
    largest = swept.groupby(CELL, sort=False)["train_flops"].max().sort_values(ascending=False)
    for number, cell in enumerate(largest.index[:SHOWN]):
        mine = swept[(swept[CELL] == list(cell)).all(axis=1)]
        where = ", ".join(str(each) for each in cell if each)
        for path in paths:
            caption = f"Validation loss of every variant's sweep of {path} ({where}); lines are at what was chosen."
            found.figures[f"sweep_{path}_{number}"] = caption, partial(plots_tuning.sweep_curves, mine, path), 3.6
        told = f"What a tuning budget buys ({where}): the expected best of so many trials, and 80 % of its spread."
        found.figures[f"tuning_{number}"] = told, partial(plots_tuning.tuning_curves, mine), 3.2
    return found


def _felt(table: pd.DataFrame, paths: Sequence[str], rows: pd.DataFrame | None) -> pd.DataFrame:
    """The sweeps, with their sensitivities."""
    names = {"sensitivity": "sensitivity", "lo": "sensitivity_lo", "hi": "sensitivity_hi"}
    keys = ["variant", *CELL, "path"]
    felt = sweep_sensitivity(table, paths, rows)[[*keys, *names]].rename(columns=names)
    return sweep_table(table, paths).merge(felt, how="left", on=keys)


def _ends(lo: float, hi: float) -> str:
    if pd.isna(lo) or pd.isna(hi):
        return ""
    return f" [{lo:.3g}, {'∞' if np.isinf(hi) else f'{hi:.3g}'}]"
