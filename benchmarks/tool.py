"""What the tool itself takes: planning and reading ten thousand trials, data and logging within a step."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.planview import plan_json
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.study import study_tree, write_study
from ablate.train.job import Job
from ablate.train.run import TrainingRun
from ablate.train.trial import plan_trial, run_trial
from analysis.table import study_table
from benchmarks.measure import interleaved, ratio

TRIALS = 10_000
GRID = """\
study: large
base:
  arch: {d_model: 64, n_heads: 4, depth: 2}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 64}
  train: {tokens: 100_000, batch_tokens: 512, lr: 3e-3}
variants:
  base: {}
  rope: rope
  swiglu: swiglu
  rmsnorm: rmsnorm
  alibi: {arch.position: alibi}
  none: {arch.position: none}
  both: rope+swiglu
  three: rope+swiglu+rmsnorm
  relu: {arch.sublayers.f: {name: ffn, activation: relu}}
  swish: {arch.sublayers.f: {name: ffn, activation: swish}}
sizes: {arch.d_model: [32, 48, 64, 96, 128]}
axes: {train.lr: [1e-3, 2e-3, 3e-3, 4e-3, 6e-3], train.weight_decay: [0, 0.1]}
seeds: 20
"""
TINY = """\
study: tiny
base:
  arch: {d_model: 64, n_heads: 4, depth: 2}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 64}
  train: {tokens: 204_800, batch_tokens: 512, lr: 3e-3, eval_points: 6, eval_tokens: 2048, final_eval_tokens: 4096}
variants: {base: {}, rope: rope}
match: none
seeds: 1
"""


def table() -> list[list[str]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as name:
        folder = Path(name)
        return [
            ["what", "measured, CPU time", "against", "ratio", "target"],
            *_planned(folder),
            *_step(folder),
            _read(folder),
        ]


def _seconds(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def _planned(folder: Path) -> list[list[str]]:
    """Planning; the first time every architecture is counted, then never again."""
    (folder / "large.yaml").write_text(GRID)
    cache = folder / "large" / "cache"

    def planned() -> None:
        plan = make_plan(load_grid(folder / "large.yaml"), cache)
        assert len(plan.trials) == TRIALS
        plan_json(plan, Ledger(folder / "large"))

    first, again = _seconds(planned), statistics.median(_seconds(planned) for _ in range(3))
    counted = len(list((cache / "cost").iterdir()))
    what = f"plan of {TRIALS:,} trials"
    return [
        [f"{what}, {counted} architectures counted for the first time", f"{first:.1f} s", "", "", "10 s"],
        [f"{what}, again", f"{again:.1f} s", "the first time", f"{again / first:.2f}", "10 s"],
    ]


def _step(folder: Path) -> list[list[str]]:
    """A tiny step, the making of its batch, and its part of a row of the log."""
    (folder / "tiny.yaml").write_text(TINY)
    ledger = Ledger(folder / "results")
    plan = make_plan(load_grid(folder / "tiny.yaml"), ledger.cache)
    write_study(ledger, plan)
    spec = plan.trials[0].spec
    trial = plan_trial(ledger, spec)
    for _ in run_trial(Job(trial.id, str(ledger.root))):
        pass
    run = TrainingRun(spec, torch.device("cpu"), ledger.cache)
    log = TrialFolder(folder / "log")
    log.folder.mkdir()
    rows = trial.rows()

    def train() -> None:
        run.step = 0
        run.train_step()

    def read() -> None:
        for part in run.paced.micro(0):
            part.to(run.device)

    seconds = interleaved({"step": train, "data": read, "row": lambda: log.add_row(rows[-1])}, rounds=15, repeat=20)
    step, data, row = (statistics.median(seconds[each]) for each in ("step", "data", "row"))
    share = (data + row * len(rows) / spec.train.steps) / step
    what, took = "data and logging of a tiny step", f"{1e6 * share * step:.0f} us"
    return [[what, took, f"the step, {1e3 * step:.1f} ms", f"{share:.2%}", "2 %"]]


def _read(folder: Path) -> list[str]:
    """The table of ten thousand trials, whose records are copies of a real one, against opening them."""
    source, copies = Ledger(folder / "results"), Ledger(folder / "copies")
    plan = make_plan(load_grid(folder / "tiny.yaml"), source.cache)
    record = source.trial(plan.trials[0].id).record()
    assert record is not None
    tree = study_tree(plan)
    tree["trials"] = [{**tree["trials"][0], "id": f"{number:012x}", "seed": number} for number in range(TRIALS)]
    copies.study_folder("tiny").mkdir(parents=True)
    (copies.study_folder("tiny") / "study.json").write_text(json.dumps(tree))
    for label in tree["trials"]:
        place = copies.trial(label["id"]).folder
        place.mkdir(parents=True)
        (place / "record.json").write_text(json.dumps(record | {"id": label["id"]}, indent=1))

    def opened() -> None:
        for label in tree["trials"]:
            with open(copies.root / "trials" / label["id"] / "record.json", "rb") as stream:
                json.load(stream)

    seconds = interleaved({"opened": opened, "read": lambda: study_table(copies.root, "tiny")}, rounds=5)
    return [
        f"ledger of {TRIALS:,} trials into the table",
        f"{statistics.median(seconds['read']):.2f} s",
        f"json.load of each record, {statistics.median(seconds['opened']):.2f} s",
        ratio(seconds["read"], seconds["opened"]),
        "2",
    ]
