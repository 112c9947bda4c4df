"""Where trials' files are kept for nodes that do not share the driver's results folder, and how they get there.

A trial that is away trains in a folder of its node. What it has written goes to the store as it changes: the curve,
then the checkpoint that goes with it; at its end the weights and last of all the record. Whoever goes on with the
trial fetches these files first. Paths in a store are those of the results folder: `trials/<id>/record.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Protocol

from ablate.errors import UserError
from ablate.run.files import locked, write_text
from ablate.run.ledger import Ledger, TrialFolder

BETWEEN_S = 1.0  # changed files are brought no more often than this
LASTING = ("finished", "diverged")  # what ended in another way and is asked for is to be tried again
STATE = ("attempts.jsonl", "metrics.jsonl", "checkpoint.pt")  # what a trial goes on from, in the order of bringing


class Store(Protocol):
    """Files by their path. A file is there whole, or not."""

    def fetch(self, path: str, to: Path) -> bool:
        """Copy a file of the store; false where it has none."""

    def put(self, file: Path, path: str) -> None: ...

    def remove(self, path: str) -> None:
        """Let go of a file, if it is there."""

    def names(self, folder: str) -> list[str]:
        """The names of the files directly in a folder, sorted; none where there is no such folder."""


class FileStore:
    """A store of fsspec's: a folder at `file:///mnt/shared`, or `s3://bucket/prefix` with s3fs installed, ..."""

    def __init__(self, uri: str):
        import fsspec

        try:
            self.fs, self.root = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise UserError(f"--store {uri}: {error}") from None
        self.uri = uri

    def fetch(self, path: str, to: Path) -> bool:
        to.parent.mkdir(parents=True, exist_ok=True)
        part = to.with_name(f".{to.name}.{os.getpid()}.part")
        try:
            self.fs.get_file(f"{self.root}/{path}", str(part))
            os.replace(part, to)
        except FileNotFoundError:
            return False
        finally:
            part.unlink(missing_ok=True)
        return True

    def put(self, file: Path, path: str) -> None:
        to = f"{self.root}/{path}"
        part = f"{to}.{os.uname().nodename}-{os.getpid()}.part"
        self.fs.makedirs(to.rpartition("/")[0], exist_ok=True)
        self.fs.put_file(str(file), part)
        self.fs.mv(part, to)

    def remove(self, path: str) -> None:
        try:
            self.fs.rm_file(f"{self.root}/{path}")
        except FileNotFoundError:
            pass

    def names(self, folder: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(f"{self.root}/{folder}", detail=True)
        except FileNotFoundError:
            return []
        return sorted(each["name"].rpartition("/")[2] for each in found if each["type"] == "file")


class Courier:
    """Carries the files of one trial at a time between a store and a results folder of this node.

    What the store does not have is looked for in `origin`, where trials are planned and other studies' lie.
    """

    def __init__(self, store: Store, results: Path, origin: Store | None = None):
        self.store, self.origin, self.ledger = store, origin or store, Ledger(results)
        self._folder: TrialFolder | None = None
        self._brought: dict[str, tuple[int, int]] = {}
        self._last = 0.0

    def fetch(self, trial_id: str) -> TrialFolder:
        """Make the trial's folder here what is known of it. Raises `UserError` where it is not planned."""
        self._folder = folder = self.ledger.trial(trial_id)
        self._brought = {}
        if folder.record() is not None:  # it ended here, and the worker died before that was known
            return folder
        shutil.rmtree(folder.folder, ignore_errors=True)
        place = f"trials/{trial_id}"
        if not self.origin.fetch(f"{place}/spec.json", folder.spec):
            raise UserError(f"trial {trial_id} is not where it was planned: run the command again")
        known = {"checkpoint.pt", "record.json"}
        source = self.store if known & set(self.store.names(place)) else self.origin
        if source is not self.origin and source.fetch(f"{place}/record.json", folder.folder / "record.json"):
            if (folder.record() or {}).get("status") not in LASTING:
                folder.forget_record()
        for name in reversed(STATE):  # the curve after its checkpoint: it is the longer one
            source.fetch(f"{place}/{name}", folder.folder / name)
        if source is self.store:
            self._brought = {name: _stamp(folder.folder / name) for name in STATE}
        return folder

    def fetch_weights(self, trial_id: str) -> None:
        """The weights that another trial begins from."""
        file, path = self.ledger.trial(trial_id).weights, f"trials/{trial_id}/weights.pt"
        if not file.is_file() and not self.store.fetch(path, file):
            self.origin.fetch(path, file)

    def bring(self, at_once: bool = False) -> None:
        """What has changed since it was last looked at; `at_once` even where that was a moment ago."""
        if self._folder is None or (not at_once and time.monotonic() - self._last < BETWEEN_S):
            return
        self._last = time.monotonic()
        folder, held = self._folder, self._folder.folder / ".checkpoint.held"
        held.unlink(missing_ok=True)
        if folder.checkpoint.is_file():
            os.link(folder.checkpoint, held)  # of this moment, whatever the trial writes meanwhile
        try:
            self._put_changed("attempts.jsonl", folder.attempts)
            self._put_changed("metrics.jsonl", folder.metrics)
            self._put_changed("checkpoint.pt", held)
        finally:
            held.unlink(missing_ok=True)

    def end(self) -> None:
        """Bring everything of a trial that has ended, its record last, and let go of what is here."""
        assert self._folder is not None
        folder, place = self._folder, f"trials/{self._folder.id}"
        self.bring(at_once=True)
        if folder.weights.is_file():
            self.store.put(folder.weights, f"{place}/weights.pt")
        if folder.record() is not None:
            self.store.put(folder.folder / "record.json", f"{place}/record.json")
            if not folder.checkpoint.is_file():
                self.store.remove(f"{place}/checkpoint.pt")
            folder.forget_record()
            shutil.rmtree(folder.folder, ignore_errors=True)  # its worker lets go of its lease at this moment
        self._folder = None

    def _put_changed(self, name: str, file: Path) -> None:
        stamp = _stamp(file)
        if stamp != (0, 0) and stamp != self._brought.get(name):
            assert self._folder is not None
            self.store.put(file, f"trials/{self._folder.id}/{name}")
            self._brought[name] = stamp


def bring_home(store: Store, folder: TrialFolder) -> None:
    """Copy a trial that has ended or waits from a store to its folder, which the caller holds, its record last. The
    checkpoint stays."""
    ours, place = folder.history(), f"trials/{folder.id}"
    for name in ("metrics.jsonl", "weights.pt", "attempts.jsonl"):
        store.fetch(f"{place}/{name}", folder.folder / name)
    theirs = folder.history()
    lines = sorted([*theirs, *(row for row in ours if row not in theirs)], key=lambda row: float(row["time"]))
    write_text(folder.attempts, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines))
    if store.fetch(f"{place}/record.json", folder.folder / "record.json"):
        folder.forget_checkpoints()


def fetch_folder(store: Store, folder: str, results: Path) -> None:
    """A folder of the cache, once for all trials of this node: whole, or not there."""
    place = results / folder
    with locked(place.with_name(f"{place.name}.fetched.lock")):
        if place.is_dir():
            return
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        names = store.names(folder)
        for name in names:
            store.fetch(f"{folder}/{name}", part / name)
        if names:
            os.replace(part, place)


def write_plugins(texts: dict[str, str], codes: dict[str, str], place: Path) -> dict[str, str]:
    """The plugins of a job as files of this node (path -> hash): where one is not, or says something else, its text
    is written."""
    found = {}
    for path, code in codes.items():
        file = Path(path)
        if path in texts and not (file.is_file() and file.read_text(encoding="utf-8") == texts[path]):
            file = place / "plugins" / code / file.name
            if not file.is_file():
                write_text(file, texts[path])
        found[str(file)] = code
    return found


def _stamp(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
