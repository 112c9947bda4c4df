"""Puts a study's report together from the ledger's records: computed elsewhere, written here."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from analysis import plots
from analysis.columns import CELL
from analysis.compared import study_compared
from analysis.curves import compute_curves
from analysis.diagnostics import study_diagnostics
from analysis.figure import svg
from analysis.report.bundles import DOCUMENT, FOLDER, Bundles, table_bundles
from analysis.report.capacity import Capacity, capacity_section
from analysis.report.configurations import configurations
from analysis.report.drawings import Drawn, drawings
from analysis.report.drift import mark
from analysis.report.files import close_report
from analysis.report.findings import MOST_READ, findings
from analysis.report.hypothesis import expected_section
from analysis.report.scaling import Scaling, scaling_section
from analysis.report.tuning import Tuning, tuning_section
from analysis.report.words import (
    baseline_lines,
    cell_rows,
    data_words,
    fit_rows,
    lower_bounds,
    planned_rows,
    rule_lines,
    status_words,
    summary_lines,
    transfer_lines,
    transfer_rows,
    verdict_columns,
    verdict_rows,
)
from analysis.stability import training_rows
from analysis.table import finished, study_curves
from analysis.tables import metric_of, mixed_environments
from analysis.transfer import downstream, pretrained, wide
from analysis.tuning import TUNE
from analysis.variants import fit_variants

QUIET = frozenset({"indistinguishable", "equivalent", "unknown", "inside our noise", "inside their noise"})  # in grey
MOST_DRAWN = 60  # rows of a figure of differences


@dataclass(frozen=True)
class Report:
    """Where a report was written, what it says in a few lines, and its figures: of each a caption, and SVG."""

    html: Path
    markdown: Path
    summary: str
    figures: dict[str, dict[str, Any]]


def write_report(results: Path, study: str, folder: Path | None = None) -> Report:
    """Write `results/studies/<study>/report/`, or another folder: report.html, report.md, figures as SVG and tables.

    A pure function of the records: the same for any executor and any history of crashes. Files of the report before
    that this one does not have are removed. Raises `TableError`, `NothingToReport`.
    """
    folder = Path(results) / "studies" / study / "report" if folder is None else folder
    read = study_compared(results, study)
    facts, every, table, cells, overall = read.facts, read.every, read.table, read.cells, read.overall
    folder.mkdir(parents=True, exist_ok=True)
    tuning = _tuning(Path(results), facts, every)
    first = first_stage(table)
    curves, by_compute = study_curves(results, study), compute_curves(results, every)
    scaling = _scaling(first, by_compute, facts)
    fits = fit_variants(scaling.kept, y=loss_of(first)) if len(first) else pd.DataFrame(columns=["variant"])
    figures = _figures(table, first, cells, fits, curves, facts)
    validated = every[every["trial_id"].isin(table["trial_id"])]
    capacity = capacity_section(validated, curves, study_diagnostics(results, study), _largest_cell(finished(table)))
    figures |= {
        name: _figure(*drawn) for name, drawn in (scaling.figures | capacity.figures | tuning.figures).items()
    }
    transfer = _transfer(facts, table)
    found = findings(Path(results), facts, table, by_compute)
    fitted = fits.drop(columns=["law"], errors="ignore")
    always = {"curves": by_compute, "trials": every, "comparison": cells, "overall": overall, "fits": fitted}
    sometimes = {"transfer": wide(*transfer)} if len(transfer[0]) else {}
    sometimes |= {"capacity": capacity.table, "heads": capacity.heads, "left_out": scaling.dropped}
    sometimes |= {"sweeps": tuning.sweeps, "certificate": tuning.given} | {each.name: each.table for each in found}
    tables = always | {name: part for name, part in sometimes.items() if len(part)}
    content = _content(facts, table, cells, overall, fits, figures, transfer, capacity, scaling, tuning, every)
    for each in found:
        if each.name == "environments":
            mark(content["cells"], cells, each.table)
    content |= configurations(Path(results), facts["baseline"], every)
    drawn = drawings(Path(results) / "studies" / study, list(dict.fromkeys(table["variant"])))
    expected = expected_section(Path(results) / "studies" / study, table, overall)
    content |= {"expected": expected, "findings": found, "drawn": drawn}
    cited = table_bundles(Path(results), facts, table, cells, transfer, scaling)
    content |= {"quiet": QUIET, "cited": cited.shown(_places(facts, content["anchors"])), "not_cited": cited.refused}
    written = [*_write_parts(folder, figures, drawn, tables), *cited.write(folder / FOLDER)]
    close_report(Path(results), study, folder, [*written, *_write_pages(folder, content)])
    lines = summary_lines(facts, cells, overall) + lower_bounds(table)
    lines += transfer_lines(*transfer) + scaling.prediction_lines
    return Report(folder / "report.html", folder / "report.md", "\n".join(lines), figures)


def study_layouts(results: Path, study: str) -> Bundles:
    """The tables to cite of a study's report, without the report. Raises `TableError`, `NothingToReport`."""
    read = study_compared(results, study)
    scaling = _scaling(first_stage(read.table), compute_curves(results, read.every), read.facts)
    transfer = _transfer(read.facts, read.table)
    return table_bundles(Path(results), read.facts, read.table, read.cells, transfer, scaling)


