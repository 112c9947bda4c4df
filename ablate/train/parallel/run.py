"""A training run that several processes make together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ablate import registry
from ablate.errors import UserError
from ablate.spec import TrialSpec
from ablate.tasks.base import shares
from ablate.train import checkpoint
from ablate.train.checkpoint import State
from ablate.train.memory import difference
from ablate.train.parallel.ranks import Ranks, Seat, give_way, of_one_process
from ablate.train.parallel.spread import Replicated, Sharded, split
from ablate.train.remembered import common, remembered
from ablate.train.run import TrainingRun, constrained
from ablate.train.sums import Sums

_MIX = 0xC2B2AE3D27D4EB4F  # spreads the part of the batch over a seed's bits


class ParallelRun(TrainingRun):
    """Each process computes its part of every batch; parts weigh by the targets that they have, so that the gradient
    is that of the whole up to rounding. Rank 0 evaluates, looks inside and has the state, which is that of a run of
    one process: checkpoints are interchangeable.

    With dropout each part of a batch draws masks of its own, which are another draw than one process makes.
    """

    def __init__(self, spec: TrialSpec, device: torch.device, cache: Path, seat: Seat | None = None):
        """Without a seat this is rank 0, which starts the others. Raises `UserError` for what cannot be spread."""
        self.ranks: Ranks | None = None
        if seat is None:
            refuse(spec, cache)
            self.ranks = Ranks(spec, device, cache)
            seat = self.ranks.seat
        self.seat = seat
        sharded = seat.parallel.shard or seat.parallel.tensor > 1
        try:
            super().__init__(spec, torch.device("cpu") if sharded and seat.rank else device, cache)
            self.device, self.sums = device, Sums(device)
            self.spread: Replicated | Sharded = (Sharded if sharded else Replicated)(self, seat)
        except BaseException:
            self.close()
            raise
        self._fresh = True  # the run's own model is what has been trained

    def do(self, what: str, **how: Any) -> None:
        """What rank 0 has told all to do."""
        known: dict[str, Callable[..., Any]] = {"step": self._step, "settle": self._settle, "load": self._load}
        known[what](**how)

    def train_step(self) -> None:
        with self._together("step"):
            self._step()

    def _step(self) -> None:
        lap = self.profile.lap
        self.profile.begin()
        self._fresh = False
        self._seed_dropout()
        rate = self.next_rate()
        for group in self.spread.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        if not self.spread.model.training:
            self.spread.model.train()
        self.spread.optimizer.zero_grad(set_to_none=True)
        lap("optimizer")
        data = self.seat.parallel.data
        parts = self.paced.micro(self.step, self.pieces * data)
        weights = shares(parts)
        nll = torch.zeros((), dtype=torch.float64, device=self.device)
        for at in range(self.seat.data, len(parts), data):
            batch = parts[at].to(self.device)
            lap("data")
            with self.spread.accumulating(at + data >= len(parts)):
                with self.autocast():
                    objective, part_nll = self.spread.objective(batch)
                lap("forward")
                (objective * (weights[at] * data)).backward()  # the others' are averaged with it
            nll += part_nll * weights[at]
            lap("backward")
        dist.all_reduce(nll, group=self.seat.mesh["data"].get_group())
        norm = self.spread.clip(self.clip_limit)
        self.spread.optimizer.step()
        self.after_update(nll, norm)
        lap("optimizer")
        self.count_step(nll)

    def step_seed(self) -> int:
        return (super().step_seed() + self.seat.data * _MIX) % 2**63

    @contextlib.contextmanager
    def _together(self, what: str, **how: Any) -> Iterator[None]:
        """Around this process' part of what all do."""
        if self.ranks is not None:
            self.ranks.tell(what, **how)
        try:
            yield
        except RuntimeError:
            if self.ranks is not None and self.ranks.lost():
                give_way("a process of the trial was killed")
            raise

    def measured(self) -> torch.nn.Module:
        if not self._fresh:
            with self._together("settle", whole=False):
                self._settle(whole=False)
        return super().measured()

    def _settle(self, whole: bool) -> State | None:
        found = self.spread.settle(whole)
        self._fresh = True
        return found

    def state(self) -> State:
        with self._together("settle", whole=True):
            found = self._settle(whole=True)
        return super().state() | (found or {})

    def restore(self, state: State) -> None:
        assert self.ranks is not None
        file = self.ranks.folder / "state.pt"
        checkpoint.save(file, state)
        with self._together("load", file=str(file)):
            self._load(str(file))
        file.unlink()

    def _load(self, file: str) -> None:
        state = checkpoint.load(Path(file))
        assert state is not None
        super().restore(state)
        self.spread.load(state)
        dist.barrier()  # the file can go

    def close(self) -> None:
        if self.ranks is not None:
            self.ranks.end()
            self.ranks = None


def refuse(spec: TrialSpec, cache: Path) -> None:
    """Raise `UserError` for a trial that would be another experiment, or that is not implemented, over processes."""
    parallel, train = spec.resources.parallel, spec.train
    sharded = parallel.shard or parallel.tensor > 1
    rows = train.batch_tokens // spec.data.row_tokens // train.accumulate
    if rows % parallel.data:
        raise UserError(f"resources.parallel.data {parallel.data} does not divide the {rows} rows of a micro-batch")
    names = ["batch_ramp"] + ["ema", "mixout", "decay_to"] * sharded
    plain = {"decay_to": "zero"}
    if wrong := [name for name in names if getattr(train, name) != plain.get(name, 0.0)]:
        raise UserError(f"train.{wrong[0]} is not implemented with resources.parallel: leave one of them out")
    if spec.parent is not None:
        raise UserError("resources.parallel is for trials that begin from fresh weights")
    if sharded:
        task = registry.make("task", spec.data.task)
        task.open(spec.data, cache)
        model = task.build(spec.arch, spec.seed, 0.0)
        if slots := constrained(model):
            raise UserError(f"{slots[0].component} keeps a constraint after every step, which no part of it can")
        if parallel.tensor > 1:
            split(model, parallel.tensor, parallel.data)
    if parallel.data > 1:
        alike = common(of_one_process(spec))
        found = remembered(cache, "parts", alike, lambda: {"differs": difference(alike, cache)[0]})
        if (differs := found["differs"]) is not None:
            raise UserError(f"a batch in {parallel.data} parts would be another experiment: {differs}")
