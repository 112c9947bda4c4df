"""The loss of every variant at a compute that nobody has run, and the trials that would tell it best."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.fit import ScalingLaw
from analysis.forms import law_of
from analysis.joint import SharedLaw
from analysis.nextrun import LEVEL, interval_at, next_runs

SHARED = "E"  # what the text leaves to any model: the same for all variants, where the form has it
OBJECTIVE = "l2_log"  # of few points, which have no outliers: quality gates see to that


def law_of_variants(points: pd.DataFrame, form: str) -> ScalingLaw:
    """The law of points with variant, n, d, c and loss, a row a trial: one for each variant, with E shared.

    Raises `BadPoints` and `NotEnoughPoints`.
    """
    base, variants = law_of(form), tuple(dict.fromkeys(points["variant"].astype(str)))
    if len(variants) == 1:
        return ScalingLaw(base, OBJECTIVE).fit(points, points["loss"])
    law = SharedLaw(base, variants, [SHARED] if SHARED in base.parameters else [])
    return ScalingLaw(law, OBJECTIVE).fit(law.numbered(points), points["loss"])


def enough(form: str) -> int:
    """Different inputs that every variant needs: one more than its law has parameters, for one degree of freedom."""
    return len(law_of(form).parameters) + 1


def predicted(points: pd.DataFrame, form: str, flops: float, level: float = LEVEL) -> pd.DataFrame:
    """variant, loss, lo, hi, width (log hi / lo) and distance (from the largest compute that it was run at): at
    compute `flops`, at the compute-optimal n and d of a form in those."""
    law, rows = law_of_variants(points, form), []
    for variant, part in points.groupby("variant", sort=False):
        target = _target(law, str(variant), flops)
        told = interval_at(law, target, level, _k(part))
        rows.append({"variant": str(variant), **told, "distance": flops / part["c"].max()})
    return pd.DataFrame(rows)


def to_run(points: pd.DataFrame, candidates: pd.DataFrame, form: str, flops: float, runs: int) -> pd.DataFrame:
    """The candidates (variant, n, d, c, cost and others) that narrow the widest prediction most for their cost."""
    law, now = law_of_variants(points, form), predicted(points, form, flops)
    widest = str(now.loc[now["width"].idxmax(), "variant"])
    k = _k(points[points["variant"] == widest])
    return next_runs(law, candidates, _target(law, widest, flops), "cost", runs, k=k)


def _target(law: ScalingLaw, variant: str, flops: float) -> dict[str, object]:
    return {"c": flops} | ({"variant": variant} if isinstance(law.law, SharedLaw) else {})


def _k(points: pd.DataFrame) -> float:
    """c / (n d), the mean in logarithms."""
    return float(np.exp(np.log(points["c"] / points["n"] / points["d"]).mean()))