def first_stage(table: pd.DataFrame) -> pd.DataFrame:
    """The finished trials of the stage that laws are fitted to."""
    return finished(table[table["stage"] == table["stage"].iloc[0]])


def _scaling(first: pd.DataFrame, curves: pd.DataFrame, facts: dict[str, Any]) -> Scaling:
    if not len(first):
        return Scaling()
    return scaling_section(first, curves, facts["baseline"], loss_of(first), facts.get("predict"))


def _tuning(results: Path, facts: dict[str, Any], every: pd.DataFrame) -> Tuning:
    swept = every.loc[every["stage"] == TUNE, "trial_id"]
    rows = training_rows(results, swept) if len(swept) <= MOST_READ else None
    return tuning_section(every, facts.get("tune") or [], facts["baseline"], rows)


def _places(facts: dict[str, Any], anchors: dict[str, str]) -> dict[str, str]:
    """Where on the page a variant is explained, also where a table says its size beside it."""
    sized = ((row["variant"], f"{row['variant']} ({row['size']})") for row in facts["rows"])
    return anchors | {label: anchors[variant] for variant, label in sized if variant in anchors}


def _write_parts(
    folder: Path, figures: dict[str, dict[str, Any]], drawn: list[Drawn], tables: dict[str, pd.DataFrame]
) -> list[Path]:
    """Every figure and drawing as SVG and every table as CSV."""
    files = {folder / f"{name}.svg": figure["svg"] for name, figure in figures.items()}
    files |= {folder / each.file: each.svg for each in drawn if each.svg}
    for file, svg_bytes in files.items():
        file.write_bytes(svg_bytes)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return [*files, *(folder / f"{name}.csv" for name in tables)]


