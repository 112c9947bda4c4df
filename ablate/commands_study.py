"""What the commands do that plan, run and tell of a study. Imports are inside, as in `ablate.commands`."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from ablate.commands import print_json
from ablate.errors import UserError, unknown
from ablate.terminal import columns

if TYPE_CHECKING:
    from ablate.grid import Grid
    from ablate.rows import Plan
    from ablate.run.ledger import Ledger
    from ablate.run.options import RunOptions


def run(options: Namespace) -> int:
    """Train what is missing of a grid, then report."""
    begun = time.monotonic()
    if options.executor == "local" and options.workers != 0 and hasattr(os, "fork"):  # Windows is told so below
        from ablate.run.forking import server

        server()  # it loads torch while this process does
    from ablate.grid import load_grid
    from ablate.run.options import RunOptions

    grid = load_grid(options.grid, options.overrides, profile=options.as_profile)
    return _run(options, grid, RunOptions.of(vars(options)), begun)


def resume(options: Namespace) -> int:
    """The same with the grid and the options that a study's last run has kept."""
    from ablate.run.driver import kept
    from ablate.run.ledger import Ledger

    begun = time.monotonic()
    return _run(options, *kept(Ledger(options.results), options.study), begun)


def _run(options: Namespace, grid: Grid, asked: RunOptions, begun: float) -> int:
    from rich.console import Console

    from ablate.run.driver import drive
    from ablate.run.ledger import Ledger

    return drive(Ledger(options.results), grid, asked, Console(highlight=False), begun).exit_code


def pause(options: Namespace) -> int:
    """Ask the driver of a study, wherever it runs, to stop."""
    from ablate.run.files import write_text
    from ablate.run.ledger import Ledger

    ledger = Ledger(options.results)
    ledger.study(options.study)
    write_text(ledger.pause_file(options.study), time.strftime("%Y-%m-%d %H:%M:%S\n"))
    print(
        f"{options.study}: its driver, if one is running, stops within seconds, and its trials leave checkpoints; "
        f"`ablate resume {options.study}` goes on"
    )
    return 0


def plan(options: Namespace) -> int:
    """Print what a grid comes to."""
    from ablate.grid import load_grid
    from ablate.plan import make_plan
    from ablate.planview import plan_json, print_plan
    from ablate.run.ledger import Ledger
    from ablate.run.probeview import print_probe

    if not options.probe:
        for name in ("fresh", "workers", "price", "watts"):
            if getattr(options, name) not in (None, False):
                raise UserError(f"--{name} is for hours, which come from measured steps: add --probe")
    ledger = Ledger(options.results)
    made = make_plan(load_grid(options.grid, options.overrides, profile=options.as_profile), ledger.cache)
    expected = _probed(options, made, ledger) if options.probe else None
    if options.json:
        print_json(plan_json(made, ledger) | ({} if expected is None else {"probe": expected}))
    else:
        print_plan(made, ledger)
        if expected is not None:
            print_probe(expected)
    return 0


def _probed(options: Namespace, plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """What the rows of a plan take on this machine, and the whole of what is to be trained."""
    import torch

    from ablate.resolve import default_gpus
    from ablate.run.cores import usable
    from ablate.run.driver import make_folder
    from ablate.run.hours import Rates
    from ablate.run.probeview import probe_json
    from ablate.run.probing import probe

    rates = Rates.told(options.price, options.watts)
    make_folder(options.results)
    on_gpus = any(default_gpus(row.spec) for row in plan.rows)
    slots = options.workers or (torch.cuda.device_count() if on_gpus else 0) or usable()
    figures = probe(plan.rows, ledger, options.fresh, lambda words: print(words, file=sys.stderr, flush=True))
    return probe_json(plan, ledger, figures, slots, rates)


def status(options: Namespace) -> int:
    """Print where a study stands."""
    from ablate.run.hours import Rates
    from ablate.run.ledger import Ledger
    from ablate.run.status import print_status, study_status

    rates = Rates.told(options.price, options.watts)
    tree = study_status(Ledger(options.results), options.study, rates)
    if options.json:
        print_json(tree)
    else:
        print_status(tree, columns())
    return 0


def report(options: Namespace) -> int:
    """Write a study's report anew."""
    from rich.console import Console

    from ablate.run.driver import report as write
    from ablate.run.ledger import Ledger
    from ablate.run.mlflow_store import default_uri

    ledger = Ledger(options.results)
    ledger.study(options.study)
    write(ledger, options.study, Console(highlight=False), options.tracking_uri or default_uri(options.results))
    return 0


def power(options: Namespace) -> int:
    """Say how many seeds a difference needs."""
    from ablate.run.ledger import Ledger
    from analysis.errors import AnalysisError
    from analysis.power import noise_floor, power_lines, power_table
    from analysis.table import read_study, study_table
    from analysis.tuning import reported

    Ledger(options.results).study(options.study)
    facts = read_study(options.results, options.study)
    table = reported(study_table(options.results, options.study), facts.get("tune"))
    tree = []
    try:
        for stage, part in table.groupby("stage", sort=False):
            rows = power_table(part, facts["baseline"], options.delta, options.power, metric="score")
            floor = noise_floor(part, facts["baseline"], "score")
            tree.append({"stage": stage, "rows": rows.to_dict("records"), "noise": floor.to_dict("records")})
            if not options.json:
                print("\n".join([*([f"{stage}:"] if stage else []), *power_lines(rows, floor, facts["baseline"])]))
    except AnalysisError as error:
        raise UserError(str(error)) from None
    if options.json:
        print_json(tree)
    return 0


def verify(options: Namespace) -> int:
    """Recompute every number of a report from the ledger."""
    from ablate.run.ledger import Ledger
    from analysis.errors import AnalysisError
    from analysis.report.verify import verify as differences

    report, names = options.report, Ledger(options.results).study_names()
    if not report.exists():
        if names and len(report.parts) == 1 and str(report) not in names:
            raise UserError(unknown("report or study", str(report), names))
        report = options.results / "studies" / str(options.report) / "report"
    try:
        found = differences(report)
    except AnalysisError as error:
        raise UserError(str(error)) from None
    if options.json:
        print_json({"report": str(report), "differences": found})
    else:
        print("\n".join(found) if found else f"{report}: every number is what the ledger says")
    return 1 if found else 0
