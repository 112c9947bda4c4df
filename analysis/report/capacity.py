"""The report's section on capacity, where there is something to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis import plots_capacity
from analysis.capacity import capacity_table, curve_points
from analysis.columns import CELL, cell_name
from analysis.diagnostics import gradient_distances, pruning_curves, pruning_table
from analysis.report.words import interval

Draw = tuple[str, Callable[[Any], Any], float]  # caption, drawing, height in inches


@dataclass
class Capacity:
    """The section's tables, as they are and as printed, and its figures."""

    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    heads: pd.DataFrame = field(default_factory=pd.DataFrame)
    figures: dict[str, Draw] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, str]]:
        return [
            {
                "cell": cell_name(row),
                "variant": row["variant"],
                "n": str(row["n"]),
                "train": _number(row["train_loss"]),
                "loss": _number(row["loss"]),
                "gap": interval(row["gap"], row["gap_lo"], row["gap_hi"]),
                "best": _number(row["best_loss"]),
                "best_at": "" if pd.isna(row["best_at"]) else f"{row['best_at']:.0%} of {row['seen']:.0%}",
                "rise": _number(row["rise"]),
                "fall": _number(row["fall"]),
                "flag": row["flag"] or "-",
            }
            for row in self.table.to_dict("records")
        ]

    @property
    def head_rows(self) -> list[dict[str, str]]:
        return [
            {
                "cell": cell_name(row),
                "variant": row["variant"],
                "n": str(row["n"]),
                "heads": f"{row['heads']:.0f}",
                "spare": f"{row['spare']:.0%}",
                **{name: _number(row[name]) for name in ("loss", "one_each", "none")},
            }
            for row in self.heads.to_dict("records")
        ]


def capacity_section(
    table: pd.DataFrame, curves: pd.DataFrame, diagnostics: pd.DataFrame, cell: dict[str, str] | None
) -> Capacity:
    """What is known of a study's capacity; figures are of one cell. The table is there where a trial recorded its
    training curve or a variant overfits: that one trains too shortly is the rule in small studies."""
    found = Capacity(heads=pruning_table(diagnostics))
    rows = capacity_table(table, curves)
    order = list(dict.fromkeys(table["variant"]))
    at = f" at {', '.join(value for value in cell.values() if value)}" if cell else ""
    if table["curve_loss"].notna().any() or (rows["flag"] == "overfitting").any():
        found.table = rows
        points = _in_cell(curve_points(table, curves), cell)
        shown = [name for name in order if name in set(points["variant"])]
        if shown:  # curves may be gone
            found.figures["train_and_valid"] = (
                f"Training and validation loss of the same trials{at}: mean over seeds, band from lowest to highest.",
                lambda ax: plots_capacity.train_and_valid(points, shown, ax),
                0.6 + 2.0 * plots_capacity.rows_of_panels(len(shown)),
            )
    pruned, norms = (_in_cell(each(diagnostics), cell) for each in (pruning_curves, gradient_distances))
    if len(pruned):
        found.figures["pruning"] = (
            f"Validation loss as heads are removed, the least important first{at}: mean over seeds, and range.",
            lambda ax: plots_capacity.pruning(pruned, [name for name in order if name in set(pruned["variant"])], ax),
            3.6,
        )
    if len(norms):
        found.figures["gradients"] = (
            f"Norm of the gradient of the last target's loss by the input that many tokens before it{at}.",
            lambda ax: plots_capacity.gradients_over_time(
                norms, [name for name in order if name in set(norms["variant"])], ax
            ),
            3.6,
        )
    return found


def _in_cell(rows: pd.DataFrame, cell: dict[str, str] | None) -> pd.DataFrame:
    return rows.iloc[:0] if cell is None else rows[(rows[list(CELL)] == pd.Series(cell)).all(axis=1)]


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4f}"
