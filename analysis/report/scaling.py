"""The report's section on scale: laws of the variants against the baseline's, and the best sizes for a budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis import plots_laws
from analysis.envelope import Envelope
from analysis.errors import AnalysisError
from analysis.isoflop import IsoFlop
from analysis.optimal import frontier
from analysis.prediction import predicted
from analysis.profiles import profile
from analysis.report.capacity import Draw
from analysis.scaling import Comparison, Optimum, chosen, compare, mean_points, optima, trial_points

CROSSINGS = 3  # figures of crossovers, of those nearest to the sampled range
NEAR = 10.0  # times outside of it


@dataclass
class Scaling:
    """The section: trials to fit, those that gates dropped, tables as printed, figures, and what to beware of."""

    kept: pd.DataFrame = field(default_factory=pd.DataFrame)
    dropped: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparisons: list[Comparison] = field(default_factory=list)
    optima: list[Optimum] = field(default_factory=list)
    top: float = np.nan  # the largest compute of the baseline
    wanted: dict[str, Any] = field(default_factory=dict)  # what the grid's `predict` asks for
    predicted: pd.DataFrame = field(default_factory=pd.DataFrame)
    not_predicted: str = ""
    figures: dict[str, Draw] = field(default_factory=dict)

    @property
    def left_out(self) -> list[dict[str, str]]:
        return [
            {"id": row.trial_id, "variant": row.variant, "reason": f"{row.gate.replace('_', ' ')}: {row.reason}"}
            for row in self.dropped.itertuples()
        ]

    @property
    def rows(self) -> list[dict[str, str]]:
        """Variants against the baseline."""
        return [
            {
                "variant": f"{row['variant']} ({each.axes})" if each.axes else str(row["variant"]),
                "alpha": f"{row['alpha_diff']:+.4f} [{row['alpha_lo']:+.4f}, {row['alpha_hi']:+.4f}]",
                "low": _gain(row, "low"),
                "high": _gain(row, "high"),
                "words": row["words"],
            }
            for each in self.comparisons
            for row in each.table.to_dict("records")
        ]

    @property
    def notes(self) -> list[str]:
        """Why laws were not compared, and what speaks against those that were."""
        told = [each.note for each in self.comparisons if each.note]
        return [*told, *(doubt for each in self.comparisons if each.laws for doubt in each.laws.warnings_)]

    @property
    def prediction_lines(self) -> list[str]:
        """A line a variant, or why there is none."""
        if not self.wanted:
            return []
        at = f"{self.wanted['flops']:.3g} FLOPs"
        if self.not_predicted:
            return [f"no prediction at {at}: {self.not_predicted}"]
        return [
            f"{row['variant']} at {at}: loss {row['loss']:.4f} [{row['lo']:.4f}, {row['hi']:.4f}], 90 % interval of "
            f"{self.wanted['form']}, {row['distance']:.3g} times beyond its runs"
            for row in self.predicted.to_dict("records")
        ]

    @property
    def optimum_rows(self) -> list[dict[str, str]]:
        return [_optimum(each, self.top) for each in self.optima]


def scaling_section(
    trials: pd.DataFrame, curves: pd.DataFrame, baseline: str, measure: str, wanted: dict[str, Any] | None = None
) -> Scaling:
    """What the trials of one stage, and their `analysis.curves`, say of scale; `wanted` is the grid's `predict`."""
    kept, dropped = chosen(trials, measure)
    found = Scaling(kept, dropped, compare(kept, baseline, measure), wanted=wanted or {})
    if wanted:
        try:
            found.predicted = predicted(trial_points(kept, measure), wanted["form"], wanted["flops"])
        except AnalysisError as error:
            found.not_predicted = str(error)
    mine = kept[kept["variant"] == baseline]
    if len(mine) and mine["axes"].nunique() == 1:
        found.top = float(mine["train_flops"].max())
        theirs = curves[curves["trial"].isin(mine["trial_id"])]
        found.optima = optima(mine, theirs, measure)
        found.figures |= _figures_of_optima(found.optima, mean_points(mine, measure), theirs, baseline)
    for number, each in enumerate(found.comparisons):
        if each.laws is not None:
            found.figures |= _figures_of_variants(each, baseline, f"_{number}" if number else "")
    return found


