"""What each command does: calls the library and prints. Imports are inside, so that `list` stays light."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.errors import UserError, plural

if TYPE_CHECKING:
    pass


def list_components(options: Namespace) -> int:
    """Print the catalogue."""
    from ablate.catalogue import catalogue_json, print_catalogue
    from ablate.terminal import width

    add_plugins(options.plugin)
    entries = catalogue_json(options.slot)
    if options.json:
        print_json(entries)
    else:
        print_catalogue(entries, width())
    return 0


def show(options: Namespace) -> int:
    """Print one architecture, or two beside each other, and draw them."""
    from ablate import terminal
    from ablate.draw import svg, text
    from ablate.show import (
        describe,
        describe_both,
        figure_of,
        figures_of,
        print_description,
        print_differences,
        shown,
    )

    add_plugins(options.plugin)
    if options.diff:
        tree = describe_both(options.name, options.diff, options.overrides)
        figures = figures_of(options.name, options.diff, options.overrides)
    else:
        tree = describe(options.name, options.overrides)
        figures = [figure_of(shown(options.name, options.overrides))]
    if options.svg:
        Path(options.svg).write_text(svg.draw(*figures), encoding="utf-8")
    if options.json:
        print_json(tree)
        return 0
    width = terminal.width()
    if not options.diff:
        print(terminal.filled(f"{tree['name']}   {tree['paper']}".strip(), width), end="\n\n")
    print(text.draw([replace(figure, notes=()) for figure in figures], width, terminal.draws_boxes()), end="\n\n")
    (print_differences if options.diff else print_description)(tree, width)
    return 0


def check(options: Namespace) -> int:
    """Run the contract checks."""
    from ablate.check import check_components, print_results

    add_plugins(options.plugin)
    results = check_components(options.name, None if options.json else print)
    if options.json:
        print_json(results)
    else:
        print_results(results)
    return 1 if any(result["failed"] for result in results) else 0


def why(options: Namespace) -> int:
    """Say why a trial was run or reused; of a study, of each of its trials."""
    from ablate.run.ledger import Ledger
    from ablate.run.why import explain, explain_study, print_explanation, print_study

    ledger = Ledger(options.results)
    whole = options.trial in ledger.study_names()
    explanation = (explain_study if whole else explain)(ledger, options.trial)
    if options.json:
        print_json(explanation)
    else:
        (print_study if whole else print_explanation)(explanation)
    return 0


def track(options: Namespace) -> int:
    """Publish the studies of a ledger to MLflow."""
    from ablate.run.ledger import Ledger
    from ablate.run.mlflow_store import default_uri, shown
    from ablate.run.track import track_study

    ledger = Ledger(options.results)
    if options.all == bool(options.study):
        raise UserError(
            "track: name one study, or give --all; studies: " + (", ".join(ledger.study_names()) or "none")
        )
    uri, troubles = options.tracking_uri or default_uri(options.results), 0
    for name in ledger.study_names() if options.all else [options.study]:
        count, trouble = track_study(ledger, name, uri, options.log_models)
        print(f"{name}: {plural(count, 'trial')} at {shown(uri)}" + (f": not all: {trouble}" if trouble else ""))
        troubles += bool(trouble)
    return 1 if troubles else 0


def sample(options: Namespace) -> int:
    """Print what a finished trial's model generates."""
    from ablate.run.ledger import Ledger
    from ablate.sampling import SampleRequest, method, print_samples, prompt_of, sample_trial

    add_plugins(options.plugin)
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
        print_json(found)
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


def add_plugins(files: list[str]) -> None:
    """Enter the components of these files."""
    from ablate import registry

    for file in files:
        registry.add_plugin(Path(file))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
