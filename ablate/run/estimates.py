"""What trials will take: from measured rows, else from trials alike that have ended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ablate.resolve import default_gpus
from ablate.rows import Plan, PlannedTrial
from ablate.run import probing
from ablate.run.alike import Alike, estimates_file, read_estimates
from ablate.run.environment import device_name
from ablate.run.files import write_json
from ablate.run.ledger import Ledger
from ablate.run.measure import Figures
from ablate.spec import TrialSpec
from ablate.train.job import Job
from ablate.train.steps import evaluation_steps
from ablate.train.training import CHECKPOINT_SHARE


def trial_seconds(figures: Figures, spec: TrialSpec, checkpoint_every_s: float = Job.checkpoint_every_s) -> float:
    """How long a trial of this length takes, by what was measured of its row: set-up, steps, evaluations, looks
    inside, checkpoints. Smaller steps are taken to be as fast by the token as whole ones."""
    train = spec.train
    looks = len(evaluation_steps(train.steps, train.eval_points)) - 1  # besides the last evaluation
    steps = looks if figures["refits"] else train.tokens_at(train.steps) / train.batch_tokens
    training = steps * figures["step_s"]
    save_s = figures["checkpoint_s"]
    saves = int(training / max(checkpoint_every_s, save_s / CHECKPOINT_SHARE)) if training else 0
    evaluations = looks * figures["evaluation_s"] + figures["final_evaluation_s"]
    once = figures["setup_s"] + figures["looks_s"] + figures["weights_s"]
    return float(once + training + evaluations + saves * save_s)


def devices(spec: TrialSpec) -> float:
    """Devices that a trial holds: its GPUs, else its CPU cores."""
    return default_gpus(spec) or spec.resources.cpus


def study_hours(trials: Iterable[PlannedTrial], seconds: Mapping[str, float], slots: float) -> dict[str, Any]:
    """Device hours of these trials, and hours by the clock with so many devices: device hours over devices, or the
    longest chain of trials that begin from one another, if that is longer. `unknown` counts those without seconds."""
    device_s, longest, unknown = 0.0, 0.0, 0
    ends: dict[str, float] = {}
    for trial in trials:  # parents come first
        if trial.id not in seconds:
            unknown += 1
            continue
        ends[trial.id] = ends.get(trial.spec.parent or "", 0.0) + seconds[trial.id]
        longest = max(longest, ends[trial.id])
        device_s += seconds[trial.id] * devices(trial.spec)
    hours = max(longest, device_s / slots) / 3600
    return {"trials": len(ends), "unknown": unknown, "device_hours": device_s / 3600, "hours": hours}


def keep_estimates(ledger: Ledger, plan: Plan, labels: Iterable[Mapping[str, Any]], done: Iterable[str]) -> None:
    """Write down, beside the study, what each trial that is to begin is expected to take: `estimates.json`.

    What was expected of those that have begun stays as it is. Trials of which nothing is known have no entry.
    """
    before = read_estimates(ledger, plan.grid.name)
    labelled = {label["id"]: label for label in labels}
    records = {each: record for each in done if (record := ledger.trial(each).record()) is not None}
    alike: dict[str, Alike] = {}
    found: dict[str, Any] = {}
    for trial in plan.trials:
        if trial.id in records or ledger.trial(trial.id).attempts.exists():
            continue
        device = device_name(probing.device_of(trial.spec))
        if device not in alike:
            alike[device] = Alike(labelled.values(), records, device)
        figures = probing.known(ledger.cache, trial.spec)
        told = alike[device].seconds(labelled[trial.id])
        if figures is not None:
            told = trial_seconds(figures, trial.spec), "measured steps"
        if told is not None:
            found[trial.id] = {
                "seconds": told[0],
                "source": told[1],
                "devices": devices(trial.spec),
                "time": time.time(),
            }
    if found:
        write_json(estimates_file(ledger, plan.grid.name), before | found)
