"""Promotion in two gates: what is trained at the largest scale of a ladder follows from the scales below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.columns import CELL, PAIR
from analysis.effects import compare
from analysis.errors import AnalysisError
from analysis.table import finished

Array = np.ndarray
WANTED = ("not worse", "better")
SCALES = 3  # that a line needs, for one degree of freedom


class BadLadder(AnalysisError):
    """Trials that make no ladder of scales, or gates that cannot be."""


@dataclass(frozen=True)
class Gates:
    """What a variant must show below the largest scale to be trained there.

    First gate: `wanted` "not worse" or "better" than the baseline over all smaller scales, at the family-wise error
    `level`. Second: the law has to give it the probability `sure` at least of being ahead at the largest scale, by
    more than `smallest` (a share of the loss: 0.01 is 1 %); 0.5 asks for a better prediction, 0.9 for a sure one.
    Raises `BadLadder` for values that make no gates.
    """

    wanted: str = "not worse"
    level: float = 0.05
    sure: float = 0.5
    smallest: float = 0.0

    def __post_init__(self) -> None:
        checks = (
            ("wanted", self.wanted in WANTED, " or ".join(map(repr, WANTED))),
            ("level", 0 < self.level < 1, "between 0 and 1"),
            ("sure", 0 <= self.sure < 1, "from 0 to below 1"),
            ("smallest", 0 <= self.smallest < 1, "a share of the loss, from 0 to below 1"),
        )
        for name, good, wanted in checks:
            if not good:
                raise BadLadder(f"{name} = {getattr(self, name)!r} must be {wanted}")


def promote(table: pd.DataFrame, baseline: str, flops: float, gates: Gates | None = None) -> pd.DataFrame:
    """Which variants of a table of the smaller scales are to be trained at `flops`, the baseline's training FLOPs at
    the largest.

    One row a variant. diff, lo, hi, p_holm: the mean of log L_variant - log L_baseline over all pairs of a cell and
    a seed, by `analysis.effects.compare`; `small` its verdict. predicted, below, above: log L_variant - log
    L_baseline = a + b log C at C = `flops`, least squares over the means of the cells, C the baseline's FLOPs, with
    the interval of probability 1 - level by Student's t with (cells - 2) degrees of freedom; `ahead` the probability
    that it is below -smallest. `promoted`; and `verdict` where it is not: "worse" by the first gate or where the
    prediction's interval is above 0, "unknown" where the variant has finished at fewer than three scales, else
    "indistinguishable".

    Two power laws without offsets have such a line, and any two laws over a narrow enough range. A variant that is
    behind at small scales and overtakes later is lost at the first gate: give `level` near 0 to keep it. Pairs count
    one by one here, where `analysis.tables.overall_table` counts seeds: with few seeds a gate must still be able to
    close, and its intervals cover in 86 to 100 % where 95 % are asked for.
    Raises `BadLadder` where there are fewer than three scales, or no baseline.
    """
    gates, done = gates or Gates(), finished(table)
    if not (done["variant"] == baseline).any():
        raise BadLadder(f"no finished trial of the baseline {baseline!r}; variants: {_names(table)}")
    scales = done["train_flops"][done["variant"] == baseline].nunique()
    if scales < SCALES:
        raise BadLadder(f"{scales} scales below the largest: a law needs at least {SCALES}")
    done = done.assign(log_loss=np.log(done["loss"].astype(float)))
    small = compare(done, baseline, "log_loss", [*PAIR, *CELL], 1 - gates.level).rename(columns={"verdict": "small"})
    lines = pd.DataFrame([_line_at(done, baseline, str(name), flops, gates) for name in small["variant"]])
    out = small.drop(columns=["p"]).join(lines)
    first = out["small"] == "better" if gates.wanted == "better" else ~out["small"].isin(["worse", "unknown"])
    out["promoted"] = first & (out["ahead"] >= gates.sure)
    behind = (out["small"] == "worse") | (out["below"] > 0)
    kept = [out["promoted"], behind, out["ahead"].isna()]
    out["verdict"] = np.select(kept, ["", "worse", "unknown"], "indistinguishable")
    return out


def largest(table: pd.DataFrame, baseline: str) -> tuple[pd.Series, float]:
    """Of the trials of a table with one ladder of scales (one stage and axis setting): which are at the largest, the
    cell in which the baseline takes most FLOPs, and how many those are.

    Raises `BadLadder` where the table has several ladders, or no baseline.
    """
    ladders = table[["stage", "axes"]].drop_duplicates()
    if len(ladders) > 1:
        raise BadLadder(f"{len(ladders)} ladders, by stage and axes: give the trials of one")
    costs = table[table["variant"] == baseline].groupby(list(CELL), dropna=False, observed=True)["train_flops"].mean()
    if not costs.notna().any():
        raise BadLadder(f"no FLOPs of the baseline {baseline!r}; variants: {_names(table)}")
    top = costs.idxmax()
    here = np.logical_and.reduce([table[name] == value for name, value in zip(CELL, top, strict=True)])
    return pd.Series(here, index=table.index), float(costs.max())


def _line_at(done: pd.DataFrame, baseline: str, variant: str, flops: float, gates: Gates) -> Mapping[str, float]:
    """The law of `promote` for one variant: scales, predicted, below, above, ahead. `done` has log_loss."""
    keys = [name for name in (*CELL, *PAIR) if name in done]
    mine, theirs = (done[done["variant"] == name].groupby(keys, dropna=False) for name in (variant, baseline))
    both = pd.DataFrame({"y": mine["log_loss"].mean() - theirs["log_loss"].mean(), "c": theirs["train_flops"].mean()})
    cells = both.dropna().groupby([name for name in CELL if name in done], dropna=False).mean()
    x, y = np.log(cells["c"].to_numpy(float)), cells["y"].to_numpy(float)
    if len(np.unique(x)) < SCALES:
        return {"scales": len(x)} | dict.fromkeys(("predicted", "below", "above", "ahead"), np.nan)
    fit = stats.linregress(x, y)
    df, away = len(x) - 2, np.log(flops) - x.mean()
    predicted = float(y.mean() + fit.slope * away)
    s = np.sqrt(((y - fit.intercept - fit.slope * x) ** 2).sum() / df)
    error = float(s * np.sqrt(1 / len(x) + away**2 / ((x - x.mean()) ** 2).sum()))
    reach = float(stats.t.isf(gates.level / 2, df)) * error
    margin = float(np.log1p(-gates.smallest)) - predicted
    ahead = float(stats.t.cdf(margin / error, df)) if error > 0 else float(margin > 0)
    ends = {"below": predicted - reach, "above": predicted + reach}
    return {"scales": len(x), "predicted": predicted, **ends, "ahead": ahead}


def _names(table: pd.DataFrame) -> str:
    return ", ".join(dict.fromkeys(map(str, table["variant"])))
