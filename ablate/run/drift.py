"""`--check-drift`: the cheapest baseline trial trained anew on every environment set, beside its record.

results/drift/<set>/<trial id>.json    the curve and the environment of the trial there
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from ablate import registry
from ablate.resolve import default_gpus
from ablate.rows import Plan, PlannedTrial
from ablate.run.environment import environment
from ablate.run.files import write_json
from ablate.run.ledger import Ledger
from ablate.train.cohort.trials import run_job
from ablate.train.job import Job
from ablate.train.trial import plan_trial, prepare_process
from analysis.drift import Rerun, reruns, set_of


def check_drift(ledger: Ledger, plan: Plan) -> list[Rerun]:
    """Train the cheapest finished baseline trial of a plan on this machine, unless it was on the same environment set
    before, and compare it with the ledger: every such run of the study's trials. Its record stays as it is.

    What was trained anew on the set that the record has shows that the trial repeats itself there.
    """
    chosen = _cheapest(ledger, plan)
    if chosen is not None:
        _train(ledger, chosen)
    records = {trial.id: record for trial in plan.trials if (record := ledger.trial(trial.id).record()) is not None}
    return reruns(ledger.root, ledger.study(plan.grid.name), records)


def _cheapest(ledger: Ledger, plan: Plan) -> PlannedTrial | None:
    """Of those that begin from fresh weights."""
    for trial in sorted(plan.trials, key=lambda each: (each.row.flops, each.spec.seed)):
        if trial.row.variant == plan.baseline and trial.spec.parent is None:
            record = ledger.trial(trial.id).record()
            if record is not None and record["status"] == "finished":
                return trial
    return None


def _train(ledger: Ledger, trial: PlannedTrial) -> None:
    device = "cuda" if default_gpus(trial.spec) > 0 and torch.cuda.is_available() else "cpu"
    cpus = trial.spec.resources.cpus
    joined = (ledger.trial(trial.id).record() or {}).get("cohort")  # which is another program
    beside = () if joined else None
    job = Job(trial.id, "", device, cpus, checkpoint_every_s=1e9, plugins=registry.plugin_files(), beside=beside)
    place = set_of(environment(prepare_process(job)))
    assert place is not None
    name = hashlib.sha256("\n".join(place).encode()).hexdigest()[:12]
    file = ledger.root / "drift" / name / f"{trial.id}.json"
    if file.is_file():
        return
    with tempfile.TemporaryDirectory(dir=ledger.root, prefix=".drift-") as scratch:
        own = Ledger(Path(scratch))
        own.cache.symlink_to(ledger.cache.resolve())
        folder = plan_trial(own, trial.spec)
        for _ in run_job(replace(job, results=scratch)):
            pass
        record = folder.record()
        assert record is not None
        kept = {"trial": trial.id, "status": record["status"], "error": record["error"]}
        kept |= {"loss": record["metrics"]["loss"], "environment": record["environment"], "rows": folder.rows()}
        write_json(file, kept)
