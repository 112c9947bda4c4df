"""Sections of a report that are there where there is something to tell: stacking, speed, stability, proxies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import CELL, cell_name
from analysis.errors import AnalysisError
from analysis.ranking import against_published, agreement_lines, proxies, proxy_lines
from analysis.report.drift import environment_cells, environments
from analysis.report.noise import noise_cells, noise_table
from analysis.report.profile import BESIDE, STEP, profile_cells, profile_table
from analysis.report.promotion import promotion_cells, promotion_table
from analysis.report.words import interval
from analysis.sensitivity import VALUES, sensitivity
from analysis.speedup import Options, speedups
from analysis.stability import stability, training_rows
from analysis.stacking import factorial, stacking

Heading = tuple[str, str]  # and "l" for text on the left
MOST_READ = 2000  # trials whose curves are read, for spikes and losses before training
RESAMPLES = 200  # of laws, in a section that has one for every variant and size
FEWEST = 4  # variants beside the baseline whose order says something


@dataclass
class Finding:
    """One section: `lines` are sentences, `rows` the cells of a table, `table` what is kept as NAME.csv."""

    name: str
    title: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    lines: Sequence[str] = ()
    headings: Sequence[Heading] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""


def findings(results: Path, facts: dict[str, Any], table: pd.DataFrame, curves: pd.DataFrame) -> list[Finding]:
    """Of the trials that are compared, and the study's curves with their compute."""
    baseline = facts["baseline"]
    rows = training_rows(results, table["trial_id"]) if len(table) <= MOST_READ else None
    tried: dict[str, Callable[[], Finding | None]] = {
        "Promotion": lambda: _promotion(facts, table),
        "Noise": lambda: _noise(table, baseline),
        "Shared first steps": lambda: _forks(table),
        "Cohorts": lambda: _cohorts(table),
        "Where the time goes": lambda: _profile(table),
        "Machines and libraries": lambda: _environments(results, facts),
        "Do gains stack?": lambda: _stacking(facts.get("design"), table),
        "Speed-up": lambda: _speedup(table, baseline, curves),
        "Beside the published table": lambda: _published(facts.get("published"), table, baseline),
        "Which small scale can be trusted?": lambda: _proxies(table, baseline),
        "Stability": lambda: _stability(table, rows),
        "Sensitivity to the learning rate": lambda: _sensitivity(facts, table, rows),
    }
    found = []
    for title, make in tried.items():
        try:
            made = make()
        except AnalysisError as error:
            made = Finding(title.split()[0].lower(), title, lines=[f"not computed: {error}"])
        if made is not None:
            found.append(made)
    return found


def _promotion(facts: dict[str, Any], table: pd.DataFrame) -> Finding | None:
    if not facts.get("promote"):
        return None
    (rows, lines), gates = promotion_table(table, facts), facts["promote"]
    sure = f"{100 * (1 - gates['level']):g} %"
    headings = (("axes", "l"), ("variant", "l"), (f"over the smaller scales, {sure}", ""),
                (f"predicted at the largest, {sure}", ""), ("probability ahead", ""), ("promoted", "l"))  # fmt: skip
    note = (
        "Differences of the logarithm of the loss from the baseline's, near to shares of the loss: the mean over the "
        "smaller scales, and a line in log FLOPs at the largest. Promoted: "
        f"{gates['wanted']} over the smaller scales after Holm's correction, and ahead by more than "
        f"{gates['smallest']:g} of the loss with probability {gates['sure']:g} at least. A gate "
        "counts every pair of a scale and a seed; verdicts over all cells count seeds, and may be less sure."
    )
    return Finding("promotion", "Promotion", rows, lines, headings, promotion_cells(rows), note)


def _noise(table: pd.DataFrame, baseline: str) -> Finding:
    rows = noise_table(table, baseline)
    headings = (("cell", "l"), ("baseline", "l"), ("its runs", ""), ("seed noise, 95 %", ""), ("seeds compared", ""),
                ("noise of a paired difference", ""), ("difference they can show", ""))  # fmt: skip
    note = (
        "Seed noise: the standard deviation of the baseline's runs, chi-square interval. What can be shown: the true "
        "difference that so many seeds show with 80 % probability after Holm's correction over the study; "
        "`ablate power` says how many seeds a smaller one needs."
    )
    return Finding("noise", "Noise", rows, (), headings, noise_cells(rows, baseline), note)


