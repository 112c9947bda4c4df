"""What `ablate doctor` says of a results folder: its disk, its layout, who holds what in it, its MLflow store."""

from __future__ import annotations

import http.client
import os
import shutil
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ablate.doctor import FULL_GB, LOW_GB, NOTE, OK, PROBLEM, SLOW_SYNC_MS, Finding, sync_ms
from ablate.errors import UserError, plural
from ablate.run import schema
from ablate.run.lease import holder
from ablate.run.mlflow_store import database_of, default_uri, shown

KEPT = ("studies", "trials")  # folders of the results
PATIENCE_S = 2.0  # for a server


def disk(results: Path) -> Iterator[Finding]:
    """Whether it can be written, how much is free, and how long a file takes to be safe."""
    place = results.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding(PROBLEM, "disk", f"{place} cannot be written", "choose another folder with --results")
        return
    free = shutil.disk_usage(place).free / 1e9
    said = f"{free:,.1f} GB free at {results}"
    if free < FULL_GB:
        yield Finding(PROBLEM, "disk", said, "free some space: a run that fills the disk stops, with exit code 75")
    elif free < LOW_GB:
        yield Finding(NOTE, "disk", said, "`ablate gc` lists what nobody needs any more")
    else:
        yield Finding(OK, "disk", said)
    took = sync_ms(place)
    said = f"a small file is safe after {took:.1f} ms"
    if took > SLOW_SYNC_MS:
        advice = "every record and checkpoint waits for it: put --results on a local disk, or use fewer evaluations"
        yield Finding(NOTE, "fsync", said, advice)
    else:
        yield Finding(OK, "fsync", said)


def layout(results: Path) -> Iterator[Finding]:
    """Whether this version reads the folder."""
    if not results.is_dir():
        yield Finding(OK, "results", f"{results} does not exist yet: the first run makes it")
        return
    try:
        schema.require_current(results)
    except UserError as error:
        yield Finding(PROBLEM, "results", str(error))
        return
    counts = ", ".join(f"{name}: {len(_folders(results / name)):,}" for name in KEPT)
    yield Finding(OK, "results", f"layout {schema.schema_of(results)}, which this version writes; {counts}")


def leases(results: Path) -> Iterator[Finding]:
    """What is held now, and leases that a killed process has left."""
    folders = [each for name in KEPT for each in _folders(results / name) if any(each.glob("lease.*.json"))]
    holders = {folder.name: holder(folder) for folder in folders}
    held = [f"{name} by {who}" for name, who in holders.items() if who]
    stale = [name for name, who in holders.items() if not who]
    said = f"{plural(len(held), 'folder')} held" + f": {', '.join(held[:3])}" * bool(held)
    if stale:
        advice = "the next run takes them over by itself; nothing has to be done"
        names = ", ".join(stale[:3])
        yield Finding(NOTE, "leases", f"{said}; {len(stale)} left by killed processes: {names}", advice)
    else:
        yield Finding(OK, "leases", said)


def mlflow_store(results: Path) -> Iterator[Finding]:
    """Whether the store that runs publish to by themselves can be reached."""
    uri = default_uri(results)
    database = database_of(uri)
    if uri.startswith(("http://", "https://")):
        yield _server(uri)
    elif database is None:
        yield Finding(OK, "MLflow", f"store {shown(uri)}: not looked at")
    elif not database.is_file():
        yield Finding(OK, "MLflow", f"{database} does not exist yet: the first run makes it")
    else:
        try:
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=PATIENCE_S) as store:
                (runs,) = store.execute("select count(*) from runs").fetchone()
            store.close()
        except sqlite3.Error as error:
            advice = "results are not lost: move the file away, and `ablate track --all` publishes them anew"
            yield Finding(PROBLEM, "MLflow", f"{database} cannot be read: {error}", advice)
        else:
            yield Finding(OK, "MLflow", f"{database}: {plural(runs, 'run')}; `ablate ui` shows them")


def _server(uri: str) -> Finding:
    uri = shown(uri)  # whether it answers can be told without a password
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PATIENCE_S):
            return Finding(OK, "MLflow", f"{uri} answers")
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return Finding(OK, "MLflow", f"{uri} answers, with HTTP {error.code}")
        trouble = f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        trouble = str(error)
    advice = "trials are trained all the same; `ablate track --all` publishes them once it is back"
    return Finding(NOTE, "MLflow", f"{uri} does not answer: {trouble}", advice)


def _folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return [each for each in sorted(place.iterdir()) if each.is_dir() and not each.name.startswith(".")]
