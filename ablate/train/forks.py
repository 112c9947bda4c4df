"""Forks: trials that differ in how long they train have their first steps in common, and train them once.

Under a schedule whose rate does not know the end of the run until it begins to decay (constant; warm-up, stable,
decay with a warm-up of a fixed number of steps) the longest trial, the trunk, passes through the very states of the
shorter ones: batches, dropout and rates depend on the seed and the step alone. At the last step in common it leaves
its state in the folder of the shorter trial, which goes on from there as from its own checkpoint: with the numbers,
bit for bit, that it would have come to by itself. The trunk is evaluated for each of them where that one would be.

Hägele et al. 2024, arXiv:2405.18392, section 4; Hu et al. 2024, arXiv:2404.06395.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ablate import registry
from ablate.spec import TrialSpec

LEAST = 0.1  # of its steps that a trial must have in common with a trunk to wait for it
EVENT = "fork"  # in a trial's attempts: whose steps it goes on from


def shared_steps(spec: TrialSpec, longer: TrialSpec) -> int:
    """How many first steps of a trial a longer one goes through as well, by their schedule: at most all but the
    last, after which a trial is evaluated. 0 where too few."""
    train = spec.train
    if train.batch_ramp or train.seq_warmup:  # which are shares of a run's length
        return 0
    schedule = registry.make("schedule", train.schedule)
    shared = min(schedule.shared(train.steps, longer.train.steps), train.steps - 1)
    return shared if shared >= max(1, LEAST * train.steps) else 0


def forked_from(history: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Whose steps a trial went on from, as `trial`, `step` and `wall_s`, the seconds that they took there; None where
    it has trained all by itself."""
    found = None
    for note in history:
        if note["event"] == EVENT:
            found = {"trial": note.get("of"), "step": note.get("step"), "wall_s": note.get("wall_s")}
        elif note["event"] == "start":
            found = None
    return found
