"""The files of a report: what each was made of, and which of the report before are not written any more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from analysis.table import read_study

BEHIND = "behind.json"  # of which records a report was made, and which files it wrote: a hash of each
FILES = ("record.json", "metrics.jsonl")


def close_report(results: Path, study: str, folder: Path, written: Iterable[Path]) -> None:
    """Remove what the report before has written and this one has not, and write what this one is made of.

    Only files that the list of the report before names, and that are as it left them, are removed.
    """
    files = {file.relative_to(folder).as_posix(): _hash(file) for file in written}
    before = _behind(folder).get("files")
    for name, left in before.items() if isinstance(before, dict) else ():
        if name not in files:
            _remove(folder, name, left)
    labels = read_study(results, study)["trials"]
    trials = {label["id"]: hashes(Path(results) / "trials" / label["id"]) for label in labels}
    text = json.dumps({"study": study, "files": files, "trials": trials}, indent=1, sort_keys=True)
    (folder / BEHIND).write_text(text + "\n", encoding="utf-8")


def hashes(trial: Path) -> dict[str, str]:
    """Of a trial's record and curve, of those that there are."""
    return {name: _hash(trial / name) for name in FILES if (trial / name).is_file()}


def _behind(folder: Path) -> dict[str, Any]:
    """What the report before says of itself; nothing where it is not whole."""
    try:
        found = json.loads((folder / BEHIND).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remove(folder: Path, name: str, left: str) -> None:
    file, top = (folder / name).resolve(), folder.resolve()
    if not file.is_relative_to(top) or not file.is_file() or _hash(file) != left:
        return
    file.unlink()
    if file.parent != top and not any(file.parent.iterdir()):
        file.parent.rmdir()


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
