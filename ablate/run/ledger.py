"""The ledger: what is done. One folder a trial; `record.json` is written once, by rename, when the trial ends.

    results/trials/<id>/spec.json       what was asked
                        identity.json   what that means: the tree whose hash is the id, with versions of components
                        metrics.jsonl   the curve: append-only, truncated to its checkpoint on resume
                        checkpoint.pt   the state to go on from, while it has not ended
                        checkpoint.1.pt the one before, should that be damaged
                        weights.pt      the final weights
                        attempts.jsonl  when and where it started, resumed, ended
                        record.json     how it ended: finished | diverged | failed | stopped
                        lock, lease.N.json   who trains it now
    results/studies/<name>/study.json   the trials of a study with their labels; why some are not needed, if so
                           log.jsonl    what each `ablate run` trained and reused
                           command.json where its grid came from, and its options, for `ablate resume`
                           pause        asks its driver to stop

The ledger is the truth: neither Ray's state nor MLflow is ever read back to decide what is done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ablate.errors import UserError, unknown
from ablate.names import checked_name, wrong_with
from ablate.run import schema
from ablate.run.files import append_json, read_json, write_json
from ablate.run.lease import Busy, Holder, Lease, held, holder
from ablate.spec import TrialSpec, parse
from analysis.records import (
    ENDED,
    BadRecord,
    BadStudy,
    is_time,
    read_curve,
    read_lines,
    read_record,
    read_study_file,
)
from analysis.typed import did_you_mean

LOCK_PATIENCE_S = 5.0  # a killed worker's lock is freed by the kernel, but not at once


class TrialFolder:
    """One trial's files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.id = folder.name
        self.spec = folder / "spec.json"
        self.identity = folder / "identity.json"
        self.metrics = folder / "metrics.jsonl"
        self.checkpoint = folder / "checkpoint.pt"
        self.older_checkpoint = folder / "checkpoint.1.pt"
        self.weights = folder / "weights.pt"
        self.attempts = folder / "attempts.jsonl"
        self._record = folder / "record.json"
        self._lease: Lease | None = None  # while this object holds the trial

    def read_spec(self) -> TrialSpec:
        """What was asked. Raises `UserError` where the file is missing or not whole."""
        tree = read_json(self.spec)
        if tree is None:
            raise UserError(f"{self.spec} is missing or not whole")
        return parse(TrialSpec, tree)

    def record(self) -> dict[str, Any] | None:
        """How the trial ended; None while it has not, or where its record cannot be read."""
        try:
            return read_record(self.folder)
        except BadRecord:
            return None

    def unreadable(self) -> str:
        """Why its record cannot be read; empty where it can, or where there is none."""
        try:
            read_record(self.folder)
        except BadRecord as error:
            return str(error)
        return ""

    def set_aside_unreadable(self) -> None:
        """Keep a record that cannot be read as record.bad.json: the trial is trained again."""
        if self.unreadable():
            os.replace(self._record, self.folder / "record.bad.json")

    def commit(self, record: dict[str, Any]) -> None:
        """End the trial. The record is whole or absent, whatever happens while it is written."""
        assert record["status"] in ENDED
        write_json(self._record, record, self.check_held)

    def sweep(self) -> None:
        """Remove what a kill left half written. For the holder of the lock, who alone writes these files."""
        for file in (self.checkpoint, self.weights, self._record):
            for part in self.folder.glob(f".{file.name}.*.part"):
                part.unlink(missing_ok=True)

    def keep_older_checkpoint(self) -> None:
        """Make place for the next checkpoint, which is written and takes its place at once. Raises `Lost`."""
        self.check_held()
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.older_checkpoint)

    def forget_checkpoints(self) -> None:
        """The older one first: of two, the newer is the one to go on from."""
        self.older_checkpoint.unlink(missing_ok=True)
        self.checkpoint.unlink(missing_ok=True)

    def forget_record(self) -> None:
        """Let a failed trial be tried again; its attempts stay listed."""
        self._record.unlink(missing_ok=True)

    def note(self, event: str, **facts: Any) -> None:
        """Add a line to the attempts."""
        self.check_held()
        host = os.uname().nodename
        append_json(self.attempts, {"event": event, "time": time.time(), "pid": os.getpid(), "host": host, **facts})

    def history(self) -> list[dict[str, Any]]:
        """The attempts that are whole."""
        rows = read_lines(self.attempts)
        return [row for row in rows if isinstance(row.get("event"), str) and is_time(row.get("time"))]

    def add_row(self, row: dict[str, Any]) -> None:
        """Add a line to the curve."""
        self.check_held()
        append_json(self.metrics, row)

    def rows(self) -> list[dict[str, Any]]:
        """The curve."""
        return read_curve(self.metrics)

    @contextmanager
    def locked(self, patience_s: float = LOCK_PATIENCE_S) -> Iterator[None]:
        """Hold the trial: no two processes train it at once, on whichever machines. Raises `Busy`; while it is held,
        what writes to the folder raises `Lost` once another process has taken the trial over."""
        deadline = time.monotonic() + patience_s
        with ExitStack() as stack:
            while self._lease is None:
                try:
                    self._lease = stack.enter_context(held(self.folder))
                except Busy as busy:
                    if time.monotonic() > deadline:
                        who = busy.who or "another process"
                        raise Busy(f"trial {self.id} is being trained by {who}", busy.who) from None
                    time.sleep(0.1)
            try:
                yield
            finally:
                self._lease = None

    def check_held(self) -> None:
        """Raise `Lost` where this object held the trial and another process has taken it over."""
        if self._lease is not None:
            self._lease.check()

    def holder(self) -> Holder | None:
        """Who trains the trial now."""
        return holder(self.folder)

    def running(self) -> bool:
        """Whether some process holds the trial now."""
        return self.holder() is not None

    def status(self) -> str:
        """finished | diverged | failed | stopped | running | unreadable | pending."""
        record = self.record()
        if record is not None:
            return str(record["status"])
        if self.running():
            return "running"
        return "unreadable" if self.unreadable() else "pending"


