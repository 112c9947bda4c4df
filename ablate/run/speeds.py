"""How fast trials train, measured on those that have finished."""

from __future__ import annotations

import statistics
from contextlib import suppress
from typing import Any

import torch

from ablate.resolve import default_gpus
from ablate.rows import PlannedTrial
from ablate.run.environment import cpu_model
from ablate.run.ledger import Ledger, Unread
from ablate.spec import digest, to_tree

Kind = tuple[str, str | None, str | None]  # of device, its name, digest of an architecture; None where any will do


class Speeds:
    """Executed training FLOPs a second of wall time, of the finished trials of a ledger as of the last `refresh`."""

    def __init__(self, ledger: Ledger):
        self._unread = Unread(ledger)
        self._speeds: dict[Kind, list[float]] = {}

    def refresh(self) -> None:
        """Read the records that are not known."""
        for record in self._unread:
            with suppress(KeyError, TypeError):  # one that does not say what it trained tells nothing
                self._enter(record)

    def of(self, trial: PlannedTrial) -> float | None:
        """What a trial will reach: the median of those of its variant and size, else of any.

        Of those on the same kind of device, and on one of this name where there are such. None where there is none.
        """
        device = "cuda" if default_gpus(trial.spec) else "cpu"
        name, arch = _name(device), digest(to_tree(trial.spec.arch))
        for kind in ((device, name, arch), (device, name, None), (device, None, arch), (device, None, None)):
            if kind in self._speeds:
                return statistics.median(self._speeds[kind])
        return None

    def _enter(self, record: dict[str, Any]) -> None:
        where = record.get("environment") or {}
        if record["status"] != "finished" or not record.get("train_flops") or not record.get("wall_s"):
            return
        device, arch = where.get("device", ""), digest(record["spec"]["arch"])
        name = where.get("gpu") or where.get("cpu") or ""
        for kind in ((device, name, arch), (device, name, None), (device, None, arch), (device, None, None)):
            self._speeds.setdefault(kind, []).append(record["train_flops"] / record["wall_s"])


def _name(device: str) -> str:
    if device == "cpu":
        return cpu_model()
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
