"""One run of a study from its grid to its report, whoever asks: `ablate run`, `ablate resume`, `Study.run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ablate.errors import UserError, plural
from ablate.grid import Grid, load_grid
from ablate.plan import make_plan
from ablate.resolve import default_gpus
from ablate.rows import Plan
from ablate.run.budget import parse_budget
from ablate.run.cohorts import Cohorts
from ablate.run.cores import usable
from ablate.run.drawings import keep_drawings
from ablate.run.executor import Executor
from ablate.run.files import names, read_json, write_json
from ablate.run.forking import server
from ablate.run.ledger import Ledger
from ablate.run.mlflow_store import default_uri, shown
from ablate.run.options import RunOptions
from ablate.run.stopping import TIME_IS_UP
from ablate.run.study import Outcome, StudyRun
from ablate.run.telling import compared, tell, to_train
from ablate.terminal import say


def drive(ledger: Ledger, grid: Grid, options: RunOptions, console: Console, begun: float) -> Outcome:
    """Train what is missing of a grid, by a run that began at `begun` of `time.monotonic`, tell of it, and report."""
    budget = parse_budget(options.budget) if options.budget else None
    make_folder(ledger.root)
    with ledger.study_lock(grid.name):
        if options.executor == "local" and options.workers != 0:
            server()  # it loads torch while this process plans
        plan = make_plan(grid, ledger.cache)
        missing = sum(ledger.trial(trial.id).record() is None for trial in plan.trials)
        say(
            console,
            f"{grid.name}: {plural(len(plan.trials), 'trial')}, {len(plan.trials) - missing} already done, "
            f"{to_train(grid, missing)}{compared(plan.facts['baselines'])}",
        )
        _keep(ledger, grid, options)
        uri = options.tracking_uri or default_uri(ledger.root)
        deadline = None if options.max_hours is None else begun + 3600 * options.max_hours
        executor = _executor(options, plan, ledger.root)
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

        keep_drawings(study.plan, ledger.study_folder(grid.name))
        try:
            report(ledger, grid.name, console, "" if outcome.tracking_trouble else uri)
        except NothingToReport as error:
            say(console, f"no report: {error}")
    return outcome


def _keep(ledger: Ledger, grid: Grid, options: RunOptions) -> None:
    """Write down where the grid came from and what was asked for: see `kept`."""
    tree = {"grid": str(grid.document.file.resolve()), "as_profile": grid.profile, **options.kept()}
    tree["overrides"] = list(grid.overrides)
    tree["tracking_uri"] = options.tracking_uri and shown(options.tracking_uri)  # no password is written down
    write_json(ledger.study_folder(grid.name) / "command.json", tree)


def kept(ledger: Ledger, study: str) -> tuple[Grid, RunOptions]:
    """The grid and the options of a study's last run, as they were then. Raises `UserError`."""
    ledger.study(study)
    folder = ledger.study_folder(study)
    tree = read_json(folder / "command.json")
    if tree is None:
        raise UserError(f"study {study!r} has not kept its command: use `ablate run` with its grid")
    text = (folder / "grid.yaml").read_text(encoding="utf-8")
    grid = load_grid(Path(tree["grid"]), tree["overrides"], text, tree["as_profile"])
    return grid, RunOptions.of(tree)


def report(ledger: Ledger, study: str, console: Console, uri: str) -> Any:
    """Write a study's report, an `analysis.report.Report`, and keep it in MLflow at `uri`, where that is given."""
    from ablate.run.tracking import Mirror
    from analysis.report import write_report

    with names(ledger.study_folder(study) / "report"):
        written = write_report(ledger.root, study)
    say(console, written.summary)
    say(console, f"report: {written.html}")
    say(console, f"dashboard: ablate ui --results {ledger.root}")
    if not uri:
        return written
    mirror = Mirror(ledger, ledger.study(study), uri)
    mirror.attach(written.html.parent)
    if mirror.trouble:
        trouble = f"MLflow at {shown(uri)} has not got the report: {mirror.trouble}"
        say(console, f"{trouble}; `ablate report {study}` tries again", "yellow")
    return written


def make_folder(folder: Path) -> None:
    """Of results. Raises `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--results {folder}: cannot be made: {error.strerror}; name another folder") from None


def _check_drift(ledger: Ledger, plan: Plan, console: Console) -> None:
    from ablate.run.drift import check_drift

    for each in check_drift(ledger, plan):
        say(console, f"drift: {each.words}")


def _executor(options: RunOptions, plan: Plan, results: Path) -> Executor:
    import torch

    gpus = torch.cuda.device_count()
    shares = [default_gpus(row.spec) for row in plan.rows]
    slots = int(gpus / min(shares)) if gpus and min(shares) > 0 else usable()
    if options.pack and not gpus:
        raise UserError(f"--pack {options.pack}: this machine has no GPU to share")
    if options.executor == "ray":
        if options.pack:
            raise UserError("--pack is for the local executor: with Ray give trials a share, as resources.gpus: 0.25")
        from ablate.run.ray_executor import RayExecutor

        log = results / "studies" / plan.grid.name / "ray.log"
        return RayExecutor(options.workers or slots, gpus, options.address, log, options.ship, options.store)
    from ablate.run.local import LocalExecutor

    slots = gpus * options.pack if options.pack else slots
    return LocalExecutor(slots if options.workers is None else options.workers, gpus, options.pack)


def _cohorts(options: RunOptions) -> Cohorts:
    """Which trials are trained together."""
    import torch

    if options.pack:
        if options.cohorts:
            raise UserError(f"--cohorts {options.cohorts} and --pack are two ways to fill a GPU: leave one out")
        return Cohorts(0)
    if options.address:
        return Cohorts(options.cohorts)
    workers = usable() if options.workers is None else max(1, options.workers)
    return Cohorts(options.cohorts, workers, torch.cuda.device_count())
