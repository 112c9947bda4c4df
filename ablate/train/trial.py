"""One trial from its specification to its record: the core that every executor runs.

`run_trial` is a generator so that an executor can report progress, and stop a trial by closing it. It knows of
no executor and no tracker. A trial that was killed goes on from its last checkpoint with the same numbers.
"""

from __future__ import annotations

import errno
import math
import os
import time
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch

from ablate import registry
from ablate.cost import Cost, CostBook
from ablate.diagnose.record import diagnose
from ablate.errors import UserError
from ablate.run.environment import environment
from ablate.run.files import read_json, write_json
from ablate.run.lease import Busy
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.outcome import without_result
from ablate.spec import TrialSpec, canonical, parse, to_tree
from ablate.train import checkpoint
from ablate.train.fitted import new_run
from ablate.train.forks import Followers
from ablate.train.job import Job
from ablate.train.memory import Pieces, free, out_of_memory
from ablate.train.profile import NoProfile, Profile
from ablate.train.record import record_of
from ablate.train.run import Diverged

OUT_OF_MEMORY = "out of memory"  # begins the error of a trial that ran out of it
CHECKPOINT_SHARE = 0.02  # at most this part of a trial's time goes into checkpoints
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)

Progress = dict[str, Any]


def run_trial(job: Job) -> Generator[Progress, None, None]:
    """Train one trial to its end, yielding progress; the last item has its `status`.

    What goes wrong inside the trial ends it as `failed` with its traceback; the executor only sees a trial that
    ended. Anything that kills the process leaves it to be resumed. Raises `Busy` where another process trains it,
    or has taken it over.
    """
    ledger = Ledger(Path(job.results))
    folder = ledger.trial(job.trial_id)
    with folder.locked():
        folder.sweep()
        folder.set_aside_unreadable()
        if (record := folder.record()) is not None:  # ended since this job was planned
            loss = record["metrics"]["loss"]
            yield {"id": job.trial_id, "status": record["status"], "loss": loss, "reused": True}
            return
        # what goes wrong up to here is not the trial's fault, and leaves no record
        device = prepare_process(job)
        spec = read_spec(folder)
        if spec.trial_id != job.trial_id:
            raise UserError(f"{folder.spec} says trial {spec.trial_id}, not {job.trial_id}")
        started = time.perf_counter()
        try:
            yield from _train(job, spec, folder, device, ledger)
        except Busy:  # another process has taken the trial over: it is that one's to write
            raise
        except (Exception, SystemExit) as error:
            if _is_the_machines(error, job):
                raise  # a full or read-only disk says nothing about the trial
            record = _failure(job, folder, error, time.perf_counter() - started)
            folder.commit(record)
            folder.note("end", status="failed")
            yield {"id": job.trial_id, "status": "failed", "loss": None, "error": record["error"]}


def read_spec(folder: TrialFolder) -> TrialSpec:
    """The specification in a trial's folder."""
    tree = read_json(folder.spec)
    if tree is None:
        raise UserError(f"{folder.spec} is missing or not whole")
    return parse(TrialSpec, tree)


def prepare_process(job: Job) -> torch.device:
    """Settings that a trial's numbers depend on, made anew for every trial: nothing of the one before is left."""
    torch.set_num_threads(job.threads)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_float32_matmul_precision("highest")
    device = torch.device(job.device)
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.reset_peak_memory_stats(device)
    for file, code in job.plugins.items():
        for entry in registry.add_plugin(Path(file)):
            if entry.code != code:
                raise UserError(f"plugin {file} changed since the study was planned: run the command again")
    return device


def _train(
    job: Job, spec: TrialSpec, folder: TrialFolder, device: torch.device, ledger: Ledger
) -> Iterator[Progress]:
    """Train; where memory is refused, go on from the last checkpoint in smaller pieces."""
    pieces = Pieces(spec, device, ledger.cache)
    while True:
        trial = None
        try:
            trial = Trial(job, spec, folder, device, ledger, pieces)
            yield from _to_end(trial, job)
            return
        except (Exception, MemoryError) as error:
            if not out_of_memory(error) or job.crowded:
                raise
            step, said = trial.run.step if trial else 0, str(error)
        trial = None  # with all that it holds on the device
        free(device)
        pieces.double(said)
        folder.note("oom", step=step, micro=pieces.count)


