"""Interleaved timing, and the machine it was done on."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from ablate.run.environment import cpu_model


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    repeat: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds a call of each side, `rounds` times in turn, the order reversed every other round."""
    for call in sides.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            begun = clock()
            for _ in range(repeat):
                sides[name]()
            seconds[name].append((clock() - begun) / repeat)
    return seconds


def ratio(over: list[float], under: list[float]) -> str:
    """Median of the paired ratios, with the quartiles."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def median_ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f}"


def machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu_model()}, {cores} cores, {gpu}, torch {torch.__version__}"


def loaded() -> bool:
    """Whether something else is using the machine: wall-clock figures are then not taken."""
    return os.getloadavg()[0] > 1.0
