"""Tables of scale: vertices of isoFLOP curves, compute-optimal sizes, and laws of variants against the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.between import LEVEL
from analysis.layouts.layout import COUNT, Column, Layout, LayoutError, number, words
from analysis.layouts.rows import checked
from analysis.scaling import Comparison, Optimum

HOFFMANN = "Hoffmann et al. 2022, arXiv:2203.15556"
EXCLUDES = f"{LEVEL:.0%} intervals, not corrected for several variants"


def isoflop(vertices: pd.DataFrame, warnings: Sequence[str] = ()) -> Layout:
    """The size of the lowest loss at each budget, and why a budget has none.

    `vertices` is `analysis.isoflop.vertices`, or those of `analysis.isoflop.isoflop` with their intervals; `warnings`
    become notes. Shape of Hoffmann et al. 2022, arXiv:2203.15556, figure 3. Raises `LayoutError`.
    """
    vertices = checked(vertices, ("c", "n", "d", "loss", "points", "sizes", "n_min", "n_max", "reason"), "isoflop")
    lo, hi = ("lo", "hi") if {"lo", "hi"} <= set(vertices) else ("", "")
    columns = (
        Column("c", "Compute", "FLOP", ".3g"),
        Column("n", "Best parameters", form=COUNT, lo=lo, hi=hi),
        Column("d", "Tokens", form=COUNT),
        Column("tokens_per_param", "Tokens per parameter", form=COUNT),
        Column("loss", "Loss", "nats/token", ".4f"),
        Column("points", "Runs", form=".0f"),
        Column("sizes", "Sizes", form=".0f"),
        Column("n_min", "Smallest", "parameters", COUNT),
        Column("n_max", "Largest", "parameters", COUNT),
        words("reason", "Refused because"),
    )
    data = vertices.assign(tokens_per_param=vertices["d"] / vertices["n"])
    title = "The best size at each budget"
    return Layout("isoflop", title, f"{HOFFMANN}, figure 3", columns, data, notes=tuple(warnings))


def optima(found: Sequence[Optimum], c: float) -> Layout:
    """Compute-optimal sizes by each approach, at a budget of c FLOPs: the exponents a and b of n ~ C^a and d ~ C^b,
    n, d and d / n with 95 % intervals; or why an approach has none.

    `found` is `analysis.scaling.optima`. Layout: Hoffmann et al. 2022, arXiv:2203.15556, tables 2 and 3.
    """
    columns = [words("approach", "Approach")]
    shown = (
        ("n_exponent", "a", "n ~ C^a", ".3f"),
        ("d_exponent", "b", "d ~ C^b", ".3f"),
        ("n", "Parameters", "", COUNT),
        ("d", "Tokens", "", COUNT),
        ("tokens_per_param", "Tokens per parameter", "", COUNT),
    )
    columns += [
        Column(key, heading, unit, form, lo=f"{key}_lo", hi=f"{key}_hi") for key, heading, unit, form in shown
    ]
    names = [name for column in columns for name in column.parts.values()]
    data = pd.DataFrame([_optimum(each, c) for each in found]).reindex(columns=[*names, "note"])
    columns.append(words("note", "To beware of"))
    source = f"{HOFFMANN}, tables 2 and 3"
    title = f"Compute-optimal sizes at {number(c, '.3g')} FLOPs"
    return Layout("optima", title, source, tuple(columns), data)


def _optimum(each: Optimum, c: float) -> dict[str, Any]:
    row: dict[str, Any] = {"approach": each.approach, "note": each.note or "; ".join(each.warnings)}
    if each.made is None:
        return row
    for name in ("n_exponent", "d_exponent"):
        low, high = each.made.ci95.get(name, (np.nan, np.nan))
        row |= {name: each.made.params[name], f"{name}_lo": low, f"{name}_hi": high}
    return row | each.made.at(c).iloc[0].to_dict()


def scaling(comparisons: Sequence[Comparison], notes: Sequence[str] = ()) -> Layout:
    """Variants' laws of compute against the baseline's: the difference of exponents, the compute-equivalent gain at
    either end of the common range, and the crossover, with 90 % intervals.

    `comparisons` is `analysis.scaling.compare`; those without a law become notes, as `notes` do. A gain is marked
    where its interval excludes 1, a difference of exponents where it excludes 0.
    """
    tables = [each.table.assign(axes=each.axes) for each in comparisons if len(each.table)]
    columns = [
        words("variant", "Variant"),
        Column("alpha_diff", "Difference of α", "", "+.4f", lo="alpha_lo", hi="alpha_hi", verdict="alpha_verdict"),
        *(part for end in ("low", "high") for part in _gain(end)),
        words("status", "Against the baseline"),
        Column("at", "Crossover", "FLOP", ".3g", lo="lo", hi="hi"),
        Column("share", "Resamples that cross", form=".0%"),
        Column("distance", "Beyond the sampled range", "times", "#.3g"),
    ]
    names = [name for column in columns for name in column.parts.values()]
    data = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    data = data.reindex(columns=list(dict.fromkeys([*names, "axes"])))
    data["alpha_verdict"] = _verdicts(data["alpha_lo"], data["alpha_hi"], 0.0)
    for end in ("low", "high"):
        data[f"gain_{end}_verdict"] = _verdicts(data[f"gain_{end}_lo"], data[f"gain_{end}_hi"], 1.0)
    told = [f"{each.axes}: {each.note}" if each.axes else each.note for each in comparisons if each.note]
    gain = "Gain: how many times the variant's compute the baseline needs for the same loss."
    title = "Variants against the baseline by their laws of compute"
    return Layout("scaling", title, "", tuple(columns), data, "axes", (gain, *told, *notes), EXCLUDES)


def _gain(end: str) -> tuple[Column, Column]:
    name, where = f"gain_{end}", {"low": "Smallest", "high": "Largest"}[end]
    return (
        Column(f"c_{end}", f"{where} compute", "FLOP", ".3g"),
        Column(name, "Gain there", "times", "#.3g", lo=f"{name}_lo", hi=f"{name}_hi", verdict=f"{name}_verdict"),
    )


def _verdicts(lo: pd.Series, hi: pd.Series, none: float) -> np.ndarray:
    """better above `none`, worse below it; unknown without an interval."""
    low, high = lo.to_numpy(dtype=float), hi.to_numpy(dtype=float)
    told = np.where(low > none, "better", np.where(high < none, "worse", "indistinguishable"))
    return np.where(np.isnan(low) | np.isnan(high), "unknown", told)


def laws(compared: pd.DataFrame) -> Layout:
    """`analysis.between.compare_laws` as it is: every quantity of each fit, the preferred fit named, 90 % intervals.

    Raises `LayoutError`.
    """
    wanted = ("variant", "fit", "preferred", "quantity", "at", "value", "lo", "hi", "status", "points", "pairs")
    compared = checked(compared, wanted, "laws")
    columns = (
        words("fit", "Fit"),
        words("preferred", "Preferred"),
        words("quantity", "Quantity"),
        Column("at", "At", "FLOP", ".3g"),
        Column("value", "Value", lo="lo", hi="hi"),
        words("status", "Against the baseline"),
        Column("points", "Trials", form=".0f"),
        Column("pairs", "Pairs", form=".0f"),
    )
    warnings = compared.attrs.get("warnings", {})
    notes = tuple(f"{fit}: {warning}" for fit, found in warnings.items() for warning in found)
    title = f"Laws of variants against {_one_baseline(compared)}"
    return Layout("laws", title, "", columns, compared.reset_index(drop=True), "variant", notes)


def _one_baseline(compared: pd.DataFrame) -> str:
    names = list(dict.fromkeys(compared["baseline"])) if "baseline" in compared else []
    if len(names) > 1:
        raise LayoutError(f"laws: several baselines ({', '.join(map(str, names))}); pass the rows of one")
    return str(names[0]) if names else "the baseline"
