"""The planner of a grid with `race`: see `ablate.races`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

import pandas as pd

from ablate.races import Race
from ablate.rows import Plan, PlannedTrial
from ablate.run.ledger import Ledger
from ablate.run.planner import Ask
from analysis.racing import RacePlan, Row, Standing, pairs, standing
from analysis.table import study_table


class RacePlanner:
    """Asks for the seeds of the rows that are not decided, a look at a time, and ends when none is left.

    What it asks for follows from the records alone, so that a killed study goes on with the same decisions. Scores
    are those of the study's table, and so of its report.
    """

    def __init__(self, plan: Plan, wanted: Race, ledger: Ledger):
        self.plan, self.ledger, self.spend = plan, ledger, wanted.spend
        self.rule = RacePlan(**{key: value for key, value in asdict(wanted).items() if key != "spend"})
        self.told = ""  # why it ended
        self._asked: set[str] = set()
        self._trials: dict[Row, list[PlannedTrial]] = {}
        for trial in plan.trials:
            row = trial.row
            self._trials.setdefault((row.stage, row.size, row.axes, row.budget, row.variant), []).append(trial)
        if len(plan.grid.variants) < 2:
            raise plan.grid.document.error(("race",), "needs a variant besides the baseline: nothing competes")

    def next(self, done: Mapping[str, str]) -> list[Ask]:
        found = standing(pairs(self._table(done), self.plan.baseline), self.rule)
        chosen = self._affordable(found.wanted, done)
        if not chosen:
            self.told = self._ended(found)
            return []
        self._asked |= set(chosen)
        return [Ask(trial) for trial in sorted(chosen.values(), key=lambda trial: -trial.row.flops)]

    def _affordable(self, wanted: Mapping[Row, int], done: Mapping[str, str]) -> dict[str, PlannedTrial]:
        """The trials of the rows that go on, each row's with its baseline's: the most promising rows that fit in what
        is left to spend."""
        left = float("inf")
        if self.spend is not None:
            left = self.spend - sum(trial.row.flops for trial in self.plan.trials if trial.id in done)
        chosen: dict[str, PlannedTrial] = {}
        for row, count in wanted.items():
            both = (*self._trials[row][:count], *self._trials[*row[:-1], self.plan.baseline][:count])
            gone = {*done, *self._asked, *chosen}
            missing = {trial.id: trial for trial in both if trial.id not in gone}
            cost = sum(trial.row.flops for trial in missing.values())
            if cost <= left:
                chosen |= missing
                left -= cost
        return chosen

    def _table(self, done: Mapping[str, str]) -> pd.DataFrame:
        table = study_table(self.ledger.root, self.plan.grid.name)
        table = table[table["trial_id"].isin([trial.id for trial in self.plan.trials])]
        ended = [done.get(trial, "pending") for trial in table["trial_id"]]
        return table.assign(status=pd.array(ended, dtype="string"))

    def _ended(self, found: Standing) -> str:
        counts = Counter(each.status for each in found.decisions.values())
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        return f"the race is over: {said}" + ("; no more fits in the FLOPs to spend" if found.wanted else "")
