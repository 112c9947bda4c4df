"""The union of two ledgers, as those of two machines: one gets what the other has and it has not.

A trial that ended with a result beats one that did not. Where both have a result ours is kept, and numbers that
differ are a conflict, which is reported. A trial appears by a rename; one that is replaced loses its record first and
gets the other's last. So a merge that was killed is done again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.run import schema
from ablate.run.files import locked, read_json, write_json, write_text, write_whole
from ablate.run.kept import CHECKPOINTS, NEW, TRIAL_ID, studies, study_files, transient
from ablate.run.ledger import Ledger, TrialFolder
from ablate.spec import digest
from analysis.records import is_time, read_lines

LOCK = ".merge.lock"
BATCH = 200  # trials that are copied before the disk is synced and they appear
RESULT = 2
RANK = {"failed": 0, "stopped": 1, "diverged": RESULT, "finished": RESULT}  # what beats what; not ended: -1
REPORT_IS_WHOLE = Path("report") / "behind.json"
HARDWARE = ("host", "cpu", "gpu", "device", "threads", "torch", "git_commit")

Record = dict[str, Any]


@dataclass
class Merge:
    """What a merge does, by trial id and study name, and what it leaves as it is, with the reason."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)  # of trials that had none here
    kept: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    studies: dict[str, str] = field(default_factory=dict)  # name there -> name here


def merge(other: Ledger, into: Ledger, dry_run: bool = False, rename: bool = False, move: bool = False) -> Merge:
    """Unite `other` into `into`. With `move` the other's folders may go; with `rename` a study whose name has other
    trials here gets another name.

    Raises `UserError`, with nothing merged, for what is no results folder, and while one of the studies is being run.
    """
    if other.root.resolve() == into.root.resolve():
        raise UserError(f"{other.root} and {into.root} are the same folder")
    if not any((other.root / name).is_dir() for name in ("trials", "studies")):
        raise UserError(f"{other.root} is no results folder: it has neither trials/ nor studies/")
    schema.require_current(other.root)
    if dry_run:
        schema.require_current(into.root)
        return plan_merge(other, into, rename)
    schema.prepare(into.root)
    with locked(into.root / LOCK), ExitStack() as held:
        planned = plan_merge(other, into, rename)
        for name in planned.studies.values():
            held.enter_context(into.study_lock(name))
        _add(other, into, planned, move)
        for trial_id in list(planned.replaced):
            if why := _replace(other.trial(trial_id), into.trial(trial_id)):
                planned.replaced.remove(trial_id)
                planned.skipped.append({"trial": trial_id, "why": why})
        for trial_id in planned.weights:
            _copy(other.trial(trial_id).weights, into.trial(trial_id).weights)
        for name, target in planned.studies.items():
            _unite_study(other.study_folder(name), into.study_folder(target))
        for theirs in sorted(other.root.glob("drift/*/*.json")):  # what trials come to on the other machine
            mine = into.root / theirs.relative_to(other.root)
            if not mine.exists():
                _copy(theirs, mine)
    return planned


def plan_merge(other: Ledger, into: Ledger, rename: bool = False) -> Merge:
    """What `merge` would do. Raises `UserError` for a folder among the trials that is none."""
    planned = Merge()
    for trial_id in other.trial_ids():
        _plan_trial(other.trial(trial_id), into.trial(trial_id), planned)
    ours = studies(into)
    for name, study in studies(other).items():
        ids = sorted(each["id"] for each in study["trials"])
        target = name
        if name in ours and sorted(each["id"] for each in ours[name]["trials"]) != ids:
            target = f"{name}-{digest(ids)[:6]}"
            if not rename:
                counts = {"ours": len(ours[name]["trials"]), "theirs": len(ids)}
                planned.conflicts.append({"study": name, "trials": counts, "would_be": target})
                continue
        planned.studies[name] = target
    return planned


def _plan_trial(theirs: TrialFolder, mine: TrialFolder, planned: Merge) -> None:
    record, own = theirs.record(), mine.record()
    if not TRIAL_ID.fullmatch(theirs.id):
        raise UserError(f"{theirs.folder} is no trial of that id: move it out of the way")
    if why := theirs.unreadable():
        planned.skipped.append({"trial": theirs.id, "why": f"{why} there"})
    elif record is None and theirs.running():
        planned.skipped.append({"trial": theirs.id, "why": "it is running there"})
    elif not mine.folder.exists():
        planned.added.append(theirs.id)
    elif _rank(record) > _rank(own):
        if mine.running():
            planned.skipped.append({"trial": theirs.id, "why": "it is running here"})
        else:
            planned.replaced.append(theirs.id)
    elif _rank(record) == _rank(own) == RESULT and (differs := differences(own or {}, record or {})):
        hardware = {"ours": _hardware(own or {}), "theirs": _hardware(record or {})}
        planned.conflicts.append({"trial": theirs.id, "differs": differs, **hardware})
    else:
        planned.kept += 1
        if own and record and own["status"] == "finished" and _has_more_weights(theirs, mine):
            planned.weights.append(theirs.id)


