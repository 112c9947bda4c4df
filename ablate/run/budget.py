"""A budget: which of the trials that a planner asks for are run, so that what a study takes stays within it.

Trials are taken by the priority of their variants, then cell by cell and seed by seed, a baseline's before those that
are compared with it: no variant is left without its pair. What fits is run, the rest is left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ablate.errors import UserError, plural
from ablate.resolve import default_gpus
from ablate.rows import Plan, PlannedTrial
from ablate.run.ledger import Ledger
from ablate.run.limits import attempts_s
from ablate.run.planner import Ask, GridPlanner, Planner
from ablate.run.speeds import Speeds
from ablate.train.forks import forked_from
from analysis.records import is_number
from analysis.typed import did_you_mean

UNITS = ("gpu-h", "cpu-h", "flops")
FORM = re.compile(r"\s*([0-9][0-9.eE+_-]*)\s*([A-Za-z-]+)\s*")
FIRST = 3  # trials that are trained to see what they cost, where none has been
SHOWN = 6  # rows that are named


@dataclass(frozen=True)
class Budget:
    """So much of a unit."""

    amount: float
    unit: str

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


def parse_budget(text: str) -> Budget:
    """`40 gpu-h`, `8 cpu-h` or `1e18 flops`. Raises `UserError`."""
    found = FORM.fullmatch(text)
    try:
        amount = float(found[1]) if found else 0.0
    except ValueError:
        amount = 0.0
    if not found or found[2] not in UNITS or not 0 < amount < math.inf:
        hint = did_you_mean(found[2], UNITS) if found and found[2] not in UNITS else ""
        raise UserError(f"--budget {text!r}:{hint} write an amount above 0 of {', '.join(UNITS)}, as '40 gpu-h'")
    return Budget(amount, found[2])


def priorities(plan: Plan) -> dict[str, float]:
    """By variant; the baseline's is that of the highest, as all are compared with it."""
    found = {variant.name: variant.priority for variant in plan.grid.variants}
    return {**found, plan.baseline: max(found.values())}


def by_priority(plan: Plan, asks: Sequence[Ask]) -> list[Ask]:
    """The same in the order of priority; the planner's order where it is the same."""
    order = priorities(plan)
    return sorted(asks, key=lambda ask: -order[ask.trial.row.variant])


