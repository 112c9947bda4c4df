"""What to run next. Executors know nothing of planners, planners nothing of executors: both know the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ablate.plan import Plan, PlannedTrial


class Planner(Protocol):
    """Asked again and again, with the status of every trial that has ended, until it answers with nothing."""

    def next(self, done: Mapping[str, str]) -> list[PlannedTrial]: ...


class GridPlanner:
    """Everything in the plan that has not ended, the costliest first: the last worker to finish ends early.

    A trial that begins from another's weights waits until that one has finished; if that one ends in another way it
    is never asked for.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self._asked: set[str] = set()

    def next(self, done: Mapping[str, str]) -> list[PlannedTrial]:
        missing = [
            trial
            for trial in self.plan.trials
            if trial.id not in done
            and trial.id not in self._asked
            and (trial.spec.parent is None or done.get(trial.spec.parent) == "finished")
        ]
        self._asked |= {trial.id for trial in missing}
        return sorted(missing, key=lambda trial: -trial.row.flops)
