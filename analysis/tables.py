"""The tables of a report, as DataFrames: what is computed here is only formatted elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.columns import CELL
from analysis.effects import compare, holm, verdict
from analysis.table import finished


def comparison_table(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Every variant in every cell (size, axes, budget): costs, loss over seeds, difference from the baseline.

    `n` counts finished trials, `failed` and `diverged` the others that ended: they stay in the denominator.
    diff, lo, hi: paired difference of the loss from the baseline's in the same cell, 95 % Student interval.
    The verdict is after Holm's correction over the whole table.
    """
    rows = []
    for cell, part in table.groupby(list(CELL), sort=False, dropna=False, observed=True):
        done = finished(part)
        effects = pd.DataFrame(columns=["variant"])
        if (done["variant"] == baseline).any():
            effects = compare(done, baseline, pair_on=["seed"])
        for variant, trials in part.groupby("variant", sort=False, observed=True):
            mine = finished(trials)
            effect = effects[effects["variant"] == variant]
            rows.append(
                dict(zip(CELL, map(str, cell), strict=True))
                | {"variant": str(variant)}
                | _costs(trials)
                | _losses(mine)
                | {
                    "trials": len(trials),
                    "failed": int((trials["status"] == "failed").sum()),
                    "diverged": int((trials["status"] == "diverged").sum()),
                    "pending": int((trials["status"] == "pending").sum()),
                }
                | {key: effect[key].iloc[0] if len(effect) else np.nan for key in ("diff", "lo", "hi", "p")}
                | {"trial_ids": " ".join(trials["trial_id"])}
            )
    out = pd.DataFrame(rows)
    out["p_holm"] = holm(out["p"].to_numpy(dtype=float))
    pairs = zip(out["variant"], out["diff"], out["p_holm"], out["n"], strict=True)
    out["verdict"] = ["baseline" if name == baseline else verdict(d, p, n) for name, d, p, n in pairs]
    return out


def _costs(trials: pd.DataFrame) -> dict[str, float]:
    return {
        "params_total": trials["params_total"].astype(float).max(),
        "flops_per_token": trials["flops_per_token"].astype(float).max(),
        "train_flops": trials["train_flops"].astype(float).max(),
        "tokens_per_s": trials["tokens_per_s"].astype(float).median(),
    }


def _losses(done: pd.DataFrame) -> dict[str, float]:
    """Means over seeds, and standard deviations (n - 1) where there are two or more."""
    loss, early = done["loss"].astype(float), done["early_loss"].astype(float)
    return {
        "n": len(done),
        "early_loss": early.mean(),
        "early_sd": early.std(ddof=1),
        "loss": loss.mean(),
        "loss_sd": loss.std(ddof=1),
        "bits_per_byte": done["bits_per_byte"].astype(float).mean(),
        "test_loss": done["test_loss"].astype(float).mean(),
        "gap": done["generalisation_gap"].astype(float).mean(),
    }


def overall_table(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row a variant: the paired difference over all cells and seeds together.

    The interval is over the pairs' spread, cells included: it speaks of these sizes and budgets, not of others.
    """
    done = finished(table)
    if not (done["variant"] == baseline).any():
        return pd.DataFrame(columns=["variant", "n", "diff", "lo", "hi", "p", "p_holm", "verdict"])
    return compare(done, baseline, pair_on=["seed", *CELL])


def mixed_environments(table: pd.DataFrame) -> dict[str, list[str]]:
    """Where trials of one comparison were not run alike: column -> its values, for those with more than one."""
    found = {}
    for name in ("hardware", "device", "precision", "torch", "git_commit"):
        values = sorted({str(value) for value in table[name].dropna() if str(value)})
        if len(values) > 1:
            found[name] = values
    return found
