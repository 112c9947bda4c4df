"""The tables and figures of a report as `ablate.study` shows them: numbers and words are those of the analysis."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ablate.errors import UserError, unknown
from ablate.views import Figure, Figures, View, html_table, html_text, text_table
from analysis import layouts
from analysis.compared import Compared
from analysis.fit import ScalingLaw
from analysis.report import Report, study_layouts
from analysis.report.build import first_stage, loss_of
from analysis.report.words import (
    cell_rows,
    fit_rows,
    planned_rows,
    status_words,
    summary_lines,
    verdict_columns,
    verdict_rows,
)
from analysis.scaling import chosen
from analysis.variants import fit_variants

COMPARISON = {
    "cell": "cell",
    "variant": "variant",
    "params": "parameters",
    "residual": "vs base",
    "flops": "FLOP/token",
    "loss": "loss",
    "score": "score",
    "bits": "bits/byte",
    "diff": "difference, 95 %",
    "verdict": "verdict",
    "n": "n",
}
WORDS = {"cell", "variant", "verdict", "metric", "over", "note"}  # the columns of words


def comparison_view(read: Compared) -> View:
    """`analysis.tables.comparison_table` in the words of the report."""
    rows = cell_rows(read.cells, planned_rows(read.facts), status_words(read.facts))
    shown = {key: said for key, said in COMPARISON.items() if any(row[key] for row in rows)}
    remark = f"difference from {read.facts['baseline']} in the same cell; verdicts after Holm's correction"
    return _view(shown, rows, read.cells, remark)


def verdicts_view(read: Compared) -> View:
    """`analysis.tables.overall_table` in the words of the report."""
    rows = verdict_rows(read.overall)
    shown = {"variant": "variant"} | {key: said for key, (said, _) in verdict_columns(rows).items()}
    table = html_table(*_cells(shown, rows), left=_left(shown))
    lines = summary_lines(read.facts, read.cells, read.overall)
    return View("\n".join(lines), html_text(lines[0]) + table, read.overall.copy, read.overall)


def laws_view(read: Compared, form: str, x: str) -> View:
    """The law of each variant of the first stage, of the trials that quality gates let through."""
    first = first_stage(read.table)
    if x not in first:
        raise UserError(f"x: {unknown('column', x, map(str, first))}")
    if not len(first):
        raise UserError(f"study {read.facts['study']!r}: no trial has finished, so there is nothing to fit")
    kept, dropped = chosen(first, loss_of(first))
    fits = fit_variants(kept, x, loss_of(first), form=form)
    law = ScalingLaw(form).law
    rows = fit_rows(fits, law.parameters)
    shown = {name: name for name in ("variant", "n", "points", *law.parameters, "note")}
    reads = f", c is {x}" if law.inputs == ("c",) and x != "train_flops" else ""
    remark = f"{law.equation}{reads}; 95 % intervals, from resampled seeds"
    if len(dropped):
        remark += f"; left out: {', '.join(f'{row.trial_id} ({row.reason})' for row in dropped.itertuples())}"
    made = {row["variant"]: each for row, each in zip(rows, fits["law"], strict=True) if each is not None}
    view = _view(shown, rows, fits.drop(columns=["law"]), remark)
    view.source = made
    return view


def layout_view(results: Path, study: str, name: str) -> View:
    """One of the report's tables to cite. Raises `UserError` with those that there are, and why others are not."""
    made = study_layouts(results, study)
    found = {each.name: each for each in made.layouts}
    if name not in found:
        raise UserError("; ".join([f"layout {unknown('layout', name, found)}", *made.refused]))
    layout = found[name]
    return View(layouts.markdown(layout), layouts.html(layout), lambda: layouts.frame(layout), layout)


def figures_of(report: Report) -> Figures:
    """Those of a report that was written."""
    return Figures({name: Figure(each["caption"], each["svg"]) for name, each in report.figures.items()})


def _view(shown: dict[str, str], rows: list[dict[str, str]], table: pd.DataFrame, remark: str) -> View:
    headings, cells = _cells(shown, rows)
    left = _left(shown)
    text = f"{text_table(headings, cells, left)}\n{remark}"
    return View(text, html_table(headings, cells, [remark], left), table.copy, table)


def _cells(shown: dict[str, str], rows: list[dict[str, str]]) -> tuple[list[str], list[list[str]]]:
    return list(shown.values()), [[row[key] for key in shown] for row in rows]


def _left(shown: dict[str, str]) -> set[str]:
    return {said for key, said in shown.items() if key in WORDS}
