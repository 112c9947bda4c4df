"""What nobody needs any more in a results folder, and its removal.

Never a record of a study's trial, nor anything of a trial that runs. A trial that goes is renamed first, so that
one that is half removed is no trial; what a kill leaves of it goes the next time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.run.files import read_json
from ablate.run.kept import CHECKPOINTS, GONE, IMPORT, NEW, TRIAL_ID, files_under, parent_of, studies, with_parents
from ablate.run.ledger import Ledger, TrialFolder

STALE_S = 3600.0  # what is being written is younger
KINDS = ("trial", "leftover", "checkpoint", "weights", "cache")
OVER = ("finished", "diverged")  # such a trial never goes on; one that failed or was stopped may


@dataclass(frozen=True)
class Item:
    """Something that may go: a file or a folder. `trial` is the id of the trial whose lock it takes."""

    kind: str
    path: Path
    bytes: int
    why: str
    trial: str | None = None


@dataclass(frozen=True)
class Garbage:
    """What may go, in the order in which it goes, and what stays although it was looked at, with the reason."""

    items: list[Item]
    stays: list[dict[str, str]]

    def by_kind(self) -> dict[str, dict[str, int]]:
        """How many there are of each kind, and their bytes."""
        found = {kind: [each.bytes for each in self.items if each.kind == kind] for kind in KINDS}
        return {kind: {"count": len(sizes), "bytes": sum(sizes)} for kind, sizes in found.items() if sizes}


class Collector:
    """One look at a ledger. Nothing younger than `older_than_s` goes, by the newest change of any of its files."""

    def __init__(self, ledger: Ledger, older_than_s: float = 0.0, weights: bool = False):
        self.ledger = ledger
        self.older_than_s = older_than_s
        self.weights = weights
        self.now = time.time()
        self.stays: list[dict[str, str]] = []
        self.studies = studies(ledger)
        self.labels = {each["id"]: each for study in self.studies.values() for each in study["trials"]}
        self.ids = [each for each in ledger.trial_ids() if TRIAL_ID.fullmatch(each)]
        self.parents = {each: label.get("parent") for each, label in self.labels.items()}
        self.parents |= {each: parent_of(ledger.trial(each)) for each in self.ids}
        self.records = {each: ledger.trial(each).record() for each in self.ids}
        self.open = [name for name, study in self.studies.items() if self._is_open(study)]

    def _is_open(self, study: dict[str, Any]) -> bool:
        """Whether another `ablate run` would train something."""
        return not study.get("enough") and any(self.records.get(each["id"]) is None for each in study["trials"])

    def garbage(self) -> Garbage:
        """All that may go."""
        gone = self._orphans()
        items = [self._trial(each) for each in gone]
        items += self._leftovers()
        left = [each for each in self.ids if each not in set(gone)]
        for trial_id in left:
            items += self._of_trial(trial_id)
        if self.weights:
            items += self._weights(left)
        items += self._cache(left)
        return Garbage(items, self.stays)

    def _age_s(self, path: Path) -> float:
        """Since the newest change of a file, or of any in a folder; 0 for what has just gone."""
        try:
            times = [path.lstat().st_mtime, *(each.lstat().st_mtime for each in files_under(path))]
        except FileNotFoundError:
            return 0.0
        return self.now - max(times)

    def _item(self, kind: str, path: Path, why: str, trial: str | None = None) -> Item:
        return Item(kind, path, _size(path), why, trial)

    def _orphans(self) -> list[str]:
        """Trials of no study that no trial which stays begins from, those that begin from others first."""
        stays = set(self.labels)
        for trial_id in self.ids:
            if trial_id in self.labels:
                continue
            folder = self.ledger.trial(trial_id)
            if folder.running():
                self.stays.append({"path": str(folder.folder), "why": "it belongs to no study, but it is running"})
                stays.add(trial_id)
            elif self._age_s(folder.folder) < self.older_than_s:
                stays.add(trial_id)
        stays = with_parents(stays, self.parents.get)
        gone = [each for each in self.ids if each not in stays]
        return sorted(gone, key=lambda each: (-len(with_parents([each], self.parents.get)), each))

    def _trial(self, trial_id: str) -> Item:
        record = self.records[trial_id]
        how = record["status"] if record else "not ended"
        why = f"{how}; no study has it, and no other trial begins from it"
        return self._item("trial", self.ledger.trial(trial_id).folder, why, trial_id)

    def _leftovers(self) -> Iterator[Item]:
        root = self.ledger.root
        for path in sorted((root / "trials").glob(f"{GONE}*")):
            yield self._item("leftover", path, "a trial whose removal was interrupted")
        halves = [*(root / "trials").glob(f"{NEW}*"), *root.glob(f"{IMPORT}*"), *root.glob("*.part")]
        halves += [*(root / "trials").glob("*.part"), *(root / "studies").rglob("*.part")]
        if not self.ledger.cache.is_symlink():
            halves += self.ledger.cache.rglob("*.part")
        for path in sorted(set(halves)):
            if self._age_s(path) >= max(STALE_S, self.older_than_s):
                yield self._item("leftover", path, "half written by a command that was killed")

    def _of_trial(self, trial_id: str) -> Iterator[Item]:
        """What a kill left in a trial's folder. The lock stays: who waits for it would hold another one."""
        record = self.records[trial_id]
        over = record is not None and record["status"] in OVER
        with os.scandir(self.ledger.trial(trial_id).folder) as entries:
            files = sorted(Path(each.path) for each in entries if each.is_file(follow_symlinks=False))
        for file in files:
            age = self._age_s(file)
            if age < self.older_than_s:
                continue
            if file.name.endswith(".part") and age >= STALE_S:
                yield self._item("leftover", file, "half written by a process that was killed", trial_id)
            elif over and file.name in CHECKPOINTS:
                yield self._item("checkpoint", file, "the trial has ended", trial_id)
            elif over and file.name.startswith("lease") and age >= STALE_S:
                yield self._item("leftover", file, "the trial has ended", trial_id)

    def _weights(self, left: list[str]) -> Iterator[Item]:
        """Those that no stage begins from, of trials all of whose studies are done."""
        needed = {parent for parent in self.parents.values() if parent is not None}
        needed |= {each["id"] for name in self.open for each in self.studies[name]["trials"]}
        for trial_id in left:
            file = self.ledger.trial(trial_id).weights
            if trial_id in needed or self.records[trial_id] is None or not file.is_file():
                continue
            if self._age_s(file) >= self.older_than_s:
                yield self._item("weights", file, "no stage begins from them", trial_id)

    def _cache(self, left: list[str]) -> Iterator[Item]:
        """Tokens and images that no trial was trained on. The costs, a few hundred bytes each, stay."""
        cache = self.ledger.cache
        if not cache.is_dir():
            return
        running = [each for each in left if self.records[each] is None and self.ledger.trial(each).running()]
        if cache.is_symlink() or self.open or running:
            why = "it lies elsewhere, and others may use it"
            if not cache.is_symlink():
                why = f"study {self.open[0]!r} is not done" if self.open else f"trial {running[0]} is running"
            self.stays.append({"path": str(cache), "why": why})
            return
        needed = {str(study.get("data", {}).get("fingerprint")) for study in self.studies.values()}
        for trial_id in left:
            record = self.records[trial_id] or {}
            needed.add(str(record.get("data", {}).get("fingerprint")))
            spec = read_json(self.ledger.trial(trial_id).spec) or {}
            needed.add(str(spec.get("data", {}).get("vocabulary")))
        for folder in sorted([*(cache / "tokens").glob("*"), *(cache / "images").glob("*")]):
            if not folder.is_dir() or folder.name in needed or folder.name.endswith(".part"):
                continue
            if self._age_s(folder) >= max(STALE_S, self.older_than_s):
                yield self._item("cache", folder, "no trial was trained on it")