def _forks(table: pd.DataFrame) -> Finding | None:
    done = table[table["train_flops"].notna()]
    forked = done[done["forked_step"].notna()]
    if forked.empty:
        return None
    saved = float((forked["train_flops"] * forked["forked_step"] / forked["steps"]).sum())
    line = (
        f"{len(forked)} of {len(done)} trials went on from the first steps of longer ones, which differ from them in "
        f"length alone: {saved:.3g} FLOPs, {saved / float(done['train_flops'].sum()):.0%} of the trials' "
        "training FLOPs, were not run twice. Losses and curves are, bit for bit, those of independent runs."
    )
    columns = ["trial_id", "variant", *CELL, "seed", "forked_from", "forked_step", "steps"]
    return Finding("forks", "Shared first steps", forked[columns], lines=[line])


def _cohorts(table: pd.DataFrame) -> Finding | None:
    done = table[table["train_flops"].notna()]
    joined = done[done["cohort"].notna()]
    if joined.empty:
        return None
    alone = sorted(set(done[done["cohort"].isna()]["variant"]))
    line = (
        f"{len(joined)} of {len(done)} trials were trained in cohorts, of up to {joined['cohort'].max():.0f} that "
        "one program trains: their numbers are those of trials alone up to rounding, whoever is beside them."
    )
    if alone:
        line += f" By themselves were trained all or some of {', '.join(alone)}."
    rows = done.groupby(["variant", *CELL], sort=False, observed=True, dropna=False)["cohort"]
    sizes = rows.agg(trials="size", joined="count", largest="max").reset_index()
    return Finding("cohorts", "Cohorts", sizes, lines=[line])


def _profile(table: pd.DataFrame) -> Finding | None:
    rows = profile_table(table)
    if rows.empty:
        return None
    headings = (("cell", "l"), ("variant", "l"), ("trials", ""), *((f"{each}, ms a step", "") for each in STEP),
                *((each, "") for each in BESIDE))  # fmt: skip
    note = (
        "Medians over trials that ran with --profile. Beside the steps: shares of the wall time; the rest is set-up, "
        "looks inside the model, and what the operating system gave to others."
    )
    return Finding("profile", "Where the time goes", rows, (), headings, profile_cells(rows), note)


def _environments(results: Path, facts: dict[str, Any]) -> Finding | None:
    if (found := environments(results, facts)) is None:
        return None
    table, lines = found
    rows, headings = environment_cells(table), (("cell", "l"), ("variant", "l"), ("pairs", ""), ("across sets", ""))
    note = (
        "A set: the model of the GPU or CPU, torch, its threads, and the version of the harness. A pair across sets "
        "compares two machines or libraries as well as two variants."
    )
    return Finding("environments", "Machines and libraries", table, lines, headings, rows, note if rows else "")


def _stacking(on: dict[str, dict[str, bool]] | None, table: pd.DataFrame) -> Finding | None:
    if not on:
        return None
    try:
        rows = stacking(table, on)
    except AnalysisError:  # a fraction has neither none nor all of the factors on
        rows = factorial(table, on)
    headings = (("cell", "l"), ("effect", "l"), ("kind", "l"), ("n", ""), ("estimate, 95 %", ""), ("verdict", "l"))
    cells = [
        [
            cell_name(row),
            row["effect"],
            row["kind"].replace("_", " "),
            str(row["n"]),
            interval(row["estimate"], row["lo"], row["hi"]),
            str(row["verdict"] or row["reason"] or ""),
        ]
        for row in rows.to_dict("records")
    ]
    note = "A contrast for each seed, Student's interval over seeds, verdicts after Holm's correction."
    return Finding("stacking", "Do gains stack?", rows, (), headings, cells, note)


def _speedup(table: pd.DataFrame, baseline: str, curves: pd.DataFrame) -> Finding | None:
    rows = speedups(table, baseline, curves, Options(resamples=RESAMPLES))
    known = rows[rows["gain"].notna()]
    if not len(known):
        return None
    headings = (
        ("variant", "l"),
        ("scales", "l"),
        ("counted in", "l"),
        ("at", ""),
        ("gain, 90 %", ""),
        ("trend", "l"),
    )
    cells = [
        [
            row["variant"],
            row["family"],
            row["axis"],
            f"{row['at']:.3g}",
            f"{row['gain']:.3g} [{row['lo']:.3g}, {row['hi']:.3g}]",
            str(row["verdict"]),
        ]
        for row in known.to_dict("records")
    ]
    note = (
        "How many times the variant's tokens, FLOPs or seconds the baseline needs for the variant's final loss: "
        "above 1 the variant is faster. speedup.csv has the method, and why numbers are missing."
    )
    return Finding("speedup", "Speed-up", rows, (), headings, cells, note)


