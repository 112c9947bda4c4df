"""Forks: trials that differ in how long they train have their first steps in common, and train them once.

Under a schedule whose rate does not know the end of the run until it begins to decay (constant; warm-up, stable,
decay with a warm-up of a fixed number of steps) the longest trial, the trunk, passes through the very states of the
shorter ones: batches, dropout and rates depend on the seed and the step alone. At the last step in common it leaves
its checkpoint and its curve in the folder of the shorter trial, which goes on from there as from its own: with the
numbers, bit for bit, that it would have come to by itself. Its curve has the trunk's evaluations up to the fork.

Hägele et al. 2024, arXiv:2405.18392, section 4; Hu et al. 2024, arXiv:2404.06395.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from ablate import registry
from ablate.run.lease import Busy
from ablate.run.ledger import TrialFolder
from ablate.spec import TrialSpec
from ablate.train import checkpoint

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


def leave(trunk: TrialFolder, fork: TrialFolder, step: int, state: checkpoint.State) -> None:
    """Put the trunk's curve and state where a trial goes on from; nothing where that has begun, has ended, is another
    process' at this moment, or is not here, as on a node that does not see the results."""
    if not fork.spec.is_file():
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(fork.locked(patience_s=0.0))
        except Busy:
            return
        if fork.record() is not None or fork.checkpoint.exists() or fork.older_checkpoint.exists():
            return
        shutil.copyfile(trunk.metrics, fork.metrics)
        fork.note(EVENT, of=trunk.id, step=step)
        checkpoint.save(fork.checkpoint, state)  # last: before it there is nothing to go on from


def forked_from(history: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Whose steps a trial went on from, as `trial` and `step`; None where it has trained all by itself."""
    found = None
    for note in history:
        if note["event"] == EVENT:
            found = {"trial": note.get("of"), "step": note.get("step")}
        elif note["event"] == "start":
            found = None
    return found
