"""Which trials are trained together: see `ablate.train.cohort`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ablate.spec import Component, Resources, TrialSpec, canonical, digest
from ablate.train.job import Job
from ablate.train.remembered import common

AUTO = 32  # trials in a cohort, where its size is left to be found


@dataclass(frozen=True)
class Cohorts:
    """`size`: most trials in one; None for as many as a GPU gains by, on GPUs alone; 0 for none. They leave none of
    the machine's `cpus` and `gpus` idle; those of a cluster are not known here, where these are None."""

    size: int | None = None
    cpus: float | None = None
    gpus: float | None = None

    def formed(self, work: Sequence[tuple[Job, Resources, TrialSpec]]) -> list[tuple[Job, Resources]]:
        """The same work, with those trials in one job that differ in seed, rates and an optimizer's settings alone.
        A cohort is where its first member was.

        Left by themselves are those with a time limit, that are profiled, end early, begin from another trial or have
        several processes.
        """
        found: list[tuple[list[Job], Resources]] = []
        open_ones: dict[str, list[Job]] = {}
        for job, need, spec in work:
            limit = self._limit(need)
            alone = job.stop or job.profile or job.hours is not None or spec.parent is not None
            if not limit or alone or need.parallel.ranks > 1:
                found.append(([job], need))
                continue
            asked = replace(job, beside=(), if_faster=limit if self.size is None else 0)
            key = _alike(job, need, spec)
            if key in open_ones and len(open_ones[key]) < min(limit, self._share(len(work), need)):
                open_ones[key].append(asked)
            else:
                open_ones[key] = [asked]
                found.append((open_ones[key], need))
        return [(_together(jobs), need) for jobs, need in found]

    def _limit(self, need: Resources) -> int:
        if self.size is not None:
            return self.size
        return AUTO if need.gpus and self.gpus is not None else 0

    def _share(self, trials: int, need: Resources) -> float:
        """Of so many trials those that one of the places for them has to train."""
        have, ask = (self.gpus, need.gpus) if need.gpus else (self.cpus, need.cpus)
        return math.inf if have is None else math.ceil(trials * (ask or 1) / max(have, 1))


def _together(jobs: Sequence[Job]) -> Job:
    first, *others = jobs
    if not others:
        return first
    return replace(first, beside=tuple(others), memory_bytes=sum(job.memory_bytes for job in jobs))


def _alike(job: Job, need: Resources, spec: TrialSpec) -> str:
    """What trials have in common that can be trained together."""
    alike = common(spec)
    train = replace(alike.train, optimizer=Component(spec.train.optimizer.name))
    return digest([canonical(replace(alike, train=train)), job.until, repr(need)])
