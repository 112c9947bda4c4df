"""A whole trial (data, evaluation, log, checkpoint, record) against its own bare step loop."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from ablate.data.corpora import resolve
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, DataSpec, TrainSpec, TrialSpec
from ablate.train.job import Job
from ablate.train.run import TrainingRun
from ablate.train.trial import plan_trial, run_trial
from benchmarks.measure import interleaved, median_ms, ratio
from benchmarks.plain_gpt import SHAPES

STEPS = {"tiny": 400, "small": 60}


def table() -> list[list[str]]:
    torch.set_num_threads(1)
    rows = [["trial", "bare loop, ms", "whole trial, ms", "bare / whole", "evaluation's share, by tokens"]]
    folder = Path(tempfile.mkdtemp(prefix="ablate-bench-"))
    try:
        for name, steps in STEPS.items():
            rows.append(_row(name, steps, folder))
    finally:
        shutil.rmtree(folder)
    return rows


def _row(name: str, steps: int, folder: Path) -> list[str]:
    d, depth, heads, length, batch = SHAPES[name]
    tokens = steps * batch * length
    train = TrainSpec(
        tokens=tokens, batch_tokens=batch * length, precision="fp32", eval_points=6, eval_tokens=2048,
        final_eval_tokens=4096,
    )  # fmt: skip
    data = resolve(DataSpec(seq_len=length), folder)
    spec = TrialSpec(ArchSpec(d_model=d, depth=depth, n_heads=heads), data, train)
    ledger = Ledger(folder)
    number = 0

    def whole() -> None:
        nonlocal number
        number += 1
        trial = replace(spec, seed=number)
        plan_trial(ledger, trial)
        for _ in run_trial(Job(trial.trial_id, str(folder))):
            pass

    bare_run = TrainingRun(spec, torch.device("cpu"), ledger.cache)
    fixed = bare_run.batches[0]
    bare_run.batches = {0: fixed}  # type: ignore[assignment]

    def bare() -> None:
        for _ in range(steps):
            bare_run.step = 0
            bare_run.train_step()

    seconds = interleaved({"bare": bare, "whole": whole}, rounds=7, clock=time.process_time)
    evaluated = 6 * 2048 + 3 * 4096
    return [
        f"{name}, {steps} steps",
        median_ms(seconds["bare"]),
        median_ms(seconds["whole"]),
        ratio(seconds["bare"], seconds["whole"]),
        f"{evaluated / 3 / (tokens + evaluated / 3):.1%}",  # a forward pass is a third of a step
    ]