def _published(name: str | None, table: pd.DataFrame, baseline: str) -> Finding | None:
    if not name:
        return None
    headings = (("cell", "l"), ("variant", "l"), ("group", "l"), ("ours, 95 %", ""), ("theirs", ""), ("sign", "l"),
                ("ranks", ""))  # fmt: skip
    kept, lines, cells = [pd.DataFrame()], [], []
    first = table[table["stage"] == table["stage"].iloc[0]]
    for labels, part in first.groupby(list(CELL), sort=False, dropna=False, observed=True):
        cell = cell_name(dict(zip(CELL, labels, strict=True)))
        try:
            found = against_published(part, name, baseline)
        except AnalysisError as error:
            lines.append(f"{cell}: not compared: {error}")
            continue
        kept.append(found.rows.assign(cell=cell))
        lines += [f"{cell}: {line}" for line in agreement_lines(found)]
        cells += [
            [
                cell,
                row["variant"],
                row["group"],
                interval(row["ours"], row["ours_lo"], row["ours_hi"]),
                f"{row['theirs']:+.3f}{' (doubtful)' if row['doubtful'] else ''}",
                row["sign"],
                f"{row['rank_ours']:g} and {row['rank_theirs']:g}",
            ]
            for row in found.rows.to_dict("records")
        ]
    note = "Differences from the baseline, each in its own units; ranks among the rows of a cell, 1 is best."
    return Finding("published", "Beside the published table", pd.concat(kept), lines, headings, cells, note)


def _proxies(table: pd.DataFrame, baseline: str) -> Finding | None:
    if table["variant"].nunique() <= FEWEST or len(table[list(CELL)].drop_duplicates()) < 2:
        return None
    found = proxies(table, baseline)
    return Finding("proxies", "Which small scale can be trusted?", found, proxy_lines(found))


def _stability(table: pd.DataFrame, rows: pd.DataFrame | None) -> Finding | None:
    found = stability(table, rows)
    bad = found[(found["finished"] < found["ended"]) | (found["spikes"].fillna(0) > 0)]
    if not len(bad):
        return None
    headings = (("cell", "l"), ("variant", "l"), ("ended", ""), ("diverged", ""), ("rate, 95 %", ""), ("spikes", ""),
                ("largest", ""), ("gradient tail", ""))  # fmt: skip
    cells = [
        [
            cell_name(row),
            row["variant"],
            str(row["ended"]),
            str(row["diverged"]),
            f"{row['rate']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}]" if np.isfinite(row["rate"]) else "",
            *(_number(row[name]) for name in ("spikes", "largest_spike", "grad_tail")),
        ]
        for row in bad.to_dict("records")
    ]
    note = (
        "Variants that did not always finish, or whose training loss jumped; all trials that ended stay in the "
        "denominator. Spikes: a trial. Gradient tail: the largest norm over the median. Losses and norms are the "
        "largest of a step between evaluations, or means where some record has no others."
    )
    if rows is None:
        note += f" Spikes are not sought in more than {MOST_READ} trials."
    return Finding("stability", "Stability", found, (), headings, cells, note)


def _sensitivity(facts: dict[str, Any], table: pd.DataFrame, rows: pd.DataFrame | None) -> Finding | None:
    """Of studies that cross learning rates; the certificate has that of sweeps."""
    if facts.get("tune") or table["lr"].nunique() < VALUES:
        return None
    found = sensitivity(table, rows)
    known = found[found["sensitivity"].notna()]
    if not len(known):
        return None
    headings = (
        ("cell", "l"),
        ("variant", "l"),
        ("rates", "l"),
        ("best", ""),
        ("seeds", ""),
        ("sensitivity, 95 %", ""),
    )
    cells = [
        [
            cell_name(row),
            row["variant"],
            f"{row['tried']} from {row['low']:.3g} to {row['high']:.3g}",
            f"{row['best']:.3g}",
            str(row["n"]),
            interval(row["sensitivity"], row["lo"], row["hi"]),
        ]
        for row in known.to_dict("records")
    ]
    note = (
        "The mean loss above the best rate's over the rates that all variants were trained with, a loss above that "
        "before training counting as that (Wortsman et al. 2023). Interval over seeds."
    )
    return Finding("sensitivity", "Sensitivity to the learning rate", found, (), headings, cells, note)


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3g}"
