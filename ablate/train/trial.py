"""One trial from its specification to its record: the core that every executor runs.

`run_trial` is a generator so that an executor can report progress, and stop a trial by closing it. It knows of
no executor and no tracker. A trial that was killed goes on from its last checkpoint with the same numbers.
"""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch

from ablate import registry
from ablate.errors import UserError
from ablate.run.environment import environment
from ablate.run.files import read_json, write_json
from ablate.run.lease import Busy
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.outcome import without_result
from ablate.spec import TrialSpec, canonical, to_tree
from ablate.train.job import Job
from ablate.train.memory import Pieces, free, out_of_memory
from ablate.train.run import Diverged
from ablate.train.training import Progress, Trial

OUT_OF_MEMORY = "out of memory"  # begins the error of a trial that ran out of it
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)


def run_trial(job: Job) -> Generator[Progress, None, None]:
    """Train one trial to its end, yielding progress; the last item has its `status`.

    What goes wrong inside the trial ends it as `failed` with its traceback; the executor only sees a trial that
    ended. Anything that kills the process leaves it to be resumed. Raises `Busy` where another process trains it,
    or has taken it over.
    """
    ledger = Ledger(Path(job.results))
    folder = ledger.trial(job.trial_id)
    with folder.locked():
        if (event := ended_before(folder)) is not None:
            yield event
            return
        # what goes wrong up to here is not the trial's fault, and leaves no record
        device = prepare_process(job)
        spec = folder.read_spec()
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


def ended_before(folder: TrialFolder) -> Progress | None:
    """The event of a trial that has ended since its job was planned. Its folder, which is locked, is put in order."""
    folder.sweep()
    folder.set_aside_unreadable()
    if (record := folder.record()) is None:
        return None
    return {"id": folder.id, "status": record["status"], "loss": record["metrics"]["loss"], "reused": True}


def prepare_process(job: Job) -> torch.device:
    """Settings that a trial's numbers depend on, made anew for every trial: nothing of the one before is left."""
    device = torch.device(job.device)
    settle_process(device, job.threads)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for file, code in job.plugins.items():
        for entry in registry.add_plugin(Path(file)):
            if entry.code != code:
                raise UserError(f"plugin {file} changed since the study was planned: run the command again")
    return device


def settle_process(device: torch.device, threads: int) -> None:
    """torch's settings on which numbers depend."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


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
        finally:
            if trial is not None:
                trial.run.close()
        trial = None  # with all that it holds on the device
        free(device)
        pieces.double(said)
        folder.note("oom", step=step, micro=pieces.count)


def _to_end(trial: Trial, job: Job) -> Iterator[Progress]:
    try:
        end = trial.last_step()
        trial.clock.train()
        while trial.run.step < end:
            trial.run.train_step()
            yield from trial.after_step()
    except GeneratorExit:  # asked to stop: nothing of what was done is lost
        trial.leave_off()
        raise
    except Diverged as reason:
        event = trial.end("diverged", str(reason))
    else:
        event = trial.reach()
    yield event


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
