"""Why a trial was run, reused or resumed: from the ledger's own notes, and the nearest other trial."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ablate.run.ledger import Ledger
from ablate.run.nearest import Index, earlier, index, sentences
from ablate.terminal import show
from analysis.columns import cell_name


def explain(ledger: Ledger, trial_id: str) -> dict[str, Any]:
    """The trial's status, its attempts, each study run that trained or reused it, and its nearest neighbour: of
    those trained in earlier runs, or else of all.

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
    specs, (begun, _) = index(ledger), _trained(ledger)
    among = earlier(specs, begun, begun.get(folder.id, float("inf")))
    if not len(among[among != specs.row(folder.id)]):
        among = np.arange(len(specs.ids))
    return {
        "id": folder.id,
        "status": folder.status(),
        "error": record.get("error") if record else folder.unreadable() or None,
        "traceback": record.get("traceback") if record else None,
        "reason": _reason(folder.status(), uses),
        "attempts": folder.history(),
        "uses": sorted(uses, key=lambda use: use["time"]),
        **_nearest(specs, folder.id, among),
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


def _trained(ledger: Ledger) -> tuple[dict[str, float], dict[str, str]]:
    """When each trial was first trained, and by a run of which study."""
    begun: dict[str, float] = {}
    study: dict[str, str] = {}
    for name in ledger.study_names():
        for entry in ledger.study_log(name):
            for trial_id in entry["trained"]:
                if entry["time"] < begun.get(trial_id, float("inf")):
                    begun[trial_id], study[trial_id] = entry["time"], name
    return begun, study


def _nearest(specs: Index, trial_id: str, among: np.ndarray) -> dict[str, Any]:
    """The nearest trial with the fields that differ as [there, here], and in words; empty where there is none."""
    here = specs.row(trial_id)
    there = None if here is None else specs.nearest(here, among)
    if here is None or there is None:
        return {"nearest": None, "nearest_differs_in": {}, "nearest_in_words": []}
    found = specs.differences(there, here)
    return {
        "nearest": specs.ids[there],
        "nearest_differs_in": {path: [theirs, mine] for path, theirs, mine in found},
        "nearest_in_words": sentences(specs, found, here),
    }


def explain_study(ledger: Ledger, name: str) -> dict[str, Any]:
    """Every trial of a study: a hit, where the study's first run that needed it found its record, a miss, where it
    trained it, or `to come`; a miss with the nearest trial of an earlier run and what differs. Raises `UserError`.
    """
    trials = ledger.study(name)["trials"]
    first: dict[str, tuple[str, float]] = {}
    for entry in ledger.study_log(name):
        for verdict, key in (("hit", "reused"), ("miss", "trained")):
            for trial_id in entry[key]:
                first.setdefault(trial_id, (verdict, entry["time"]))
    begun, by = _trained(ledger)
    specs = index(ledger)
    before: dict[float, np.ndarray] = {}
    out = []
    for trial in trials:
        verdict, when = first.get(trial["id"], ("to come", float("inf")))
        told = {key: trial[key] for key in ("id", "variant", "size", "axes", "budget", "seed")}
        told["stage"] = trial.get("stage", "")
        told |= {"verdict": verdict, "trained_by": by.get(trial["id"])}
        if verdict != "hit":
            if when not in before:
                before[when] = earlier(specs, begun, when)
            told |= _nearest(specs, trial["id"], before[when])
        out.append(told)
    counts = {verdict: sum(each["verdict"] == verdict for each in out) for verdict in ("hit", "miss", "to come")}
    return {"study": name, "counts": counts, "trials": out}


def print_study(tree: dict[str, Any]) -> None:
    """A line of counts, then a line a trial."""
    show(_study_lines(tree))


def _study_lines(tree: dict[str, Any]) -> Iterator[str]:
    yield f"{tree['study']}: " + ", ".join(f"{count} {verdict}" for verdict, count in tree["counts"].items())
    for trial in tree["trials"]:
        if trial["verdict"] == "hit":
            of = f", of study {trial['trained_by']}" if trial["trained_by"] else ""
            why = f"its record was there{of}"
        elif trial["nearest"] is None:
            why = "nothing had been trained before"
        else:
            first, *more = trial["nearest_in_words"]
            why = f"nearest {trial['nearest']}: {first}" + (f", and {len(more)} more" if more else "")
        cell = cell_name(trial)
        yield f"  {trial['id']}  {trial['verdict']:<7}  {trial['variant']} ({cell}) seed {trial['seed']}  {why}"


def print_explanation(tree: dict[str, Any]) -> None:
    """For a person."""
    show([f"trial {tree['id']}: {tree['status']}", f"  {tree['reason']}"])
    if tree["error"]:
        show([f"  error: {tree['error']}"])
    if tree["traceback"]:  # as Python writes it
        print("    " + tree["traceback"].rstrip().replace("\n", "\n    "))
    show(_happened(tree))


def _happened(tree: dict[str, Any]) -> Iterator[str]:
    for attempt in tree["attempts"]:
        facts = {key: value for key, value in attempt.items() if key not in ("event", "time", "host", "pid")}
        words = ", ".join(f"{key} {value}" for key, value in facts.items())
        yield f"  {_when(attempt['time'])}  {attempt['event']:<7} {words}"
    for use in tree["uses"]:
        yield f"  {_when(use['time'])}  {use['verdict']} by study {use['study']}"
    if tree["nearest"]:
        yield f"  nearest other trial: {tree['nearest']}, which differs in"
        yield from (f"    {line}" for line in tree["nearest_in_words"])


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
