"""Where trials' time goes, by variant: of those that ran with `ablate run --profile`."""

from __future__ import annotations

import pandas as pd

from analysis.columns import CELL, PHASES, cell_name

STEP = PHASES[:4]  # of every training step
BESIDE = (*PHASES[4:], "rest")


def profile_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each cell and variant: `trials`, for each phase of a step its milliseconds, for the others and the
    rest their shares of the wall time, as medians over the trials. Empty where none was measured."""
    seen = table[table["forward_s"].notna() & (table["steps"] > 0) & (table["wall_s"] > 0)]
    if seen.empty:
        return pd.DataFrame(columns=[*CELL, "variant", "trials", *STEP, *BESIDE])
    wall = seen["wall_s"].astype(float)
    columns = {each: 1e3 * seen[f"{each}_s"].astype(float) / seen["steps"].astype(float) for each in STEP}
    columns |= {each: seen[f"{each}_s"].astype(float) / wall for each in PHASES[4:]}
    measured = sum((seen[f"{each}_s"].astype(float) for each in PHASES), pd.Series(0.0, index=seen.index))
    columns["rest"] = (1 - measured / wall).clip(lower=0)
    by = (
        seen[[*CELL, "variant"]]
        .assign(**columns)
        .groupby([*CELL, "variant"], sort=False, dropna=False, observed=True)
    )
    return by.median().assign(trials=by.size()).reset_index()[[*CELL, "variant", "trials", *STEP, *BESIDE]]


def profile_cells(rows: pd.DataFrame) -> list[list[str]]:
    """The cells of that table as text."""
    return [
        [
            *(cell_name(row), str(row["variant"]), str(row["trials"])),
            *(f"{row[each]:.2f}" for each in STEP),
            *(f"{row[each]:.1%}" for each in BESIDE),
        ]
        for row in rows.to_dict("records")
    ]
