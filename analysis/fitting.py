"""What the options of `ablate fit` ask for, as one tree of plain values."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd

from analysis import points as reading
from analysis.asked import assigned, chosen, letter_of, letters_of, pinned, plain, records, third
from analysis.doubts import compute_of, distant, doubts
from analysis.errors import AnalysisError
from analysis.fit import ScalingLaw
from analysis.fitting_more import compared, figures_of_approach, more
from analysis.forms import law_of
from analysis.heldout import HeldOut, held_out
from analysis.intervals import confidence_interval, parameter_intervals, prediction_interval
from analysis.optimal import compute_optimal
from analysis.resampling import resampled, resampled_groups

APPROACHES = ("isoflop", "envelope")


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask for, as the JSON object that `--json` prints. Raises `AnalysisError`."""
    began = time.perf_counter()
    table = reading.read(options.table)
    if options.where:
        table = reading.where(table, options.where)
    if options.baseline is not None and options.group is None:
        raise AnalysisError("--baseline says which group others are compared with: name their column with --group")
    if options.group is None:
        result = fit_table(table, options)
    else:
        if options.group not in table:
            raise reading.no_column("group", options.group, table)
        parts = table.groupby(options.group, sort=False, dropna=False)
        result = {
            "form": options.form,
            "groups": [{"group": plain(key), **_of_group(key, part, options)} for key, part in parts],
        }
        if options.baseline is not None:
            result |= compared(table, options)
    return result | {"seconds": time.perf_counter() - began}


def _of_group(key: Any, part: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    try:
        return fit_table(part, options)
    except AnalysisError as error:
        raise type(error)(f"{options.group} {key!r}: {error}") from None


def fit_table(table: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    """One fit."""
    letters = letters_of(options)
    if options.form in APPROACHES:
        return fit_approach(table, letters, options)
    law = law_of(options.form, letter_of(letters))
    data = reading.points(table, letters, (*law.inputs, "loss"))
    data, dropped, gates = chosen(data, law.inputs, options)
    made = ScalingLaw(law, options.objective, options.delta, pinned(options.pin), over=options.over)
    made.fit(data, data["loss"])
    units = None
    if options.bootstrap:
        units = _bootstrap(made, data, options)
    held = _held_out(made, data, options)
    intervals = parameter_intervals(made, units=units) if options.bootstrap else {}
    result = {
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
        "gates": gates,
        "predictions": [_predicted(made, each, units) for each in options.predict],
        "holdout": _of_holdout(held),
        "warnings": _warnings(made, data, options, held),
        "converged": made.converged_,
    }
    return result | more(made, data, options)


def fit_approach(table: pd.DataFrame, letters: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Approach 1 (`envelope`, of training curves) or 2 (`isoflop`): the best sizes without a law of the loss."""
    from analysis.envelope import envelope
    from analysis.isoflop import isoflop

    if options.predict and not all(text.strip().startswith("c=") for text in options.predict):
        raise AnalysisError(f"--predict: --form {options.form} says which n and d are best for c=..")
    data = reading.points(table, letters, ("n", "d", "c", "loss"))
    if options.form == "isoflop":
        data, dropped, gates = chosen(data, ("n", "d", "c"), options)
        made: Any = isoflop(data, budget=options.budget, draws=options.bootstrap, seed=options.seed)
        told = {"vertices": records(made.vertices)}
    else:
        dropped, gates = list[dict[str, Any]](), list[dict[str, Any]]()  # it says itself which points count
        if "trial" not in data and "trial_id" in data:
            data = data.rename(columns={"trial_id": "trial"})
        made = envelope(data, draws=options.bootstrap, seed=options.seed)
        told = {"schedule": made.schedule, "frontier": records(made.points[made.points["accepted"]])}
        dropped += [{"row": int(row), "reason": str(why)} for row, why in made.left_out["reason"].items()]
    budgets = [assigned(text, "--predict")["c"] for text in options.predict]
    result = {
        "form": options.form,
        "objective_name": None,
        "n": len(data),
        "dropped": dropped,
        "gates": gates,
        "params": made.params | told,
        "objective": None,
        "se": made.se,
        "ci95": {name: list(ends) for name, ends in made.ci95.items()},
        "predictions": records(made.at(budgets)) if budgets else [],
        "holdout": {},
        "warnings": made.warnings,
        "converged": True,
    }
    return result | figures_of_approach(made, data, options)


def _bootstrap(made: ScalingLaw, data: pd.DataFrame, options: argparse.Namespace) -> int | None:
    """Resample points, or whole groups of them; how many groups there are."""
    count, column = options.bootstrap, options.resample
    if count < 2:
        raise AnalysisError(f"--bootstrap {count}: at least 2 resamples are needed")
    if column is None:
        made.bootstrap(resampled(made.n_, count, options.seed, legacy=True))  # as published bootstraps are drawn
        return None
    if column not in data:
        raise reading.no_column("resample", column, data)
    made.bootstrap(resampled_groups(data[[column]], count, options.seed, least=2))
    return int(data[column].nunique(dropna=False))


def _predicted(made: ScalingLaw, text: str, units: int | None) -> dict[str, Any]:
    """The loss at inputs, with the intervals of the curve and of a new point; at c alone, with the best n and d."""
    at = assigned(text, "--predict")
    if any(not (value > 0 and np.isfinite(value)) for value in at.values()):
        raise AnalysisError(f"--predict {text!r}: must be above 0 and finite")
    inputs = made.law.inputs
    if set(at) == {"c"} and {"n", "d"} <= set(inputs):
        return records(compute_optimal(made, at["c"]))[0]
    if {"n", "d", "c"} & set(inputs) and len({"n", "d", "c"} & set(at)) == 2:
        at = third(at)
    missing = [letter for letter in inputs if letter not in at]
    if missing:
        raise AnalysisError(f"--predict {text!r}: {made.law.name} reads {', '.join(inputs)}; {missing[0]} is missing")
    x = {letter: [at[letter]] for letter in inputs}
    found: dict[str, Any] = {**at, "loss": float(made.predict(x)[0])}
    if len(made.samples_):
        (low,), (high,) = confidence_interval(made, x, units=units)
        (below,), (above,) = prediction_interval(made, x)
        found |= {"loss_lo": float(low), "loss_hi": float(high), "new_lo": float(below), "new_hi": float(above)}
    return found


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
        at = assigned(text, "--predict")
        if set(at) == {"c"} and {"n", "d"} <= set(made.law.inputs):
            at |= {name: float(compute_optimal(made, at["c"])[name].iloc[0]) for name in ("n", "d")}
        elif len({"n", "d", "c"} & set(at)) == 2:
            at = third(at)
        found.append(distant(made, {name: [value] for name, value in at.items()}, compute_of(made), at.get("c")))
    return list(dict.fromkeys(each for each in found if each))
