"""What trials of a study will take, by those that have ended, and what was expected of them: from files alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablate.run.files import read_json
from ablate.run.ledger import Ledger
from analysis.records import is_number

ROW = ("stage", "variant", "size", "axes", "budget", "tuned")  # labels that trials of a row share
ARCHITECTURE = ("variant", "size")


class Alike:
    """What trials of a study that have ended took on one device, by the FLOP: those of the same row, else of the same
    variant and size, else all."""

    def __init__(self, labels: Iterable[Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]], device: str):
        self._rates: dict[tuple[str, ...], list[float]] = {}
        for label in labels:
            record = records.get(label["id"])
            if record is None or record["status"] != "finished" or _device(record) != device:
                continue
            if record.get("wall_s") and label.get("train_flops"):
                for key in self._keys(label):
                    self._rates.setdefault(key, []).append(record["wall_s"] / label["train_flops"])

    @staticmethod
    def _keys(label: Mapping[str, Any]) -> list[tuple[str, ...]]:
        return [tuple(str(label.get(name)) for name in names) for names in (ROW, ARCHITECTURE, ())]

    def seconds(self, label: Mapping[str, Any]) -> tuple[float, str] | None:
        """An estimate and where it is from; None where nothing alike has ended."""
        sources = ("trials of its row", "trials of its variant and size", "the FLOPs of other trials")
        for key, source in zip(self._keys(label), sources, strict=True):
            if key in self._rates and (flops := label.get("train_flops")):
                return statistics.median(self._rates[key]) * flops, source
        return None


def estimates_file(ledger: Ledger, study: str) -> Path:
    """Where `ablate run` writes down what it expects each trial of a study to take."""
    return ledger.study_folder(study) / "estimates.json"


def read_estimates(ledger: Ledger, study: str) -> dict[str, dict[str, Any]]:
    """By trial: `seconds`, their `source`, and `devices`. Entries that do not say these are left out."""
    tree = read_json(estimates_file(ledger, study))
    found = tree.items() if isinstance(tree, dict) else ()
    return {key: each for key, each in found if isinstance(each, dict) and _is_estimate(each)}


def _is_estimate(each: dict[str, Any]) -> bool:
    return is_number(each.get("seconds")) and is_number(each.get("devices")) and isinstance(each.get("source"), str)


def _device(record: Mapping[str, Any]) -> str:
    environment = record.get("environment") or {}
    return str(environment.get("gpu") or environment.get("cpu"))


def own_seconds(record: Mapping[str, Any]) -> float | None:
    """Wall time of an ended trial without that of first steps which another trial has trained for it."""
    wall_s, before = record.get("wall_s"), (record.get("forked") or {}).get("wall_s")
    return wall_s - before if wall_s and before else wall_s


def own_flops(record: Mapping[str, Any]) -> float | None:
    """Training FLOPs of an ended trial without those of such steps."""
    flops, steps, before = record.get("train_flops"), record.get("steps"), (record.get("forked") or {}).get("step")
    return flops * (1 - before / steps) if flops and steps and before else flops


def devices_of(record: Mapping[str, Any] | None) -> float:
    """Devices that an ended trial held, as `devices`; one where nothing is known of it."""
    asked = ((record or {}).get("spec") or {}).get("resources") or {}
    on_gpu = ((record or {}).get("environment") or {}).get("gpu")
    return (asked.get("gpus") or 1.0) if on_gpu else asked.get("cpus", 1)


def last_device(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the last of these trials ended."""
    return _device(max(records.values(), key=lambda record: float(record.get("ended") or 0))) if records else ""