def _has_more_weights(theirs: TrialFolder, mine: TrialFolder) -> bool:
    return theirs.weights.is_file() and not mine.weights.exists()


def _rank(record: Record | None) -> int:
    return -1 if record is None else RANK[record["status"]]


def differences(ours: Record, theirs: Record) -> dict[str, list[Any]]:
    """The status and the metrics that two records of a trial do not agree on, to the last bit: [ours, theirs]."""
    mine, other = ({"status": each["status"], **(each.get("metrics") or {})} for each in (ours, theirs))
    return {key: [mine.get(key), other.get(key)] for key in {**mine, **other} if mine.get(key) != other.get(key)}


def _hardware(record: Record) -> dict[str, Any]:
    environment = record.get("environment") or {}
    return {key: environment[key] for key in HARDWARE if key in environment}


def _add(other: Ledger, into: Ledger, planned: Merge, move: bool) -> None:
    """Trials that are not here: whole, and on the disk, before they appear."""
    (into.root / "trials").mkdir(exist_ok=True)
    ids = list(planned.added)
    for start in range(0, len(ids), BATCH):
        ready = {}
        for trial_id in ids[start : start + BATCH]:
            source, target = other.trial(trial_id), into.trial(trial_id).folder
            ready[target] = source.folder if move else target.with_name(NEW + trial_id)
            if not move:
                shutil.rmtree(ready[target], ignore_errors=True)
                ready[target].mkdir()
                for file in _result_files(source):
                    shutil.copyfile(file, ready[target] / file.name)
        os.sync()
        for target, folder in ready.items():
            if target.exists():
                planned.added.remove(target.name)
                planned.skipped.append({"trial": target.name, "why": "it has begun here meanwhile: merge again"})
                shutil.rmtree(folder, ignore_errors=True)
            else:
                folder.rename(target)


def _result_files(folder: TrialFolder) -> list[Path]:
    """The files of a trial; the state to go on from only where it may go on."""
    over = _rank(folder.record()) == RESULT
    with os.scandir(folder.folder) as entries:
        names = sorted(each.name for each in entries if each.is_file(follow_symlinks=False))
    return [folder.folder / name for name in names if not transient(name) and not (over and name in CHECKPOINTS)]


def _replace(theirs: TrialFolder, mine: TrialFolder) -> str:
    """Put their end of a trial in the place of ours while nobody holds it; otherwise say why not."""
    try:
        with mine.locked():
            if _rank(mine.record()) < _rank(theirs.record()):
                _take_over(theirs, mine)
    except UserError as error:
        return str(error)
    return ""


def _take_over(theirs: TrialFolder, mine: TrialFolder) -> None:
    """Put their end of a trial in the place of ours, whose record is kept among the attempts.

    From the moment when ours is forgotten until theirs is there, the trial has not ended, and has nothing to go on
    from.
    """
    own, history = mine.record(), mine.history()
    if own is not None and not any(each.get("record") == own for each in history):
        history.append({"event": "replaced", "time": time.time(), "record": own})
    _write_lines(mine.attempts, _union(history, theirs.history()))
    mine.forget_record()
    for file in (*(mine.folder / name for name in CHECKPOINTS), mine.weights):
        file.unlink(missing_ok=True)
    record = theirs.folder / "record.json"
    for file in _result_files(theirs):
        if file not in (record, theirs.attempts):
            _copy(file, mine.folder / file.name)
    _copy(record, mine.folder / record.name)


def _unite_study(source: Path, target: Path) -> None:
    """Add what the study's folder has not; logs get the lines of both. `study.json` comes last."""
    has_report = (target / REPORT_IS_WHOLE).exists() or source.name != target.name
    last = (REPORT_IS_WHOLE, Path("study.json"))
    for path in sorted(study_files(source), key=lambda each: (last.index(each) if each in last else -1, each)):
        theirs, mine = source / path, target / path
        if path.suffix == ".jsonl":
            ours = read_lines(mine)
            lines = _union(ours, read_lines(theirs))
            if len(lines) > len(ours):
                _write_lines(mine, lines)
        elif path.parts[0] == "report":
            if not has_report:
                _copy(theirs, mine)
        elif mine.exists():
            continue
        elif path.name == "study.json":
            write_json(mine, read_json(theirs) | {"study": target.name})
        else:
            _copy(theirs, mine)


def _union(ours: list[Record], theirs: list[Record]) -> list[Record]:
    """The lines of two logs, each once, by time."""
    lines = {json.dumps(each, sort_keys=True): each for each in (*ours, *theirs)}
    return sorted(lines.values(), key=lambda each: each["time"] if is_time(each.get("time")) else 0.0)


def _write_lines(file: Path, lines: list[Record]) -> None:
    write_text(file, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines))


def _copy(source: Path, target: Path) -> None:
    def write(part: Path) -> None:
        shutil.copyfile(source, part)

    write_whole(target, write)
