"""`ablate plan --probe`: every row measured on the device that its trials would get, each in a process of its own, so
that memory is the row's own and a crash there is a finding."""

from __future__ import annotations

import platform
import signal
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ablate import __version__, registry
from ablate.errors import UserError
from ablate.resolve import default_gpus
from ablate.rows import Row
from ablate.run.environment import device_name
from ablate.run.files import read_json, write_json
from ablate.run.forking import server, start
from ablate.run.ledger import Ledger
from ablate.run.measure import Figures, measure
from ablate.spec import TrialSpec, digest
from ablate.train.job import Job
from ablate.train.memory import out_of_memory


def device_of(spec: TrialSpec) -> torch.device:
    """The kind of device that a trial gets on this machine."""
    return torch.device("cuda:0" if default_gpus(spec) and torch.cuda.is_available() else "cpu")


def kept(cache: Path, spec: TrialSpec) -> Path:
    """The file of what was measured: of a row, a device with so many threads, and the versions of the libraries."""
    facts = [device_name(device_of(spec)), spec.resources.cpus, torch.__version__, torch.version.cuda]
    return cache / "probes" / f"{digest([spec.row_id, *facts, platform.python_version(), __version__])}.json"


def known(cache: Path, spec: TrialSpec) -> Figures | None:
    """What was measured before, None where nothing was."""
    found = read_json(kept(cache, spec))
    return found if isinstance(found, dict) else None


def probe(rows: Iterable[Row], ledger: Ledger, fresh: bool, say: Callable[[str], None]) -> dict[str, Figures]:
    """What was measured, by the rows' `row_id`, or why nothing could be, as {"failed": reason}.

    Kept, unless it failed, and measured again where it is not there, or asked for `fresh`. One after the other: each
    row has the device to itself.
    """
    specs = {row.spec.row_id: (row, row.spec) for row in rows}
    found: dict[str, Figures] = {}
    for number, (key, (row, spec)) in enumerate(specs.items(), 1):
        before = None if fresh else known(ledger.cache, spec)
        if before is None:
            say(f"measuring {row.variant} ({row.cell}): {number} of {len(specs)}")
            found[key] = in_a_process(spec, ledger)
            if "failed" not in found[key]:
                found[key] = {"device": device_name(device_of(spec)), "threads": spec.resources.cpus, **found[key]}
                write_json(kept(ledger.cache, spec), found[key])
        else:
            found[key] = before
    return found


def in_a_process(spec: TrialSpec, ledger: Ledger) -> Figures:
    """`measure` in a process that ends with it."""
    job = Job(
        spec.row_id,
        str(ledger.root.resolve()),
        device=str(device_of(spec)),
        threads=spec.resources.cpus,
        plugins=registry.plugin_files(),
    )
    context = server()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, job, spec), daemon=True)
    start(process)
    theirs.close()
    try:
        return dict(ours.recv())
    except (EOFError, ConnectionResetError):
        process.join(timeout=5)
        code = process.exitcode
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        return {"failed": f"its process ended by {how}"}
    finally:
        if process.is_alive():
            process.join(timeout=5)
            process.kill()


def _answer(pipe: Connection, job: Job, spec: TrialSpec) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    pipe.send(_attempt(job, spec))


def _attempt(job: Job, spec: TrialSpec) -> dict[str, Any]:
    """What was measured, or why not in words."""
    try:
        return measure(job, spec)
    except UserError as error:
        return {"failed": str(error)}
    except (Exception, MemoryError) as error:
        kind = "out of memory" if out_of_memory(error) else type(error).__name__
        return {"failed": f"{kind}: {error}"}
