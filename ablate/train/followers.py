"""What a trunk does for its forks while it trains (see `ablate.train.forks`): it is evaluated for each of them, and
leaves each its state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ablate.run.files import json_line
from ablate.run.lease import Busy
from ablate.run.ledger import TrialFolder
from ablate.train import checkpoint
from ablate.train.forks import EVENT
from ablate.train.job import Fork
from ablate.train.steps import evaluation_steps
from ablate.train.sums import Sums


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
