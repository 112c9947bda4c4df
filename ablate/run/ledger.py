"""The ledger: what is done. One folder a trial; `record.json` is written once, by rename, when the trial ends.

    results/trials/<id>/spec.json       what was asked
                        metrics.jsonl   the curve: append-only, truncated to its checkpoint on resume
                        checkpoint.pt   the state to go on from, while it has not ended
                        weights.pt      the final weights
                        attempts.jsonl  when and where it started, resumed, ended
                        record.json     how it ended: finished | diverged | failed | stopped
    results/studies/<name>/study.json   the trials of a study with their labels; why some are not needed, if so
                           log.jsonl    what each `ablate run` trained and reused

The ledger is the truth: neither Ray's state nor MLflow is ever read back to decide what is done.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablate.errors import UserError, unknown
from ablate.run import schema
from ablate.run.files import append_json, read_json, read_jsonl, write_json

ENDED = ("finished", "diverged", "failed", "stopped")
LOCK_PATIENCE_S = 30.0  # a killed worker's lock is freed by the kernel, but not at once


class TrialFolder:
    """One trial's files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.id = folder.name
        self.spec = folder / "spec.json"
        self.metrics = folder / "metrics.jsonl"
        self.checkpoint = folder / "checkpoint.pt"
        self.weights = folder / "weights.pt"
        self.attempts = folder / "attempts.jsonl"
        self._record = folder / "record.json"

    def record(self) -> dict[str, Any] | None:
        """How the trial ended, None while it has not."""
        record = read_json(self._record)
        return record if isinstance(record, dict) and record.get("status") in ENDED else None

    def commit(self, record: dict[str, Any]) -> None:
        """End the trial. The record is whole or absent, whatever happens while it is written."""
        assert record["status"] in ENDED
        write_json(self._record, record)

    def sweep(self) -> None:
        """Remove what a kill left half written. For the holder of the lock, who alone writes these files."""
        for file in (self.checkpoint, self.weights, self._record):
            for part in self.folder.glob(f".{file.name}.*.part"):
                part.unlink(missing_ok=True)

    def forget_record(self) -> None:
        """Let a failed trial be tried again; its attempts stay listed."""
        self._record.unlink(missing_ok=True)

    def note(self, event: str, **facts: Any) -> None:
        """Add a line to the attempts."""
        host = os.uname().nodename
        append_json(self.attempts, {"event": event, "time": time.time(), "pid": os.getpid(), "host": host, **facts})

    def history(self) -> list[dict[str, Any]]:
        return read_jsonl(self.attempts)

    def rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self.metrics)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the trial: no two processes of one machine train it at once. Raises `UserError` when it is busy."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as stream:
            deadline = time.monotonic() + LOCK_PATIENCE_S
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(f"trial {self.id} is being trained by another process") from None
                    time.sleep(0.1)
            yield

    def running(self) -> bool:
        """Whether some process of this machine holds the trial now."""
        try:
            with open(self.folder / "lock") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def status(self) -> str:
        """finished | diverged | failed | stopped | running | pending."""
        record = self.record()
        if record is not None:
            return str(record["status"])
        return "running" if self.running() else "pending"


class Ledger:
    """All trials and studies of one results folder."""

    def __init__(self, root: Path):
        schema.schema_of(root)  # one of a newer version is not touched
        self.root = root
        self.cache = root / "cache"

    def trial(self, trial_id: str) -> TrialFolder:
        return TrialFolder(self.root / "trials" / trial_id)

    def trial_ids(self) -> list[str]:
        folder = self.root / "trials"
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(each.name for each in found if each.is_dir() and not each.name.startswith("."))

    def find_trial(self, prefix: str) -> TrialFolder:
        """The trial whose id begins with `prefix`. Raises `UserError` when there is none, or more than one."""
        schema.require_current(self.root)
        found = [each for each in self.trial_ids() if each.startswith(prefix)]
        if len(found) == 1:
            return self.trial(found[0])
        if found:
            raise UserError(f"{prefix!r} begins the ids of {len(found)} trials: {', '.join(found[:5])}")
        raise UserError(f"no trial {prefix!r} in {self.root / 'trials'}")

    def study_folder(self, name: str) -> Path:
        return self.root / "studies" / name

    def study_names(self) -> list[str]:
        folder = self.root / "studies"
        if not folder.is_dir():
            return []
        return sorted(each.name for each in folder.iterdir() if (each / "study.json").is_file())

    def study(self, name: str) -> dict[str, Any]:
        """The study as `ablate run` resolved it. Raises `UserError` with the known names."""
        schema.require_current(self.root)
        study = read_json(self.study_folder(name) / "study.json")
        if study is None:
            known = self.study_names()
            where = f"in {self.root}"
            raise UserError(f"{unknown('study', name, known)} {where}" if known else f"no study {name!r} {where}")
        return dict(study)

    @contextmanager
    def study_lock(self, name: str) -> Iterator[None]:
        """One driver a study at a time. Raises `UserError` at once when another one is at it."""
        schema.prepare(self.root)
        folder = self.study_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another `ablate run` is at study {name!r}: wait for it, or watch it with `ablate status {name}`"
                ) from None
            yield
