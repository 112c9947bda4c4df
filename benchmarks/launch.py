"""What a trial costs beside its training: local and Ray executors against Ray Tune function trainables.

Trivial trials (a model of width 16, five steps) at two counts give the marginal cost; the whole grids are timed as
a user sees them, start-up and report included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.plain_gpt import SHAPES

GRID = """\
study: bench
base:
  arch: {{d_model: {d}, n_heads: {heads}, depth: {depth}}}
  data: {{seq_len: {length}}}
  train: {{tokens: {tokens}, batch_tokens: {batch_tokens}, eval_points: 2,
    eval_tokens: 2048, final_eval_tokens: 2048}}
seeds: {trials}
"""
TRIVIAL = (16, 1, 2, 16, 4)
ROUNDS = 3


def table() -> list[list[str]]:
    rows = [["grid, 2 workers", "Ray Tune functions, s", "ablate --executor ray, s", "ablate, s", "Tune / ablate"]]
    few, many = 4, 44
    times: dict[int, dict[str, float]] = {}
    for trials in (few, many):
        times[trials] = _measure(TRIVIAL, 5, trials)
    marginal = {side: (times[many][side] - times[few][side]) / (many - few) for side in times[few]}
    rows.append(["trivial trial, marginal", *(f"{marginal[side]:.3f}" for side in ("tune", "ray", "local")),
                 f"{marginal['tune'] / marginal['local']:.1f}"])  # fmt: skip
    for name, steps, trials in (("tiny", 100, 16), ("small", 40, 8)):
        took = _measure(SHAPES[name], steps, trials)
        rows.append([f"{trials} {name} x {steps} steps", *(f"{took[side]:.1f}" for side in ("tune", "ray", "local")),
                     f"{took['tune'] / took['local']:.1f}"])  # fmt: skip
    return rows


def _measure(shape: tuple[int, ...], steps: int, trials: int) -> dict[str, float]:
    """Median seconds of each side, in turn."""
    d, depth, heads, length, batch = shape
    text = GRID.format(
        d=d, depth=depth, heads=heads, length=length, trials=trials,
        batch_tokens=batch * length, tokens=steps * batch * length,
    )  # fmt: skip
    taken: dict[str, list[float]] = {"tune": [], "ray": [], "local": []}
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as scratch:
        grid = Path(scratch) / "grid.yaml"
        grid.write_text(text)
        timed("-m", "ablate", "plan", grid, "--results", Path(scratch) / "warm")
        for number in range(ROUNDS):
            orders = json.dumps({"shape": shape, "steps": steps, "trials": trials, "tokens": _tokens(scratch)})
            taken["tune"].append(timed("-m", "benchmarks.tune_functions", orders))
            for executor in ("ray", "local"):
                results = Path(scratch) / f"{executor}{number}"
                results.mkdir()
                (results / "cache").symlink_to(Path(scratch) / "warm" / "cache")  # tokens exist for both sides
                run = ("-m", "ablate", "run", grid, "--results", results, "--executor", executor, "--workers", 2)
                taken[executor].append(timed(*run))
    return {side: sorted(each)[len(each) // 2] for side, each in taken.items()}


def _tokens(scratch: str) -> str:
    return str(next((Path(scratch) / "warm" / "cache" / "tokens").glob("*/train.bin")))


def timed(*arguments: object) -> float:
    """Seconds that `python ARGUMENTS` takes."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - begun
