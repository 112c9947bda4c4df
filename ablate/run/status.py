"""Where a study stands, from the ledger alone: counts, and hours estimated, taken and to go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ablate.errors import plural
from ablate.run.alike import Alike, devices_of, last_device, own_seconds, read_estimates
from ablate.run.files import read_json
from ablate.run.hours import Rates, duration, rates_said
from ablate.run.ledger import Ledger
from ablate.terminal import broken
from analysis.columns import cell_name
from analysis.drift import pairs_across, said, sets_of, trials_of
from analysis.records import ENDED

NO_RATES = Rates()
LEFT_OUT = "not needed"  # by the planner, which has ended without it
STATES = (*ENDED, "running", "pending", "unreadable", LEFT_OUT)


def study_status(ledger: Ledger, name: str, rates: Rates = NO_RATES) -> dict[str, Any]:
    """Counts by status, and every trial's; `enough` says why a planner has left some out, if it has. Raises
    `UserError` for an unknown study."""
    study = ledger.study(name)
    enough = study.get("enough", "")
    counts = dict.fromkeys(STATES, 0)
    records = {each["id"]: ledger.trial(each["id"]).record() for each in study["trials"]}
    ended = {key: record for key, record in records.items() if record}
    times = Times(ledger, study, ended)
    trials = []
    for trial in study["trials"]:
        record = records[trial["id"]]
        state = str(record["status"]) if record else ledger.trial(trial["id"]).status()
        if enough and state == "pending":
            state = LEFT_OUT
        counts[state] += 1
        labels = {key: trial[key] for key in ("id", "variant", "size", "axes", "budget", "seed")} | {
            "stage": trial.get("stage", ""),
            "tuned": trial.get("tuned", {}),
        }
        loss = record["metrics"]["loss"] if record else None
        error = record.get("error") if record else ledger.trial(trial["id"]).unreadable() or None
        told = times.of(trial, state)
        trials.append({**labels, "status": state, "loss": loss, "error": error, **told})
    hours = _hours(trials, rates)
    paused = ledger.pause_file(name).exists() and counts["pending"] + counts["running"] > 0
    alike = {"environments": mixed(study, ended)}
    told = {"paused": paused, "enough": enough, "hours": hours}
    return {"study": name, "total": len(trials), **counts, **told, **alike, "trials": trials}


class Times:
    """What each trial of a study was expected to take, has taken, and is expected to take until its end."""

    def __init__(self, ledger: Ledger, study: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]):
        self.ledger, self.records = ledger, records
        self._kept = read_estimates(ledger, study["study"])
        self._alike = Alike(study["trials"], records, last_device(records))

    def of(self, label: Mapping[str, Any], state: str) -> dict[str, Any]:
        """Seconds, None where nothing is known, and devices held. A trial that waits is expected to take what was
        written down when it was planned, else what those alike have taken since."""
        record = self.records.get(label["id"])
        kept = self._kept.get(label["id"])
        told = (kept["seconds"], kept["source"]) if kept else None
        if told is None and record is None:
            told = self._alike.seconds(label)
        seconds, source = told or (None, None)
        to_go = None
        if state in ("pending", "running") and seconds is not None:
            to_go = seconds * (1 - self._reached(label["id"]))
        taken = own_seconds(record) if record else None
        held = kept["devices"] if kept else devices_of(record or next(iter(self.records.values()), None))
        if record and record.get("forked"):
            seconds, source = None, None  # it was expected to take all of its steps
        return {"estimated_s": seconds, "source": source, "taken_s": taken, "to_go_s": to_go, "devices": held}

    def _reached(self, trial_id: str) -> float:
        """The part of its tokens that a trial under way has read, as far as its curve tells."""
        folder = self.ledger.trial(trial_id)
        tokens = max((row["tokens"] for row in folder.rows()), default=0)
        asked = ((read_json(folder.spec) or {}).get("train") or {}).get("tokens") or math.inf
        return float(tokens / asked)


def _hours(trials: Sequence[Mapping[str, Any]], rates: Rates) -> dict[str, Any]:
    """Taken and to go, with what that costs. Of trials that ended and had an estimate, both: `compared`."""
    ended = [each for each in trials if each["taken_s"] is not None]
    left = [each for each in trials if each["status"] in ("pending", "running")]
    known = [each for each in left if each["to_go_s"] is not None]
    both = [each for each in ended if each["estimated_s"] is not None]
    return {
        "taken": sum(each["taken_s"] for each in ended) / 3600,
        "compared": {
            "trials": len(both),
            "estimated": sum(each["estimated_s"] for each in both) / 3600,
            "taken": sum(each["taken_s"] for each in both) / 3600,
        },
        "to_go": sum(each["to_go_s"] for each in known) / 3600,
        "unknown": len(left) - len(known),
        "rates_taken": rates.of(sum(each["taken_s"] * each["devices"] for each in ended) / 3600),
        "rates_to_go": rates.of(sum(each["to_go_s"] * each["devices"] for each in known) / 3600),
    }


def hours_said(hours: Mapping[str, Any], left: int) -> str:
    """`1.5 h taken (estimated 1.2 h where there was an estimate, which took 1.4 h); 3.0 h to go`."""
    said = f"{duration(3600 * hours['taken'])} taken{rates_said(hours['rates_taken'])}"
    if (both := hours["compared"])["trials"]:
        took, expected = duration(3600 * both["taken"]), duration(3600 * both["estimated"])
        said += f" ({plural(both['trials'], 'trial')} with an estimate: {took}, estimated {expected})"
    if left > hours["unknown"]:
        said += f"; {duration(3600 * hours['to_go'])} to go{rates_said(hours['rates_to_go'])}, of one after the other"
    if hours["unknown"]:
        said += f"; no estimate of {plural(hours['unknown'], 'trial')} to go"
    return said


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


def status_lines(tree: dict[str, Any]) -> list[str]:
    """One line of counts, one of why there are no more where a planner says so, one of hours, then a line a trial."""
    counts = ", ".join(f"{tree[state]} {state}" for state in STATES if tree[state])
    lines = [f"{tree['study']}: {plural(tree['total'], 'trial')}: {counts}"]
    lines += [tree["enough"]] if tree["enough"] else []
    if tree["paused"]:
        lines.append(f"paused: `ablate resume {tree['study']}` goes on")
    lines.append(hours_said(tree["hours"], tree["pending"] + tree["running"]))
    lines += [f"not run alike: {line}" for line in tree["environments"]]
    for trial in tree["trials"]:
        tuned = [f"{path}={value:g}" for path, value in trial.get("tuned", {}).items()]
        cell = ", ".join(filter(None, (cell_name(trial), *tuned)))
        result = f"loss {trial['loss']:.4f}" if trial["loss"] is not None else trial["error"] or ""
        lines.append(
            f"  {trial['id']}  {trial['status']:<10}  {trial['variant']} ({cell}) seed {trial['seed']}  {result}"
        )
    return lines


def print_status(tree: dict[str, Any], width: int | None = None) -> None:
    """For a person, in lines that fit where a width is given."""
    for line in status_lines(tree):
        print("\n".join(broken(line, width, 16)))
