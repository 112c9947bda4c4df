"""Where a study stands, from the ledger alone."""

from __future__ import annotations

from typing import Any

from ablate.errors import plural
from ablate.run.ledger import ENDED, Ledger
from analysis.columns import cell_name
from analysis.drift import pairs_across, said, sets_of, trials_of

LEFT_OUT = "not needed"  # by the planner, which has ended without it
STATES = (*ENDED, "running", "pending", LEFT_OUT)


def study_status(ledger: Ledger, name: str) -> dict[str, Any]:
    """Counts by status, and every trial's; `enough` says why a planner has left some out, if it has. Raises
    `UserError` for an unknown study."""
    study = ledger.study(name)
    enough = study.get("enough", "")
    counts = dict.fromkeys(STATES, 0)
    trials, ended = [], {}
    for trial in study["trials"]:
        folder = ledger.trial(trial["id"])
        record = folder.record()
        if record:
            ended[folder.id] = {"status": record["status"], "environment": record.get("environment")}
        state = str(record["status"]) if record else folder.status()
        if enough and state == "pending":
            state = LEFT_OUT
        counts[state] += 1
        labels = {key: trial[key] for key in ("id", "stage", "variant", "size", "axes", "budget", "seed")} | {
            "tuned": trial.get("tuned", {})
        }
        loss = record["metrics"]["loss"] if record else None
        error = record.get("error") if record else None
        trials.append({**labels, "status": state, "loss": loss, "error": error})
    alike = {"environments": mixed(study, ended)}
    return {"study": name, "total": len(trials), **counts, "enough": enough, **alike, "trials": trials}


def mixed(study: dict[str, Any], ended: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each set of machine and libraries that ran finished trials, where there are several; then one for
    each variant that is compared across sets."""
    finished = trials_of(study, ended)
    sets = sets_of(finished)
    if len(sets) < 2:
        return []
    across: dict[str, tuple[int, int]] = {}
    for (*_, variant), (pairs, apart) in pairs_across(finished, study["baseline"]).items():
        known = across.get(variant, (0, 0))
        across[variant] = (known[0] + pairs, known[1] + apart)
    return [
        *(f"{plural(count, 'trial')} on {said(each)}" for each, count in sets.items()),
        *(
            f"{variant}: {apart} of {plural(pairs, 'pair')} across these"
            for variant, (pairs, apart) in across.items()
        ),
    ]


def print_status(tree: dict[str, Any]) -> None:
    """One line of counts, one of why there are no more where a planner says so, then a line a trial."""
    counts = ", ".join(f"{tree[state]} {state}" for state in STATES if tree[state])
    print(f"{tree['study']}: {plural(tree['total'], 'trial')}: {counts}")
    if tree["enough"]:
        print(tree["enough"])
    for line in tree["environments"]:
        print(f"not run alike: {line}")
    for trial in tree["trials"]:
        tuned = [f"{path}={value:g}" for path, value in trial.get("tuned", {}).items()]
        cell = ", ".join(filter(None, (cell_name(trial), *tuned)))
        result = f"loss {trial['loss']:.4f}" if trial["loss"] is not None else trial["error"] or ""
        print(f"  {trial['id']}  {trial['status']:<10}  {trial['variant']} ({cell}) seed {trial['seed']}  {result}")
