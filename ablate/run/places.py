"""What of this machine is free, and what each trial that runs here holds of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from ablate.errors import UserError
from ablate.run import memory
from ablate.run.cores import Cores
from ablate.run.memory import Room
from ablate.spec import Resources
from ablate.train.job import Job


@dataclass
class Place:
    """What a trial holds. `cores`: of its own, if it has some."""

    cpus: int
    cores: tuple[int, ...] = ()
    gpu: int | None = None
    share: float = 0.0

    @property
    def device(self) -> str:
        return "cpu" if self.gpu is None else f"cuda:{self.gpu}"


class Places:
    """CPUs, RAM and GPUs: these by the share that trials ask for; with `pack` by memory, so many on one at most."""

    def __init__(self, cpus: int, gpus: int, pack: int = 0):
        self.cpus = self.free_cpus = cpus
        self.shares = [1.0] * gpus
        self.pack = pack
        self.cores = Cores()
        self.ram = Room(lambda: memory.free_ram())
        self.rooms = [Room(partial(_free_memory, gpu), pack) for gpu in range(gpus)] if pack else []
        self.held: dict[str, Place] = {}
        self.alone: set[str] = set()  # trials that get a GPU to themselves

    def refuse_impossible(self, jobs: Iterable[tuple[Job, Resources]]) -> None:
        """Raise `UserError` for what a trial asks for and this machine has not."""
        for _, need in jobs:
            if need.cpus > self.cpus:
                raise UserError(
                    f"a trial asks for {need.cpus} CPUs, but there are {self.cpus} workers: "
                    f"use --workers {need.cpus} or more, or lower resources.cpus"
                )
            if need.custom:
                names = ", ".join(name for name, _ in need.custom)
                raise UserError(
                    f"resources.custom ({names}) are of a Ray cluster's nodes: use --executor ray --address"
                )
            gpus = need.gpus or 0
            if gpus > 1 and len(self.shares) >= gpus:
                raise UserError("the local executor gives a trial at most one GPU: use --executor ray")
            if gpus > len(self.shares):
                raise UserError(f"a trial asks for {gpus:g} GPUs, but this machine has {len(self.shares)}")

    def fits(self, job: Job, need: Resources) -> bool:
        """Whether the trial can begin now."""
        if need.cpus > self.free_cpus:
            return False
        return self._gpu(job, need) is not None if need.gpus else self.ram.fits(job.memory_bytes)

    def take(self, job: Job, need: Resources) -> Place:
        """Begin a trial that fits."""
        place = Place(need.cpus)
        self.free_cpus -= need.cpus
        if need.gpus:
            gpu = self._gpu(job, need)
            assert gpu is not None
            place.gpu, place.share = gpu, need.gpus
            self.shares[gpu] -= need.gpus
            if self.pack:
                self.rooms[gpu].take(job.trial_id, job.memory_bytes)
        else:
            self.ram.take(job.trial_id, job.memory_bytes)
            place.cores = self.cores.claim(need.cpus)
        self.held[job.trial_id] = place
        return place

    def crowded(self, job: Job, need: Resources) -> bool:
        """Whether others may be on the GPU of a trial while it runs."""
        parts = self.pack > 1 or (not self.pack and (need.gpus or 1) < 1)
        return bool(need.gpus) and parts and job.trial_id not in self.alone

    def leave(self, job: Job) -> Place:
        """A trial has ended, or its worker."""
        place = self.held.pop(job.trial_id)
        self.free_cpus += place.cpus
        self.cores.release(place.cores)
        if place.gpu is None:
            self.ram.leave(job.trial_id)
            return place
        self.shares[place.gpu] += place.share
        if self.pack:
            self.rooms[place.gpu].leave(job.trial_id)
        return place

    def _gpu(self, job: Job, need: Resources) -> int | None:
        """The fullest GPU that has what the trial needs, None where there is none."""
        fitting = [gpu for gpu in range(len(self.shares)) if self._has(gpu, job, need)]
        return min(fitting, key=lambda gpu: self.shares[gpu], default=None)

    def _has(self, gpu: int, job: Job, need: Resources) -> bool:
        there = [trial_id for trial_id, place in self.held.items() if place.gpu == gpu]
        if there and (job.trial_id in self.alone or self.alone.intersection(there)):
            return False
        if self.pack:
            return self.rooms[gpu].fits(job.memory_bytes)
        return self.shares[gpu] >= (need.gpus or 0) - 1e-9


def _free_memory(gpu: int) -> float:
    return memory.free_memory(gpu)