def _write_pages(folder: Path, content: dict[str, Any]) -> list[Path]:
    """report.html and report.md. The page's policy forbids it all network, and any script but its own, by hash."""
    environment = Environment(
        loader=PackageLoader("analysis.report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: " ".join(text.split()).replace("|", "\\|")  # of a Markdown table
    script = environment.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content |= {"script": Markup(script), "digest": digest, "document": f"{FOLDER}/{DOCUMENT}"}
    files = [folder / name for name in ("report.html", "report.md")]
    for file in files:
        file.write_text(environment.get_template(f"{file.name}.j2").render(content), encoding="utf-8")
    return files


def _transfer(facts: dict[str, Any], table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The first stage and the later ones, where there are any: see `analysis.transfer`."""
    stages = facts.get("stages") or []
    if len(stages) < 2:
        return pd.DataFrame(), pd.DataFrame()
    first = stages[0]["name"]
    return pretrained(table, first), downstream(table, facts["baseline"], first, facts.get("smallest"))


def _content(
    facts: dict[str, Any],
    table: pd.DataFrame,
    cells: pd.DataFrame,
    overall: pd.DataFrame,
    fits: pd.DataFrame,
    figures: dict[str, dict[str, Any]],
    transfer: tuple[pd.DataFrame, pd.DataFrame],
    capacity: Capacity,
    scaling: Scaling,
    tuning: Tuning,
    every: pd.DataFrame,
) -> dict[str, Any]:
    """Everything that the templates print, as text."""
    status, states = every["status"].value_counts().to_dict(), status_words(facts)
    verdicts, bounds, mixed = verdict_rows(overall), lower_bounds(table), mixed_environments(table)
    problems = [
        {"id": row.trial_id, "variant": row.variant, "status": row.status, "error": str(row.error)}
        for row in every.itertuples()
        if row.status in ("failed", "diverged") or (row.status == "pending" and isinstance(row.error, str))
    ]
    confounded = list(dict.fromkeys(row["variant"] for row in facts["rows"] if row.get("confounded")))
    return {
        "study": facts["study"],
        "question": facts["question"].splitlines(),
        "baseline": facts["baseline"],
        "match": facts["match"],
        "tolerance": f"{facts['tolerance']:.1%}",
        "rules": rule_lines(facts),
        "data": facts["data"],
        "data_words": data_words(facts["data"]),
        "baselines": baseline_lines(facts),
        "compared_on": facts["compared_on"],
        "counts": ", ".join(f"{n} {states[name]}" for name, n in sorted(status.items())),
        "n_trials": len(every),
        "seeds": sorted(table["seed"].unique().tolist()),
        "cells": cell_rows(cells, planned_rows(facts), states),
        "answers": _answers(verdicts, overall["stage"]),
        "verdicts": verdicts,
        "verdict_columns": verdict_columns(verdicts),
        "places": len({row["over"] for row in verdicts}) > 1,
        "lower_bounds": bounds,
        "transfer": transfer_rows(*transfer),
        "fits": fit_rows(fits),
        "scaling": scaling,
        "tuning": tuning,
        "capacity": capacity,
        "figures": figures,
        "mixed": mixed,
        "problems": problems,
        "confounded": confounded,
        "warnings": bool(
            mixed or bounds or problems or confounded or scaling.left_out or scaling.notes or tuning.flags
        ),
        "environment": _environment(table),
    }


def _answers(verdicts: list[dict[str, str]], stages: pd.Series) -> list[tuple[str, list[dict[str, str]]]]:
    """The verdicts stage by stage, what is sure first."""
    order = ("better", "worse", "equivalent", "indistinguishable", "unknown")
    found: dict[str, list[dict[str, str]]] = {}
    for stage, row in zip(stages, verdicts, strict=True):
        found.setdefault(str(stage), []).append(row)
    return [(stage, sorted(rows, key=lambda row: order.index(row["kind"]))) for stage, rows in found.items()]


def _environment(table: pd.DataFrame) -> list[dict[str, str]]:
    """How many trials each piece of hardware and each version ran."""
    return [
        {"what": "commit of the harness" if name == "git_commit" else name, "value": str(value), "n": str(n)}
        for name in ("hardware", "device", "precision", "torch", "python", "platform", "git_commit")
        for value, n in table[name].value_counts().items()
    ]


def _figures(
    table: pd.DataFrame,
    first: pd.DataFrame,
    cells: pd.DataFrame,
    fits: pd.DataFrame,
    curves: pd.DataFrame,
    facts: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """The figures that the data allow: name -> caption, SVG bytes, and those as a data URI."""
    done = finished(table)
    order = list(dict.fromkeys(table["variant"]))
    found: dict[str, dict[str, Any]] = {}
    if len(first):
        unigrams = [each["value"] for each in facts["data"]["baselines"] if each["name"] == "unigram entropy"]
        measure = loss_of(first)
        unigram = unigrams[0] if len(unigrams) == 1 and measure == "loss" else None
        whose = f" of {stage}" if (stage := first["stage"].iloc[0]) else ""
        found["loss_against_compute"] = _figure(
            f"Final {facts['compared_on']} loss{whose} against training compute; a point a trial, lines are laws.",
            lambda ax: plots.loss_against_compute(first, fits, ax, measure, unigram),
            4.2,
        )
    shown = cells[cells["diff"].notna()]
    for metric, part in shown.groupby("metric", sort=False):
        part, where = _drawn(part)
        what = plots.NAMES.get(metric, metric)
        found["differences" if shown["metric"].nunique() == 1 else f"differences_{metric}"] = _figure(
            f"Paired difference of {what} from the baseline{where}. Filled: significant after Holm's correction; "
            "grey and hollow: not.",
            lambda ax, part=part: plots.differences(part, ax),
            1.0 + 0.24 * len(part),
        )
    cell = _largest_cell(done)
    mine = curves[(curves[list(CELL)] == pd.Series(cell)).all(axis=1)] if cell else curves.iloc[:0]
    if cell and len(mine):
        label = ", ".join(value for value in cell.values() if value)
        own = "" if loss_of(done) == "loss" else ", each in nats per token of its own tokenizer"
        found["learning_curves"] = _figure(
            f"Validation loss during training at {label}{own}: mean over seeds, band from lowest to highest.",
            lambda ax: plots.learning_curves(mine, order, ax),
            4.2,
        )
    return found


def _drawn(part: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows that a figure can show: all, or where they are too many those of the cell with most compute."""
    if len(part) <= MOST_DRAWN:
        return part, ""
    cell = part.loc[part["train_flops"].astype(float).idxmax(), list(CELL)]
    return part[(part[list(CELL)] == cell).all(axis=1)], f" at {', '.join(str(each) for each in cell if each)}"


def loss_of(trials: pd.DataFrame) -> str:
    """The column that a law is fitted to: the loss, in bits per byte where only they compare."""
    return "bits_per_byte" if metric_of(trials)["metric"] == "bits_per_byte" else "loss"


def _largest_cell(done: pd.DataFrame) -> dict[str, str] | None:
    if not len(done):
        return None
    row = done.loc[done["train_flops"].astype(float).idxmax()]
    return {name: str(row[name]) for name in CELL}


def _figure(caption: str, draw: Any, height_in: float) -> dict[str, Any]:
    drawn = svg(draw, height_in)
    return {"caption": caption, "svg": drawn, "uri": "data:image/svg+xml;base64," + base64.b64encode(drawn).decode()}
