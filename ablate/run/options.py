"""What a run may be asked for: the options of `ablate run`, and those of `Study.run`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ablate.errors import UserError, unknown

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class RunOptions:
    """Where and how far a study is run. A field is an option of `ablate run`, whose help says what it does.

    Raises `UserError` for values that none can have, and for options that do not go together.
    """

    executor: str = "local"
    workers: int | None = None
    address: str | None = None
    store: str | None = None
    ship: bool = False
    tracking_uri: str | None = None
    log_models: bool = False
    check_drift: bool = False
    no_forks: bool = False
    no_compile: bool = False
    cohorts: int | None = None
    profile: bool = False
    retry_failed: bool = False
    checkpoint_every: float = 15.0  # seconds
    max_hours: float | None = None
    budget: str | None = None
    pack: int = 0

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(unknown("executor", self.executor, EXECUTORS))
        for name in ("workers", "cohorts", "pack"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise UserError(f"{name} {value!r} must be a whole number from 0")
        for name in ("address", "store", "tracking_uri", "budget"):
            if not isinstance(value := getattr(self, name), str | None):
                raise UserError(f"{name} {value!r} must be text")
        if not (_number(self.checkpoint_every) and self.checkpoint_every >= 0):
            raise UserError(f"checkpoint_every {self.checkpoint_every!r} must be a number of seconds from 0")
        if self.max_hours is not None and not (_number(self.max_hours) and 0 < self.max_hours < math.inf):
            raise UserError(f"max_hours {self.max_hours!r} must be a number of hours above 0")
        if self.address and self.executor != "ray":
            raise UserError("--address names a Ray cluster: add --executor ray")
        for name in ("ship", "store"):
            if getattr(self, name) and not self.address:
                raise UserError(f"--{name} is for the nodes of a Ray cluster: add --address")

    @staticmethod
    def of(values: Mapping[str, Any]) -> RunOptions:
        """Those of a mapping that are options of a run; others are as they are by default."""
        return RunOptions(**{name: values[name] for name in OPTIONS if name in values})

    def changed(self, given: Mapping[str, Any]) -> RunOptions:
        """With some of them as given. Raises `UserError` for one that there is not."""
        for name in given:
            if name not in OPTIONS:
                raise UserError(unknown("option of a run", name, OPTIONS))
        return RunOptions.of({**asdict(self), **given})

    def kept(self) -> dict[str, Any]:
        """What a study that is resumed goes on with; failed trials are tried again once."""
        return {name: value for name, value in asdict(self).items() if name != "retry_failed"}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


OPTIONS = tuple(each.name for each in fields(RunOptions))
