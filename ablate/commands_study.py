"""What the commands do that plan, run and tell of a study. Imports are inside, as in `ablate.commands`."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands import print_json
from ablate.errors import UserError, plural

if TYPE_CHECKING:
    from ablate.grid import Grid
    from ablate.rows import Plan
    from ablate.run.cohorts import Cohorts
    from ablate.run.executor import Executor
    from ablate.run.ledger import Ledger


# Options of a run that `resume` goes on with
KEPT = (
    *("executor", "workers", "address", "ship", "store", "tracking_uri", "log_models", "checkpoint_every"),
    *("max_hours", "budget", "pack", "check_drift", "no_forks", "profile", "cohorts", "no_compile"),
)


def run(options: Namespace) -> int:
    """Train what is missing of a grid, then report."""
    from ablate.grid import load_grid

    begun = time.monotonic()
    return _run(options, load_grid(options.grid, options.overrides), begun)


def resume(options: Namespace) -> int:
    """The same with the grid and the options that a study's last run has kept."""
    from ablate.grid import load_grid
    from ablate.run.files import read_json
    from ablate.run.ledger import Ledger

    begun, ledger = time.monotonic(), Ledger(options.results)
    ledger.study(options.study)
    folder = ledger.study_folder(options.study)
    kept = read_json(folder / "command.json")
    if kept is None:
        raise UserError(f"study {options.study!r} has not kept its command: use `ablate run` with its grid")
    text = (folder / "grid.yaml").read_text(encoding="utf-8")
    grid = load_grid(Path(kept["grid"]), kept["overrides"], text)
    again = Namespace(results=options.results, retry_failed=False, **kept)
    return _run(again, grid, begun)


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


def _run(options: Namespace, grid: Grid, begun: float) -> int:
    """Train what is missing of a grid, by a command that began at `begun`, then report."""
    from rich.console import Console

    from ablate.plan import make_plan
    from ablate.run.budget import parse_budget
    from ablate.run.files import write_json
    from ablate.run.ledger import Ledger
    from ablate.run.mlflow_store import default_uri, shown
    from ablate.run.process import server
    from ablate.run.stopping import TIME_IS_UP
    from ablate.run.study import StudyRun
    from ablate.run.telling import compared, tell, to_train

    if options.address and options.executor != "ray":
        raise UserError("--address names a Ray cluster: add --executor ray")
    for name in ("ship", "store"):
        if getattr(options, name) and not options.address:
            raise UserError(f"--{name} is for the nodes of a Ray cluster: add --address")
    budget = parse_budget(options.budget) if options.budget else None
    ledger = Ledger(options.results)
    _make_folder(options.results)
    console = Console(highlight=False)
    with ledger.study_lock(grid.name):
        if options.executor == "local" and options.workers != 0:
            server()  # it loads torch while this process plans
        plan = make_plan(grid, ledger.cache)
        missing = sum(ledger.trial(trial.id).record() is None for trial in plan.trials)
        console.print(
            f"{grid.name}: {plural(len(plan.trials), 'trial')}, {len(plan.trials) - missing} already done, "
            f"{to_train(grid, missing)}{compared(plan.facts['baselines'])}",
            soft_wrap=True,
        )
        kept = {"grid": str(options.grid.resolve()) if isinstance(options.grid, Path) else options.grid}
        kept |= {"overrides": options.overrides, **{key: getattr(options, key) for key in KEPT}}
        kept["tracking_uri"] = options.tracking_uri and shown(options.tracking_uri)  # no password is written down
        write_json(ledger.study_folder(grid.name) / "command.json", kept)
        uri = options.tracking_uri or default_uri(options.results)
        deadline = None if options.max_hours is None else begun + 3600 * options.max_hours
        executor = _executor(options, plan)
        study = StudyRun(
            *(ledger, plan, executor, console, options.checkpoint_every, deadline, budget),
            forks=not options.no_forks,
            profile=options.profile,
            cohorts=_cohorts(options),
            compiles=not options.no_compile,
        )
        outcome = study.run(uri, options.retry_failed, options.log_models)
        if options.check_drift and not outcome.stopped:
            _check_drift(ledger, study.plan, console)
    tell(outcome, console, uri)
    if outcome.stopped in ("", TIME_IS_UP):
        from analysis.report import NothingToReport  # seconds: not before the trials

        try:
            _write_report(ledger, grid.name, console, "" if outcome.tracking_trouble else uri)
        except NothingToReport as error:
            console.print(f"no report: {error}", markup=False, soft_wrap=True)
    return outcome.exit_code


