"""What a planner would have said of a grid that was run in full, and the share of its FLOPs that it would have taken.

A recorded grid has all trials: those that a rule would not have asked for are hidden from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis.columns import CELL
from analysis.promotion import Gates, largest, promote
from analysis.racing import RacePlan, Row, pairs, standing
from analysis.tables import comparison_table

DIFFERENT = ("better", "worse")
Told = tuple[dict[Row, str], float]  # verdicts, and the FLOPs that they took


@dataclass(frozen=True)
class Promotion:
    """Promotion as a rule to replay: `seeds` at the smaller scales (None: all that are recorded), what the gates let
    through trained at the largest with all recorded seeds, or raced there."""

    gates: Gates = field(default_factory=Gates)
    seeds: int | None = None
    race: RacePlan | None = None


def replay(
    table: pd.DataFrame,
    baseline: str,
    rule: RacePlan | Promotion,
    study: str = "",
    orders: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """The verdicts of a rule against those of the full grid, one row an order of the seeds (the recorded one first,
    then random ones: pairs are exchangeable).

    study, rule, order; rows: of a race all variants in all cells, of a promotion those at the largest scale of every
    ladder; agreement: the share of rows with the same verdict (better, worse, indistinguishable) as in
    `analysis.tables.comparison_table`, which is `analysis.effects.compare` in every cell with Holm's correction over
    those rows; missed: the share that the full grid tells from the baseline and the rule does not; extra: the
    other way round; flipped: better for worse or worse for better; flops_share: FLOPs of the trials asked for over
    those of all trials, the baseline's included in both.

    Trials that begin from another's weights are left out, and rows of which the full grid has fewer than two pairs.
    A race to more pairs than are recorded ends with those. Promotion compares `loss`. Raises `BadRace`, `BadLadder`.
    """
    table = table[table["parent"].isna()] if "parent" in table else table
    wanted = _verdicts(table if isinstance(rule, RacePlan) else _largest(table, baseline), baseline)
    everything = float(_costs(table)["total"].sum())
    rng, found = np.random.default_rng(seed), []
    for order in range(orders):
        seen = _in_order(table, None if order == 0 else rng)
        told, spent = _raced(seen, baseline, rule) if isinstance(rule, RacePlan) else _climbed(seen, baseline, rule)
        both = [(wanted[name], verdict) for name, verdict in told.items() if name in wanted]
        counts = {"rows": len(both), **_agreement(both)}
        found.append({"study": study, "rule": str(rule), "order": order, **counts, "flops_share": spent / everything})
    return pd.DataFrame(found)


def _raced(table: pd.DataFrame, baseline: str, plan: RacePlan) -> Told:
    """A race through a table: of a row and the baseline of its cell, as many trials as the race asked for."""
    rows = pairs(table, baseline)
    recorded = max(len(each) for each in rows.values())
    plan = replace(plan, first=min(plan.first, recorded), most=min(plan.most, recorded))
    ended = {name: np.pad(each, (0, recorded - len(each)), constant_values=np.nan) for name, each in rows.items()}
    race, costs = standing(ended, plan), _costs(table)
    asked: dict[Row, int] = {}
    for name, count in race.seen.items():
        reference = (*name[:-1], baseline)
        asked |= {name: count, reference: max(count, asked.get(reference, 0))}
    spent = sum(
        float(costs.loc[name, "each"]) * min(count, costs.loc[name, "trials"]) for name, count in asked.items()
    )
    verdicts = {name: each.status for name, each in race.decisions.items()}
    return {name: each if each in DIFFERENT else "indistinguishable" for name, each in verdicts.items()}, spent


def _climbed(table: pd.DataFrame, baseline: str, rule: Promotion) -> Told:
    """Every ladder of a table from its smaller scales to its largest."""
    told: dict[Row, str] = {}
    spent = 0.0
    for _, ladder in table.groupby(["stage", "axes"], sort=False, dropna=False, observed=True):
        top, flops = largest(ladder, baseline)
        small, large = ladder[~top], ladder[top]
        if rule.seeds is not None:
            small = small[small["seed"].isin(list(dict.fromkeys(small["seed"]))[: rule.seeds])]
        gates = promote(small, baseline, flops, rule.gates).set_index("variant")
        cell = tuple(map(str, large[list(CELL)].iloc[0]))
        told |= {(*cell, str(name)): str(each) for name, each in gates["verdict"].items()}
        spent += float(_costs(small)["total"].sum())
        up = large[large["variant"].isin([baseline, *gates.index[gates["promoted"]]])]
        if up["variant"].nunique() < 2:
            continue
        if rule.race is None:
            decided, cost = _verdicts(up, baseline), float(_costs(up)["total"].sum())
        else:
            decided, cost = _raced(up, baseline, rule.race)
        told, spent = told | decided, spent + cost
    return told, spent


def _verdicts(table: pd.DataFrame, baseline: str) -> dict[Row, str]:
    """Those of the table's trials, where there are any."""
    found = comparison_table(table, baseline)
    found = found[~found["verdict"].isin(["baseline", "unknown"])]
    rows = found[[*CELL, "variant"]].itertuples(index=False)
    return {tuple(map(str, row)): str(each) for row, each in zip(rows, found["verdict"], strict=True)}


def _largest(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The trials at the largest scale of every ladder."""
    ladders = [part for _, part in table.groupby(["stage", "axes"], sort=False, dropna=False, observed=True)]
    return pd.concat([part[largest(part, baseline)[0]] for part in ladders])


def _costs(table: pd.DataFrame) -> pd.DataFrame:
    """By row: trials, FLOPs of each (of those that have them: one that failed has none recorded) and of all."""
    flops = table.groupby([*CELL, "variant"], sort=False, observed=True)["train_flops"].agg(["size", "mean"])
    out = flops.rename(columns={"size": "trials", "mean": "each"}).fillna(0.0)
    return out.assign(total=out["trials"] * out["each"])


def _in_order(table: pd.DataFrame, rng: np.random.Generator | None) -> pd.DataFrame:
    """The trials with their seeds in a random order, or as recorded."""
    seeds = list(dict.fromkeys(table["seed"]))
    if rng is None:
        return table
    rank = dict(zip(seeds, rng.permutation(len(seeds)), strict=True))
    return table.assign(rank=table["seed"].map(rank)).sort_values("rank", kind="stable").drop(columns="rank")


def _agreement(both: list[tuple[str, str]]) -> dict[str, float]:
    """Shares of (the full grid's, the rule's) verdicts."""
    full, told = (np.array([pair[side] for pair in both], dtype=object) for side in (0, 1))
    there, here = np.isin(full, DIFFERENT), np.isin(told, DIFFERENT)
    kinds = {
        "agreement": full == told,
        "missed": there & ~here,
        "extra": here & ~there,
        "flipped": there & here & (full != told),
    }
    return {name: float(np.mean(each)) if len(both) else np.nan for name, each in kinds.items()}
