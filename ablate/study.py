"""A study from Python: `ablate.load("grid.yaml")`, then `plan`, `run`, `table`, `report`. Imports are inside."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from ablate.grid import Grid
    from ablate.run.ledger import Ledger
    from ablate.run.options import RunOptions
    from ablate.run.study import Outcome
    from ablate.views import Figures, Page, View
    from analysis.compared import Compared

NO_FILE = Path("grid")  # what a grid that is no file is called; it lies in the working folder


def load(
    grid: str | os.PathLike[str] | Mapping[str, Any],
    results: str | os.PathLike[str] = "results",
    overrides: Mapping[str, Any] | None = None,
    profile: str | None = None,
) -> Study:
    """A study by its grid: the path of a grid.yaml, its text (of several lines), or the same as a mapping.

    `overrides` are paths with values, as `{"train.lr": 1e-3, "seeds": 5}`, laid over the grid as `--set` does;
    `profile` is one of the grid's, as `--as` names it. What a grid names is looked for beside its file, or in the
    working folder where it is no file. Nothing is run.

    Raises `UserError` with the place, the value and what would have been legal.
    """
    from ablate.grid import load_grid
    from ablate.yamlfile import yaml_of

    given = [f"{path}={yaml_of(value, f'overrides: {path}', flow=True)}" for path, value in (overrides or {}).items()]
    if isinstance(grid, Mapping) or (isinstance(grid, str) and "\n" in grid):
        read = load_grid(NO_FILE, given, grid, profile)
    elif isinstance(grid, str | os.PathLike):
        read = load_grid(Path(grid), given, profile=profile)
    else:
        raise UserError(f"{grid!r} is no grid: give the path of a grid.yaml, its text, or a mapping")
    return Study(read.name, Path(results), read)


def open_study(name: str, results: str | os.PathLike[str] = "results") -> Study:
    """A study that was run before, by its name; `run` goes on with the grid and the options that it has kept.

    Raises `UserError` with the names that there are.
    """
    study = Study(name, Path(results))
    study.ledger.study(name)
    return study


class Study:
    """A study: its grid, and what the results folder has of it. `load` and `open_study` make one.

    What a method returns shows itself in a notebook and in a terminal. Whatever is read is read anew at each call:
    tables are those of the records as they are now. Wrong input raises `UserError`.
    """

    def __init__(self, name: str, results: Path, grid: Grid | None = None):
        from ablate.run.ledger import Ledger

        self.name = name
        self.results = results
        self.ledger: Ledger = Ledger(results)
        self._grid = grid

    def __repr__(self) -> str:
        return f"Study({self.name!r}, results={str(self.results)!r})"

    @property
    def grid(self) -> Grid:
        """The grid as it was loaded, or as the study's last run has kept it."""
        return self._asked()[0]

    def plan(self) -> View:
        """What the grid comes to, as `ablate plan` prints it: variants, sizes, parameters, FLOPs, residuals, memory.

        `to_frame()` has a row a variant at a size, axis setting and budget; `source` is the `ablate.rows.Plan`.
        """
        from ablate.plan import make_plan
        from ablate.planview import plan_view

        return plan_view(make_plan(self.grid, self.ledger.cache), self.ledger)

    def run(self, **options: Any) -> Outcome:
        """Train what is missing, then report: `ablate run`. Returns what it came to: `trained` and `reused` trials,
        `statuses` by id, `stopped` (why it ended early, if so), `exit_code`.

        The options are those of the command: executor="local" | "ray", workers (0: in this process), address, store,
        ship, tracking_uri, log_models, check_drift, no_forks, no_compile, cohorts, profile, retry_failed,
        checkpoint_every, max_hours, budget, pack. A study that was opened by its name begins with those that its last
        run had.

        Trials that fail are told and counted; they raise nothing. An interrupt (Ctrl-C, the stop button) lets trials
        under way leave a checkpoint and then raises `KeyboardInterrupt`; `run()` again goes on from there.
        """
        from ablate.run.driver import drive
        from ablate.run.progress import console_here
        from ablate.run.stopping import INTERRUPTED

        begun = time.monotonic()
        grid, asked = self._asked()
        with _told():
            outcome = drive(self.ledger, grid, asked.changed(options), console_here(), begun)
        if outcome.stopped == INTERRUPTED:
            raise KeyboardInterrupt(f"study {self.name!r}: run() again goes on where it stopped")
        return outcome

    def status(self) -> View:
        """Where the study stands, as `ablate status` prints it. `to_frame()` has a row a trial; `source` is what
        `ablate status --json` prints."""
        from ablate.run.status import status_lines, study_status
        from ablate.views import View, html_text

        self._require_run()
        tree = study_status(self.ledger, self.name)
        text = "\n".join(status_lines(tree))
        return View(text, html_text(text), partial(_rows, tree["trials"]), tree)

    def trials(self) -> pd.DataFrame:
        """One row a trial, with the columns of `analysis.columns` and one for each axis: labels, seed, status,
        losses, parameters, FLOPs, speed, hardware. A trial without a record is `pending`."""
        from analysis.table import study_table

        self._require_run()
        with _told():
            return study_table(self.results, self.name)

    def curves(self) -> pd.DataFrame:
        """One row an evaluation of a trial: trial_id, its labels, seed, step, tokens, split, loss."""
        from analysis.table import study_curves

        self._require_run()
        with _told():
            return study_curves(self.results, self.name)

    def table(self, layout: str | None = None) -> View:
        """The report's table of comparison: every variant in every cell with its costs, loss, difference and verdict.

        With a `layout`, one of the report's tables to cite, as "narang"; `source` is then the
        `analysis.layouts.Layout`, of which `analysis.layouts.latex` makes LaTeX. Raises `UserError` for one that the
        study does not allow, with the reason.
        """
        from ablate.tableviews import comparison_view, layout_view

        self._require_run()
        with _told():
            if layout is not None:
                return layout_view(self.results, self.name, layout)
            return comparison_view(self._compared(None))

    def compare(self, baseline: str | None = None) -> View:
        """The verdicts over all cells: the paired difference of each variant from the baseline, with 95 % interval.

        `baseline` names another variant to compare with. `to_frame()` has p-values and the other columns of
        `analysis.tables.overall_table`.
        """
        from ablate.tableviews import verdicts_view

        self._require_run()
        with _told():
            return verdicts_view(self._compared(baseline))

    def fit(self, form: str = "power_offset", x: str = "train_flops") -> View:
        """A scaling law of each variant, with 95 % intervals from resampled seeds; as it is, the report's.

        `form` is a name of `analysis.forms`. One of a single input reads the column `x` of `trials()`, another n
        (parameters without embeddings), d (tokens), c (FLOPs) or s (steps), as "chinchilla" n and d. `source` is the
        fitted `analysis.fit.ScalingLaw` of each variant that has points enough: `source["rope"].predict([1e18])`.
        """
        from ablate.tableviews import laws_view

        self._require_run()
        with _told():
            return laws_view(self._compared(None), form, x)

    def figures(self) -> Figures:
        """The report's figures by name, each with `svg`, `caption` and `save(file)`. The report is written anew."""
        from ablate.tableviews import figures_of
        from analysis.report import write_report

        self._require_run()
        with _told():
            return figures_of(write_report(self.results, self.name))

    def report(self, tracking_uri: str | None = None) -> Page:
        """Write the report anew, as `ablate report` does: `path` of its page, `markdown`, `summary`, `figures`."""
        from rich.console import Console

        from ablate.run.driver import report
        from ablate.run.mlflow_store import default_uri
        from ablate.tableviews import figures_of
        from ablate.views import Page

        self._require_run()
        uri = tracking_uri or default_uri(self.results)
        with _told():
            made = report(self.ledger, self.name, Console(quiet=True), uri)
        return Page(made.html, made.markdown, made.summary, figures_of(made))

    def _asked(self) -> tuple[Grid, RunOptions]:
        from ablate.run.driver import kept
        from ablate.run.options import RunOptions

        return (self._grid, RunOptions()) if self._grid is not None else kept(self.ledger, self.name)

    def _require_run(self) -> None:
        """Raise `UserError` where there is nothing to read yet."""
        if self._grid is not None and not (self.ledger.study_folder(self.name) / "study.json").is_file():
            raise UserError(f"study {self.name!r} has no results in {self.results} yet: run() it first")
        self.ledger.study(self.name)

    def _compared(self, baseline: str | None) -> Compared:
        from analysis.compared import study_compared

        facts = self.ledger.study(self.name)
        known = list(dict.fromkeys(row["variant"] for row in facts["rows"]))
        if baseline is not None and baseline not in known:
            raise UserError(unknown("variant", baseline, known))
        if baseline not in (None, facts["baseline"]) and (facts.get("race") or facts.get("promote")):
            raise UserError(
                f"baseline {baseline!r}: trials were chosen by their differences from {facts['baseline']!r}, and say "
                "nothing sure of others"
            )
        return study_compared(self.results, self.name, baseline)


@contextmanager
def _told() -> Iterator[None]:
    """What the analysis refuses is a `UserError` here, like everything else that is."""
    from analysis.errors import AnalysisError

    try:
        yield
    except AnalysisError as error:
        raise UserError(str(error)) from None


def _rows(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