class Remover:
    """Removes garbage, looking again before anything goes: trials may run and studies be planned meanwhile."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self._seen: dict[Path, int] = {}
        self._owners: dict[str, str] = {}  # study by trial
        self._begun_from: dict[str, str] = {}  # study by the parent of one of its trials

    def remove(self, garbage: Garbage) -> Garbage:
        """What was removed, and what stays after all."""
        gone: list[Item] = []
        stays = list(garbage.stays)
        for item in garbage.items:
            try:
                why = self._of_trial(item, item.trial) if item.trial is not None else _delete(item.path)
            except UserError as error:  # its lock was not to be had
                why = str(error)
            if why:
                stays.append({"path": str(item.path), "why": why})
            else:
                gone.append(item)
        return Garbage(gone, stays)

    def _of_trial(self, item: Item, trial_id: str) -> str:
        """Remove something of a trial while nobody else holds it; otherwise say why not."""
        folder = self.ledger.trial(trial_id)
        if not folder.folder.is_dir():
            return ""
        if folder.running():
            return f"trial {trial_id} is running"
        with folder.locked():
            if item.kind == "trial":
                return self._trial(folder)
            status = (folder.record() or {}).get("status")
            if item.kind == "checkpoint" and status not in OVER:
                return f"trial {trial_id} is to be trained again"
            if item.kind == "weights" and (status is None or self._owner(trial_id, parents_only=True)):
                return f"trial {trial_id} is to be trained again, or a stage begins from it"
            return _delete(item.path)

    def _trial(self, folder: TrialFolder) -> str:
        if owner := self._owner(folder.id):
            return f"study {owner!r} has it"
        gone = folder.folder.with_name(GONE + folder.id)
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder.folder, gone)
        return _delete(gone)

    def _owner(self, trial_id: str, parents_only: bool = False) -> str | None:
        """A study that begins a trial from this one or, unless told otherwise, has it: as the studies are by now."""
        files = [self.ledger.study_folder(name) / "study.json" for name in self.ledger.study_names()]
        seen = {file: file.stat().st_mtime_ns for file in files}
        if seen != self._seen:
            self._seen = seen
            every = [(name, each) for name, study in studies(self.ledger).items() for each in study["trials"]]
            self._owners = {each["id"]: name for name, each in every}
            self._begun_from = {each["parent"]: name for name, each in every if each.get("parent")}
        owner = self._begun_from.get(trial_id)
        return owner if parents_only else owner or self._owners.get(trial_id)


def _delete(path: Path) -> str:
    """A folder of the cache is renamed first, since half a folder could be taken for a whole one."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return ""
    if not path.name.startswith(".") and not path.name.endswith(".part"):
        path = path.rename(path.with_name(f"{path.name}.{os.getpid()}.gone.part"))
    shutil.rmtree(path)
    return ""


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    total = 0
    for each in files_under(path):
        try:
            total += each.lstat().st_size
        except FileNotFoundError:  # it has just gone
            continue
    return total