class Budgeted:
    """A planner whose asks are trimmed to what is left of a budget."""

    def __init__(self, planner: Planner, budget: Budget, ledger: Ledger, say: Callable[[str], None]):
        self.planner, self.budget, self.ledger, self.say = planner, budget, ledger, say
        self.speeds = Speeds(ledger)
        self.left_out: dict[str, PlannedTrial] = {}
        self._waiting: list[Ask] = []  # until what they cost is measured
        self._index([])
        gpus = [default_gpus(trial.spec) for trial in self.plan.trials]
        if budget.unit == "gpu-h" and not any(gpus):
            raise UserError(f"--budget {budget}: no trial of this study uses a GPU: give cpu-h or flops")

    @property
    def plan(self) -> Plan:
        """As it stands: a planner may let it grow."""
        return self.planner.plan

    @property
    def told(self) -> str:
        return "; ".join(filter(None, (self.planner.told, self._words() if self.left_out else "")))

    def next(self, done: Mapping[str, str]) -> list[Ask]:
        """The planner's next asks without those left out; nothing once all of them are."""
        asks = [*self._waiting, *self.planner.next(done)]
        self._waiting = []
        if not asks:
            return []
        self._index(asks)
        self.speeds.refresh()
        everything = isinstance(self.planner, GridPlanner)  # which asks for all of its plan sooner or later
        open_ = [trial for trial in self.plan.trials if trial.id not in done and trial.id not in self.left_out]
        asked = [trial for trial in open_ if trial.id in self._asks]
        wanted = open_ if everything else asked
        if self.spent() < self.budget.amount and any(self.cost(trial) is None for trial in wanted):
            chosen = self._few(asked, done)
            self._waiting = [ask for ask in asks if ask.trial.id not in chosen]
        else:
            chosen = self._fitting(wanted, done)
            if out := {trial.id: trial for trial in wanted if trial.id not in chosen}:
                self.left_out |= out
                self.say(self._words())
        return [ask for ask in asks if ask.trial.id in chosen]

    def _index(self, asks: Sequence[Ask]) -> None:
        """What is looked up for every trial."""
        self._asks = {ask.trial.id: ask for ask in asks}
        self._trials = {trial.id: trial for trial in self.plan.trials}
        self._baselines: dict[tuple[object, ...], list[PlannedTrial]] = {}
        for trial in self.plan.trials:
            if trial.row.variant == self.plan.baseline:
                self._baselines.setdefault(self._key(trial), []).append(trial)

    def _few(self, asked: Sequence[PlannedTrial], done: Mapping[str, str]) -> set[str]:
        """The first ones, by which the cost of the others will be known."""
        chosen: set[str] = set()
        for trial in self._ordered(asked):
            if len(chosen) < FIRST and self.cost(trial) is None:
                chosen |= self._unit(trial, done) or set()
        self.say(
            f"budget {self.budget}: no such trial has been measured: {plural(len(chosen), 'trial')} first, "
            "then the rest is trimmed"
        )
        return chosen

    def _fitting(self, wanted: Sequence[PlannedTrial], done: Mapping[str, str]) -> set[str]:
        """Those whose cost, with that of what they need, fits in what is left."""
        left = self.budget.amount - self.spent()
        chosen: set[str] = set()
        for trial in self._ordered(wanted):
            unit = self._unit(trial, done)
            cost = sum(self.cost(self._trials[each]) or 0.0 for each in (unit or set()) - chosen)
            if unit and cost <= left:
                chosen |= unit
                left -= cost
        return chosen

    def _unit(self, trial: PlannedTrial, done: Mapping[str, str]) -> set[str] | None:
        """The trial with what it needs: what it begins from, and its baseline's. None where that was left out."""
        unit, todo = {trial.id}, [trial]
        while todo:
            each = todo.pop()
            needs = [self._trials[parent] for parent in [each.spec.parent] if parent is not None]
            if each.row.variant != self.plan.baseline:
                needs += self._baselines.get(self._key(each), [])
            for need in needs:
                if need.id in self.left_out:
                    return None
                if need.id not in done and need.id not in unit:
                    unit.add(need.id)
                    todo.append(need)
        return unit

    def _key(self, trial: PlannedTrial) -> tuple[object, ...]:
        """What a trial shares with the baseline's that it is paired with."""
        row, parent = trial.row, self._trials.get(trial.spec.parent or "")
        return row.stage, row.size, row.axes, row.budget, trial.spec.seed, parent and parent.spec.seed

    def _ordered(self, trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
        order = priorities(self.plan)
        names = {variant.name: index for index, variant in enumerate(self.plan.grid.variants)}
        cells: dict[str, int] = {}
        for row in self.plan.rows:
            cells.setdefault(row.cell, len(cells))

        def rank(trial: PlannedTrial) -> tuple[float, ...]:
            row = trial.row
            return -order[row.variant], cells[row.cell], row.seeds.index(trial.spec.seed), names[row.variant]

        return sorted(trials, key=rank)

    def cost(self, trial: PlannedTrial) -> float | None:
        """What the rest of a trial, as far as it is asked for, will take; None where no trial was measured."""
        ask, steps = self._asks.get(trial.id), trial.spec.train.steps
        goal = 0.0 if ask and ask.stop else ask.until / steps if ask and ask.until else 1.0
        rest = trial.row.flops * max(0.0, goal - self._reached(trial))
        if self.budget.unit == "flops":
            return rest
        speed = self.speeds.of(trial)
        return None if speed is None else rest / speed / 3600 * self._devices(trial)

    def spent(self) -> float:
        """What the attempts that this study made have taken."""
        total = 0.0
        for trial in self.plan.trials:
            seconds = attempts_s(self.ledger.trial(trial.id), study=self.plan.grid.name)
            if self.budget.unit == "flops":
                total += trial.row.flops * (self._reached(trial) - self._given(trial)) if seconds else 0.0
            else:
                total += sum(seconds) / 3600 * self._devices(trial)
        return total

    def _devices(self, trial: PlannedTrial) -> float:
        return default_gpus(trial.spec) if self.budget.unit == "gpu-h" else trial.spec.resources.cpus

    def _reached(self, trial: PlannedTrial) -> float:
        """The part of a trial that is done, by its curve."""
        steps = trial.spec.train.steps
        last = max((row["step"] for row in self.ledger.trial(trial.id).rows()), default=0)
        return min(1.0, last / steps) if steps else 0.0

    def _given(self, trial: PlannedTrial) -> float:
        """The part of a trial that another one has trained for it."""
        forked = forked_from(self.ledger.trial(trial.id).history()) or {}
        return forked["step"] / trial.spec.train.steps if is_number(forked.get("step")) else 0.0

    def _words(self) -> str:
        rows = Counter(f"{trial.row.variant} ({trial.row.cell})" for trial in self.left_out.values())
        named = [f"{row} x{count}" for row, count in list(rows.items())[:SHOWN]]
        named += [f"and {len(rows) - SHOWN} rows more"] if len(rows) > SHOWN else []
        cost = sum(self.cost(trial) or 0.0 for trial in self.left_out.values())
        return (
            f"left out (budget {self.budget}, of which {self.spent():.3g} are spent): "
            f"{plural(len(self.left_out), 'trial')}, about {cost:.3g} {self.budget.unit}: {', '.join(named)}"
        )
