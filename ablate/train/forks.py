"""Forks: trials that differ in how long they train have their first steps in common, and train them once.

Under a schedule whose rate does not know the end of the run until it begins to decay (constant; warm-up, stable,
decay with a warm-up of a fixed number of steps) the longest trial, the trunk, passes through the very states of the
shorter ones: batches, dropout and rates depend on the seed and the step alone. At the last step in common it leaves
its state in the folder of the shorter trial, which goes on from there as from its own checkpoint: with the numbers,
bit for bit, that it would have come to by itself. The trunk is evaluated for each of them where that one would be.

Hägele et al. 2024, arXiv:2405.18392, section 4; Hu et al. 2024, arXiv:2404.06395.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ablate import registry
from ablate.run.files import json_line
from ablate.run.lease import Busy
from ablate.run.ledger import TrialFolder
from ablate.spec import TrialSpec
from ablate.train import checkpoint
from ablate.train.steps import evaluation_steps
from ablate.train.sums import Sums

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


@dataclass(frozen=True)
class Fork:
    """A trial of `steps` steps that has the first `step` of them in common with the one that is trained."""

    trial: str
    step: int
    steps: int


class Follower:
    """The curve of a fork, as long as the trunk trains its steps: evaluated where the fork would be."""

    def __init__(self, fork: Fork, eval_points: int, device: torch.device):
        self.fork = fork
        self.looks = frozenset(step for step in evaluation_steps(fork.steps, eval_points) if step <= fork.step)
        self.sums = Sums(device)
        self.lines = ""
        self.last_loss: float | None = None

    def add_row(self, row: Mapping[str, Any]) -> None:
        self.lines += json_line(row)

    def state(self) -> checkpoint.State:
        """For the trunk's checkpoint."""
        return {**self.sums.state(), "lines": self.lines, "last_loss": self.last_loss}

    def restore(self, state: checkpoint.State) -> None:
        self.sums.restore(state)
        self.lines, self.last_loss = state["lines"], state["last_loss"]

    def leave(self, trunk: TrialFolder, state: checkpoint.State) -> None:
        """Put the curve and the trunk's state where the fork goes on from; nothing where it has begun, has ended, is
        another process' at this moment, or is not here, as on a node that does not see the results."""
        fork, curve = TrialFolder(trunk.folder.with_name(self.fork.trial)), self.lines.encode()
        if not fork.spec.is_file():
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(fork.locked(patience_s=0.0))
            except Busy:
                return
            if fork.record() is not None or fork.checkpoint.exists() or fork.older_checkpoint.exists():
                return
            fork.metrics.write_bytes(curve)
            fork.note(EVENT, of=trunk.id, step=self.fork.step, wall_s=state["wall_s"])
            mine = {**self.state(), "followers": {}, "metrics_bytes": len(curve)}
            mine["metrics_sha256"] = hashlib.sha256(curve).hexdigest()
            checkpoint.save(fork.checkpoint, {**state, **mine})  # last: before it there is nothing to go on from


class Followers:
    """The curves of a trial's forks, until each is left its state."""

    def __init__(self, forks: Iterable[Fork], eval_points: int, device: torch.device, known: checkpoint.State | None):
        """`known` are those of a checkpoint that is gone on from: a fork that was not followed from its first step on
        is not followed at all."""
        self._all = [Follower(each, eval_points, device) for each in forks if known is None or each.trial in known]
        for each in self._all:
            if known is not None:
                each.restore(known[each.fork.trial])

    @property
    def sums(self) -> list[Sums]:
        return [each.sums for each in self._all]

    def looking(self, step: int) -> list[Follower]:
        """Those that would be evaluated after a step."""
        return [each for each in self._all if step in each.looks]

    def ready(self, step: int) -> list[Follower]:
        """Those that have no more steps in common, which are followed no more."""
        found = [each for each in self._all if each.fork.step == step]
        self._all = [each for each in self._all if each not in found]
        return found

    def state(self) -> checkpoint.State:
        return {each.fork.trial: each.state() for each in self._all}


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
