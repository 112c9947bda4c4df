"""`ablate fit TABLE`, which is `python -m analysis TABLE`: laws fitted to anybody's table."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import points as reading
from analysis.doubts import compute_of, distant, doubts, refuse_mean
from analysis.errors import AnalysisError
from analysis.fit import BadPoints, ScalingLaw
from analysis.forms import FORMS, ONE_INPUT, law_of
from analysis.forms_user import LETTERS
from analysis.gates import Limits, gate
from analysis.heldout import HeldOut, held_out
from analysis.intervals import confidence_interval, parameter_intervals, prediction_interval
from analysis.objectives import DELTA, OBJECTIVES
from analysis.optimal import compute_optimal
from analysis.resampling import resampled

APPROACHES = ("isoflop", "envelope")
COLUMNS = {**LETTERS, "loss": "losses"}


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
    add("--average", metavar="COL", help="take the mean over repeats, which differ in this column, first")
    add("--drop-highest", type=int, default=0, metavar="K", help="leave out the K highest losses")
    add("--keep", action="append", default=[], metavar="GATE|ROW", help="points that a quality gate would drop")
    add("--bootstrap", type=int, default=0, metavar="B", help="resamples for intervals")
    add("--seed", type=int, default=0, help="of the resamples (default: 0)")
    add("--predict", action="append", default=[], metavar="n=..,d=..", help="the loss there; or c=..")
    add("--holdout-compute", type=float, metavar="FRACTION", help="predict the top part of compute from the rest")
    add("--json", action="store_true", help="print one JSON object")


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for, as the JSON object that `--json` prints. Raises `AnalysisError`."""
    began = time.perf_counter()
    table = reading.read(options.table)
    if options.where:
        table = reading.where(table, options.where)
    if options.group is None:
        result = fit_table(table, options)
    else:
        if options.group not in table:
            raise AnalysisError(f"--group {options.group!r}: no such column; columns: {', '.join(map(str, table))}")
        parts = table.groupby(options.group, sort=False, dropna=False)
        result = {
            "form": options.form,
            "groups": [{"group": _plain(key), **_of_group(key, part, options)} for key, part in parts],
        }
    return result | {"seconds": time.perf_counter() - began}


