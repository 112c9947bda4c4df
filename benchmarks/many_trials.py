"""Studies of ever more trivial trials under Ray: what a trial costs beside its own work, and what grows with their
number.

    python -m benchmarks.many_trials --n 100 1000 10000 --out benchmarks/many_trials.md
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRID = """\
study: many
base:
  arch: {{d_model: 16, n_heads: 2, depth: 1}}
  data: {{corpus: kjv, tokenizer: bytes, seq_len: 16}}
  train: {{tokens: 128, batch_tokens: 64, precision: fp32, eval_points: 1, eval_tokens: 64, final_eval_tokens: 64}}
variants:
  plain: {{}}
  rope: rope
seeds: {seeds}
"""
NOWHERE = "nowhere://"  # MLflow is left out: it is told of trials in the background
LOOP = 100  # trials of the plain loop
HEADER = ["trials", "in a loop", "under Ray", "beside the work", "command RSS", "Ray driver RSS", "status", "report"]
UNITS = ["", "ms a trial", "ms a trial", "ms a trial", "MB", "MB", "s", "s"]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--n", type=int, nargs="+", default=[100, 1000, 10000])
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    found: list[list[float]] = []
    for n in given.n:
        found.append(measured(n, given.workers))
        text = page(found, given.workers)
        print(text, flush=True)
        if given.out:
            given.out.write_text(text)


def measured(n: int, workers: int) -> list[float]:
    """One row of the table."""
    folder = Path(tempfile.mkdtemp(prefix="ablate-many-"))
    try:
        grid = folder / "grid.yaml"
        grid.write_text(GRID.format(seeds=n // 2))
        loop_ms = looped(grid, folder / "loop")
        results = ["--results", str(folder / "results")]
        run = ["run", str(grid), *results, "--executor", "ray", "--workers", str(workers), "--tracking-uri", NOWHERE]
        command_mb, driver_mb = watched(run)
        log = (folder / "results" / "studies" / "many" / "log.jsonl").read_text().splitlines()
        entry = json.loads(log[-1])
        status_s, report_s = (
            timed("status", "many", *results),
            timed("report", "many", *results, "--tracking-uri", NOWHERE),
        )
    finally:
        shutil.rmtree(folder)
    each_ms = (entry["ended"] - entry["time"]) * 1000 / n
    return [n, loop_ms, each_ms, each_ms - loop_ms / workers, command_mb, driver_mb, status_s, report_s]


def looped(grid: Path, results: Path) -> float:
    """Milliseconds a trial, in a loop of one process that does nothing else."""
    code = f"""
import time, torch
from pathlib import Path
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.run.ledger import Ledger
from ablate.train.job import Job
from ablate.train.trial import plan_trial, run_trial
torch.set_num_threads(1)
ledger = Ledger(Path({str(results)!r}))
trials = make_plan(load_grid(Path({str(grid)!r}), []), ledger.cache).trials[:{LOOP} + 1]
for index, trial in enumerate(trials):
    if index == 1:
        begun = time.perf_counter()
    plan_trial(ledger, trial.spec)
    for _ in run_trial(Job(trial.id, str(ledger.root))):
        pass
print((time.perf_counter() - begun) * 1000 / (len(trials) - 1))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(said.stdout.split()[-1])


def watched(arguments: list[str]) -> tuple[float, float]:
    """Run a command; the most memory (MB) that it and the process that drives Ray for it had resident."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ablate", *arguments],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    most = {"command": 0.0, "driver": 0.0}
    while process.poll() is None:
        most["command"] = max(most["command"], peak_mb(process.pid))
        for child in children(process.pid):
            if "ablate.run.ray_driver" in command_of(child):
                most["driver"] = max(most["driver"], peak_mb(child))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"ablate {' '.join(arguments)} ended with {process.returncode}")
    return most["command"], most["driver"]


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def peak_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def timed(*arguments: str) -> float:
    """Seconds of a whole command."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ablate", *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def page(found: list[list[float]], workers: int) -> str:
    """The table, with the slope of each column between the first and the last row on logarithmic axes."""
    heads = [f"{name}, {unit}" if unit else name for name, unit in zip(HEADER, UNITS, strict=True)]
    lines = ["# Many trivial trials under Ray", ""]
    lines += [
        "Trials of two steps, width 16: what is measured is the harness, by `python -m benchmarks.many_trials`.",
        f"`under Ray`: from Ray's start to its end, on {workers} lanes and without MLflow, divided "
        f"by the number of trials; `beside the work`: what that is above the loop's time divided by {workers}.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for row in found:
        lines.append("| " + " | ".join([f"{row[0]:,.0f}", *(f"{value:.3g}" for value in row[1:])]) + " |")
    if len(found) > 1:
        first, last = found[0], found[-1]
        slopes = [
            math.log(b / a) / math.log(last[0] / first[0]) if a > 0 and b > 0 else math.nan
            for a, b in zip(first, last, strict=True)
        ]
        lines.append("| slope | " + " | ".join(f"{slope:.2f}" for slope in slopes[1:]) + " |")
    lines += [
        "",
        "A slope of 0 is a cost a trial, or a size, that does not grow; 1 is linear.",
        "",
        f"{os.cpu_count()} cores, no GPU.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
