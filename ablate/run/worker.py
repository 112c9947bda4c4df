"""What runs in a worker process, whoever started it: jobs in, events out.

An event is a dictionary with the trial's `id`; the last one of a trial has its `status`. An event with `fatal`
says that the machine, not the trial, is at fault: a full disk, a changed plugin. One with `busy` says who else
trains the trial: nothing was done here.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
from collections.abc import Generator
from multiprocessing.connection import Connection

import torch

from ablate.errors import UserError
from ablate.run.cores import allowed, pin
from ablate.run.files import full_disk
from ablate.run.lease import Busy
from ablate.train.cohort.trials import run_job
from ablate.train.job import Event, Job

REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def work(job: Job) -> Generator[Event, None, None]:
    """Run one trial, or a cohort; what is not the trial's fault becomes a `fatal` event instead of an exception."""
    trial = run_job(job)
    try:
        for event in trial:  # noqa: UP028 - a delegated close would end in the handlers below
            yield event
    except Busy as busy:
        yield {"id": job.trial_id, "busy": str(busy.who or "another process")}
    except UserError as error:
        yield {"id": job.trial_id, "fatal": str(error), "code": 2}
    except OSError as error:
        hint = full_disk(error)
        code = 75 if hint else 2 if error.errno in REFUSED else 1
        yield {"id": job.trial_id, "fatal": f"trial {job.trial_id}: {error}{hint}", "code": code}
    finally:
        with contextlib.suppress(OSError, Busy):  # asked to stop, on a full disk: the checkpoint before stands
            trial.close()


def serve(pipe: Connection) -> None:
    """A warm worker: trains the jobs that come through the pipe until None comes, or the driver is gone.

    Anything that comes while a trial runs means stop: the trial leaves a checkpoint.
    """
    home = allowed()
    try:
        while (job := pipe.recv()) is not None:
            pin(job.cores or home)
            events = work(job)
            for event in events:
                pipe.send(event)
                if pipe.poll():
                    events.close()
                    return
            _let_go()
            pipe.send({"id": job.trial_id, "idle": True})
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the driver was killed: the ledger has what there is


def _let_go() -> None:
    """Give the GPU's memory back: others may share it while this worker waits."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
