"""A law for each variant over one family of scales, fitted by itself, with the same resamples for all variants."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pandas as pd

from analysis.columns import CELL
from analysis.fit import NotEnoughPoints, ScalingLaw, fit_alike
from analysis.joint import paired_resamples

Array = np.ndarray
KEYS = ["cell", "seed", "scale"]  # of a point
MOST = 4_000_000  # weights of points at once


class FamilyLaws:
    """L(x) of every variant that has enough scales, x what `column` of the trials counts.

    A resample draws cells with replacement and in each drawn cell its seeds, the same for all variants
    (`analysis.joint.paired_resamples`), so that what two trials of a cell and seed share cancels in differences. A
    law is fitted when it is first asked for, and once: a baseline has one, whatever it is compared with.
    """

    def __init__(self, trials: pd.DataFrame, column: str, form: str, resamples: int, seed: int):
        law = ScalingLaw(form)
        self.form, self.needed = form, len(law.law.parameters) + 1
        self.resamples, self.seed = resamples, seed
        known = trials[np.isfinite(trials["loss"].astype(float)) & (trials[column].astype(float) > 0)]
        enough = known.groupby("variant")[column].nunique() >= self.needed
        known = known[known["variant"].map(enough)].reset_index(drop=True)
        cells = known.groupby(list(CELL), sort=False, dropna=False, observed=True).ngroup()
        columns = {"variant": known["variant"].astype(str), "cell": cells, "seed": known["seed"]}
        self.points = pd.DataFrame(
            columns | {"scale": known[column].astype(float), "loss": known["loss"].astype(float)}
        )
        order = self.points.sort_values(["variant", *KEYS], kind="stable")
        self._points = {str(name): part for name, part in order.groupby("variant", sort=False)}
        self._weights: Array | None = None
        self._fits: dict[str, ScalingLaw] = {}

    def of(self, variant: str) -> ScalingLaw:
        """The law of a variant, with its resamples. Raises `NotEnoughPoints` and `BadPoints`."""
        if variant not in self._fits:
            if variant not in self._points:
                raise NotEnoughPoints(f"{variant} has fewer than {self.needed} scales")
            mine, alike = self._points[variant], self._alike(variant)
            ys = np.stack([self._points[name]["loss"] for name in alike])
            laws = fit_alike(self.form, mine["scale"].to_numpy(), ys, self.weights[:, mine.index])
            self._fits |= zip(alike, laws, strict=True)
        return self._fits[variant]

    def _alike(self, variant: str) -> list[str]:
        """The variants that have points at the same scales, cells and seeds, and so the same resamples."""
        mine = self._points[variant]
        most = max(1, MOST // (self.resamples * len(mine)))
        keys = mine[KEYS].to_numpy(dtype=float)
        others = (
            name
            for name, points in self._points.items()
            if name not in self._fits
            and len(points) == len(mine)
            and (points["loss"] > 0).all()
            and np.array_equal(points[KEYS].to_numpy(dtype=float), keys, equal_nan=True)
        )
        return [variant, *(name for name in islice(others, most) if name != variant)]

    @property
    def weights(self) -> Array:
        """How often each point is in each resample, (resamples, points)."""
        if self._weights is None:
            rng = np.random.default_rng(self.seed)
            self._weights, _ = paired_resamples(self.points, self.resamples, rng, self.needed)
        return self._weights
