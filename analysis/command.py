"""`ablate fit TABLE`, which is `python -m analysis TABLE`: laws fitted to anybody's table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.asked import COLUMNS, plain
from analysis.command_words import words
from analysis.doubts import refuse_mean
from analysis.errors import AnalysisError
from analysis.fit import BadPoints
from analysis.fitting import APPROACHES, fit
from analysis.forms import FORMS, ONE_INPUT
from analysis.objectives import DELTA, OBJECTIVES
from analysis.typed import Parser, did_you_mean


def options_of(parser: argparse.ArgumentParser) -> None:
    """The options of `fit`."""
    add = parser.add_argument
    add("table", metavar="TABLE", type=Path, help="trials.csv of a report, or any .csv, .tsv, .jsonl, .parquet")
    names = ", ".join((*ONE_INPUT, *FORMS, *APPROACHES))
    add("--form", default="chinchilla", help=f"{names}, or FILE.py:FUNCTION (default: chinchilla)")
    add("--objective", help=f"{', '.join(OBJECTIVES)} (default: the form's)")
    add("--delta", type=float, help=f"of the Huber loss (default: {DELTA:g})")
    add("--over", type=float, help="weight of points that the law is above, of `asymmetric` (default: 10)")
    for letter, what in COLUMNS.items():
        add(f"--{letter}", metavar="COL", help=f"column of {what}")
    add("--pin", action="append", default=[], metavar="E=VALUE", help="a given offset; 0 leaves it out")
    add("--where", metavar="QUERY", help="a pandas query: which rows to take")
    add("--budget", metavar="COL", help="of `isoflop`: column of the budget, where c hits it only about")
    add("--group", metavar="COL", help="a fit for each value of this column")
    add("--baseline", metavar="NAME", help="of --group: compare the others with this one by their laws")
    add("--average", metavar="COL", help="take the mean over repeats, which differ in this column, first")
    add("--drop-highest", type=int, default=0, metavar="K", help="leave out the K highest losses")
    add("--keep", action="append", default=[], metavar="GATE|ROW", help="points that a quality gate would drop")
    add("--bootstrap", type=int, default=0, metavar="B", help="resamples for intervals")
    add(
        "--resample", metavar="COL", help="resample whole groups of points that share this column, as trials or seeds"
    )
    add("--seed", type=int, default=0, help="of the resamples (default: 0)")
    add("--predict", action="append", default=[], metavar="n=..,d=..", help="the loss there; or c=..")
    add("--holdout-compute", type=float, metavar="FRACTION", help="predict the top part of compute from the rest")
    add("--tournament", action="store_true", help="rank forms and objectives by the error on held-out compute")
    add("--next", metavar="FILE", type=Path, help="of its rows, which to run next for the first --predict")
    add("--figures", metavar="DIR", type=Path, help="draw figures of the fit there, as SVG")
    add("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Fit and print. Raises `AnalysisError`."""
    if options.objective is not None:
        refuse_mean(options.objective)
    if options.objective is not None and options.objective not in OBJECTIVES:
        near, known = did_you_mean(options.objective, OBJECTIVES), ", ".join(OBJECTIVES)
        raise BadPoints(f"--objective {options.objective!r}: unknown;{near} known: {known}")
    result = fit(options)
    print(json.dumps(_finite(result), indent=1, default=plain) if options.json else words(result))
    return 0


def main(arguments: Sequence[str], program: str) -> int:
    """Run `fit` with these arguments; return the exit code."""
    parser = Parser(prog=program, description="Fit scaling laws to a table of trained models.")
    options_of(parser)
    try:
        return run(parser.parse_args(arguments))
    except BrokenPipeError:  # nobody reads on, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except AnalysisError as error:
        print(f"{program.split()[0] if program.startswith('ablate') else 'analysis'}: {error}", file=sys.stderr)
        return 2


def _finite(value: Any) -> Any:
    """Without numbers that JSON has no word for: they are null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
