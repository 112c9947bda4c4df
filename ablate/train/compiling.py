"""Whether a trial is long enough for `torch.compile` to pay: measured, once for trials alike on a model of device."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ablate.run.environment import device_name
from ablate.run.files import read_json, write_json
from ablate.spec import TrialSpec, digest
from ablate.train.cohort.worth import TIMED, WARM_UP, step_s
from ablate.train.memory import free
from ablate.train.run import TrainingRun

DEVICES = ("cuda",)  # on CPUs a step gains 2 %
LEAST_S = 60.0  # of training: for less it is not even asked


def compile_model(model: nn.Module) -> None:
    """Dropout draws what it draws otherwise."""
    model.compile(options={"fallback_random": True})


def pays(spec: TrialSpec, device: torch.device, cache: Path) -> bool:
    """Whether the steps of such a trial save more time than compiling takes. A model that cannot be compiled never
    pays; why is kept with what was measured, in `cache/compile/`."""
    if device.type not in DEVICES or spec.train.steps < WARM_UP + TIMED or spec.parent is not None:
        return False
    alike = replace(spec, seed=0)
    name = device_name(device)
    file = cache / "compile" / f"{digest([alike.row_id, torch.__version__, name])}.json"
    known = read_json(file)
    if known is None:
        known = {"row": alike.row_id, "torch": torch.__version__, "device": name, **_measured(alike, device, cache)}
        write_json(file, known)
        free(device)
    if known["compiled_s"] is None:
        return False
    return bool(spec.train.steps * (known["plain_s"] - known["compiled_s"]) > known["compiling_s"])


def _measured(spec: TrialSpec, device: torch.device, cache: Path) -> dict[str, Any]:
    """Seconds of a step, plain and compiled, and of compiling; None where that was not tried, or failed (`error`)."""
    found: dict[str, Any] = {"plain_s": None, "compiled_s": None, "compiling_s": None, "error": None}
    try:
        run = TrainingRun(spec, device, cache)
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
