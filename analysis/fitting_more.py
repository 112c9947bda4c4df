"""What `ablate fit` says besides the fit: a tournament of forms, groups compared, what to run next, figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import points as reading
from analysis.asked import assigned, chosen, letter_of, letters_of, records
from analysis.between import LEVEL, VariantLaws, compare_laws, crossover_words
from analysis.columns import CELL
from analysis.envelope import Envelope, race
from analysis.errors import AnalysisError
from analysis.figure import svg
from analysis.fit import ScalingLaw
from analysis.forms import law_of
from analysis.isoflop import IsoFlop
from analysis.nextrun import next_runs
from analysis.optimal import compute_optimal, frontier
from analysis.profiles import profile
from analysis.tournament import Tournament, tournament

RESAMPLES = 400  # of a comparison, unless --bootstrap says
RUNS = 5  # that are told of --next
Figures = dict[str, Callable[[Any], Any]]


def more(law: ScalingLaw, data: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    """What a fit's other options ask for: `tournament`, `next` and `figures`. Raises `AnalysisError`."""
    found: dict[str, Any] = {}
    ranked = None
    if options.tournament:
        ranked = _tournament(data)
        found["tournament"] = _told(ranked, data, options)
    if options.next:
        found["next"] = _next(law, options)
    if options.figures:
        found["figures"] = _drawn(options.figures, _figures(law, data, ranked), options.group, data)
    return found


def _tournament(data: pd.DataFrame) -> Tournament:
    if "c" not in data:
        raise AnalysisError("--tournament: there is no compute; name it with --c COL, or both --n and --d")
    columns = {letter: data[letter].to_numpy() for letter in ("n", "d", "s", "u", "e") if letter in data}
    return tournament(columns, data["loss"], data["c"])


