"""The tables of a report, as DataFrames: what is computed here is only formatted elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.columns import CELL, PAIR
from analysis.effects import COLUMNS, compare, judged
from analysis.table import finished

SIGN = {"lower": 1, "higher": -1}  # of a metric, so that less is better
Smallest = float | Mapping[str, float] | None  # effect of interest: of every metric, or by metric
EFFECT = ("diff", "lo", "hi", "boot_lo", "boot_hi", "sd", "noise_units", "p", "p_tost")  # of a row of a table


def comparison_table(table: pd.DataFrame, baseline: str, smallest: Smallest = None) -> pd.DataFrame:
    """Every variant in every cell (stage, size, axes, budget): costs, losses and scores over seeds, difference from
    the baseline.

    `n` counts finished trials, `failed` and `diverged` the others that ended: they stay in the denominator.
    diff, lo, hi: paired difference from the baseline in the same cell, of the task's headline metric (`metric`, the
    loss for language models), 95 % Student interval, and the other columns of `analysis.effects.compare`. The verdict
    is after Holm's correction over the whole table.
    """
    rows = []
    for cell, part in table.groupby(list(CELL), sort=False, dropna=False, observed=True):
        effects = score_effects(part, baseline, PAIR, smallest=smallest)
        for variant, trials in part.groupby("variant", sort=False, observed=True):
            effect = effects[effects["variant"] == variant]
            rows.append(
                dict(zip(CELL, map(str, cell), strict=True))
                | {"variant": str(variant), **metric_of(part)}
                | costs(trials)
                | losses(finished(trials))
                | {
                    "trials": len(trials),
                    "failed": int((trials["status"] == "failed").sum()),
                    "diverged": int((trials["status"] == "diverged").sum()),
                    "stopped": int((trials["status"] == "stopped").sum()),
                    "pending": int((trials["status"] == "pending").sum()),
                }
                | {key: effect[key].iloc[0] if len(effect) else np.nan for key in EFFECT}
                | {"trial_ids": " ".join(trials["trial_id"])}
            )
    out = pd.DataFrame(rows)
    out = judged(out, sign=np.array([SIGN[better] for better in out["better"]]))
    out.loc[out["variant"] == baseline, "verdict"] = "baseline"
    return out


def score_effects(
    table: pd.DataFrame,
    baseline: str,
    pair_on: Sequence[str],
    score: str = "score",
    smallest: Smallest = None,
    clusters: str | None = None,
) -> pd.DataFrame:
    """`compare` on a column of scores of one metric, in its own units, whichever of its values are better; empty
    where the baseline has none.

    Trials that began from one model share its luck. Where there are several such models (of different seeds), each
    is one value, the mean of its trials: the pairs are of models, and clusters, if any, are models.
    """
    if table["parent_seed"].nunique() > 1:
        pair_on, clusters = [key for key in pair_on if key != "seed"], clusters and "parent_seed"
    done = finished(table)
    done = done[done[score].notna()]
    if not (done["variant"] == baseline).any():
        return pd.DataFrame(columns=list(COLUMNS))
    metric = metric_of(table)
    sign, of_interest = SIGN[metric["better"]], smallest_of(smallest, metric["metric"])
    values = done.assign(value=sign * done[score])
    effects = compare(values, baseline, "value", pair_on, smallest=of_interest, clusters=clusters)
    if sign < 0:
        turned = {"diff": "diff", "lo": "hi", "hi": "lo", "boot_lo": "boot_hi", "boot_hi": "boot_lo"}
        effects = effects.assign(
            **{name: -effects[of] for name, of in turned.items()}, noise_units=-effects["noise_units"]
        )
    return effects


def smallest_of(smallest: Smallest, metric: str) -> float | None:
    """The smallest effect of interest in a metric, None where none is stated."""
    return smallest.get(metric) if isinstance(smallest, Mapping) else smallest


def metric_of(table: pd.DataFrame) -> dict[str, str]:
    """The headline metric of trials of one task."""
    known = table[["metric", "better"]].dropna()
    name, better = known.iloc[0] if len(known) else ("loss", "lower")
    return {"metric": str(name), "better": str(better)}


def costs(trials: pd.DataFrame) -> dict[str, float]:
    """Parameters and FLOPs of one variant in one cell, and how fast its trials ran."""
    return {
        "params_total": trials["params_total"].astype(float).max(),
        "flops_per_token": trials["flops_per_token"].astype(float).max(),
        "train_flops": trials["train_flops"].astype(float).max(),
        "tokens_per_s": trials["tokens_per_s"].astype(float).median(),
    }


def losses(done: pd.DataFrame) -> dict[str, float]:
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
        "score": done["score"].astype(float).mean(),
        "score_sd": done["score"].astype(float).std(ddof=1),
        "test_score": done["test_score"].astype(float).mean(),
        "test_score_sd": done["test_score"].astype(float).std(ddof=1),
        "gap": done["generalisation_gap"].astype(float).mean(),
    }


def overall_table(table: pd.DataFrame, baseline: str, smallest: Smallest = None) -> pd.DataFrame:
    """One row a variant and stage: the paired difference of the stage's headline metric, the mean over cells.

    A seed is one value, its mean over the cells, and n counts seeds (models, where trials began from several): runs
    of one seed share their luck across sizes, and sizes differ in their true difference, so that pairs are no
    independent draws (`analysis.effects.compare`). The interval speaks of these sizes and budgets, not of others.
    `test_diff`, `test_lo`, `test_hi` and `test_verdict` are the same on test data.
    """
    found = []
    for stage, part in table.groupby("stage", sort=False, dropna=False, observed=True):
        pairs = [*PAIR, *CELL]
        effects = score_effects(part, baseline, pairs, smallest=smallest, clusters="seed")
        tested = score_effects(part, baseline, pairs, "test_score", smallest, "seed").set_index("variant")
        for name in ("diff", "lo", "hi", "verdict"):
            effects[f"test_{name}"] = effects["variant"].map(tested[name])
        found.append(effects.assign(stage=str(stage), **metric_of(part)))
    return pd.concat(found, ignore_index=True)


def mixed_environments(table: pd.DataFrame) -> dict[str, list[str]]:
    """Where trials of one comparison were not run alike: column -> its values, for those with more than one."""
    found = {}
    for name in ("hardware", "device", "precision", "torch", "git_commit"):
        values = sorted({str(value) for value in table[name].dropna() if str(value)})
        if len(values) > 1:
            found[name] = values
    return found
