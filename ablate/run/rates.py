"""How fast trials train, measured on those that have finished."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch

from ablate.resolve import default_gpus
from ablate.rows import PlannedTrial
from ablate.run.environment import cpu_model
from ablate.run.ledger import Ledger
from ablate.spec import to_tree


@dataclass(frozen=True)
class Measured:
    """One finished trial: its architecture, where it ran, its executed training FLOPs a second of wall time."""

    arch: Any
    device: str
    name: str
    rate: float


class Rates:
    """Of the finished trials of a ledger. Records are read once: they do not change."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self._found: dict[str, Measured | None] = {}

    def of(self, trial: PlannedTrial) -> float | None:
        """FLOPs a second that a trial will reach: the median of those of its variant and size, else of any.

        Of those on the same kind of device, and on one of this name where there are such. None where there is none.
        """
        device = "cuda" if default_gpus(trial.spec) else "cpu"
        found = [each for each in self._all() if each.device == device]
        found = [each for each in found if each.name == _name(device)] or found
        arch = to_tree(trial.spec.arch)
        found = [each for each in found if each.arch == arch] or found
        return statistics.median(each.rate for each in found) if found else None

    def _all(self) -> list[Measured]:
        for trial_id in self.ledger.trial_ids():
            if trial_id not in self._found and (record := self.ledger.trial(trial_id).record()) is not None:
                self._found[trial_id] = _measured(record)
        return [each for each in self._found.values() if each is not None]


def _measured(record: dict[str, Any]) -> Measured | None:
    where = record.get("environment") or {}
    if record["status"] != "finished" or not record.get("train_flops") or not record.get("wall_s"):
        return None
    name = where.get("gpu") or where.get("cpu") or ""
    return Measured(record["spec"]["arch"], where.get("device", ""), name, record["train_flops"] / record["wall_s"])


def _name(device: str) -> str:
    if device == "cpu":
        return cpu_model()
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
