"""The figure of the README: `python docs/images/draw.py` draws it of kept records, as a report of the study does."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from analysis import plots
from analysis.figure import svg
from analysis.table import validated
from analysis.tables import comparison_table
from analysis.tuning import reported

HERE = Path(__file__).parent
STUDY, SIZE, BASELINE = "modifications_transfer", "d64", "vanilla"
WORDS = ("trial_id", "group_id", "variant", "stage", "axes", "budget", "size")


def differences() -> pd.DataFrame:
    """The comparison of the study's report at one size, the lowest loss first."""
    file = HERE.parents[1] / "experiments" / "records" / f"{STUDY}.csv.gz"
    trials = validated(pd.read_csv(file, dtype=dict.fromkeys(WORDS, str)), STUDY)
    cells = comparison_table(reported(trials, {"train.lr": 1}), BASELINE)
    return cells[(cells["size"] == SIZE) & cells["diff"].notna()].sort_values("diff")


def draw() -> bytes:
    rows = differences()
    with rc_context({"svg.fonttype": "none", "axes.labelsize": 9}):  # text stays text: a third of the bytes
        return svg(lambda ax: plots.differences(rows, ax), 0.8 + 0.145 * len(rows))


if __name__ == "__main__":
    (HERE / f"{STUDY}.svg").write_bytes(draw())