def _told(ranked: Tournament, data: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    """The ranking, and for each --predict what those near the winner say, or why nothing is said."""
    predictions = []
    for text in options.predict:
        at = assigned(text, "--predict")
        if set(at) == {"c"} and {"n", "d"} <= set(data):
            reader = next((law for law in ranked.laws if {"n", "d"} <= set(law.law.inputs)), None)
            if reader is not None:
                at |= {name: float(compute_optimal(reader, at["c"])[name].iloc[0]) for name in ("n", "d")}
        if {"n", "d"} <= set(at):
            at.setdefault("c", reading.FLOPS * at["n"] * at["d"])
        missing = sorted({letter for law in ranked.laws for letter in law.law.inputs} - set(at))
        if missing:
            raise AnalysisError(f"--predict {text!r}: contestants read {', '.join(missing)} as well")
        agreed = ranked.agreement({name: np.array([value]) for name, value in at.items()})
        told = None if agreed.refused else float(agreed.prediction[0])
        lowest, highest = float(agreed.predictions.to_numpy().min()), float(agreed.predictions.to_numpy().max())
        said = {"loss": told, "lowest": lowest, "highest": highest, "refused": agreed.reason}
        predictions.append({**at, **said})
    return {"ranking": records(ranked.table), "predictions": predictions}


def _next(law: ScalingLaw, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a table of candidates, costed by their column `cost` or by their FLOPs."""
    if not options.predict:
        raise AnalysisError("--next: say what the runs are for with --predict, as --predict c=1e24")
    rows = reading.read(options.next)
    shared = {letter: name for letter, name in letters_of(options).items() if name in rows}
    candidates = reading.points(rows, shared, law.law.inputs)
    cost = "cost" if "cost" in candidates else "c"
    if cost not in candidates:
        raise AnalysisError(f"{options.next}: has neither a column cost nor what FLOPs follow from (two of n, d, c)")
    return records(next_runs(law, candidates, assigned(options.predict[0], "--predict"), cost, RUNS))


def compared(table: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    """Groups against one of them, by their laws: `comparisons`, in words too, and figures. Raises `AnalysisError`."""
    letters = letters_of(options)
    law = law_of(options.form, letter_of(letters))
    names = table[options.group].astype(str)
    if options.baseline not in set(names):
        raise AnalysisError(
            f"--baseline {options.baseline!r}: no such {options.group}; known: {', '.join(dict.fromkeys(names))}"
        )
    scale = law.inputs[0] if len(law.inputs) == 1 else "c"
    data = reading.points(table, letters, tuple(dict.fromkeys((*law.inputs, scale, "loss"))))
    options = argparse.Namespace(**{**vars(options), "average": None})  # seeds are what resamples draw
    kept = chosen(data, law.inputs, options)[0]
    rows = kept[[*law.inputs, scale, "loss"]].loc[:, lambda each: ~each.columns.duplicated()]
    rows = rows.assign(variant=names[kept.index], seed=kept["seed"] if "seed" in kept else 0, status="finished")
    cells = [name for name in CELL if name in kept]
    inputs = [np.round(np.log(kept[letter]), 2) for letter in law.inputs]  # to 1 %: pairs hit a size only about
    rows["cell"] = kept.groupby(cells or inputs, sort=False, dropna=False).ngroup()
    laws = VariantLaws(
        law,
        ("E",) if "E" in law.parameters else (),
        options.objective,
        options.delta,
        options.bootstrap or RESAMPLES,
        options.seed,
        cell=("cell",),
    )
    told = compare_laws(rows, options.baseline, laws)
    found: dict[str, Any] = {"comparisons": records(told), "beware": told.attrs["warnings"]}
    met = told[(told["quantity"] == "crossover") & told["preferred"]].rename(columns={"value": "at_"})
    crossings = met.drop(columns="at").rename(columns={"at_": "at"}).to_dict("records")
    found["crossovers"] = [crossover_words(row, options.baseline, row["variant"], LEVEL) for row in crossings]
    if options.figures:
        found["figures"] = _drawn(options.figures, _between(laws.fit(rows), options.baseline), None, rows)
    return found


def _between(laws: VariantLaws, baseline: str) -> Figures:
    from analysis import plots_laws

    others = [name for name in laws.variants_ if name != baseline]
    gains = pd.concat([laws.gain(baseline, name).assign(variant=name) for name in others], ignore_index=True)
    found: Figures = {"gains": partial(plots_laws.gain_curve, gains)}
    for name in others:
        found[f"crossover_{name}"] = partial(plots_laws.crossover_curves, laws, baseline, name)
    return found


def figures_of_approach(made: Envelope | IsoFlop, data: pd.DataFrame, options: argparse.Namespace) -> dict[str, Any]:
    """`figures` of approach 1 or 2, where they are asked for."""
    if not options.figures:
        return {}
    from analysis import plots_laws

    if isinstance(made, IsoFlop):
        drawn: Figures = {
            "isoflop": partial(plots_laws.isoflop_curves, data, made),
            "vertices": partial(plots_laws.isoflop_exponents, made),
        }
    else:
        drawn = {"envelope": partial(plots_laws.envelope_curves, data, made)}
        drawn["race"] = partial(plots_laws.race, race(data))
    return {"figures": _drawn(options.figures, drawn, options.group, data)}


def _figures(law: ScalingLaw, data: pd.DataFrame, ranked: Tournament | None) -> Figures:
    from analysis import plots_laws

    found: Figures = {}
    compute = data["c"] if "c" in data else data[law.law.inputs[0]]
    if {"n", "d"} <= set(law.law.inputs) <= {"n", "d"}:
        found["frontier"] = partial(plots_laws.loss_and_frontier, data, law, frontier(law))
    found["residuals"] = partial(plots_laws.residuals, law, compute)
    if "E" in law.law.parameters:
        found["profile"] = partial(plots_laws.profile_curve, profile(law, "E"), lowest=law.lowest_)
    if ranked is not None:
        found["tournament"] = partial(plots_laws.tournament_bars, ranked.table)
    return found


def _drawn(folder: Path, figures: Figures, group: str | None, data: pd.DataFrame) -> list[str]:
    """Write each figure; the name of a group's begins with the group."""
    head = f"{data[group].iloc[0]}_" if group and group in data else ""
    found = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in figures.items():
            file = folder / f"{head}{name}.svg".replace("/", "_")
            file.write_bytes(svg(draw))
            found.append(str(file))
    except OSError as error:
        raise AnalysisError(f"--figures {folder}: {error.strerror}") from None
    return found
