"""What a worker is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablate.train.forks import Fork


@dataclass(frozen=True)
class Job:
    """What a worker is told: which trial of which results folder, where, with which plugins."""

    trial_id: str
    results: str
    device: str = "cpu"
    threads: int = 1
    checkpoint_every_s: float = 15.0
    progress_every_s: float = 0.5
    plugins: dict[str, str] = field(default_factory=dict)  # path -> hash of its syntax tree
    until: int | None = None  # pause after this step, leaving a checkpoint
    stop: bool = False  # end it where it stands
    forks: tuple[Fork, ...] = ()  # trials that go on from its first steps
    profile: bool = False  # measure where its time goes
    crowded: bool = False  # others share its GPU: where memory is refused it ends, to be tried alone
    study: str = ""  # for which it is trained
    cores: tuple[int, ...] = ()  # to which its worker is pinned
    memory_bytes: float = 0.0  # what it is expected to need
    hours: float | None = None  # of wall time, which whoever started the worker watches

    @classmethod
    def of_json(cls, tree: Mapping[str, Any]) -> Job:
        """The job whose `asdict` has been through JSON."""
        return cls(**{**tree, "forks": tuple(Fork(**each) for each in tree["forks"]), "cores": tuple(tree["cores"])})
