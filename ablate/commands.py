"""What each command does: calls the library and prints. Imports are inside, so that `list` stays light."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.errors import UserError, plural

if TYPE_CHECKING:
    from ablate.grid import Grid
    from ablate.rows import Plan
    from ablate.run.executor import Executor
    from ablate.run.ledger import Ledger
    from ablate.run.study import Outcome


def run(options: Namespace) -> int:
    """Train what is missing of a grid, then report."""
    from rich.console import Console

    from ablate.grid import load_grid
    from ablate.plan import make_plan
    from ablate.run.ledger import Ledger
    from ablate.run.mlflow_store import default_uri
    from ablate.run.study import StudyRun

    if options.address and options.executor != "ray":
        raise UserError("--address names a Ray cluster: add --executor ray")
    grid = load_grid(options.grid, options.overrides)
    ledger = Ledger(options.results)
    _make_folder(options.results)
    console = Console(highlight=False)
    with ledger.study_lock(grid.name):
        plan = make_plan(grid, ledger.cache)
        missing = sum(ledger.trial(trial.id).record() is None for trial in plan.trials)
        console.print(
            f"{grid.name}: {plural(len(plan.trials), 'trial')}, {len(plan.trials) - missing} already done, "
            f"{_to_train(grid, missing)}{_compared(plan.facts['baselines'])}",
            soft_wrap=True,
        )
        uri = options.tracking_uri or default_uri(options.results)
        study = StudyRun(ledger, plan, _executor(options, plan), console, options.checkpoint_every)
        outcome = study.run(uri, options.retry_failed)
    _tell(outcome, plan, console, uri)
    if not outcome.interrupted:
        _write_report(ledger, grid.name, console, "" if outcome.tracking_trouble else uri)
    return outcome.exit_code


def _to_train(grid: Grid, missing: int) -> str:
    """What a planner may leave out or add is said beforehand."""
    candidates = grid.race or grid.predict or grid.promote
    more = ", and what follows from the sweeps" if grid.tune else ""
    return f"{missing} to train{' at most' if candidates else ''}{more}"


def _compared(baselines: list[dict[str, Any]]) -> str:
    """What the results are to be compared with."""
    said = [
        f"{each['stage']} {each['name']} {each['value']:.4f}".strip()
        for each in baselines
        if each.get("split", "valid") == "valid"
    ]
    return "; to compare with: " + ", ".join(said) if said else ""


def _executor(options: Namespace, plan: Plan) -> Executor:
    import torch

    from ablate.resolve import default_gpus

    gpus = torch.cuda.device_count()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [default_gpus(row.spec) for row in plan.rows]
    slots = int(gpus / min(shares)) if gpus and min(shares) > 0 else cpus
    if options.executor == "ray":
        from ablate.run.ray_executor import RayExecutor

        log = options.results / "studies" / plan.grid.name / "ray.log"
        return RayExecutor(options.workers or slots, gpus, options.address, log)
    from ablate.run.local import LocalExecutor

    return LocalExecutor(slots if options.workers is None else options.workers, gpus)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--results {folder}: cannot be made: {error.strerror}") from None


def _tell(outcome: Outcome, plan: Plan, console: Any, uri: str) -> None:
    """The end of a run in words: counts, failures, what to do next."""
    from rich.markup import escape

    counts = {
        status: sum(each == status for each in outcome.statuses.values())
        for status in ("finished", "diverged", "failed", "stopped")
    }
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(f"trained {len(outcome.trained)}, reused {len(outcome.reused)}: {words or 'nothing finished'}")
    if counts["failed"]:
        console.print(
            f"[red]failed trials: `ablate why ID` shows the error; --retry-failed tries again[/] "
            f"({', '.join(key for key, status in outcome.statuses.items() if status == 'failed')})",
            soft_wrap=True,
        )
    if outcome.enough and not outcome.interrupted:
        left = sum(status == "pending" for status in outcome.statuses.values())
        console.print(f"{outcome.enough}: {plural(left, 'trial')} not run", markup=False, soft_wrap=True)
    if outcome.tracking_trouble:
        console.print(
            f"[yellow]MLflow at {escape(uri)} was not updated: {escape(outcome.tracking_trouble)}; "
            "run again to catch up[/]",
            soft_wrap=True,
        )
    if outcome.interrupted:
        left = sum(status in ("pending", "running") for status in outcome.statuses.values())
        console.print(f"interrupted with {plural(left, 'trial')} to go: the same command goes on from here")


def _write_report(ledger: Ledger, study: str, console: Any, uri: str) -> None:
    """And keep it in MLflow at `uri`, where that is given."""
    from rich.markup import escape

    from ablate.run.files import names
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
            f"[yellow]MLflow at {escape(uri)} has not got the report: {escape(mirror.trouble)}; "
            f"`ablate report {escape(study)}` tries again[/]",
            soft_wrap=True,
        )


def plan(options: Namespace) -> int:
    """Print what a grid comes to."""
    from ablate.grid import load_grid
    from ablate.plan import make_plan
    from ablate.planview import plan_json, print_plan
    from ablate.run.ledger import Ledger

    ledger = Ledger(options.results)
    made = make_plan(load_grid(options.grid, options.overrides), ledger.cache)
    if options.json:
        _print_json(plan_json(made, ledger))
    else:
        print_plan(made, ledger)
    return 0


def status(options: Namespace) -> int:
    """Print where a study stands."""
    from ablate.run.ledger import Ledger
    from ablate.run.status import print_status, study_status

    tree = study_status(Ledger(options.results), options.study)
    if options.json:
        _print_json(tree)
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
        _print_json(tree)
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
        _print_json({"report": str(report), "differences": found})
    else:
        print("\n".join(found) if found else f"{report}: every number is what the ledger says")
    return 1 if found else 0


def list_components(options: Namespace) -> int:
    """Print the catalogue."""
    from ablate.catalogue import catalogue_json, print_catalogue

    _add_plugins(options.plugin)
    entries = catalogue_json(options.slot)
    if options.json:
        _print_json(entries)
    else:
        print_catalogue(entries)
    return 0


def show(options: Namespace) -> int:
    """Print one architecture, and draw it where that is asked for."""
    from ablate.show import describe, drawing, print_description

    description = describe(options.name, options.overrides)
    if options.svg:
        Path(options.svg).write_text(drawing(description), encoding="utf-8")
    if options.json:
        _print_json(description)
    else:
        print_description(description)
    return 0


def check(options: Namespace) -> int:
    """Run the contract checks."""
    from ablate.check import check_components, print_results

    _add_plugins(options.plugin)
    results = check_components(options.name, None if options.json else print)
    if options.json:
        _print_json(results)
    else:
        print_results(results)
    return 1 if any(result["failed"] for result in results) else 0


def why(options: Namespace) -> int:
    """Say why a trial was run or reused."""
    from ablate.run.ledger import Ledger
    from ablate.run.why import explain, print_explanation

    explanation = explain(Ledger(options.results), options.trial)
    if options.json:
        _print_json(explanation)
    else:
        print_explanation(explanation)
    return 0


def sample(options: Namespace) -> int:
    """Print what a finished trial's model generates."""
    from ablate.run.ledger import Ledger
    from ablate.sampling import SampleRequest, method, print_samples, prompt_of, sample_trial

    _add_plugins(options.plugin)
    names = ("greedy", "temperature", "top_k", "top_p", "min_p", "beam", "length_penalty", "seed")
    request = SampleRequest(
        prompt_of(options.prompt, options.prompt_file),
        options.count,
        options.length,
        method(**{name: getattr(options, name) for name in names}),
        options.seed or 0,
        options.out,
    )
    found = sample_trial(Ledger(options.results), options.trial, request)
    if options.json:
        _print_json(found)
    else:
        print_samples(found)
    return 0


def ui(options: Namespace) -> int:
    """Serve the MLflow dashboard on loopback until interrupted."""
    import subprocess

    from ablate.run.mlflow_store import QUIET, database_of, default_uri

    uri = options.tracking_uri or default_uri(options.results)
    database = database_of(uri)
    if database is not None and not database.is_file():
        raise UserError(f"{database} does not exist: run a study first, or give --results or --tracking-uri")
    print(f"MLflow dashboard on http://127.0.0.1:{options.port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(options.port)]
    command += ["--workers", "1", "--backend-store-uri", uri]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **QUIET, **os.environ}
    try:
        return subprocess.run(command, env=settings, check=False).returncode
    except KeyboardInterrupt:
        return 0


def _add_plugins(files: list[str]) -> None:
    from ablate import registry

    for file in files:
        registry.add_plugin(Path(file))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
