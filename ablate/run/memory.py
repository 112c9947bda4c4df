"""What trials need of a memory, and which fit beside each other in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ablate.planview import memory_bytes
from ablate.resolve import default_gpus
from ablate.rows import PlannedTrial
from ablate.run.ledger import Ledger, Unread
from ablate.spec import digest, to_tree

SHARE = 0.9  # of the free memory that trials may fill together
CONTEXT = 2.0**29  # bytes of a GPU that CUDA itself takes in every process
CAUTION = 2.0  # how much more than the plan's estimate a trial is expected to need


class Room:
    """One memory. `free` says how many bytes of it are free; it is asked while no trial of this driver has any."""

    def __init__(self, free: Callable[[], float], most: int | None = None):
        self.free, self.most = free, most
        self.held: dict[str, float] = {}  # bytes by trial
        self._room = 0.0

    def fits(self, need: float) -> bool:
        """Whether a trial that needs so many bytes fits beside those there are. Alone each is tried."""
        if not self.held:
            return True
        within = self.most is None or len(self.held) < self.most
        return within and sum(self.held.values()) + need <= self._room

    def take(self, trial_id: str, need: float) -> None:
        if not self.held:
            self._room = SHARE * self.free()
        self.held[trial_id] = need

    def leave(self, trial_id: str) -> None:
        self.held.pop(trial_id, None)


class Needs:
    """What trials need, by what trials alike have needed, as of the last `refresh`."""

    def __init__(self, ledger: Ledger):
        self._unread = Unread(ledger)
        self._peaks: dict[str, float] = {}

    def refresh(self) -> None:
        """Read the records that are not known."""
        for record in self._unread:
            with suppress(KeyError, TypeError):  # one that does not say what it trained tells nothing
                if peak := record.get("peak_memory_bytes"):
                    alike = _alike(record["spec"], record["environment"]["device"])
                    self._peaks[alike] = max(float(peak), self._peaks.get(alike, 0.0))

    def of(self, trial: PlannedTrial) -> float:
        """Bytes: the highest peak of trials with this architecture and batch on this kind of device, else what the
        plan says, doubled; and on a GPU what its driver takes."""
        device = "cuda" if default_gpus(trial.spec) else "cpu"
        need = self._peaks.get(_alike(to_tree(trial.spec), device), CAUTION * memory_bytes(trial.row))
        return need + (CONTEXT if device == "cuda" else 0.0)


def _alike(spec: dict[str, Any], device: str) -> str:
    """Of what decides a trial's memory."""
    train = [spec["train"][key] for key in ("batch_tokens", "accumulate", "precision", "optimizer")]
    return digest([spec["arch"], train, spec["data"]["seq_len"], device])


def free_memory(gpu: int) -> float:
    """Bytes of a GPU that are free now."""
    return float(torch.cuda.mem_get_info(gpu)[0])


def free_ram() -> float:
    """Bytes of RAM that can be had now: what the system has, within what this process' group may have."""
    return min(_available(), _allowed())


def _available() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float("inf")  # not Linux


def _allowed() -> float:
    folder = Path("/sys/fs/cgroup")
    try:
        most = (folder / "memory.max").read_text().strip()
        return float("inf") if most == "max" else float(most) - float((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return float("inf")
