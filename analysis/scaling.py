"""What a study says of scale: which trials count, variants against the baseline, and the baseline's best sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.between import LEVEL, VariantLaws, crossover_words
from analysis.doubts import doubts
from analysis.envelope import Envelope, envelope
from analysis.errors import AnalysisError
from analysis.fit import ScalingLaw
from analysis.gates import Limits, gate
from analysis.isoflop import IsoFlop, isoflop
from analysis.optimal import Allocation, allocation
from analysis.resampling import resampled

EPOCHS = 4.0  # of the data: so often it counts nearly as fresh data do (Muennighoff et al. 2023, arXiv:2305.16264)
RATES = ("edge_of_sweep", "not_the_best_rate")  # each setting of a grid's axes has its own law: none is chosen here
COUNTED = ("off_convention",)  # FLOPs as executed are not 6 n d in small models, and need not be
SCALES = 5  # different computes that a variant needs to be compared by its law
SHAPES = 8  # different pairs of n and d that a law of both needs
FREE = 20  # of them, from which on n and d have exponents of their own: four a parameter
DRAWS = 400


def chosen(trials: pd.DataFrame, measure: str = "loss") -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trials to fit, and those that quality gates dropped, with `gate` and `reason`; trials that did not come to
    their end are in neither."""
    done = trials[trials["status"] == "finished"]
    return gate(done, (*RATES, *COUNTED), Limits(epochs=EPOCHS), {"loss": measure})


@dataclass
class Comparison:
    """Laws of the variants of one setting of the axes: `table` has a row a variant, of `against`; `note` says why
    there is none."""

    axes: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    gains: pd.DataFrame = field(default_factory=pd.DataFrame)
    laws: VariantLaws | None = None
    note: str = ""


def compare(kept: pd.DataFrame, baseline: str, measure: str = "loss") -> list[Comparison]:
    """Every variant's law of compute against the baseline's, E shared, at each setting of the axes.

    Variants with fewer than `SCALES` different computes, or none (fitted by counting), have no law.
    """
    found = []
    for axes, part in kept.groupby("axes", sort=False):
        scales = part[part["train_flops"] > 0].groupby("variant")["train_flops"].nunique()
        enough = set(scales.index[scales >= SCALES])
        if baseline in enough and len(enough) > 1:
            found.append(_compared(str(axes), part[part["variant"].isin(enough)], baseline, measure))
    return found


def _compared(axes: str, part: pd.DataFrame, baseline: str, measure: str) -> Comparison:
    laws = VariantLaws(resamples=DRAWS, columns={"loss": measure})
    try:
        laws.fit(part)
        rows = [_against(laws, baseline, name) for name in laws.variants_ if name != baseline]
        gains = [laws.gain(baseline, name).assign(variant=name) for name in laws.variants_ if name != baseline]
    except AnalysisError as error:
        return Comparison(axes, note=str(error))
    return Comparison(axes, pd.DataFrame(rows), pd.concat(gains, ignore_index=True), laws)


def _against(laws: VariantLaws, baseline: str, variant: str) -> dict[str, Any]:
    """variant, alpha_diff and its interval, crossover in words, and the gain at either end of the common range."""
    slope = laws.differences(baseline, variant).set_index("parameter").loc["alpha"]
    ends = laws.gain(baseline, variant, laws.sampled(baseline, variant))
    row = {"variant": variant, "alpha_diff": slope["difference"], "alpha_lo": slope["lo"], "alpha_hi": slope["hi"]}
    for name, (_, gain) in zip(("low", "high"), ends.iterrows(), strict=True):
        row |= {f"c_{name}": gain["c"], f"gain_{name}": gain["gain"]}
        row |= {f"gain_{name}_lo": gain["lo"], f"gain_{name}_hi": gain["hi"]}
    met = laws.crossover(baseline, variant)
    return row | met | {"words": crossover_words(met, baseline, variant, LEVEL)}


@dataclass
class Optimum:
    """One approach to the compute-optimal sizes of one variant: what it found, or why it could not."""

    approach: str
    made: Allocation | None = None
    law: ScalingLaw | None = None
    warnings: list[str] = field(default_factory=list)
    note: str = ""


def optima(kept: pd.DataFrame, curves: pd.DataFrame, measure: str = "loss") -> list[Optimum]:
    """Approaches 1 to 3 of Hoffmann et al. 2022 on the trials and the curves of one variant: n without embeddings,
    d tokens, c the FLOPs as executed. Empty below three sizes, two computes, or `SHAPES` pairs of n and d."""
    points = mean_points(kept, measure)
    if points["n"].nunique() < 3 or points["c"].nunique() < 2 or len(points) < SHAPES:
        return []
    k = float(np.exp(np.log(points["c"] / points["n"] / points["d"]).mean()))
    tried: tuple[tuple[str, Callable[[], Optimum]], ...] = (
        ("1, envelope of curves", lambda: _told("1, envelope of curves", envelope(curves, draws=DRAWS, k=k))),
        ("2, isoFLOP parabolas", lambda: _told("2, isoFLOP parabolas", isoflop(points, draws=DRAWS))),
        ("3, law of n and d", lambda: _parametric("3, law of n and d", points, k)),
    )
    found = []
    for name, make in tried:
        try:
            found.append(make())
        except AnalysisError as error:
            found.append(Optimum(name, note=str(error)))
    return found


def mean_points(kept: pd.DataFrame, measure: str = "loss") -> pd.DataFrame:
    """n, d, c and loss of one variant's trials, the mean over seeds."""
    return trial_points(kept, measure).groupby(["n", "d"], as_index=False)[["c", "loss"]].mean()


def trial_points(kept: pd.DataFrame, measure: str = "loss") -> pd.DataFrame:
    """variant, n, d, c and loss of every trial that costs compute."""
    named = {"params_non_embedding": "n", "tokens": "d", "train_flops": "c", measure: "loss"}
    rows = kept[list(named)].rename(columns=named).astype(float)
    return rows.assign(variant=kept["variant"])[rows["c"] > 0]


def _told(approach: str, made: Envelope | IsoFlop) -> Optimum:
    return Optimum(approach, made, warnings=list(made.warnings))


def _parametric(approach: str, points: pd.DataFrame, k: float) -> Optimum:
    law = ScalingLaw("chinchilla" if len(points) >= FREE else "chinchilla_tied").fit(points, points["loss"])
    law.bootstrap(resampled(law.n_, DRAWS, least=len(law.law.parameters) + 1))
    made = allocation(law, k)
    return Optimum(approach, made, law, [*doubts(law, points["c"]), *made.warnings])
