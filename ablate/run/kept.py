"""Which files of a results folder are results, and which are of one machine or one moment.

What goes from one results folder to another, in an archive or by a merge, is what is named here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.run.files import read_json
from ablate.run.ledger import Ledger, TrialFolder

TRIAL_ID = re.compile(r"[0-9a-f]{12}")
RESULT_FILES = (
    "spec.json",
    "identity.json",
    "metrics.jsonl",
    "attempts.jsonl",
    "weights.pt",
    "record.json",
)  # of a trial that ended
CHECKPOINTS = ("checkpoint.pt", "checkpoint.1.pt")  # the state to go on from
# In a study's folder: what MLflow here has, what Ray here said, where the grid lies, what is asked of a driver here
OF_THIS_MACHINE = ("published.json", "ray.log", "home", "command.json", "pause")

# Folders that are no trial's: what was one and is being deleted, what becomes one by a rename, and, beside
# the trials' folder, what an archive holds before it is known to be good.
GONE, NEW, IMPORT = ".gone-", ".new-", ".import-"


def transient(name: str) -> bool:
    """Whether a file of that name is of one moment: a lock, a lease, a file that is being written."""
    return name == "lock" or name.startswith("lease") or name.startswith(".") or name.endswith(".part")


def study_files(folder: Path) -> list[Path]:
    """The files of a study, relative to its folder, in order."""
    found = []
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if any(transient(part) for part in path.parts) or path.parts[0] in OF_THIS_MACHINE:
            continue
        if file.is_file() and not file.is_symlink():
            found.append(path)
    return found


def studies(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Every study by its name. Raises `UserError` for one that cannot be read, whose trials are unknown."""
    found = {}
    for name in ledger.study_names():
        file = ledger.study_folder(name) / "study.json"
        found[name] = tree = read_json(file)
        if not is_study(tree):
            raise UserError(f"{file} is not whole: `ablate run` of its grid writes it anew")
    return found


def is_study(tree: Any) -> bool:
    """Whether a value can be the content of a study.json: it lists trials, each with its id."""
    trials = tree.get("trials") if isinstance(tree, dict) else None
    return isinstance(trials, list) and all(
        isinstance(each, dict) and is_id(each.get("id")) and (each.get("parent") is None or is_id(each["parent"]))
        for each in trials
    )


def is_id(value: Any) -> bool:
    """Whether a value names a trial."""
    return isinstance(value, str) and TRIAL_ID.fullmatch(value) is not None


def parent_of(folder: TrialFolder) -> str | None:
    """The trial that this one begins from, by its specification."""
    tree = read_json(folder.spec)
    parent = tree.get("parent") if isinstance(tree, dict) else None
    return parent if is_id(parent) else None


def with_parents(ids: Iterable[str], parent: Callable[[str], str | None]) -> set[str]:
    """These trials, what they begin from, what those begin from, and so on. `parent` is asked once for each."""
    found: set[str] = set()
    for each in ids:
        trial: str | None = each
        while trial is not None and trial not in found:
            found.add(trial)
            trial = parent(trial)
    return found


def files_under(path: Path) -> Iterator[Path]:
    """The file itself, or all files of a folder."""
    if path.is_dir() and not path.is_symlink():
        yield from (each for each in path.rglob("*") if not each.is_dir())
    else:
        yield path
