"""The driver's results folder as a store: an actor of the driver's node, the only writer for others."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray

from ablate import registry
from ablate.errors import UserError
from ablate.run.lease import Busy
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.store import FileStore, bring_home
from ablate.train.job import Job

CHUNK = 16 * 2**20  # bytes a message


class Outdated(Exception):
    """Another worker has the trial by now."""


@ray.remote(num_cpus=0)
class Home:
    """Reads and writes files of the results folder. A trial's files are written by whom it was dealt to last."""

    def __init__(self, results: str, store: str | None = None):
        self.root = Path(results)
        self.store = FileStore(store) if store else None
        self.leases: dict[str, int] = {}
        self.held: dict[str, tuple[TrialFolder, ExitStack]] = {}
        self.caches: dict[Any, list[str]] = {}

    def lease(self, trial_id: str) -> tuple[int, str]:
        """Deal a trial: a number for its writer, which outdates those before. The trial is held in the ledger until
        `release`; where another run holds it, who does."""
        if trial_id not in self.held:
            folder, stack = Ledger(self.root).trial(trial_id), ExitStack()
            try:
                stack.enter_context(folder.locked())
            except Busy as busy:
                return 0, str(busy.who or "another process")
            self.held[trial_id] = folder, stack
        self.leases[trial_id] = self.leases.get(trial_id, 0) + 1
        return self.leases[trial_id], ""

    def release(self, trial_id: str, ended: bool = False) -> None:
        """Let go of a trial, if it is held; of one that has ended when it is here whole."""
        if trial_id in self.held:
            folder, held = self.held.pop(trial_id)
            with held:
                if ended and self.store is not None:
                    bring_home(self.store, folder)

    def read(self, path: str, offset: int) -> bytes | None:
        """Up to a message's length of a file; None where it is not there."""
        try:
            with open(self.root / path, "rb") as stream:
                stream.seek(offset)
                return stream.read(CHUNK)
        except FileNotFoundError:
            return None

    def write(self, path: str, lease: int, offset: int, data: bytes, last: bool) -> None:
        """A part of a file, in its place once the last part has come."""
        file = self._own(path, lease)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")  # a trial's `sweep` knows these names
        with open(part, "r+b" if offset else "wb") as stream:
            stream.seek(offset)
            stream.write(data)
            if last:
                stream.flush()
                os.fsync(stream.fileno())
        if last:
            os.replace(part, file)

    def remove(self, path: str, lease: int) -> None:
        self._own(path, lease).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        place = self.root / folder
        return sorted(each.name for each in place.iterdir() if each.is_file()) if place.is_dir() else []

    def cache_folders(self, job: Job) -> list[str]:
        """The folders of the cache that a trial reads; none where its data cannot be opened here."""
        for file in job.plugins:
            registry.add_plugin(Path(file))
        spec = Ledger(self.root).trial(job.trial_id).read_spec()
        if spec.data not in self.caches:
            task = registry.make("task", spec.data.task)
            try:
                task.open(spec.data, self.root / "cache")
            except (UserError, OSError):
                return []  # the trial finds out by itself, where it runs
            wanted = {task.facts().get("fingerprint"), spec.data.vocabulary} - {None, ""}
            places = [f"cache/{kind}/{name}" for kind in ("tokens", "images") for name in sorted(wanted)]
            self.caches[spec.data] = [each for each in places if (self.root / each).is_dir()]
        return self.caches[spec.data]

    def _own(self, path: str, lease: int) -> Path:
        trials, trial_id, name = Path(path).parts
        if trials != "trials" or lease != self.leases.get(trial_id):
            raise Outdated(f"{path}: another worker has this trial")
        if trial_id in self.held:
            self.held[trial_id][0].check_held()
        return self.root / trials / trial_id / name


class HomeStore:
    """`Home` as a worker sees it: see `ablate.run.store.Store`."""

    def __init__(self, home: Any):
        self.home, self.lease = home, 0

    def take(self, trial_id: str) -> None:
        """From now on this worker is the one that writes the trial's files. Raises `Busy`."""
        self.lease, who = ray.get(self.home.lease.remote(trial_id))
        if who:
            raise Busy(who, None)

    def release(self, trial_id: str, ended: bool = False) -> None:
        ray.get(self.home.release.remote(trial_id, ended))

    def fetch(self, path: str, to: Path) -> bool:
        to.parent.mkdir(parents=True, exist_ok=True)
        part = to.with_name(f".{to.name}.{os.getpid()}.part")
        data = ray.get(self.home.read.remote(path, 0))
        if data is None:
            return False
        with open(part, "wb") as stream:
            while data:
                stream.write(data)
                more = len(data) == CHUNK
                data = ray.get(self.home.read.remote(path, stream.tell())) if more else None
        os.replace(part, to)
        return True

    def put(self, file: Path, path: str) -> None:
        size, offset = file.stat().st_size, 0
        with open(file, "rb") as stream:
            while True:
                data = stream.read(min(CHUNK, size - offset))
                last = offset + len(data) >= size or not data
                ray.get(self.home.write.remote(path, self.lease, offset, data, last))
                offset += len(data)
                if last:
                    return

    def remove(self, path: str) -> None:
        ray.get(self.home.remove.remote(path, self.lease))

    def names(self, folder: str) -> list[str]:
        return list(ray.get(self.home.names.remote(folder)))