def _check_drift(ledger: Ledger, plan: Plan, console: Any) -> None:
    from ablate.run.drift import check_drift

    for each in check_drift(ledger, plan):
        console.print(f"drift: {each.words}", markup=False, soft_wrap=True)


def _executor(options: Namespace, plan: Plan) -> Executor:
    import torch

    from ablate.resolve import default_gpus

    gpus = torch.cuda.device_count()
    shares = [default_gpus(row.spec) for row in plan.rows]
    slots = int(gpus / min(shares)) if gpus and min(shares) > 0 else _cpus()
    if options.pack and not gpus:
        raise UserError(f"--pack {options.pack}: this machine has no GPU to share")
    if options.executor == "ray":
        if options.pack:
            raise UserError("--pack is for the local executor: with Ray give trials a share, as resources.gpus: 0.25")
        from ablate.run.ray_executor import RayExecutor

        log = options.results / "studies" / plan.grid.name / "ray.log"
        return RayExecutor(options.workers or slots, gpus, options.address, log, options.ship, options.store)
    from ablate.run.local import LocalExecutor

    slots = gpus * options.pack if options.pack else slots
    return LocalExecutor(slots if options.workers is None else options.workers, gpus, options.pack)


def _cohorts(options: Namespace) -> Cohorts:
    """Which trials are trained together."""
    import torch

    from ablate.run.cohorts import Cohorts

    if options.pack:
        if options.cohorts:
            raise UserError(f"--cohorts {options.cohorts} and --pack are two ways to fill a GPU: leave one out")
        return Cohorts(0)
    if options.address:
        return Cohorts(options.cohorts)
    workers = _cpus() if options.workers is None else max(1, options.workers)
    return Cohorts(options.cohorts, workers, torch.cuda.device_count())


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--results {folder}: cannot be made: {error.strerror}") from None


def _write_report(ledger: Ledger, study: str, console: Any, uri: str) -> None:
    """And keep it in MLflow at `uri`, where that is given."""
    from rich.markup import escape

    from ablate.run.files import names
    from ablate.run.mlflow_store import shown
    from ablate.run.tracking import Mirror
    from analysis.report import write_report

    with names(ledger.study_folder(study) / "report"):
        report = write_report(ledger.root, study)
    console.print(report.summary, markup=False, soft_wrap=True)
    console.print(f"report: {report.html}", soft_wrap=True)
    console.print(f"dashboard: ablate ui --results {ledger.root}", soft_wrap=True)
    if not uri:
        return
    mirror = Mirror(ledger, ledger.study(study), uri)
    mirror.attach(report.html.parent)
    if mirror.trouble:
        console.print(
            f"[yellow]MLflow at {escape(shown(uri))} has not got the report: {escape(mirror.trouble)}; "
            f"`ablate report {escape(study)}` tries again[/]",
            soft_wrap=True,
        )


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
    made = make_plan(load_grid(options.grid, options.overrides), ledger.cache)
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
    from ablate.run.hours import Rates
    from ablate.run.probeview import probe_json
    from ablate.run.probing import probe

    rates = Rates.told(options.price, options.watts)
    _make_folder(options.results)
    on_gpus = any(default_gpus(row.spec) for row in plan.rows)
    slots = options.workers or (torch.cuda.device_count() if on_gpus else 0) or _cpus()
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
        print_status(tree)
    return 0


def report(options: Namespace) -> int:
    """Write a study's report anew."""
    from rich.console import Console

    from ablate.run.ledger import Ledger
    from ablate.run.mlflow_store import default_uri

    ledger = Ledger(options.results)
    ledger.study(options.study)
    _write_report(
        ledger, options.study, Console(highlight=False), options.tracking_uri or default_uri(options.results)
    )
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
    from analysis.errors import AnalysisError
    from analysis.report.verify import verify as differences

    report = options.report
    if not report.exists():
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
