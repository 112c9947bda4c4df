"""Trials an hour: one worker, two, and two that train cohorts. From a study's first trial to its last, wall clock."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.launch import GRID, timed
from benchmarks.measure import ratio
from benchmarks.plain_gpt import SHAPES

WAYS = {"1 worker": (1, 0), "2 workers": (2, 0), "2 workers, cohorts of 4": (2, 4), "2 workers, cohorts of 8": (2, 8)}
SHAPES_HERE = {"micro": ((32, 2, 2, 32, 8), 400), "tiny": (SHAPES["tiny"], 200)}
TRIALS, ROUNDS = 16, 3


def table() -> list[list[str]]:
    rows = [[f"{TRIALS} trials", *(f"{way}, s" for way in WAYS), *(f"gain of {way}" for way in list(WAYS)[1:])]]
    for name, (shape, steps) in SHAPES_HERE.items():
        taken = _measure(shape, steps)
        alone, *others = taken.values()
        medians = [f"{sorted(each)[len(each) // 2]:.1f}" for each in taken.values()]
        rows.append([f"{name} x {steps} steps", *medians, *(ratio(alone, each) for each in others)])
    return rows


def _measure(shape: tuple[int, ...], steps: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn."""
    d, depth, heads, length, batch = shape
    text = GRID.format(
        d=d, depth=depth, heads=heads, length=length, trials=TRIALS,
        batch_tokens=batch * length, tokens=steps * batch * length,
    )  # fmt: skip
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as scratch:
        grid = Path(scratch) / "grid.yaml"
        grid.write_text(text)
        timed("-m", "ablate", "plan", grid, "--results", Path(scratch) / "warm")
        for number in range(ROUNDS):
            for way, (workers, cohorts) in WAYS.items():
                results = Path(scratch) / f"{workers}-{cohorts}-{number}"
                results.mkdir()
                (results / "cache").symlink_to(Path(scratch) / "warm" / "cache")
                how = ("--workers", workers, "--cohorts", cohorts)
                timed("-m", "ablate", "run", grid, "--results", results, *how)
                taken[way].append(_span(results))
    return taken


def _span(results: Path) -> float:
    """From the first note of any trial to the last."""
    times = [
        json.loads(line)["time"]
        for file in results.glob("trials/*/attempts.jsonl")
        for line in file.read_text().splitlines()
    ]
    return max(times) - min(times)
