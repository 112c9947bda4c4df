"""Where a study stands, from the ledger alone."""

from __future__ import annotations

from typing import Any

from ablate.errors import plural
from ablate.run.ledger import Ledger
from analysis.columns import cell_name
from analysis.records import ENDED

LEFT_OUT = "not needed"  # by the planner, which has ended without it
STATES = (*ENDED, "running", "pending", "unreadable", LEFT_OUT)


def study_status(ledger: Ledger, name: str) -> dict[str, Any]:
    """Counts by status, and every trial's; `enough` says why a planner has left some out, if it has. Raises
    `UserError` for an unknown study."""
    study = ledger.study(name)
    enough = study.get("enough", "")
    counts = dict.fromkeys(STATES, 0)
    trials = []
    for trial in study["trials"]:
        folder = ledger.trial(trial["id"])
        record = folder.record()
        state = str(record["status"]) if record else folder.status()
        if enough and state == "pending":
            state = LEFT_OUT
        counts[state] += 1
        labels = {key: trial[key] for key in ("id", "variant", "size", "axes", "budget", "seed")} | {
            "stage": trial.get("stage", ""),
            "tuned": trial.get("tuned", {}),
        }
        loss = record["metrics"]["loss"] if record else None
        error = record.get("error") if record else folder.unreadable() or None
        trials.append({**labels, "status": state, "loss": loss, "error": error})
    paused = ledger.pause_file(name).exists() and counts["pending"] + counts["running"] > 0
    return {"study": name, "total": len(trials), **counts, "paused": paused, "enough": enough, "trials": trials}


def print_status(tree: dict[str, Any]) -> None:
    """One line of counts, one of why there are no more where a planner says so, then a line a trial."""
    counts = ", ".join(f"{tree[state]} {state}" for state in STATES if tree[state])
    print(f"{tree['study']}: {plural(tree['total'], 'trial')}: {counts}")
    if tree["enough"]:
        print(tree["enough"])
    if tree["paused"]:
        print(f"paused: `ablate resume {tree['study']}` goes on")
    for trial in tree["trials"]:
        tuned = [f"{path}={value:g}" for path, value in trial.get("tuned", {}).items()]
        cell = ", ".join(filter(None, (cell_name(trial), *tuned)))
        result = f"loss {trial['loss']:.4f}" if trial["loss"] is not None else trial["error"] or ""
        print(f"  {trial['id']}  {trial['status']:<10}  {trial['variant']} ({cell}) seed {trial['seed']}  {result}")