def _figures_of_variants(each: Comparison, baseline: str, end: str) -> dict[str, Draw]:
    laws, where = each.laws, f" at {each.axes}" if each.axes else ""
    assert laws is not None
    told = (
        f"How many times the compute of a variant {baseline} needs for the same loss{where}: above 1 the variant is "
    )
    figures: dict[str, Draw] = {
        f"gains{end}": (told + "ahead. Bands are 90 % intervals.", partial(plots_laws.gain_curve, each.gains), 3.8)
    }
    crossing = each.table[each.table["at"].notna() & (each.table["distance"] <= NEAR)]
    for row in crossing.sort_values("distance").head(CROSSINGS).to_dict("records"):
        figures[f"crossover_{row['variant']}{end}"] = (
            f"Laws of {baseline} and {row['variant']}{where}, the offset E shared, and where they cross.",
            partial(plots_laws.crossover_curves, laws, baseline, row["variant"]),
            3.8,
        )
    return figures


def _figures_of_optima(
    found: list[Optimum], points: pd.DataFrame, curves: pd.DataFrame, baseline: str
) -> dict[str, Draw]:
    figures: dict[str, Draw] = {}
    for each in found:
        if isinstance(each.made, Envelope):
            draw = partial(plots_laws.envelope_curves, curves, each.made)
            figures["envelope"] = f"Training curves of {baseline} and their envelope.", draw, 3.8
        if isinstance(each.made, IsoFlop):
            draw = partial(plots_laws.isoflop_curves, points, each.made)
            figures["isoflop"] = f"Loss of {baseline} against its parameters at each budget.", draw, 3.8
        if each.law is not None:
            law = each.law
            k = float(np.exp(np.log(points["c"] / points["n"] / points["d"]).mean()))
            best = frontier(law, points["c"].min(), points["c"].max(), k=k)
            draw = partial(plots_laws.loss_and_frontier, points, law, best)
            figures["frontier"] = f"Loss of {baseline} at each size, and the least that its law knows.", draw, 3.8
            draw = partial(plots_laws.residuals, law, points["c"])
            figures["residuals"] = f"Residuals of the law {law.law.equation} of {baseline}.", draw, 3.2
            held = profile(law, "E")
            draw = partial(plots_laws.profile_curve, held, lowest=law.lowest_)
            figures["profile"] = f"How well the points of {baseline} know the offset E of that law.", draw, 3.2
    return figures


def _gain(row: dict[str, Any], end: str) -> str:
    value, lo, hi = (_times(row[f"gain_{end}{side}"]) for side in ("", "_lo", "_hi"))
    return f"{value} [{lo}, {hi}]"


def _times(value: float) -> str:
    return "∞" if np.isinf(value) else f"{value:.3g}"


def _optimum(each: Optimum, c: float) -> dict[str, str]:
    row = dict.fromkeys(("a", "n", "d", "ratio"), "")
    if each.made is not None:
        low, high = each.made.ci95.get("n_exponent", (np.nan, np.nan))
        row["a"] = _ends(each.made.params["n_exponent"], low, high)
        best = each.made.at(c).iloc[0]
        for name, key in (("n", "n"), ("d", "d"), ("ratio", "tokens_per_param")):
            row[name] = _ends(best[key], best[f"{key}_lo"], best[f"{key}_hi"])
    return {"approach": each.approach, **row, "note": each.note or "; ".join(each.warnings)}


def _ends(value: float, low: float, high: float) -> str:
    return f"{value:.3g}" + (f" [{low:.3g}, {high:.3g}]" if np.isfinite(low) and np.isfinite(high) else "")
