"""Whether a trial is long enough for `torch.compile` to pay: measured, once for trials alike on a model of device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ablate.run.environment import device_name
from ablate.spec import TrialSpec
from ablate.train.cohort.worth import TIMED, WARM_UP, step_s
from ablate.train.fitted import new_run
from ablate.train.memory import free
from ablate.train.remembered import common, remembered
from ablate.train.run import TrainingRun

DEVICES = ("cuda",)
LEAST_S = 60.0  # of training: for less it is not even asked


def compile_model(model: nn.Module) -> None:
    """Dropout draws what it draws otherwise."""
    model.compile(options={"fallback_random": True})


def pays(spec: TrialSpec, device: torch.device, cache: Path) -> bool:
    """Whether the steps of such a trial save more time than compiling takes. A model that cannot be compiled never
    pays; why is kept with what was measured, in `cache/compile/`."""
    steps = spec.train.steps
    if device.type not in DEVICES or steps < WARM_UP + TIMED or spec.parent is not None:
        return False
    alike = common(spec)

    def find() -> dict[str, Any]:
        return _measured(alike, device, cache)

    def shorter(known: Mapping[str, Any]) -> bool:
        """Whether it was not tried, as the trial that asked was too short."""
        untried = known["compiled_s"] is None and known["error"] is None
        return untried and known["plain_s"] * steps >= LEAST_S

    found = remembered(cache, "compile", alike, find, shorter, device=device_name(device))
    free(device)
    if found["compiled_s"] is None:
        return False
    return bool(steps * (found["plain_s"] - found["compiled_s"]) > found["compiling_s"])


def _measured(spec: TrialSpec, device: torch.device, cache: Path) -> dict[str, Any]:
    """Seconds of a step, plain and compiled, and of compiling; None where that was not tried, or failed (`error`)."""
    found: dict[str, Any] = {"plain_s": None, "compiled_s": None, "compiling_s": None, "error": None}
    try:
        run = new_run(spec, device, cache)
        if not isinstance(run, TrainingRun):
            return found | {"error": "it is not trained by gradients"}
        found["plain_s"] = step_s(run.train_step, device)
        if found["plain_s"] * spec.train.steps >= LEAST_S:
            begun = time.perf_counter()
            compile_model(run.model)
            step_s(run.train_step, device, warm_up=0, timed=1)
            found["compiling_s"] = time.perf_counter() - begun
            found["compiled_s"] = step_s(run.train_step, device)
    except Exception as error:  # of a compiler, of a model that it does not take: the trial itself tells the rest
        found["error"] = f"{type(error).__name__}: {error}"
    return found
