"""What to run next. Executors know nothing of planners, planners nothing of executors: both know the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ablate import registry
from ablate.rows import Plan, PlannedTrial, Row
from ablate.run.ledger import Ledger
from ablate.rungs import Rungs
from ablate.tasks.base import Task
from ablate.train.steps import evaluation_steps


@dataclass(frozen=True)
class Ask:
    """What is asked of an executor: to train a trial to its end, or until step `until`; with `stop`, to end it as it
    stands."""

    trial: PlannedTrial
    until: int | None = None
    stop: bool = False

    @property
    def key(self) -> tuple[str, int | None, bool]:
        return self.trial.id, self.until, self.stop


class Planner(Protocol):
    """Asked again and again, with the status of every trial that has ended, until it answers with nothing.

    `told` is then why, where it leaves trials of its plan out.
    """

    @property
    def plan(self) -> Plan: ...
    @property
    def told(self) -> str: ...

    def next(self, done: Mapping[str, str]) -> list[Ask]: ...


def planner_of(plan: Plan, ledger: Ledger) -> Planner:
    """The planner that a grid asks for; its `plan` may have more trials, by the records."""
    # those that judge by the records take seconds to import
    grid = plan.grid
    if grid.tune is not None:
        from ablate.run.tune_planner import TunePlanner

        return TunePlanner(plan, ledger)
    if grid.promote is not None:
        from ablate.run.promote_planner import PromotePlanner

        return PromotePlanner(plan, grid.promote, ledger)
    if grid.race is not None:
        from ablate.run.race_planner import RacePlanner

        return RacePlanner(plan, grid.race, ledger)
    if grid.predict is not None:
        from ablate.run.predict_planner import PredictPlanner

        return PredictPlanner(plan, grid.predict, ledger)
    return RungPlanner(plan, grid.rungs, ledger) if grid.rungs else GridPlanner(plan)


class GridPlanner:
    """Everything in the plan that has not ended, the costliest first: the last worker to finish ends early.

    A trial that begins from another's weights waits until that one has finished; if that one ends in another way it
    is never asked for.
    """

    told = ""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._asked: set[str] = set()

    def next(self, done: Mapping[str, str]) -> list[Ask]:
        missing = [trial for trial in self.plan.trials if trial.id not in self._asked and ready(trial, done)]
        self._asked |= {trial.id for trial in missing}
        return [Ask(trial) for trial in sorted(missing, key=lambda trial: -trial.row.flops)]


class RungPlanner:
    """Start many, stop early, continue some: see `ablate.rungs`.

    What a rung decides is read from the trials' curves, so that a killed study goes on with the same decisions.
    """

    told = ""

    def __init__(self, plan: Plan, rungs: Rungs, ledger: Ledger):
        self.plan = plan
        self.rungs = rungs
        self.ledger = ledger
        self._asked: set[tuple[str, int | None, bool]] = set()
        for row in plan.rows:
            if self.competes(row):
                self.steps(row)

    def next(self, done: Mapping[str, str]) -> list[Ask]:
        asks: list[Ask] = []
        for row in self.plan.rows:
            trials = self.plan.trials_of(row)
            if self.competes(row):
                asks += self._of_row(row, trials, done)
            else:
                asks += [Ask(trial) for trial in trials if ready(trial, done)]
        fresh = [ask for ask in asks if ask.key not in self._asked]
        self._asked |= {ask.key for ask in fresh}
        return sorted(fresh, key=lambda ask: -ask.trial.row.flops)

    def steps(self, row: Row) -> list[int]:
        """At which of its evaluations a row is compared: those nearest, in ratio, to the rungs' shares.

        Raises `UserError` where there are not enough.
        """
        train = row.spec.train
        looks = sorted(evaluation_steps(train.steps, train.eval_points) - {0, train.steps})
        found = [
            min(looks, key=lambda step: abs(math.log(step / (share * train.steps))), default=0)
            for share in self.rungs.at
        ]
        if 0 in found or len(set(found)) < len(found):
            raise self.plan.grid.document.error(
                ("rungs", "at"),
                f"train.eval_points {train.eval_points} over {train.steps} steps are too few to compare "
                f"{row.variant!r} at {', '.join(f'{share:g}' for share in self.rungs.at)} of its training",
            )
        return found

    def competes(self, row: Row) -> bool:
        """Whether a row's trials are compared at the rungs."""
        return row.parent is not None or len(self.plan.grid.stages) == 1

    def _of_row(self, row: Row, trials: list[PlannedTrial], done: Mapping[str, str]) -> list[Ask]:
        """What is to be done for one row: up to its next rung, or to the end."""
        if any(trial.spec.parent is not None and trial.spec.parent not in done for trial in trials):
            return []  # all of them start together
        begun = [trial for trial in trials if trial.id in done or ready(trial, done)]
        alive = begun
        for rung, step in enumerate(self.steps(row)):
            scores = {trial.id: self._score(trial, step) for trial in alive}
            waiting = [trial for trial in alive if scores[trial.id] is None and trial.id not in done]
            if waiting:
                return [Ask(trial, until=step) for trial in waiting]
            ranked = sorted(alive, key=lambda trial: _rank(scores[trial.id]))
            alive = ranked[: self.rungs.kept(len(begun), rung)]
            losers = [trial for trial in ranked[len(alive) :] if trial.id not in done]
            if losers:
                return [Ask(trial, stop=True) for trial in losers]
        return [Ask(trial) for trial in alive if trial.id not in done]

    def _score(self, trial: PlannedTrial, step: int) -> float | None:
        """The task's metric at a step, so that less is better; the loss where that metric is measured at the end
        alone; None where the trial has not come so far."""
        task: Task = registry.make("task", trial.spec.data.task)
        for row in self.ledger.trial(trial.id).rows():
            if row["step"] == step and row["split"] == "valid":
                if task.metric in row:
                    value, sign = row[task.metric], -1 if task.higher_is_better else 1
                else:
                    value, sign = row["loss"], 1
                return None if value is None else sign * float(value)
        return None


def ready(trial: PlannedTrial, done: Mapping[str, str]) -> bool:
    """Whether a trial is to be run and can be: it has not ended, and what it begins from has finished."""
    return trial.id not in done and (trial.spec.parent is None or done.get(trial.spec.parent) == "finished")


def _rank(score: float | None) -> float:
    """A trial that ended before the rung without a score comes last."""
    return float("inf") if score is None else score
