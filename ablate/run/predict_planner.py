"""The planner of a grid with `predict`: see `ablate.prediction`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ablate.prediction import Prediction
from ablate.rows import Plan, PlannedTrial
from ablate.run.ledger import Ledger
from ablate.run.planner import Ask
from analysis.errors import AnalysisError
from analysis.prediction import enough, predicted, to_run

BATCH = 4  # trials asked for at once, so that several workers have work


class PredictPlanner:
    """Asks for the trials that tell most about a larger scale, and ends when they have.

    What it asks for follows from the records alone, so that a killed study goes on with the same decisions.
    """

    def __init__(self, plan: Plan, wanted: Prediction, ledger: Ledger):
        self.plan, self.wanted, self.ledger = plan, wanted, ledger
        self.told = ""  # why it ended
        self._asked: set[str] = set()
        cells = pd.DataFrame([self._place(trial) for trial in plan.trials]).groupby("variant")["c"].nunique()
        needed = enough(wanted.form)
        if (cells < needed).any():
            name = cells.idxmin()
            raise plan.grid.document.error(
                ("predict", "form"),
                f"{wanted.form} needs {needed} different computes of every variant: {name} has {cells[name]}; "
                "give more sizes or budgets",
            )

    def next(self, done: Mapping[str, str]) -> list[Ask]:
        trials = {trial.id: trial for trial in self.plan.trials}
        left = [trial for name, trial in trials.items() if name not in done and name not in self._asked]
        points = self._points(done)
        spent = float(sum(trials[name].row.flops for name in done if name in trials))
        if self.wanted.spend is not None:
            left = [trial for trial in left if spent + trial.row.flops <= self.wanted.spend]
        if not left:
            self.told = "no candidate is left" + (" within the FLOPs to spend" if self.wanted.spend else "")
            return []
        chosen = self._first(left, points) or self._best(left, points)
        if self.wanted.spend is not None:
            costs = np.cumsum([trial.row.flops for trial in chosen])
            chosen = [trial for trial, cost in zip(chosen, costs, strict=True) if spent + cost <= self.wanted.spend]
        self._asked |= {trial.id for trial in chosen}
        return [Ask(trial) for trial in chosen]

    def _first(self, left: list[PlannedTrial], points: pd.DataFrame) -> list[PlannedTrial]:
        """The cheapest trials of variants that have too few different computes for a law; empty when all have."""
        found: list[PlannedTrial] = []
        for variant in dict.fromkeys(trial.row.variant for trial in self.plan.trials):
            known = set(points["c"][points["variant"] == variant])
            for trial in sorted(
                (each for each in left if each.row.variant == variant), key=lambda each: each.row.flops
            ):
                if len(known) >= enough(self.wanted.form):
                    break
                if trial.row.flops not in known:
                    known.add(trial.row.flops)
                    found.append(trial)
        return found

    def _best(self, left: list[PlannedTrial], points: pd.DataFrame) -> list[PlannedTrial]:
        wanted = self.wanted
        candidates = pd.DataFrame([self._place(trial) for trial in left])
        candidates["cost"] = candidates["c"] * self._seconds_per_flop(candidates, points)
        try:
            now = predicted(points, wanted.form, wanted.flops)
            if (now["width"] <= np.log1p(wanted.within)).all():
                self.told = f"every prediction at {wanted.flops:.3g} FLOPs is known within {wanted.within:.2%}"
                return []
            chosen = to_run(points, candidates, wanted.form, wanted.flops, BATCH)["id"].tolist()
        except AnalysisError:  # as where the first points do not bend yet: the cheapest ones come next
            chosen = candidates.sort_values("cost", kind="stable")["id"].head(BATCH).tolist()
        by_name = {trial.id: trial for trial in left}
        return [by_name[name] for name in chosen]

    def _points(self, done: Mapping[str, str]) -> pd.DataFrame:
        rows = []
        for trial in self.plan.trials:
            if done.get(trial.id) != "finished":
                continue
            record = self.ledger.trial(trial.id).record()
            assert record is not None
            rows.append(self._place(trial) | {"loss": record["metrics"]["loss"], "wall_s": record["wall_s"]})
        return pd.DataFrame(rows, columns=["id", "variant", "size", "n", "d", "c", "loss", "wall_s"])

    @staticmethod
    def _place(trial: PlannedTrial) -> dict[str, Any]:
        row = trial.row
        sizes = {"n": row.cost.params_non_embedding, "d": row.tokens, "c": row.flops}
        return {"id": trial.id, "variant": row.variant, "size": row.size} | sizes

    @staticmethod
    def _seconds_per_flop(candidates: pd.DataFrame, points: pd.DataFrame) -> pd.Series:
        """As measured of trials of the same variant and size, else of all."""
        rates = points.assign(rate=points["wall_s"] / points["c"])
        mine = rates.groupby(["variant", "size"])["rate"].median().rename("rate")
        found = candidates.join(mine, on=["variant", "size"])["rate"]
        return found.fillna(rates["rate"].median()).fillna(1.0)
