"""Why a trial was run, reused or resumed: from the ledger's own notes, and the nearest other trial."""

from __future__ import annotations

import time
from typing import Any

from ablate.run.files import read_json
from ablate.run.ledger import Ledger
from ablate.spec import flatten

IGNORED = ("resources.", "data.path", "data.corpus", "data.hub", "data.hub_config", "data.column")


def explain(ledger: Ledger, trial_id: str) -> dict[str, Any]:
    """The trial's status, its attempts, each study run that trained or reused it, and its nearest neighbour.

    Raises `UserError` for an id that the ledger does not have.
    """
    folder = ledger.find_trial(trial_id)
    record = folder.record()
    uses = []
    for name in ledger.study_names():
        for entry in ledger.study_log(name):
            for verdict in ("trained", "reused"):
                if folder.id in entry[verdict]:
                    uses.append({"study": name, "time": entry["time"], "verdict": verdict})
    nearest, fields = _nearest(ledger, folder.id)
    return {
        "id": folder.id,
        "status": folder.status(),
        "error": record.get("error") if record else folder.unreadable() or None,
        "traceback": record.get("traceback") if record else None,
        "reason": _reason(folder.status(), uses),
        "attempts": folder.history(),
        "uses": sorted(uses, key=lambda use: use["time"]),
        "nearest": nearest,
        "nearest_differs_in": fields,
    }


def _reason(status: str, uses: list[dict[str, Any]]) -> str:
    if status == "running":
        return "a process is training it now"
    if status == "pending":
        return "it has no record yet: the next run of its study trains it, from its checkpoint if there is one"
    if status == "unreadable":
        return "its record cannot be read: the next run of its study sets it aside and trains the trial again"
    if status == "failed":
        return "its record says failed: it is not run again unless --retry-failed is given"
    reused = sum(use["verdict"] == "reused" for use in uses)
    times = f"; reused {reused} time{'s' * (reused != 1)} since" if reused else ""
    return (
        "it was trained once, because no record with this id existed, and is reused wherever the same "
        f"architecture, data, training settings, seed and component versions are asked for{times}"
    )


def _nearest(ledger: Ledger, trial_id: str) -> tuple[str | None, dict[str, list[Any]]]:
    """The other trial with the fewest differing fields, and those fields as [there, here]."""
    mine = _fields(ledger, trial_id)
    best: tuple[str | None, dict[str, list[Any]]] = (None, {})
    for other in ledger.trial_ids():
        if other == trial_id:
            continue
        theirs = _fields(ledger, other)
        if not theirs:
            continue
        keys = mine.keys() | theirs.keys()
        differs = {key: [theirs.get(key), mine.get(key)] for key in sorted(keys) if theirs.get(key) != mine.get(key)}
        if best[0] is None or len(differs) < len(best[1]):
            best = other, differs
    return best


def _fields(ledger: Ledger, trial_id: str) -> dict[str, Any]:
    tree = read_json(ledger.trial(trial_id).spec)
    fields = flatten(tree) if isinstance(tree, dict) else ()
    return {path: value for path, value in fields if not path.startswith(IGNORED)}


def print_explanation(tree: dict[str, Any]) -> None:
    """For a person."""
    print(f"trial {tree['id']}: {tree['status']}")
    print(f"  {tree['reason']}")
    if tree["error"]:
        print(f"  error: {tree['error']}")
    if tree["traceback"]:
        print("    " + tree["traceback"].rstrip().replace("\n", "\n    "))
    for attempt in tree["attempts"]:
        facts = {key: value for key, value in attempt.items() if key not in ("event", "time", "host", "pid")}
        words = ", ".join(f"{key} {value}" for key, value in facts.items())
        print(f"  {_when(attempt['time'])}  {attempt['event']:<7} {words}")
    for use in tree["uses"]:
        print(f"  {_when(use['time'])}  {use['verdict']} by study {use['study']}")
    if tree["nearest"]:
        print(f"  nearest other trial: {tree['nearest']}, which differs in")
        for path, (there, here) in tree["nearest_differs_in"].items():
            print(f"    {path}: {there} there, {here} here")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
