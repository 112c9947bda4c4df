"""What a worker is told, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Event = dict[str, Any]  # of a trial, by its `id`: see `ablate.run.worker`


@dataclass(frozen=True)
class Fork:
    """A trial of `steps` steps that has the first `step` of them in common with the one that is trained."""

    trial: str
    step: int
    steps: int


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
    beside: tuple[Job, ...] | None = None  # trained with it as one program; (): by that program, but alone
    if_faster: int = 0  # where set, only if so many together are measured to be faster than one after the other
    forks: tuple[Fork, ...] = ()  # trials that go on from its first steps
    compiles: bool = True  # where that pays
    profile: bool = False  # measure where its time goes
    crowded: bool = False  # others share its GPU: where memory is refused it ends, to be tried alone
    study: str = ""  # for which it is trained
    cores: tuple[int, ...] = ()  # to which its worker is pinned
    memory_bytes: float = 0.0  # what it is expected to need
    hours: float | None = None  # of wall time, which whoever started the worker watches

    @classmethod
    def of_json(cls, tree: Mapping[str, Any]) -> Job:
        """The job whose `asdict` has been through JSON."""
        beside = None if tree["beside"] is None else tuple(cls.of_json(each) for each in tree["beside"])
        forks = tuple(Fork(**each) for each in tree["forks"])
        return cls(**{**tree, "beside": beside, "forks": forks, "cores": tuple(tree["cores"])})

    def each(self) -> list[Job]:
        """The jobs of all that are trained with it, its own first: each for itself, where this one is."""
        if self.beside is None:
            return [self]
        here = {name: getattr(self, name) for name in ("results", "device", "threads", "cores", "plugins", "crowded")}
        here["progress_every_s"] = self.progress_every_s
        return [replace(job, beside=(), **here) for job in (self, *self.beside)]
