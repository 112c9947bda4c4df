"""A training run and its files: its curve, its checkpoints, its record."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ablate.cost import Cost, CostBook
from ablate.diagnose.record import diagnose
from ablate.run.ledger import Ledger, TrialFolder
from ablate.spec import TrialSpec
from ablate.train import checkpoint
from ablate.train.clock import Clock
from ablate.train.compiling import compile_model, pays
from ablate.train.fitted import new_run
from ablate.train.followers import Follower, Followers
from ablate.train.job import Job
from ablate.train.memory import Pieces
from ablate.train.profile import NoProfile, Profile
from ablate.train.record import record_of
from ablate.train.run import Diverged, Run

CHECKPOINT_SHARE = 0.02  # at most this part of a trial's time goes into checkpoints

Progress = dict[str, Any]


class Trial:
    """A training run and its files."""

    def __init__(
        self,
        job: Job,
        spec: TrialSpec,
        folder: TrialFolder,
        device: torch.device,
        ledger: Ledger,
        pieces: Pieces,
        clock: Clock | None = None,
    ):
        self.job, self.spec, self.folder, self.device, self.pieces = job, spec, folder, device, pieces
        self.ledger = ledger
        parent = ledger.trial(spec.parent).weights if spec.parent else None
        alone = clock is None and spec.resources.parallel.ranks == 1 and pieces.count == 1
        # asked while the device is empty
        self.compiled = job.compiles and alone and pays(spec, device, ledger.cache)
        self.run = self._begun(parent)
        self.run.pieces = pieces.count
        if self.compiled:
            compile_model(self.run.model)
        task = self.run.task
        book = CostBook(ledger.cache / "cost")
        self.cost: Cost = book.cost(spec.arch, task.vocab, task.length(spec.arch), **task.sizes)
        self.clock = clock or Clock()
        self.train_before_s = self.wall_before_s = 0.0
        self.saved = self.shown = time.perf_counter()
        self.checkpoint_every_s = job.checkpoint_every_s
        self.last_loss: float | None = None
        self.profile = Profile(device) if job.profile else NoProfile()
        self.layers_at_first: dict[str, list[float | None]] | None = None
        self.seen_at_first: dict[str, Any] = {}
        self._resume()

    def _begun(self, parent: Path | None) -> Run:
        if self.spec.resources.parallel.ranks == 1:
            return new_run(self.spec, self.device, self.ledger.cache, parent)
        from ablate.train.parallel.run import ParallelRun  # torch.distributed takes a second to import

        return ParallelRun(self.spec, self.device, self.ledger.cache)

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is whole, with the curve cut back to it; or begin. A damaged one is
        removed, and named in the attempts."""
        damaged: dict[str, Any] = {}
        for file in (self.folder.checkpoint, self.folder.older_checkpoint):
            state = checkpoint.load(file)
            if state is not None and self._fits_curve(state):
                self.run.restore(state)
                self.pieces.go_on(state)
                self.run.pieces = self.pieces.count
                self.train_before_s, self.wall_before_s = state["train_s"], state["wall_s"]
                self.last_loss = state["last_loss"]
                self.layers_at_first = state["layers_at_first"]
                self.seen_at_first = state["seen_at_first"]
                if self.job.profile:
                    self.profile = Profile(self.device, state["profile"])
                self.run.profile = self.profile
                self._follow(state["followers"])
                os.truncate(self.folder.metrics, state["metrics_bytes"])
                self.folder.note("resume", step=self.run.step, study=self.job.study, **damaged)
                return
            if file.exists():
                damaged = {"fell_back": [*damaged.get("fell_back", []), file.name]}
                file.unlink()
        self.run.profile = self.profile
        self._follow(None)
        self.folder.metrics.write_bytes(b"")
        self.folder.note("start", step=0, study=self.job.study, **damaged)
        self.layers_at_first = self.run.by_layer()
        self.seen_at_first = diagnose(self.run, final=False)
        self._evaluate()

    def _follow(self, known: checkpoint.State | None) -> None:
        forks = self.job.forks if self.run.forks else ()
        self.followers = Followers(forks, self.spec.train.eval_points, self.device, known)
        self.run.followed = self.followers.sums

    def _fits_curve(self, state: checkpoint.State) -> bool:
        """Whether the curve still begins with what it was when the checkpoint was written."""
        size = state["metrics_bytes"]
        known = self.folder.metrics.exists() and self.folder.metrics.stat().st_size >= size
        return known and checkpoint.hash_of(self.folder.metrics, size) == state["metrics_sha256"]

    def last_step(self) -> int:
        """Where this attempt ends."""
        if self.job.stop:
            return self.run.step
        return self.run.steps if self.job.until is None else self.job.until

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.perf_counter() - self.saved > self.checkpoint_every_s

    def after_step(self, saving: bool | None = None) -> Iterator[Progress]:
        """What is due after a step: an evaluation of this trial or of one that follows it, a report, a checkpoint
        (`saving`, where others decide that)."""
        looking = self.followers.looking(self.run.step)
        if self._looks() or looking:
            self._look(looking)
            yield self.progress()
            self.shown = time.perf_counter()
            self.clock.train()
            return
        self._leave_forks()
        now = time.perf_counter()
        if now - self.shown > self.job.progress_every_s:
            self.shown = now
            yield self.progress()
        if self.due() if saving is None else saving:
            self.save()

    def _look(self, looking: Sequence[Follower]) -> None:
        run = self.run
        took: list[tuple[Any, Any]] = [(each, each.sums) for each in looking]
        took += [(self.folder, run)] if self._looks() else []
        rows = [(curve, sums.take_means(), sums.take_maxima()) for curve, sums in took]  # waits for the device
        self.clock.rest()
        for curve, (loss, norm), maxima in rows:
            curve.add_row(self._row("batch", loss, grad_norm=norm, lr=run.rate(), **maxima))
        self._evaluate()
        self._leave_forks()

    def _looks(self) -> bool:
        """Whether this trial is evaluated now."""
        return self.run.step in self.run.eval_steps or self.run.step == self.run.steps

    def _evaluate(self) -> None:
        last, own = self.run.step == self.run.steps, self._looks()
        for split in self.run.splits_at(last):
            self.profile.begin()
            metrics = self.run.evaluate(split, last)
            self.profile.lap("evaluation")
            row, loss = self._row(split, **metrics), metrics["loss"]
            main = split == "valid" or "valid" not in self.run.task.splits
            if own:
                self.folder.add_row(row)
                self.last_loss = loss if main else self.last_loss
            for each in self.followers.looking(self.run.step):
                each.add_row(row)
                each.last_loss = loss if main else each.last_loss
            self.profile.lap("logging")
            if last and not math.isfinite(loss):  # the last updates spoiled it, after the last look at its loss
                raise Diverged(f"the {split} loss is {loss} at step {self.run.step}")

    def _row(self, split: str, loss: float, **others: float) -> dict[str, Any]:
        at = {"step": self.run.step, "tokens": self.spec.train.tokens_at(self.run.step)}
        return {key: _finite(value) for key, value in {**at, "split": split, "loss": loss, **others}.items()}

    def save(self) -> None:
        """Write a checkpoint, and space the next ones so that writing them stays a small part of the time."""
        self.clock.rest()
        begun = time.perf_counter()
        self.profile.begin()
        checkpoint.save(self.folder.checkpoint, self._state(), self.folder.keep_older_checkpoint)
        self.profile.lap("checkpoint")
        self.saved = time.perf_counter()
        took = (self.saved - begun) * self.clock.sharers
        self.checkpoint_every_s = max(self.job.checkpoint_every_s, took / CHECKPOINT_SHARE)
        self.clock.train()

    def _leave_forks(self) -> None:
        """Leave the state to the trials that have the steps so far, and no more, in common with this one."""
        if not (ready := self.followers.ready(self.run.step)):
            return
        self.clock.rest()
        state = self._state()
        for each in ready:
            each.leave(self.folder, state)
        self.run.followed = self.followers.sums
        self.clock.train()

    def _state(self) -> checkpoint.State:
        """Everything to go on from, with the curve so far on the disk."""
        with open(self.folder.metrics, "rb") as stream:
            os.fsync(stream.fileno())
        size = self.folder.metrics.stat().st_size
        return self.run.state() | {
            "metrics_bytes": size,
            "metrics_sha256": checkpoint.hash_of(self.folder.metrics, size),
            "train_s": self.train_s,
            "wall_s": self.wall_s(),
            "last_loss": self.last_loss,
            "layers_at_first": self.layers_at_first,
            "seen_at_first": self.seen_at_first,
            "profile": self.profile.state(),
            "followers": self.followers.state(),
            **self.pieces.state(),
        }

    @property
    def train_s(self) -> float:
        return self.train_before_s + self.clock.train_s

    def wall_s(self) -> float:
        return self.wall_before_s + self.clock.wall_s()

    def progress(self) -> Progress:
        tokens = self.spec.train.tokens_at(self.run.step)
        return {
            "id": self.job.trial_id,
            "step": self.run.step,
            "steps": self.run.steps,
            "tokens": tokens,
            "loss": self.last_loss,
        }

    def leave_off(self) -> None:
        """Stop here, to be gone on with."""
        self.save()
        self.folder.note("stop", step=self.run.step)

    def reach(self) -> Progress:
        """The last step of this attempt is done: the trial has finished, pauses, or was stopped."""
        if self.job.stop:
            return self.end("stopped", "not among the best at a rung")
        if self.run.step >= self.run.steps:
            return self.end("finished")
        self.save()
        self.folder.note("pause", step=self.run.step)
        return {**self.progress(), "status": "paused"}

    def end(self, status: str, reason: str | None = None) -> Progress:
        """Write the record, with `reason` why it did not finish."""
        record = self.finish(status, reason)
        self.folder.note("end", status=record["status"])
        return {**self.progress(), "status": record["status"], "loss": record["metrics"]["loss"]}

    def finish(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """Keep the final weights, commit the record, and only then let go of the checkpoints."""
        if status == "diverged":
            self.folder.add_row(self._row("batch", float("nan")))
        weights = {"model": self.run.measured().state_dict(), "step": self.run.step}
        checkpoint.save(self.folder.weights, weights, self.folder.check_held)
        record = record_of(self, status, reason)
        self.folder.commit(record)
        if status != "stopped":  # another study may want it trained to its end
            self.folder.forget_checkpoints()
        return record


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
