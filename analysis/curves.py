"""Training curves of a study with their compute, for laws of curves: envelopes, races, learning curves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.envelope import ENDLESS
from analysis.table import trial_rows

COLUMNS = ("trial", "variant", "stage", "size", "axes", "budget", "seed", "step", "n", "d", "c", "loss", "schedule",
           "cooled", "decaying")  # fmt: skip


def compute_curves(results: Path, trials: pd.DataFrame) -> pd.DataFrame:
    """One row a validation loss of a trial: what `analysis.envelope` reads.

    n is parameters without embeddings, d the tokens so far, c the training FLOPs so far, as executed. `cooled`: the
    run has finished and its learning rate, of a schedule that has an end, has come down. `decaying`: the rate is
    below what it was before; missing where rates were not written. Untrained models are left out. `trials` is
    `analysis.table.study_table`.
    """
    rows = [row for trial in trials.to_dict("records") for row in _of_trial(Path(results), trial)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_trial(results: Path, trial: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if pd.isna(trial["train_flops"]) or not trial["tokens"] > 0:
        return
    labels = {name: trial[name] for name in COLUMNS if name in trial and name != "step"}
    schedule = "" if pd.isna(trial["schedule"]) else str(trial["schedule"])
    highest, rate, rows = 0.0, None, trial_rows(results, trial["trial_id"])
    for row in rows:
        if row.get("lr") is not None:
            highest, rate = max(highest, row["lr"]), row["lr"]
        if row["split"] != "valid" or not row["step"] or row["loss"] is None:
            continue
        whole = trial["status"] == "finished" and row["step"] == trial["steps"]
        yield labels | {
            "trial": trial["trial_id"],
            "step": row["step"],
            "n": trial["params_non_embedding"],
            "d": row["tokens"],
            "c": trial["train_flops"] * row["tokens"] / trial["tokens"],
            "loss": row["loss"],
            "schedule": schedule,
            "cooled": bool(whole and schedule not in ENDLESS and schedule),
            "decaying": None if rate is None else rate < highest * (1 - 1e-9),
        }
