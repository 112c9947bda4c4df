"""In which order trials with common first steps are run: see `ablate.train.forks`."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from ablate.rows import Plan, PlannedTrial
from ablate.run.planner import Ask
from ablate.train.forks import shared_steps
from ablate.train.job import Fork


@dataclass
class Wave:
    """Trials that can be run side by side, with what the trunks among them leave to the next wave."""

    asks: list[Ask]
    forks: dict[str, tuple[Fork, ...]] = field(default_factory=dict)


def waves(asks: Sequence[Ask]) -> list[Wave]:
    """Trunks and what has none, then the trials that go on from them. Asks for a part of a trial stay as they are."""
    trunk_of = forks_of(ask.trial for ask in asks if ask.until is None and not ask.stop)
    if not trunk_of:
        return [Wave(list(asks))]
    forks: dict[str, tuple[Fork, ...]] = {}
    found = {fork.trial for _, fork in trunk_of}
    for trunk, fork in trunk_of:
        forks[trunk] = (*forks.get(trunk, ()), fork)
    first = Wave([ask for ask in asks if ask.trial.id not in found], forks)
    return [first, Wave([ask for ask in asks if ask.trial.id in found])]


def forks_of(trials: Iterable[PlannedTrial]) -> list[tuple[str, Fork]]:
    """Of trials that are to be trained: those that have a trunk, each after the trunk's id."""
    rows: dict[int, str] = {}
    ladders: dict[tuple[str, int, str | None], list[PlannedTrial]] = {}
    for trial in trials:
        if id(trial.row) not in rows:  # of many seeds
            rows[id(trial.row)] = trial.spec.row_id
        ladders.setdefault((rows[id(trial.row)], trial.spec.seed, trial.spec.parent), []).append(trial)
    found = []
    for ladder in ladders.values():
        trunk = max(ladder, key=lambda trial: trial.spec.train.steps)
        for trial in ladder:
            if trial.spec.train.steps < trunk.spec.train.steps and (shared := shared_steps(trial.spec, trunk.spec)):
                found.append((trunk.id, Fork(trial.id, shared, trial.spec.train.steps)))
    return found


def saved_flops(plan: Plan, done: Container[str]) -> float:
    """Training FLOPs of a plan's trials, but for those that are done, that are not computed twice. 0 under planners
    that do not ask for lengths together. (A model whose constraints are told how much of its run is done takes its
    first steps alone after all.)"""
    if plan.grid.rungs or plan.grid.promote or plan.grid.predict:
        return 0.0
    trials = {trial.id: trial for trial in plan.trials if trial.id not in done}
    forks = (fork for _, fork in forks_of(trials.values()))
    return sum(trials[fork.trial].row.flops * fork.step / fork.steps for fork in forks)
