"""What a study says of its variants: the two tables of comparison, by the rules that the study states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import CELL, cell_name
from analysis.effects import benjamini_hochberg
from analysis.promotion import largest
from analysis.racing import Decision, RacePlan, pairs, standing
from analysis.table import TableError, read_study, study_table
from analysis.tables import SIGN, comparison_table, overall_table
from analysis.tuning import compared_on, reported

KEY = (*CELL, "variant")  # of a decision
FIXED = ("boot_lo", "boot_hi", "sd", "noise_units", "p_tost", "p_tost_holm")  # of a number of pairs that is fixed


class NothingToReport(TableError):
    """None of the trials that a study reports on has been chosen."""


@dataclass(frozen=True)
class Compared:
    """A study as it was resolved (`facts`), every trial of it, those that are reported, and `compared` of them."""

    facts: dict[str, Any]
    every: pd.DataFrame
    table: pd.DataFrame
    cells: pd.DataFrame
    overall: pd.DataFrame


def study_compared(results: Path, study: str, baseline: str | None = None) -> Compared:
    """From a results folder; with another variant as the baseline than the study's, where one is named.

    Raises `TableError`, `NothingToReport`.
    """
    facts, every = read_study(results, study), study_table(results, study)
    facts |= {"compared_on": compared_on(every, facts.get("tune"))}
    facts |= {} if baseline is None else {"baseline": baseline}
    table = reported(every, facts.get("tune"))
    if not len(table):
        ended = (every["status"] != "pending").sum()
        raise NothingToReport(
            f"study {study!r} has nothing to report yet: of its sweeps, {ended} of {len(every)} trials have ended"
        )
    return Compared(facts, every, table, *compared(table, facts))


def compared(table: pd.DataFrame, facts: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`analysis.tables.comparison_table` and `overall_table` of a study's trials; `facts` is
    `analysis.table.read_study`.

    Where seeds were raced, differences, intervals, p-values and verdicts are those of the race
    (`analysis.racing.standing`), which hold although rows ended at different looks: the interval is the repeated one,
    and what has none for a number of pairs that followed from the results is missing. A variant is then better over
    all cells where it is better in one and worse in none, and so the other way round, equivalent where it is in all:
    the probability of any false one is still at most the race's level. Its difference is the mean over the cells.
    With `promote` a variant that was trained at the largest scale of a ladder is compared there, by the race if there
    is one, and any other at the smaller scales, which decided that it was not. `over` says which cells those are.
    """
    baseline, smallest = facts["baseline"], facts.get("smallest")
    judged = _decisive(table, facts) if facts.get("promote") else table
    cells = comparison_table(table, baseline, smallest)
    overall = overall_table(judged, baseline, smallest)
    overall["over"] = [_over(judged, row["stage"], row["variant"]) for row in overall.to_dict("records")]
    if not facts.get("race"):
        return cells, overall
    wanted = {key: value for key, value in facts["race"].items() if key != "spend"}
    raced = _promoted(table, facts) if facts.get("promote") else table
    if not len(raced):
        return cells, overall
    decisions = standing(pairs(raced, baseline), RacePlan(**wanted)).decisions
    cells = _raced(cells, decisions)
    return cells, _over_cells(overall, cells, decisions)


def ladders(table: pd.DataFrame, facts: Mapping[str, Any]) -> Iterator[tuple[str, pd.DataFrame, pd.Series, float]]:
    """Of a study with `promote`: the axis setting of each ladder, its trials, which of them are at its largest scale,
    and the baseline's training FLOPs there."""
    planned = table["trial_id"].map({trial["id"]: trial["train_flops"] for trial in facts["trials"]})
    for axes, part in table.assign(train_flops=planned).groupby("axes", sort=False, dropna=False, observed=True):
        yield str(axes), part, *largest(part, facts["baseline"])


def _begun(part: pd.DataFrame, here: pd.Series) -> pd.Series:
    """Which trials are of variants of which some were trained at the largest scale."""
    return part["variant"].isin(part["variant"][here & (part["status"] != "pending")])


def _promoted(table: pd.DataFrame, facts: Mapping[str, Any]) -> pd.DataFrame:
    """The trials at the largest scale of every ladder, of variants of which some were trained there."""
    found = [part[here & _begun(part, here)] for _, part, here, _ in ladders(table, facts)]
    return pd.concat([part for part in found if part["variant"].nunique() > 1] or [table.iloc[:0]])


def _decisive(table: pd.DataFrame, facts: Mapping[str, Any]) -> pd.DataFrame:
    """The trials that decide: at the largest scale of variants trained there, at the smaller ones of all others."""
    found = []
    for _, part, here, _ in ladders(table, facts):
        ours = part["variant"] == facts["baseline"]
        found.append(part[ours | (here == _begun(part, here))])
    return pd.concat(found)


def _over(judged: pd.DataFrame, stage: str, variant: str) -> str:
    """The cell that a verdict is of, or how many."""
    mine = judged[(judged["variant"] == variant) & (judged["stage"] == stage)]
    cells = mine[list(CELL)].drop_duplicates().to_dict("records")
    return cell_name(cells[0] | {"stage": ""}) if len(cells) == 1 else f"{len(cells)} cells"


def _raced(cells: pd.DataFrame, decisions: Mapping[tuple[str, ...], Decision]) -> pd.DataFrame:
    rows = []
    for row in cells.to_dict("records"):
        found = decisions.get(tuple(row[name] for name in KEY))
        if found is not None:
            sign = SIGN[row["better"]]
            lo, hi = sorted((sign * found.lo, sign * found.hi))
            row |= {"diff": sign * found.diff, "lo": lo, "hi": hi, "p": found.p, "p_holm": found.p_holm}
            row |= dict.fromkeys(FIXED, np.nan)
            row |= {"verdict": _word(found), "equivalent": found.status == "equivalent"}
        rows.append(row)
    out = pd.DataFrame(rows, columns=list(cells))
    out["p_bh"] = benjamini_hochberg(out["p"].to_numpy(dtype=float))
    return out


def _word(found: Decision) -> str:
    if found.pairs < 2:
        return "unknown"
    return found.status if found.status in ("better", "worse", "equivalent") else "indistinguishable"


def _over_cells(
    overall: pd.DataFrame, cells: pd.DataFrame, decisions: Mapping[tuple[str, ...], Decision]
) -> pd.DataFrame:
    rows, used = [], {key: found.pairs for key, found in decisions.items()}
    for row in overall.to_dict("records"):
        mine = cells[(cells["variant"] == row["variant"]) & (cells["stage"] == row["stage"])]
        pairs_of = [used.get(tuple(each), -1) for each in mine[list(KEY)].to_numpy()]
        mine = mine[[count >= 0 for count in pairs_of]]
        if not len(mine):  # not promoted: the smaller scales decide
            rows.append(row)
            continue
        one = len(mine) == 1
        row |= {name: mine[name].iloc[0] if one else np.nan for name in ("lo", "hi")}
        row |= {"diff": mine["diff"].mean(), "n": max(pairs_of), "verdict": _together(set(mine["verdict"]))}
        row |= {name: mine[name].min() for name in ("p", "p_holm", "p_bh")}
        row |= {"equivalent": row["verdict"] == "equivalent"} | dict.fromkeys(FIXED, np.nan)
        row |= {name: np.nan for name in row if name.startswith("test_")}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(overall))


def _together(verdicts: set[str]) -> str:
    if ("better" in verdicts) != ("worse" in verdicts):
        return "better" if "better" in verdicts else "worse"
    return verdicts.pop() if len(verdicts) == 1 else "indistinguishable"