def _of_group(key: Any, part: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    try:
        return fit_table(part, options)
    except AnalysisError as error:
        raise type(error)(f"{options.group} {key!r}: {error}") from None


def fit_table(table: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    """One fit."""
    letters = {letter: name for letter in COLUMNS if (name := getattr(options, letter))}
    if options.form in APPROACHES:
        return fit_approach(table, letters, options)
    law = law_of(options.form, _letter(letters))
    data = reading.points(table, letters, (*law.inputs, "loss"))
    data, dropped = _chosen(data, law.inputs, options)
    made = ScalingLaw(law, options.objective, options.delta, pinned(options.pin), over=options.over)
    made.fit(data, data["loss"])
    if options.bootstrap:
        _bootstrap(made, options.bootstrap, options.seed)
    held = _held_out(made, data, options)
    intervals = parameter_intervals(made) if options.bootstrap else {}
    return {
        "form": made.law.name,
        "equation": made.law.equation,
        "objective_name": made.penalty.name,
        "delta": made.penalty.delta,
        "n": made.n_,
        "dropped": dropped,
        "params": made.params_,
        "derived": made.derived_,
        "objective": made.objective_,
        "se": made.se_,
        "ci95": {name: list(ends) for name, ends in intervals.items()},
        "condition": made.condition_,
        "predictions": [_predicted(made, each) for each in options.predict],
        "holdout": _of_holdout(held),
        "warnings": _warnings(made, data, options, held),
        "converged": made.converged_,
    }


def fit_approach(table: pd.DataFrame, letters: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Approach 1 (`envelope`, of training curves) or 2 (`isoflop`): the best sizes without a law of the loss."""
    from analysis.envelope import envelope
    from analysis.isoflop import isoflop

    if options.predict and not all(text.strip().startswith("c=") for text in options.predict):
        raise AnalysisError(f"--predict: --form {options.form} says which n and d are best for c=..")
    data = reading.points(table, letters, ("n", "d", "c", "loss"))
    data, dropped = _chosen(data, ("n", "d", "c"), options)
    if options.form == "isoflop":
        made: Any = isoflop(data, budget=options.budget, draws=options.bootstrap, seed=options.seed)
        told = {"vertices": _records(made.vertices)}
    else:
        if "trial" not in data and "trial_id" in data:
            data = data.rename(columns={"trial_id": "trial"})
        made = envelope(data, draws=options.bootstrap, seed=options.seed)
        told = {"schedule": made.schedule, "frontier": _records(made.points[made.points["accepted"]])}
        dropped += [{"row": int(row), "reason": str(why)} for row, why in made.left_out["reason"].items()]
    budgets = [_assigned(text, "--predict")["c"] for text in options.predict]
    return {
        "form": options.form,
        "objective_name": None,
        "n": len(data),
        "dropped": dropped,
        "params": made.params | told,
        "objective": None,
        "se": made.se,
        "ci95": {name: list(ends) for name, ends in made.ci95.items()},
        "predictions": _records(made.at(budgets)) if budgets else [],
        "holdout": {},
        "warnings": made.warnings,
        "converged": True,
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; what is missing is None, which JSON has a word for."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): _plain(value) for key, value in row.items()} for row in rows]


def _letter(letters: dict[str, str]) -> str:
    """What a form of one input reads: the first of c, n, d, s, l that has a column."""
    return next((letter for letter in ("c", "n", "d", "s", "l") if letter in letters), "c")


def _chosen(
    data: pd.DataFrame, inputs: Sequence[str], options: argparse.Namespace
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The points to fit, and those left out with their reasons: by quality gates, by request, into means."""
    limits = Limits(form=options.form)
    columns = {name: name for name in ("n", "d", "c", "loss") if name in data}
    kept, bad = gate(data, options.keep, limits, columns)
    dropped = [{"row": int(row), "reason": f"{bad['gate'][row]}: {bad['reason'][row]}"} for row in bad.index]
    if not len(kept):
        raise AnalysisError(f"no point is left: {dropped[0]['reason']}; --keep GATE lets points through")
    if options.drop_highest:
        kept, highest = reading.drop_highest(kept, options.drop_highest)
        dropped += highest
    if options.average:
        kept = reading.averaged(kept, options.average, inputs)
    return kept, dropped


def pinned(given: Sequence[str]) -> dict[str, float]:
    """`["E=0"]` as a mapping."""
    return {name: value for text in given for name, value in _assigned(text, "--pin").items()}


def _assigned(text: str, option: str) -> dict[str, float]:
    """`n=1e9,d=2e10` as a mapping. Raises `AnalysisError`."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise AnalysisError(f"{option} {text!r}: {part!r} is not NAME=NUMBER") from None
    return found


def _bootstrap(made: ScalingLaw, count: int, seed: int) -> None:
    if count < 2:
        raise AnalysisError(f"--bootstrap {count}: at least 2 resamples are needed")
    made.bootstrap(resampled(made.n_, count, seed, legacy=True))  # as published bootstraps are drawn


def _predicted(made: ScalingLaw, text: str) -> dict[str, Any]:
    """The loss at inputs, with the intervals of the curve and of a new point; at c alone, with the best n and d."""
    at = _assigned(text, "--predict")
    if any(not (value > 0 and np.isfinite(value)) for value in at.values()):
        raise AnalysisError(f"--predict {text!r}: must be above 0 and finite")
    inputs = made.law.inputs
    if set(at) == {"c"} and {"n", "d"} <= set(inputs):
        return _records(compute_optimal(made, at["c"]))[0]
    if {"n", "d", "c"} & set(inputs) and len({"n", "d", "c"} & set(at)) == 2:
        at = _third(at)
    missing = [letter for letter in inputs if letter not in at]
    if missing:
        raise AnalysisError(f"--predict {text!r}: {made.law.name} reads {', '.join(inputs)}; {missing[0]} is missing")
    x = {letter: [at[letter]] for letter in inputs}
    found: dict[str, Any] = {**at, "loss": float(made.predict(x)[0])}
    if len(made.samples_):
        (low,), (high,) = confidence_interval(made, x)
        (below,), (above,) = prediction_interval(made, x)
        found |= {"loss_lo": float(low), "loss_hi": float(high), "new_lo": float(below), "new_hi": float(above)}
    return found


def _third(at: dict[str, float]) -> dict[str, float]:
    """n, d and c from two of them."""
    if "c" not in at:
        return at | {"c": reading.FLOPS * at["n"] * at["d"]}
    return at | ({"d": at["c"] / reading.FLOPS / at["n"]} if "n" in at else {"n": at["c"] / reading.FLOPS / at["d"]})


def _held_out(made: ScalingLaw, data: pd.DataFrame, options: argparse.Namespace) -> HeldOut | None:
    if options.holdout_compute is None:
        return None
    if "c" not in data:
        raise AnalysisError("--holdout-compute: there is no compute; name it with --c COL, or both --n and --d")
    settings = {name: getattr(options, name) for name in ("objective", "delta", "over")}
    law = law_of(options.form, made.law.inputs[0])
    pins = pinned(options.pin)
    return held_out(law, data, data["loss"], data["c"], options.holdout_compute, pinned=pins, **settings)


def _of_holdout(found: HeldOut | None) -> dict[str, Any]:
    if found is None:
        return {}
    errors = {"mean_abs_error": found.mean, "max_abs_error": found.largest, "mean_error": found.signed}
    return {"fitted": found.fitted, "held_out": found.held, "distance": found.distance} | {
        f"{name}_percent": value for name, value in errors.items()
    }


def _warnings(made: ScalingLaw, data: pd.DataFrame, options: argparse.Namespace, held: HeldOut | None) -> list[str]:
    found = doubts(made, data["c"] if "c" in data else None, held=held)
    for text in options.predict:
        at = _assigned(text, "--predict")
        if set(at) == {"c"} and {"n", "d"} <= set(made.law.inputs):
            at |= {name: float(compute_optimal(made, at["c"])[name].iloc[0]) for name in ("n", "d")}
        elif len({"n", "d", "c"} & set(at)) == 2:
            at = _third(at)
        found.append(distant(made, {name: [value] for name, value in at.items()}, compute_of(made), at.get("c")))
    return list(dict.fromkeys(each for each in found if each))


def words(result: dict[str, Any]) -> str:
    """The result for a person."""
    if "groups" in result:
        return "\n\n".join(f"{each['group']}:\n{words(each)}" for each in result["groups"])
    head = f"{result['form']}, {result['n']} points"
    if result.get("equation"):
        head = (
            f"{result['equation']}  ({result['objective_name']}, {result['n']} points, sum {result['objective']:.6g})"
        )
    lines = [head]
    for name, value in result["params"].items():
        ends = result["ci95"].get(name)
        if isinstance(value, float):
            lines.append(f"  {name:<10} {value:.6g}" + (f"  [{ends[0]:.6g}, {ends[1]:.6g}]" if ends else ""))
    for name, value in result.get("derived", {}).items():
        lines.append(f"  {name:<10} {value:.6g}")
    lines += [f"  {_prediction(each)}" for each in result["predictions"]]
    if result["holdout"]:
        held = result["holdout"]
        lines.append(
            f"  {held['held_out']} points held out, up to {held['distance']:.3g} times the compute of the "
            f"{held['fitted']} fitted: off by {held['mean_abs_error_percent']:.2f} % on average, "
            f"{held['max_abs_error_percent']:.2f} % at most"
        )
    lines += [f"  left out: row {each['row']}: {each['reason']}" for each in result["dropped"]]
    lines += [f"  beware: {each}" for each in result["warnings"]]
    return "\n".join(lines)


def _prediction(found: dict[str, Any]) -> str:
    """`at c = 1e+20, n = 8e+08, ...: loss 2.9 [2.8, 3.0]`."""
    at = [name for name in ("c", "n", "d", "s", "u", "e", "l") if found.get(name) is not None]
    parts = [f"{name} = {found[name]:.4g}{_ends(found, name)}" for name in at]
    told = f": loss {found['loss']:.5g}{_ends(found, 'loss')}" if found.get("loss") is not None else ""
    new = f", a new run {_ends(found, 'new').strip()}" if "new_lo" in found else ""
    return f"at {', '.join(parts)}{told}{new}"


def _ends(found: dict[str, Any], name: str) -> str:
    low, high = (found.get(f"{name}_{end}") for end in ("lo", "hi"))
    return f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""


def run(options: argparse.Namespace) -> int:
    """Fit and print. Raises `AnalysisError`."""
    if options.objective is not None:
        refuse_mean(options.objective)
    if options.objective is not None and options.objective not in OBJECTIVES:
        raise BadPoints(f"--objective {options.objective!r}: unknown; known: {', '.join(OBJECTIVES)}")
    result = fit(options)
    print(json.dumps(_finite(result), indent=1, default=_plain) if options.json else words(result))
    return 0


def main(arguments: Sequence[str], program: str) -> int:
    """Run `fit` with these arguments; return the exit code."""
    parser = argparse.ArgumentParser(prog=program, description="Fit scaling laws to a table of trained models.")
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


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
