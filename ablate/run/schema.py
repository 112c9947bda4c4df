"""The layout of a results folder, by number: `ledger.json` says which one a folder has.

    {"schema": 1}                        whole
    {"schema": 1, "migrating_to": 2}     a migration began and has not ended; the next writing command goes on with it

A folder without the file has schema 1. Commands that write bring a folder to the layout of this version first;
those that read say which command does, and nobody touches a folder of a newer version.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ablate.errors import UserError
from ablate.run.files import locked, read_json, write_json

FILE = "ledger.json"
LOCK = ".ledger.lock"

# Number i changes a folder of schema i + 1 to i + 2. Each must be idempotent: one that was killed is run again.
MIGRATIONS: list[Callable[[Path], None]] = []


def known() -> int:
    """The schema that this version writes."""
    return 1 + len(MIGRATIONS)


def schema_of(root: Path) -> int:
    """The schema of a results folder. Raises `UserError` for one that this version does not know."""
    return _state(root)[0]


def require_current(root: Path) -> None:
    """Raise `UserError` for a folder whose layout is older than this version's, or half way between two."""
    at, half_way = _state(root)
    if at < known() or half_way:
        how = "was interrupted on its way to a newer one" if half_way else f"this version reads {known()}"
        raise UserError(
            f"{root} has schema {at}, {how}: `ablate gc --yes --results {root}` migrates it, as `ablate run` does"
        )


def prepare(root: Path) -> None:
    """Bring a folder to this version's layout, or mark a fresh one. Raises `UserError` while a trial is running."""
    if (root / FILE).exists() and _state(root) == (known(), False):
        return
    with locked(root / LOCK):
        at, _ = _state(root)
        if at < known():
            _refuse_while_running(root)
        for step in range(at, known()):
            write_json(root / FILE, {"schema": step, "migrating_to": step + 1})
            MIGRATIONS[step - 1](root)
            write_json(root / FILE, {"schema": step + 1})
        if at == known():
            write_json(root / FILE, {"schema": at})


def _state(root: Path) -> tuple[int, bool]:
    """The schema, and whether a migration from it was interrupted."""
    file = root / FILE
    if not file.exists():
        return 1, False
    tree = read_json(file)
    at = tree.get("schema") if isinstance(tree, dict) else None
    target = tree.get("migrating_to", at) if isinstance(tree, dict) else None
    if type(at) is not int or type(target) is not int or at < 1:
        raise UserError(f'{file} is not what ablate writes: it holds {{"schema": N}}, N from 1 to {known()}')
    if max(at, target) > known():
        raise UserError(
            f"{root} has schema {max(at, target)}, this version of ablate knows {known()}: use the version of ablate "
            "that wrote it, or a newer one"
        )
    return at, target != at


def _refuse_while_running(root: Path) -> None:
    from ablate.run.ledger import Ledger

    ledger = Ledger(root)
    for trial_id in ledger.trial_ids():
        if ledger.trial(trial_id).running():
            raise UserError(f"trial {trial_id} of {root} is running: wait for it before the folder is migrated")