class Ledger:
    """All trials and studies of one results folder."""

    def __init__(self, root: Path):
        schema.schema_of(root)  # one of a newer version is not touched
        self.root = root
        self.cache = root / "cache"

    def trial(self, trial_id: str) -> TrialFolder:
        """Its folder. Raises `UserError` for a name that could lead out of the results."""
        return TrialFolder(self.root / "trials" / checked_name("trial", trial_id))

    def trial_ids(self) -> list[str]:
        folder = self.root / "trials"
        return sorted(each.name for each in _named(folder) if each.is_dir())

    def find_trial(self, prefix: str) -> TrialFolder:
        """The trial whose id begins with `prefix`. Raises `UserError` when there is none, or more than one."""
        schema.require_current(self.root)
        ids = self.trial_ids()
        found = [each for each in ids if each.startswith(prefix.lower())]
        if len(found) == 1:
            return self.trial(found[0])
        if found:
            raise UserError(f"{prefix!r} begins the ids of {len(found)} trials: {', '.join(found[:5])}")
        hint = did_you_mean(prefix, [*ids, *self.study_names()])
        raise UserError(f"no trial {prefix!r} in {self.root / 'trials'}" + f";{hint}" * bool(hint))

    def study_folder(self, name: str) -> Path:
        """Where a study is. Raises `UserError` for a name that could lead out of the results."""
        return self.root / "studies" / checked_name("study", name)

    def study_log(self, name: str) -> list[dict[str, Any]]:
        """What each `ablate run` of a study trained and reused."""
        rows = read_lines(self.study_folder(name) / "log.jsonl")
        return [row for row in rows if _names_trials(row) and is_time(row.get("time"))]

    def pause_file(self, name: str) -> Path:
        """The file that asks the driver of a study to stop."""
        return self.study_folder(name) / "pause"

    def study_names(self) -> list[str]:
        folder = self.root / "studies"
        return sorted(each.name for each in _named(folder) if (each / "study.json").is_file())

    def study(self, name: str) -> dict[str, Any]:
        """The study as `ablate run` resolved it. Raises `UserError` with the known names, or where it is torn."""
        schema.require_current(self.root)
        try:
            return read_study_file(self.study_folder(name) / "study.json")
        except FileNotFoundError:
            known = self.study_names()
            where = f"in {self.root}"
            none = f"no study {name!r} {where}: `ablate run GRID` makes one, `--results DIR` names another folder"
            raise UserError(f"{unknown('study', name, known)} {where}" if known else none) from None
        except BadStudy as error:
            raise UserError(f"{error}; `ablate run` writes it anew") from None

    @contextmanager
    def study_lock(self, name: str) -> Iterator[None]:
        """One driver a study at a time. Raises `Busy` at once when another one is at it."""
        schema.prepare(self.root)
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.study_folder(name)))
            except Busy as busy:
                who = f", {busy.who}," if busy.who else ""
                raise Busy(
                    f"another `ablate run`{who} is at study {name!r}: wait for it, or watch it with "
                    f"`ablate status {name}`",
                    busy.who,
                ) from None
            yield


class Unread:
    """The records of a ledger that were not given before. They do not change."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self._given: set[str] = set()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for trial_id in self.ledger.trial_ids():
            if trial_id not in self._given and (record := self.ledger.trial(trial_id).record()) is not None:
                self._given.add(trial_id)
                yield record


def _named(folder: Path) -> list[Path]:
    """What is in a folder under names that the harness gives; nothing where there is no folder."""
    return [each for each in folder.iterdir() if not wrong_with(each.name)] if folder.is_dir() else []


def _names_trials(row: dict[str, Any]) -> bool:
    """Whether a line of a study's log lists ids."""
    lists = [row.get(key) for key in ("trained", "reused")]
    return all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in lists)
