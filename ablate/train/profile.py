"""Where a trial's time goes: seconds by phase, measured only where they are asked for (`ablate run --profile`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from analysis.columns import PHASES


class NoProfile:
    """Measures nothing."""

    def begin(self) -> None:
        """What is measured next begins now."""

    def lap(self, phase: str) -> None:
        """What was done since the last call belongs to a phase."""

    def state(self) -> dict[str, Any] | None:
        """For the checkpoint and the record."""
        return None


class Profile(NoProfile):
    """Seconds by phase, over all attempts. On a GPU each lap waits for the device, so that a kernel's time is that of
    the phase which launched it; steps are then a little slower."""

    def __init__(self, device: torch.device, before: Mapping[str, float] | None = None):
        self.device = device
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0) | dict(before or {})
        self._since = time.perf_counter()

    def begin(self) -> None:
        self._since = self._now()

    def lap(self, phase: str) -> None:
        now = self._now()
        self.seconds[phase] += now - self._since
        self._since = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def state(self) -> dict[str, Any]:
        return dict(self.seconds)
