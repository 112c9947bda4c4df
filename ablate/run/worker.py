"""What runs in a worker process, whoever started it: jobs in, events out.

An event is a dictionary with the trial's `id`; the last one of a trial has its `status`. An event with `fatal`
says that the machine, not the trial, is at fault: a full disk, a changed plugin.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator
from multiprocessing.connection import Connection
from typing import Any

from ablate.errors import UserError
from ablate.train.trial import Job, run_trial

Event = dict[str, Any]
FULL = (errno.ENOSPC, errno.EDQUOT)


def work(job: Job) -> Generator[Event, None, None]:
    """Run one trial; what is not the trial's fault becomes a `fatal` event instead of an exception."""
    trial = run_trial(job)
    try:
        for event in trial:  # noqa: UP028 - a delegated close would end in the handlers below
            yield event
    except UserError as error:
        yield {"id": job.trial_id, "fatal": str(error), "code": 2}
    except OSError as error:
        full = error.errno in FULL
        hint = ": the disk is full; free some space and run the command again" if full else ""
        yield {"id": job.trial_id, "fatal": f"trial {job.trial_id}: {error}{hint}", "code": 75 if full else 1}
    finally:
        with contextlib.suppress(OSError):  # asked to stop, on a full disk: the checkpoint before this one stands
            trial.close()


def serve(pipe: Connection) -> None:
    """A warm worker: trains the jobs that come through the pipe until None comes, or the driver is gone.

    Anything that comes while a trial runs means stop: the trial leaves a checkpoint.
    """
    try:
        while (job := pipe.recv()) is not None:
            events = work(job)
            for event in events:
                pipe.send(event)
                if pipe.poll():
                    events.close()
                    return
            pipe.send({"id": job.trial_id, "idle": True})
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the driver was killed: the ledger has what there is
