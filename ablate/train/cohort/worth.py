"""Whether a device gains by training trials together: measured, once for each such program, size and device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ablate.run.environment import device_name
from ablate.spec import TrialSpec
from ablate.train.cohort.together import Together
from ablate.train.memory import free
from ablate.train.remembered import common, remembered
from ablate.train.run import TrainingRun

LEAST = 1.1  # times faster, for it to be worth the rounding
WARM_UP, TIMED = 3, 5  # steps


def faster_alone(spec: TrialSpec, size: int, device: torch.device, cache: Path) -> bool:
    """Whether `size` trials like this one are trained about as fast one after the other."""
    if spec.train.steps < WARM_UP + TIMED:
        return True
    alike = common(spec)

    def find() -> dict[str, Any]:
        return {"gain": gain(alike, size, device, cache)}

    found = remembered(cache, "cohorts", alike, find, asked="gain", size=size, device=device_name(device))
    free(device)
    return bool(found["gain"] < LEAST)


def gain(spec: TrialSpec, size: int, device: torch.device, cache: Path) -> float:
    """How many times as fast trials are trained together: the time of a step of `size` of them, one after the other,
    by that of a step of all."""
    alone = TrainingRun(spec, device, cache)
    one = step_s(alone.train_step, device)
    del alone
    free(device)
    together = Together([TrainingRun(replace(spec, seed=seed), device, cache) for seed in range(size)])

    def step() -> None:
        together.train_step()
        for run, loss in together.losses_by_run():
            run.count_step(loss)

    return size * one / step_s(step, device)


def step_s(step: Callable[[], None], device: torch.device, warm_up: int = WARM_UP, timed: int = TIMED) -> float:
    """The median of a few steps, after some that are not counted, in seconds."""
    taken = []
    for _ in range(warm_up + timed):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[warm_up:])