def _to_end(trial: Trial, job: Job) -> Iterator[Progress]:
    folder = trial.folder
    try:
        end = trial.run.step if job.stop else trial.run.steps if job.until is None else job.until
        while trial.run.step < end:
            yield from trial.until_evaluation()
    except GeneratorExit:  # asked to stop: nothing of what was done is lost
        trial.save()
        folder.note("stop", step=trial.run.step)
        raise
    except Diverged as reason:
        record = trial.finish("diverged", str(reason))
    else:
        if trial.run.step < trial.run.steps and not job.stop:
            trial.save()
            folder.note("pause", step=trial.run.step)
            yield {**trial.progress(), "status": "paused"}
            return
        record = trial.finish("stopped", "not among the best at a rung") if job.stop else trial.finish("finished")
    folder.note("end", status=record["status"])
    yield {**trial.progress(), "status": record["status"], "loss": record["metrics"]["loss"]}


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
    ):
        self.job, self.spec, self.folder, self.device, self.pieces = job, spec, folder, device, pieces
        parent = ledger.trial(spec.parent).weights if spec.parent else None
        self.run = new_run(spec, device, ledger.cache, parent)
        self.run.pieces = pieces.count
        task = self.run.task
        book = CostBook(ledger.cache / "cost")
        self.cost: Cost = book.cost(spec.arch, task.vocab, task.length(spec.arch), **task.sizes)
        self.train_s = 0.0
        self.wall_before_s = 0.0
        self.began = time.perf_counter()
        self.saved = self.segment = self.began
        self.checkpoint_every_s = job.checkpoint_every_s
        self.last_loss: float | None = None
        self.profile = Profile(device) if job.profile else NoProfile()
        self.layers_at_first: dict[str, list[float | None]] | None = None
        self.seen_at_first: dict[str, Any] = {}
        self._resume()

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
                self.train_s, self.wall_before_s = state["train_s"], state["wall_s"]
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

    def until_evaluation(self) -> Iterator[Progress]:
        """Train up to the next evaluation, of this trial or of one that follows it, and evaluate."""
        run = self.run
        self.segment = shown = time.perf_counter()
        while True:
            run.train_step()
            now = time.perf_counter()
            if self._looks() or self.followers.looking(run.step):
                break
            self._leave_forks()
            if now - shown > self.job.progress_every_s:
                shown = now
                yield self.progress()
            if now - self.saved > self.checkpoint_every_s:
                self.save()
        took: list[tuple[Any, Any]] = [(each, each.sums) for each in self.followers.looking(run.step)]
        took += [(self.folder, run)] if self._looks() else []
        rows = [(curve, sums.take_means(), sums.take_maxima()) for curve, sums in took]  # waits for the device
        self._clock()
        for curve, (loss, norm), maxima in rows:
            curve.add_row(self._row("batch", loss, grad_norm=norm, lr=run.rate(), **maxima))
        self._evaluate()
        self._leave_forks()
        yield self.progress()

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
        self._clock()
        begun = time.perf_counter()
        self.profile.begin()
        checkpoint.save(self.folder.checkpoint, self._state(), self.folder.keep_older_checkpoint)
        self.profile.lap("checkpoint")
        self.saved = self.segment = time.perf_counter()
        self.checkpoint_every_s = max(self.job.checkpoint_every_s, (self.saved - begun) / CHECKPOINT_SHARE)

    def _leave_forks(self) -> None:
        """Leave the state to the trials that have the steps so far, and no more, in common with this one."""
        if not (ready := self.followers.ready(self.run.step)):
            return
        self._clock()
        state = self._state()
        for each in ready:
            each.leave(self.folder, state)
        self.run.followed = self.followers.sums
        self.segment = time.perf_counter()

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

    def _clock(self) -> None:
        """Count the time since the segment began as training time."""
        now = time.perf_counter()
        self.train_s += now - self.segment
        self.segment = now

    def wall_s(self) -> float:
        return self.wall_before_s + time.perf_counter() - self.began

    def progress(self) -> Progress:
        tokens = self.spec.train.tokens_at(self.run.step)
        return {
            "id": self.job.trial_id,
            "step": self.run.step,
            "steps": self.run.steps,
            "tokens": tokens,
            "loss": self.last_loss,
        }

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


def _is_the_machines(error: BaseException, job: Job) -> bool:
    """Whether the machine or the results folder is at fault, and not a file or a service that the trial asked for."""
    if not isinstance(error, OSError):
        return False
    return error.errno in MACHINE or str(error.filename or "").startswith(job.results)


def _failure(job: Job, folder: TrialFolder, error: BaseException, wall_s: float) -> dict[str, Any]:
    kind = OUT_OF_MEMORY if out_of_memory(error) else type(error).__name__
    return without_result(
        folder,
        "failed",
        f"{kind}: {error}" if str(error) else kind,
        traceback=None if isinstance(error, UserError) else "".join(traceback.format_exception(error)),
        wall_s=wall_s,
        environment=environment(torch.device(job.device)),
    )


def plan_trial(ledger: Ledger, spec: TrialSpec) -> TrialFolder:
    """Write what is asked of a trial, where its text lies now, and what its id is the hash of."""
    folder = ledger.trial(spec.trial_id)
    tree = to_tree(spec)
    if folder.record() is None and read_json(folder.spec) != tree:  # the text may have moved since it was planned
        write_json(folder.spec, tree)
    if not folder.identity.is_file():
        write_json(folder.identity, canonical(spec))
    return folder


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
