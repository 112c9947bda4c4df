"""What a trial occupies while it runs: CPUs, GPUs, memory, and what a cluster's nodes are said to have besides."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablate.arch import positive
from ablate.errors import SpecError, unknown

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
OURS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}  # Ray's name of a resource -> the key that asks for it


def bytes_of(value: Any, path: tuple[str, ...]) -> int:
    """A size in bytes from a whole number or from text with a unit, as `8 GB`. Raises `SpecError`."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", value.strip())):
        if found[2] not in UNITS:
            raise SpecError(path, f"{value!r}: {unknown('unit', found[2], UNITS)}")
        value = round(float(found[1]) * UNITS[found[2]])
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise SpecError(path, f"{value!r} must be a size: bytes, or a number with a unit, as 8 GB")
    return value


def amounts_of(value: Any, path: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """Amounts by name, sorted; Ray counts in steps of 0.0001, and whole units above one. Raises `SpecError`."""
    if not isinstance(value, Mapping):
        raise SpecError(path, f"{value!r} must be a mapping of names to amounts, as {{tpu: 1}}")
    for name, amount in value.items():
        place = (*path, str(name))
        if not isinstance(name, str) or not name:
            raise SpecError(place, f"{name!r} must be the name of a resource")
        if name in OURS:
            raise SpecError(place, f"{name!r} is asked for as resources.{OURS[name]}")
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < math.inf:
            raise SpecError(place, f"{amount!r} must be a positive number")
        if amount < 1e-4 or (amount > 1 and amount != int(amount)):
            raise SpecError(place, f"{amount!r} must be a whole number, or a part of one from 0.0001")
    return tuple(sorted((name, float(amount)) for name, amount in value.items()))


@dataclass(frozen=True)
class Parallel:
    """Over how many processes, each with a device of its own, one trial is spread: `data` parts of every batch, times
    `tensor` parts of the heads and hidden layers. With `shard` each holds its part of weights, gradients and
    optimizer states alone (FSDP2)."""

    data: int = 1
    tensor: int = 1
    shard: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "tensor"):
            positive(self, name)
        if self.shard and self.data == 1:
            raise SpecError(["shard"], "nothing is sharded over one process: set data to 2 or more")

    @property
    def ranks(self) -> int:
        return self.data * self.tensor


def parallel_of(value: Any, path: tuple[str, ...]) -> Parallel:
    """Raises `SpecError`."""
    if not isinstance(value, Mapping):
        raise SpecError(path, f"{value!r} must be a mapping, as {{data: 2}}")
    if wrong := [key for key in value if key not in ("data", "tensor", "shard")]:
        raise SpecError((*path, str(wrong[0])), unknown("key", str(wrong[0]), ("data", "shard", "tensor")))
    for name, kind in (("data", int), ("tensor", int), ("shard", bool)):
        given = value.get(name, kind())
        if not isinstance(given, kind) or (kind is int and isinstance(given, bool)):
            raise SpecError(
                (*path, name), f"{given!r} must be {'a whole number' if kind is int else 'true or false'}"
            )
    try:
        return Parallel(**value)
    except SpecError as error:
        raise SpecError((*path, *error.path), error.problem) from None


@dataclass(frozen=True)
class Resources:
    """What a trial occupies while it runs. Not part of its identity.

    `cpus` are cores of a CPU, `gpus` whole devices or a share of one: one where the driver sees a GPU, none
    elsewhere, unless given. `hours` of wall time are the most that a trial may take, over all attempts until it
    ends. `parallel` spreads one trial over several processes. `memory` is in bytes: what Ray sets aside on the
    trial's node. `custom` are further resources of a Ray cluster's nodes, by the names that the nodes were started
    with.
    """

    cpus: int = 1
    gpus: float | None = None
    hours: float | None = None
    memory: int | None = field(default=None, metadata={"parse": bytes_of})
    custom: tuple[tuple[str, float], ...] = field(default=(), metadata={"parse": amounts_of})
    parallel: Parallel = field(default=Parallel(), metadata={"parse": parallel_of})

    def __post_init__(self) -> None:
        positive(self, "cpus")
        if self.gpus is not None and self.gpus < 0:
            raise SpecError(["gpus"], f"{self.gpus} must not be negative")
        if self.hours is not None and not self.hours > 0:
            raise SpecError(["hours"], f"{self.hours:g} must be above 0: the hours that a trial may take")

        ranks = self.parallel.ranks
        if self.gpus and ranks > 1 and self.gpus != ranks:
            raise SpecError(["gpus"], f"{self.gpus:g} GPUs for a trial of {ranks} processes: one for each")
        if self.gpus == 0 and self.cpus < ranks:
            raise SpecError(["cpus"], f"{self.cpus} CPUs for a trial of {ranks} processes: one for each, or more")

    def of_ray(self) -> dict[str, float]:
        """Amounts by Ray's names of resources; nothing that is zero."""
        asked = {"CPU": self.cpus, "GPU": self.gpus or 0, "memory": self.memory or 0, **dict(self.custom)}
        return {name: amount for name, amount in asked.items() if amount}
