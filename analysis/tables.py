"""The tables of a report, as DataFrames: what is computed here is only formatted elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from analysis.columns import CELL, PAIR
from analysis.effects import COLUMNS, compare, judged
from analysis.table import finished

SIGN = {"lower": 1, "higher": -1}  # of a metric, so that less is better
ROW = (*CELL, "variant")
ENDS = ("failed", "diverged", "stopped", "pending")  # of trials, beside finished
COSTS = ("params_total", "flops_per_token", "train_flops")
MEANS = {name: name for name in ("early_loss", "loss", "bits_per_byte", "test_loss", "score", "test_score")}
MEANS["generalisation_gap"] = "gap"
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
    cells = table.groupby(list(CELL), sort=False, dropna=False, observed=True)
    effects, order = [], []
    for cell, part in cells:
        labels = dict(zip(CELL, map(str, cell), strict=True))
        effects.append(score_effects(part, baseline, PAIR, smallest=smallest).assign(**labels))
        order += [labels | {"variant": str(name), **metric_of(part)} for name in dict.fromkeys(part["variant"])]
    rows = table.groupby(list(ROW), sort=False, dropna=False, observed=True)
    ends = rows["status"].value_counts().unstack(fill_value=0).reindex(columns=list(ENDS), fill_value=0).astype(int)
    ids = rows["trial_id"].agg(" ".join).rename("trial_ids")
    parts = [costs(table, ROW), losses(table, ROW), rows.size().rename("trials"), ends]
    parts += [pd.concat(effects).set_index(list(ROW))[list(EFFECT)], ids]
    out = pd.DataFrame(order).set_index(list(ROW)).join(parts).reset_index()
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


def by_comparable_loss(table: pd.DataFrame) -> pd.DataFrame:
    """The trials with the loss by which they compare as `loss`: in bits per byte where only they do."""
    by_bytes = (table["metric"] == "bits_per_byte").fillna(False).astype(bool)
    return table.assign(loss=table["loss"].mask(by_bytes, table["bits_per_byte"]))


def smallest_of(smallest: Smallest, metric: str) -> float | None:
    """The smallest effect of interest in a metric, None where none is stated."""
    return smallest.get(metric) if isinstance(smallest, Mapping) else smallest


def metric_of(table: pd.DataFrame) -> dict[str, str]:
    """The headline metric of trials of one task."""
    known = table[["metric", "better"]].dropna()
    name, better = known.iloc[0] if len(known) else ("loss", "lower")
    return {"metric": str(name), "better": str(better)}


def costs(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Parameters and FLOPs of each row that the columns `by` name, and how fast its trials ran, the median."""
    rows = _numbers(table, [*COSTS, "tokens_per_s"], by)
    return rows[list(COSTS)].max().join(rows["tokens_per_s"].median())


def losses(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Of each row that the columns `by` name: n, the trials with a final loss, the means of these over seeds, and
    standard deviations (n - 1) where there are two or more."""
    every = table.groupby(list(by), sort=False, dropna=False, observed=True).size().index
    rows = _numbers(finished(table), list(MEANS), by)
    spread = {"early_sd": "early_loss", **{f"{name}_sd": name for name in ("loss", "score", "test_score")}}
    found = rows.mean().rename(columns=MEANS).assign(**{name: rows[of].std(ddof=1) for name, of in spread.items()})
    n = rows.size().reindex(every, fill_value=0).rename("n")
    return pd.concat([n, found.reindex(every)], axis=1)


def _numbers(table: pd.DataFrame, names: Sequence[str], by: Sequence[str]) -> DataFrameGroupBy:
    numbers = table[list(names)].astype(float)
    return pd.concat([table[list(by)], numbers], axis=1).groupby(list(by), sort=False, dropna=False, observed=True)


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
    for name in ("hardware", "device", "precision", "torch", "python", "platform", "git_commit"):
        values = sorted({str(value) for value in table[name].dropna() if str(value)})
        if len(values) > 1:
            found[name] = values
    return found
