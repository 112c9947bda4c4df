"""Forms and objectives against each other, judged by the points of more compute than they were fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit import BadPoints, ScalingLaw
from analysis.forms import law_of
from analysis.heldout import HeldOut, held_out
from analysis.laws import Law

Array = np.ndarray
SPLITS = (0.5, 0.35, 0.2)  # of the points, those of most compute that are predicted
TOLERANCE = 0.02  # of the loss: how far contestants may disagree
FACTOR = 2.0  # of the least error: who is listened to


class Disagreement(ValueError):
    """Contestants of like error say different things of a target: nothing is known of it."""


@dataclass(frozen=True)
class Contestant:
    """A form, what it is fitted by, and coefficients that are given, as {"E": 0}."""

    form: str | Law
    objective: str = "huber"
    pinned: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        form = self.form if isinstance(self.form, str) else self.form.name
        return ", ".join([form, *(f"{key} = {value:g}" for key, value in self.pinned.items())])

    def unfitted(self) -> ScalingLaw:
        return ScalingLaw(self.form, objective=self.objective, pinned=self.pinned)


FORMS = (
    Contestant("chinchilla"),
    Contestant("chinchilla", pinned={"E": 0.0}),
    Contestant("chinchilla_tied"),
    Contestant("kaplan_nd"),
    Contestant("power_offset"),
    Contestant("power"),
)
OBJECTIVES = ("huber", "lad", "l2_log")


@dataclass(frozen=True)
class Agreement:
    """What the contestants say of targets: `predictions` has a row for each, a column for each target; `spread` is
    the largest of (highest - lowest) / winner's. `refused`: it is beyond `tolerance`, or rests on one alone."""

    prediction: Array
    predictions: pd.DataFrame
    spread: float
    tolerance: float
    refused: bool
    reason: str


@dataclass(frozen=True)
class Tournament:
    """The outcome. `table` has a row for each contestant, the best first: form, objective, k (its parameters), mean,
    largest and signed error in %, the farthest distance, and `failed`, why it has none. `laws` are those that did
    not fail, in that order, fitted to all points."""

    table: pd.DataFrame
    laws: Sequence[ScalingLaw]

    @property
    def winner(self) -> ScalingLaw:
        """The contestant of the least mean error on held-out points, fitted to all of them."""
        return self.laws[0]

    def agreement(self, at: Any, factor: float = FACTOR, tolerance: float = TOLERANCE) -> Agreement:
        """What all contestants within `factor` of the least mean error say of the inputs `at`."""
        good = self.table[self.table["failed"] == ""]
        near = (good["mean"] <= factor * good["mean"].iloc[0]).to_numpy()
        names = [f"{form} ({by})" for form, by in zip(good["form"][near], good["objective"][near], strict=True)]
        said = np.array([law.predict(at) for law, heard in zip(self.laws, near, strict=True) if heard])
        spread = float(((said.max(0) - said.min(0)) / said[0]).max())
        predictions = pd.DataFrame(said, index=names)
        reason = ""
        if len(said) < 2:
            reason = f"{names[0]} stands alone: no other contestant's error is within {factor:g} times its own"
        elif not spread <= tolerance:
            low, high = predictions.min(axis=1).idxmin(), predictions.max(axis=1).idxmax()
            told = f"{low} is lowest, {high} highest"
            reason = f"contestants disagree by {100 * spread:.3g} % of the loss, over {100 * tolerance:g} %: {told}"
        return Agreement(said[0], predictions, spread, tolerance, bool(reason), reason)

    def predict(self, at: Any, factor: float = FACTOR, tolerance: float = TOLERANCE) -> Array:
        """The winner's prediction. Raises `Disagreement` where `agreement` refuses."""
        found = self.agreement(at, factor, tolerance)
        if found.refused:
            raise Disagreement(found.reason)
        return found.prediction


def crossed(forms: Sequence[Contestant] = FORMS, objectives: Sequence[str] = OBJECTIVES) -> list[Contestant]:
    """Every form by every objective."""
    return [Contestant(each.form, objective, each.pinned) for each in forms for objective in objectives]


def tournament(
    x: Any, y: Any, c: Any, contestants: Sequence[Contestant] | None = None, splits: Sequence[float] = SPLITS
) -> Tournament:
    """Fit every contestant below rolling cut-offs of compute and rank by the mean error on all points above.

    x has the columns that the forms read; c, the compute of every point, is added to them. The mean is over splits,
    of each split's mean absolute error in %; a contestant that fails on one split fails. By default `FORMS` by
    `OBJECTIVES`, those that x has the inputs of. Raises `BadPoints` where every contestant fails.
    """
    c = np.asarray(c, dtype=float)
    columns = {name: np.asarray(x[name], dtype=float) for name in x} | {"c": c}
    y = np.asarray(y, dtype=float)
    rows, laws = [], []
    for each in contestants if contestants is not None else _readable(columns):
        found, failed = _tried(each, columns, y, c, splits)
        law = each.unfitted()
        row = {"form": each.name, "objective": each.objective, "k": len(law.law.parameters)}
        rows.append(row | _scores(found) | {"failed": failed})
        laws.append(law if failed else law.fit(columns, y))
    table = pd.DataFrame(rows)
    if (table["failed"] != "").all():
        raise BadPoints(f"no contestant could be judged: {'; '.join(dict.fromkeys(table['failed']))}")
    table["_failed"] = table["failed"] != ""
    table = table.sort_values(["_failed", "mean"], kind="stable").drop(columns="_failed")
    ranked = [laws[k] for k in table.index if not table["failed"][k]]
    return Tournament(table.reset_index(drop=True), ranked)


def _readable(columns: Mapping[str, Array]) -> list[Contestant]:
    forms = [each for each in FORMS if set(law_of(str(each.form)).inputs) <= set(columns)]
    return crossed(forms)


def _tried(
    each: Contestant, x: Mapping[str, Array], y: Array, c: Array, splits: Sequence[float]
) -> tuple[list[HeldOut], str]:
    found = []
    for fraction in splits:
        try:
            part = held_out(each.form, x, y, c, fraction, objective=each.objective, pinned=each.pinned)
        except (ValueError, np.linalg.LinAlgError) as error:
            return [], f"without the top {100 * fraction:g} %: {error}"
        if not np.isfinite(part.mean):
            return [], f"without the top {100 * fraction:g} %: its predictions are not finite"
        found.append(part)
    return found, ""


def _scores(found: Sequence[HeldOut]) -> dict[str, float]:
    if not found:
        return {"mean": np.nan, "largest": np.nan, "signed": np.nan, "distance": np.nan}
    return {
        "mean": float(np.mean([part.mean for part in found])),
        "largest": max(part.largest for part in found),
        "signed": float(np.mean([part.signed for part in found])),
        "distance": max(part.distance for part in found),
    }
