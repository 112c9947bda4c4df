"""The planner of a grid with `tune`: see `ablate.tuning`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ablate.errors import UserError
from ablate.rows import Plan, Row, Sweep, trials_of
from ablate.run.ledger import Ledger
from ablate.run.planner import Ask
from analysis.tuning import beyond, optimum

Values = tuple[float, ...]


class TunePlanner:
    """Asks for the trials of every sweep, grows a sweep whose best value is at an end, and then asks for the row at
    what its sweep chose. `plan` grows with it; what it becomes follows from the records alone."""

    told = ""

    def __init__(self, plan: Plan, ledger: Ledger):
        self.plan, self.ledger = plan, ledger
        self._asked: set[str] = set()
        self._known: dict[str, float] = {}  # losses of the trials of sweeps that have ended
        self._grow()

    def next(self, done: Mapping[str, str]) -> list[Ask]:
        self._grow()
        fresh = [trial for trial in self.plan.trials if trial.id not in done and trial.id not in self._asked]
        missing = [trial for trial in fresh if self.ledger.trial(trial.id).record() is None]
        self._asked |= {trial.id for trial in missing}
        return [Ask(trial) for trial in sorted(missing, key=lambda trial: -trial.row.flops)]

    def _grow(self) -> None:
        """What follows from the records so far."""
        for sweep in self.plan.sweeps:
            self.plan = self.plan.with_rows(self._further(sweep))

    def _further(self, sweep: Sweep) -> list[Row]:
        """The rows of a sweep as it stands, and the one that is reported once it has ended."""
        values, tune = sweep.tune.values(), sweep.tune
        while True:
            losses = {each: self._losses(sweep, each) for each in values}
            rows = [sweep.tried(each) for each in values]
            if any(found is None for found in losses.values()):
                return rows
            told = {each: found for each, found in losses.items() if found is not None}
            more = [each for each in _grown(told, tune.grid, tune.extend) if self._legal(sweep, each)]
            if not more:
                break
            values += more
        best = _chosen(told)
        return rows if best is None else [*rows, sweep.chosen(best)]

    def _losses(self, sweep: Sweep, values: Values) -> list[float] | None:
        """The loss of each seed, infinite where it did not finish; None while one is to come."""
        names = [trial.id for trial in trials_of(sweep.tried(values))]
        for name in names:
            if name not in self._known and (record := self.ledger.trial(name).record()) is not None:
                loss = record["metrics"]["loss"] if record["status"] == "finished" else None
                self._known[name] = np.inf if loss is None else float(loss)
        return [self._known[name] for name in names] if all(name in self._known for name in names) else None

    @staticmethod
    def _legal(sweep: Sweep, values: Values) -> bool:
        """Whether settings can have these values: a dropout of 1.2 cannot."""
        try:
            sweep.tried(values)
        except UserError:
            return False
        return True


def _axis(told: Mapping[Values, list[float]], k: int) -> tuple[list[float], list[float]]:
    """Values of setting k and losses, a pair a trial, with the other settings as in the best combination."""
    best = min(told, key=lambda each: float(np.mean(told[each])))
    rows = [each for each in told if all(each[j] == best[j] for j in range(len(best)) if j != k)]
    return [each[k] for each in rows for _ in told[each]], [loss for each in rows for loss in told[each]]


def _grown(told: Mapping[Values, list[float]], grid: tuple[tuple[float, ...], ...], extend: int) -> list[Values]:
    """The values to be tried next: beyond the ends at which the best value is, the others crossed as before."""
    for k, first in enumerate(grid):
        values, losses = _axis(told, k)
        found = optimum(values, losses)
        if found is None or not found.edge:
            continue
        tried = sorted({each[k] for each in told})
        beside = tried.index(first[0]) if found.edge == "low" else len(tried) - 1 - tried.index(first[-1])
        if beside >= extend:
            continue
        new = float(f"{beyond(tried, found.edge):.3g}")
        others = {each[:k] + each[k + 1 :] for each in told}
        return [(*each[:k], new, *each[k:]) for each in sorted(others)]
    return []


def _chosen(told: Mapping[Values, list[float]]) -> Values | None:
    """What a sweep chooses, to three digits; None where all its trials diverged."""
    if not any(np.isfinite(losses).all() for losses in told.values()):
        return None
    count, best = len(next(iter(told))), []
    for k in range(count):
        found = optimum(*_axis(told, k))
        assert found is not None
        best.append(float(f"{found.value:.3g}"))
    return tuple(best)
