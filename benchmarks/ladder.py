"""A ladder of training lengths, L(N, D), on shared first steps against independent runs."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.run.ledger import Ledger
from ablate.run.planner import Ask
from ablate.run.trunks import Wave, saved_flops, waves
from ablate.train.job import Job
from ablate.train.trial import plan_trial, run_trial

ROUNDS = 5
GRID = """\
study: ladder
base:
  arch: {{d_model: 64, n_heads: 4, depth: 2}}
  data: {{corpus: kjv, tokenizer: bytes, seq_len: 64}}
  train:
    batch_tokens: 512
    lr: 3e-3
    schedule: {{name: wsd, warmup: 20, decay: 0.2}}
    eval_points: 4
    eval_tokens: 2048
    final_eval_tokens: 4096
variants: {{base: {{}}, rope: rope}}
budgets: {{tokens: {budgets}}}
match: none
seeds: 1
"""
LADDERS = {
    "5 budgets, each 1.41 times the one before": [51_200, 72_192, 102_400, 144_896, 204_800],
    "5 budgets, each twice the one before": [12_800, 25_600, 51_200, 102_400, 204_800],
    "8 budgets in equal steps": [25_600 * step for step in range(1, 9)],
}


def table() -> list[list[str]]:
    torch.set_num_threads(1)
    rows = [["ladder", "FLOPs / independent", "CPU time / independent", "largest difference of a loss"]]
    for name, budgets in LADDERS.items():
        folder = Path(tempfile.mkdtemp(prefix="ablate-bench-"))
        try:
            rows.append(_row(name, budgets, folder))
        finally:
            shutil.rmtree(folder)
    return rows


def _row(name: str, budgets: list[int], folder: Path) -> list[str]:
    (folder / "grid.yaml").write_text(GRID.format(budgets=budgets))
    plan = make_plan(load_grid(folder / "grid.yaml"), folder / "cache")
    asks = [Ask(trial) for trial in plan.trials]
    ratios, apart = [], 0.0
    for number in range(ROUNDS):
        sides = [("forks", waves(asks)), ("alone", [Wave(asks)])]
        took, losses = {}, {}
        for side, order in sides if number % 2 else reversed(sides):
            ledger = Ledger(folder / f"{side}{number}")
            ledger.root.mkdir()
            ledger.cache.symlink_to(folder / "cache")
            begun = time.process_time()
            losses[side] = _trained(ledger, order)
            took[side] = time.process_time() - begun
        ratios.append(took["forks"] / took["alone"])
        apart = max(apart, *(abs(losses["forks"][each] - losses["alone"][each]) for each in losses["alone"]))
    low, middle, high = statistics.quantiles(ratios, n=4)
    flops = 1 - saved_flops(plan, ()) / plan.total_flops
    return [name, f"{flops:.0%}", f"{middle:.0%} ({low:.0%} to {high:.0%})", f"{apart:g}"]


def _trained(ledger: Ledger, order: list[Wave]) -> dict[str, float]:
    """The losses of all trials, trained one after another."""
    for wave in order:
        for ask in wave.asks:
            plan_trial(ledger, ask.trial.spec)
    for wave in order:
        for ask in wave.asks:
            for _ in run_trial(Job(ask.trial.id, str(ledger.root), forks=wave.forks.get(ask.trial.id, ()))):
                pass
    found = {each: ledger.trial(each).record() for each in ledger.trial_ids()}
    return {each: record["metrics"]["loss"] for each, record in found.items() if record is not None}
