"""Does a difference survive on other tasks? The table of Narang et al. 2021, table 1, of a study with stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.columns import PAIR
from analysis.effects import judged, paired_difference
from analysis.table import finished
from analysis.tables import SIGN, Smallest, costs, losses, metric_of, score_effects

FIRST = ["size", "axes", "budget"]  # a cell of the first stage
INTERVAL = {"loss_lo": "lo", "loss_hi": "hi"}


def pretrained(table: pd.DataFrame, first: str) -> pd.DataFrame:
    """Every variant in every cell of the first stage: parameters, operations, steps per second, early loss (at 1/8 of
    the budget) and final loss, with their deviations over seeds and the final one's 95 % Student interval."""
    mine, keys = table[table["stage"] == first], [*FIRST, "variant"]
    rows = mine.groupby(keys, sort=False, dropna=False, observed=True)
    means = {name: paired_difference(finished(trials)["loss"].to_numpy(float)) for name, trials in rows}
    ends = {end: pd.Series({name: mean[of] for name, mean in means.items()}) for end, of in INTERVAL.items()}
    speed = mine["steps_per_s"].astype(float).groupby([mine[key] for key in keys], sort=False, observed=True).median()
    found = costs(mine, keys).join(losses(mine, keys)).assign(**ends, steps_per_s=speed, trials=rows.size())
    return found.reset_index().astype(dict.fromkeys(keys, object))


def downstream(table: pd.DataFrame, baseline: str, first: str, smallest: Smallest = None) -> pd.DataFrame:
    """The later stages, one row for each cell of the first stage, variant and column.

    A column is a stage, or a stage at one setting of its own axes. Its score is the headline metric on test data, on
    validation data where the task has no other: mean and sd over all seeds of all the models that it began from, lo
    and hi the 95 % Student interval of the mean, diff the paired difference from the baseline, in the metric's units;
    n finished trials of `trials`. The verdict is after Holm's correction over the whole table.

    Trials that began from one model share its luck. With several models for each variant (`parents` counts them) each
    is one value, the mean of its trials, and intervals and tests are over models; with one they are over its trials,
    and say how the fine-tuning varies, not how the pre-training does.
    """
    later = table[(table["stage"] != first) & table["parent"].notna()]
    rows = [
        row
        for cell, _ in table[table["stage"] == first].groupby(FIRST, sort=False, dropna=False, observed=True)
        for row in _cell_rows(later, tuple(map(str, cell)), baseline, smallest)
    ]
    out = pd.DataFrame(rows)
    if not len(out):
        return out
    out = judged(out, sign=np.array([SIGN[better] for better in out["better"]]))
    out.loc[out["variant"] == baseline, "verdict"] = "baseline"
    return out


def _cell_rows(
    later: pd.DataFrame, cell: tuple[str, ...], baseline: str, smallest: Smallest
) -> Iterator[dict[str, object]]:
    size, axes, budget = cell
    inside = np.array([not axes or f"{each}, ".startswith(f"{axes}, ") for each in later["axes"]], dtype=bool)
    mine = later[inside & (later["size"] == size) & (later["budget"] == budget)]
    for (stage, setting), part in mine.groupby(["stage", "axes"], sort=False, dropna=False, observed=True):
        own = str(setting).removeprefix(axes).removeprefix(", ")
        score = "test_score" if part["test_score"].notna().any() else "score"
        effects = score_effects(part, baseline, PAIR, score, smallest).set_index("variant")
        for variant, trials in part.groupby("variant", sort=False, observed=True):
            done = finished(trials).dropna(subset=[score])
            values = done[score].to_numpy(float)
            several = part["parent_seed"].nunique() > 1
            mean = paired_difference(done.groupby("parent_seed")[score].mean().to_numpy(float) if several else values)
            effect = effects.loc[str(variant)] if str(variant) in effects.index else {}
            yield {
                **dict(zip(FIRST, cell, strict=True)),
                "variant": str(variant),
                "column": f"{stage} ({own})" if own else str(stage),
                **metric_of(part),
                "n": len(values),
                "trials": len(trials),
                "parents": trials["parent"].nunique(),
                "mean": mean["diff"],
                "sd": values.std(ddof=1) if len(values) > 1 else np.nan,
                "lo": mean["lo"],
                "hi": mean["hi"],
                "diff": effect.get("diff", np.nan),
                **{name: effect.get(name, np.nan) for name in ("p", "p_tost")},
                "trial_ids": " ".join(trials["trial_id"]),
            }


def wide(first: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    """Both as one table, a row a variant: the columns of `first`, then `COLUMN`, `COLUMN lo`, `COLUMN hi`, `COLUMN
    verdict` of every downstream column."""
    out = first
    for column in dict.fromkeys(later["column"]) if len(later) else ():
        mine = later[later["column"] == column]
        names = {"mean": column, "lo": f"{column} lo", "hi": f"{column} hi", "verdict": f"{column} verdict"}
        out = out.merge(mine[[*FIRST, "variant", *names]].rename(columns=names), "left", on=[*FIRST, "variant"])
    return out


def columns_of(later: pd.DataFrame) -> Sequence[tuple[str, str]]:
    """The downstream columns in their order, and the metric of each."""
    return [(str(column), str(part["metric"].iloc[0])) for column, part in later.groupby("column", sort=False)]
