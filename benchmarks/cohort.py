"""Cohorts: K trials in one program against the same trials one after the other."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ablate.data.corpora import resolve
from ablate.spec import ArchSpec, DataSpec, TrainSpec, TrialSpec
from ablate.train.cohort.together import Together
from ablate.train.run import TrainingRun
from benchmarks.measure import interleaved, median_ms, ratio
from benchmarks.plain_gpt import SHAPES

SHAPES_HERE = {"micro": (32, 2, 2, 32, 8), "tiny": SHAPES["tiny"], "small": SHAPES["small"]}
SIZES = {"micro": (1, 4, 16), "tiny": (1, 4, 16), "small": (1, 4)}
ROUNDS = {"micro": 15, "tiny": 10, "small": 4}


def table() -> list[list[str]]:
    torch.set_num_threads(1)
    rows = [["shape", "models", "alone, ms a model", "together, ms a model", "alone / together"]]
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as scratch:
        for name, shape in SHAPES_HERE.items():
            for size in SIZES[name]:
                seconds = sides_of(shape, size, torch.device("cpu"), Path(scratch), ROUNDS[name])
                of_each = {side: [each / size for each in taken] for side, taken in seconds.items()}
                rows.append(
                    [
                        "{} (d{} L{} H{} T{} B{})".format(name, *shape),
                        str(size),
                        median_ms(of_each["alone"]),
                        median_ms(of_each["together"]),
                        ratio(of_each["alone"], of_each["together"]),
                    ]
                )
    return rows


def spec_of(shape: tuple[int, ...], **train: Any) -> TrialSpec:
    """A trial of the shape (d_model, depth, heads, sequence, batch), on the embedded text."""
    d, depth, heads, length, batch = shape
    data = resolve(DataSpec(corpus="kjv", seq_len=length), Path())
    settings: dict[str, Any] = {"precision": "fp32", "tokens": batch * length * 10**6, "batch_tokens": batch * length}
    return TrialSpec(ArchSpec(d_model=d, depth=depth, n_heads=heads), data, TrainSpec(**(settings | train)))


def sides_of(
    shape: tuple[int, ...], size: int, device: torch.device, cache: Path, rounds: int, **train: Any
) -> dict[str, list[float]]:
    """Seconds of a step of `size` models, `alone` one after the other, and `together`."""
    spec = spec_of(shape, **train)

    def runs() -> list[TrainingRun]:
        return [TrainingRun(replace(spec, seed=seed), device, cache) for seed in range(size)]

    one_by_one, together = runs(), Together(runs())

    def alone() -> None:
        for run in one_by_one:
            run.train_step()

    def joint() -> None:
        together.train_step()
        for run, loss in together.losses_by_run():
            run.count_step(loss)

    if device.type == "cpu":
        return interleaved({"alone": alone, "together": joint}, rounds)
    return interleaved({"alone": waited(alone), "together": waited(joint)}, rounds, 3, time.perf_counter)


def waited(step: Callable[[], None]) -> Callable[[], None]:
    """The step, with the device's part of it."""

    def done() -> None:
        step()
        torch.cuda.synchronize()

    return done
