"""The report's tables to cite: which layouts of papers a study allows, and why others are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from scipy import special

from analysis import layouts, published
from analysis.columns import CELL
from analysis.errors import AnalysisError
from analysis.isoflop import IsoFlop
from analysis.layouts import Layout, LayoutError
from analysis.layouts.papers import PRINTED
from analysis.layouts.rows import HOLM
from analysis.report.scaling import Scaling
from analysis.transfer import FIRST, pretrained

ROW = (*CELL, "variant")
WIDEST = 10  # columns of tasks that a printed page can hold
ENDINGS = {"html": "HTML", "md": "Markdown", "tex": "LaTeX", "csv": "CSV"}
RACED = "sequential tests at the looks of a race, after Holm's correction"
FOLDER, DOCUMENT = "tables", "tables.tex"


@dataclass
class Bundles:
    """The layouts of a study, and a line for each reason why one that it calls for could not be made."""

    layouts: list[Layout] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> list[Path]:
        """NAME.html, .md, .tex and .csv of each layout, and a LaTeX document of all of them."""
        files = [file for each in self.layouts for file in layouts.write_bundle(each, folder)]
        if self.layouts:
            whole = folder / DOCUMENT
            whole.write_text(layouts.document(self.layouts), encoding="utf-8", errors="replace", newline="\n")
            files.append(whole)
        return files

    def shown(self, anchors: Mapping[str, str]) -> list[dict[str, Any]]:
        """What a page prints of each; `anchors` are those of the variants on it."""
        return [
            {
                "name": each.name,
                "title": each.title,
                "source": each.source,
                "html": Markup(layouts.html(each, anchors)),  # it escapes what comes from data
                "files": [(said, f"{FOLDER}/{each.name}.{ending}") for ending, said in ENDINGS.items()],
            }
            for each in self.layouts
        ]


def table_bundles(
    results: Path,
    facts: Mapping[str, Any],
    table: pd.DataFrame,
    cells: pd.DataFrame,
    transfer: tuple[pd.DataFrame, pd.DataFrame],
    scaling: Scaling,
) -> Bundles:
    """From the trials that are compared (`table`), `analysis.tables.comparison_table` of them (`cells`), the first
    stage and the later ones (`analysis.transfer`), and the report's section on scale.

    A study that does not call for a layout has none, without a word; data that do not allow one are a reason.
    """
    study = _Study(Path(results), facts, table, cells, transfer, scaling)
    found, reasons = Bundles(), dict[str, list[str]]()
    for name, make in MADE.items():
        try:
            layout = make(study)
            if layout is not None and layout.tested == HOLM and facts.get("race"):
                layout = replace(layout, tested=RACED)
        except AnalysisError as error:
            reason = " ".join(str(error).split()).removeprefix(f"{name}: ")
            reasons.setdefault(reason, []).append(name)
        else:
            found.layouts += [layout] if layout is not None else []
    found.refused = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return found


@dataclass
class _Study:
    """What layouts are made from."""

    results: Path
    facts: Mapping[str, Any]
    table: pd.DataFrame
    cells: pd.DataFrame
    transfer: tuple[pd.DataFrame, pd.DataFrame]
    scaling: Scaling

    @property
    def baseline(self) -> str:
        return str(self.facts["baseline"])

    @property
    def stage(self) -> str:
        """The first one."""
        return str(self.table["stage"].iloc[0])

    @property
    def compared(self) -> pd.DataFrame:
        """The comparison of the first stage."""
        return self.cells[self.cells["stage"] == self.stage]

    @cached_property
    def settings(self) -> pd.DataFrame:
        """Of the first stage, what each row with a trial that has ended was set to. Raises `TableError`."""
        ended = self.table[(self.table["stage"] == self.stage) & (self.table["status"] != "pending")]
        return layouts.settings(self.results, ended)

    @cached_property
    def published(self) -> dict[str, str]:
        """The groups of the paper whose table stands beside the study's, of variants that are its rows; other
        variants are others. None where there is no such paper."""
        if not self.facts.get("published"):
            return {}
        rows = published.load(self.facts["published"])
        known = {each: row.group for row in rows.itertuples() for each in (*row.overlay.split(), row.variant)}
        variants = self._variants()
        return {each: known.get(each, "others") for each in variants} if set(known) & set(variants) else {}

    @cached_property
    def groups(self) -> dict[str, str]:
        """Below which heading each variant stands: the paper's, else the slots in which it differs, where these have
        two variants or more on average; above one row each they would say less than they take."""
        slots = {row["variant"]: " + ".join(row.get("differs_in", ())) for row in self.facts["rows"]}
        found = {name: slots.get(name, "") for name in self._variants()}
        few = 1 < len(set(found.values())) <= len(found) / 2
        return self.published or (found if few else {})

    def _variants(self) -> list[str]:
        return [str(name) for name in dict.fromkeys(self.table["variant"]) if name != self.baseline]


def _narang(study: _Study) -> Layout:
    first, later = study.transfer
    first = first if len(first) else pretrained(study.table, study.stage)
    compared, parts = study.compared, [later] if len(later) else []
    if compared["metric"].iloc[0] != "loss":  # then verdicts are not of the loss
        parts.insert(0, _scores(compared))
        compared = compared.assign(verdict="")
    scores = pd.concat(parts, ignore_index=True) if parts else None
    return layouts.narang(first, scores, compared, study.groups)


def _scores(compared: pd.DataFrame) -> pd.DataFrame:
    """The headline metric as a column beside those of `analysis.transfer.downstream`, with Student's interval. Which
    trials are missing is said of the losses already."""
    n = compared["n"].to_numpy(float)
    reach = special.stdtrit(np.maximum(n - 1, 1), 0.975) * compared["score_sd"] / np.sqrt(np.maximum(n, 1))
    named = compared[[*FIRST, "variant", "metric", "better", "n", "verdict", "trial_ids"]]
    mean = compared["score"]
    return named.assign(column="validation", trials=n, mean=mean, lo=mean - reach, hi=mean + reach)


def _ordering(study: _Study) -> Layout | None:
    """Of the cell with the most compute: orders over the whole depth are not the same in all."""
    done = study.compared[study.compared["n"] > 0]
    if not len(done) or "arch.order" not in study.settings:
        return None
    cell = done.loc[done["train_flops"].idxmax(), list(CELL)]
    mine = study.settings[(study.settings[list(CELL)] == cell).all(axis=1) & study.settings["arch.order"].notna()]
    if "arch.model" in mine:
        mine = mine[mine["arch.model"].isna()]  # a whole model has no order
    orders = layouts.whole_orders(mine)
    if mine["arch.order"].nunique() < 2 or len(set(orders.values())) < 2:
        return None
    rows = done[(done[list(CELL)] == cell).all(axis=1) & done["variant"].isin(list(orders))]
    layout = layouts.ordering(rows, orders)
    several = len(done[list(CELL)].drop_duplicates()) > 1
    where = ", ".join(str(cell[name]) for name in FIRST if cell[name])
    return replace(layout, title=f"{layout.title} at {where}") if several else layout


def _position(study: _Study) -> Layout | None:
    later = study.transfer[1]
    finished = study.cells[study.cells.groupby(list(CELL))["n"].transform("max") > 0]
    rows = later if len(later) and later["column"].nunique() > 1 else layouts.by_cell(finished)
    count = len(rows[["column", "metric"]].drop_duplicates())
    if count > WIDEST:
        raise LayoutError(f"position: {count} cells are more than the {WIDEST} columns that fit; vaswani3 has rows")
    return layouts.position(rows, study.groups) if count > 1 else None


def _vaswani3(study: _Study) -> Layout | None:
    """Where there are several cells, or variants differ in a setting that the paper prints."""
    settings = study.settings
    if not len(settings):
        return None
    printed = [name for name in PRINTED if name in settings]
    differ = settings.groupby(list(CELL))[printed].nunique(dropna=False).gt(1).any(axis=None)
    if not differ and len(settings[list(CELL)].drop_duplicates()) < 2:
        return None
    rows = study.compared.merge(settings[list(ROW)], on=list(ROW))  # those that something is known of
    return layouts.vaswani3(rows, settings, study.baseline, study.published)


def _complexity(study: _Study) -> Layout | None:
    """FLOPs and seconds of a whole sequence, by the records, where variants were trained at several lengths."""
    if "data.seq_len" not in study.settings:
        return None
    wanted = ["trial_id", *ROW, "flops_per_token", "tokens_per_s"]
    trials = study.table[wanted].merge(study.settings[[*ROW, "data.seq_len"]], on=list(ROW))
    trials = trials[trials["flops_per_token"].notna()]
    inside = (trials.groupby(["variant", "size"])["data.seq_len"].nunique() > 1).any()
    several = inside and trials["size"].nunique() > 1
    trials["label"] = [f"{row.variant} ({row.size})" if several else row.variant for row in trials.itertuples()]
    lengths = trials.groupby("label")["data.seq_len"].nunique()
    if not (lengths > 1).any():
        return None
    n = trials["data.seq_len"].astype(int)
    costs = pd.DataFrame({"variant": trials["label"], "seq_len": n, "trial_ids": trials["trial_id"]})
    costs["flops"] = n * trials["flops_per_token"].astype(float)
    costs["seconds"] = n / trials["tokens_per_s"].astype(float)
    notes = ["n: length of the sequence. FLOPs: forward, of the whole model on one sequence, as executed.",
             "Seconds: of training on one sequence, by the throughput of the trials on the machines that ran them.",
             *_not_alike(study.settings, trials)]  # fmt: skip
    groups = {row.label: study.groups.get(row.variant, "") for row in trials.itertuples()}
    return layouts.complexity(costs, groups=groups, notes=notes, heading="Variant")


def _not_alike(settings: pd.DataFrame, trials: pd.DataFrame) -> Iterator[str]:
    """Settings of the architecture that change with the length of what one row says."""
    rows = settings.merge(trials[[*ROW, "label"]].drop_duplicates(), on=list(ROW))
    names = [name for name in settings if str(name).startswith("arch.")]
    changes = rows.groupby("label")[names].nunique(dropna=False).gt(1).any()
    if differ := list(changes.index[changes]):
        yield f"Not the length alone changes along a row, and p is of all: {', '.join(differ)}."


def _isoflop(study: _Study) -> Layout | None:
    made = next((each.made for each in study.scaling.optima if isinstance(each.made, IsoFlop)), None)
    if made is None:
        return None
    layout = layouts.isoflop(made.vertices, made.warnings)
    return replace(layout, title=f"{layout.title}, of {study.baseline}")


def _optima(study: _Study) -> Layout | None:
    if not any(each.made is not None for each in study.scaling.optima):
        return None
    layout = layouts.optima(study.scaling.optima, study.scaling.top)
    return replace(layout, title=f"{layout.title}, of {study.baseline}")


def _scaling(study: _Study) -> Layout | None:
    compared = study.scaling.comparisons
    if not any(len(each.table) for each in compared):
        return None
    doubts = [doubt for each in compared if each.laws is not None for doubt in each.laws.warnings_]
    return layouts.scaling(compared, doubts)


MADE: dict[str, Callable[[_Study], Layout | None]] = {
    "narang": _narang,
    "ordering": _ordering,
    "position": _position,
    "vaswani3": _vaswani3,
    "complexity": _complexity,
    "isoflop": _isoflop,
    "optima": _optima,
    "scaling": _scaling,
}
