"""What a plan is made of: rows, their trials, and rows whose settings are still to be chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ablate.cost import Cost
from ablate.draft import Draft
from ablate.grid import Grid
from ablate.spec import TrialSpec
from ablate.tuning import TUNE, Tune


@dataclass(frozen=True)
class Row:
    """One variant at one size, axis setting and budget: its trials differ in the seed alone."""

    variant: str
    size: str
    axes: str
    budget: str
    spec: TrialSpec  # with seed 0
    cost: Cost
    residuals: Mapping[str, float]  # variant / baseline - 1, of parameters and FLOPs
    solved: Mapping[str, int]  # sizes that matching chose
    differs_in: tuple[str, ...]
    confounded: bool
    axis_values: Mapping[str, Any]
    stage: str = ""
    seeds: tuple[int, ...] = (0,)
    parent: Row | None = None  # whose trials' weights these begin from
    tuned: Mapping[str, float] = field(default_factory=dict)  # settings that a sweep chose
    told: Mapping[str, Any] = field(default_factory=dict)  # what the data tell the model: arguments of `build_model`

    @property
    def cell(self) -> str:
        """Stage, size, axes, budget and what was tuned as a label."""
        tuned = [f"{path}={value:g}" for path, value in self.tuned.items()]
        return ", ".join(each for each in (self.stage, self.size, self.axes, self.budget, *tuned) if each)

    @property
    def tokens(self) -> int:
        return self.spec.train.tokens_at(self.spec.train.steps)

    @property
    def flops(self) -> float:
        """Executed training FLOPs of one trial."""
        return self.cost.flops_train * self.tokens


@dataclass(frozen=True)
class PlannedTrial:
    """One training run of a plan: a row with one of the seeds."""

    id: str
    spec: TrialSpec
    row: Row


@dataclass(frozen=True)
class Sweep:
    """A row that is reported at settings which its own sweep chooses. `draft` is what the row was made of."""

    row: Row
    draft: Draft
    tune: Tune

    def tried(self, values: tuple[float, ...]) -> Row:
        """The row of the sweep at these values of `tune.paths`, with the seeds of the sweep."""
        return replace(self.chosen(values), stage=TUNE, seeds=self.tune.seeds)

    def chosen(self, values: tuple[float, ...]) -> Row:
        """The row that is reported, at the values that the sweep chose."""
        named = dict(zip(self.tune.paths, values, strict=True))
        draft, spec = self.draft.copy(), self.row.spec
        draft.lay(named, self.tune.origin)
        train = replace(draft.section("train"), tokens=spec.train.tokens, epochs=None, precision=spec.train.precision)
        settings = {**self.row.axis_values, **named}
        return replace(self.row, spec=replace(spec, train=train), tuned=named, axis_values=settings)


@dataclass(frozen=True)
class Plan:
    """What a grid comes to. `facts` describes the data: see `Task.facts`."""

    grid: Grid
    rows: tuple[Row, ...]
    trials: tuple[PlannedTrial, ...]
    facts: Mapping[str, Any]
    sweeps: tuple[Sweep, ...] = ()  # rows whose settings are chosen by trials: see `ablate.tuning`

    @property
    def baseline(self) -> str:
        return self.grid.variants[0].name

    def trials_of(self, row: Row) -> list[PlannedTrial]:
        """The trials of one row: its seeds, of each model that they begin from."""
        return [trial for trial in self.trials if trial.row is row]

    @property
    def total_flops(self) -> float:
        return sum(trial.row.flops for trial in self.trials)

    def with_rows(self, rows: Iterable[Row]) -> Plan:
        """The same with more rows of fresh weights and their trials; those that it has already are left out."""
        known = {trial.id for trial in self.trials}
        more = [trial for row in rows for trial in trials_of(row) if trial.id not in known]
        fresh = tuple({id(trial.row): trial.row for trial in more}.values())
        return replace(self, rows=(*self.rows, *fresh), trials=(*self.trials, *more))


def trials_of(row: Row, parents: Iterable[str | None] = (None,)) -> list[PlannedTrial]:
    """The trials of a row: its seeds, of each model that they begin from."""
    specs = [replace(row.spec, seed=seed, parent=parent) for parent in parents for seed in row.seeds]
    return [PlannedTrial(spec.trial_id, spec, row) for spec in specs]
