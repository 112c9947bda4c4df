"""The deck: an actor of the driver's node that deals trials to lanes, and knows which lane holds which."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import ray

from ablate.run.executor import Deaths
from ablate.train.job import Event, Job


@dataclass(frozen=True)
class Surroundings:
    """What a lane is told besides its jobs: how to see whether it shares the driver's results folder, and the text of
    the plugins."""

    marker: str  # a file of the results folder
    token: str  # what is in it
    store: str | None  # where trials' files are kept; None: in the results folder
    plugins: dict[str, str]  # path -> text


@ray.remote(num_cpus=0)
class Deck:
    """The jobs that are not yet dealt, by resource class, and which lane holds which.

    It is not restarted: it would not know what is under way. It ends with its driver.
    """

    def __init__(self, jobs: dict[str, list[Job]], surroundings: Surroundings, home: Any):
        self.waiting = {kind: deque(each) for kind, each in jobs.items()}
        self.seen: dict[str, set[str]] = {kind: set() for kind in jobs}
        self.held: dict[str, tuple[str, Job]] = {}
        self.deaths = Deaths()
        self.surroundings, self.home = surroundings, home

    def about(self) -> Surroundings:
        return self.surroundings

    def deal(self, lane: str, kind: str, how: str = "the death of its actor") -> tuple[Job | None, Event | None]:
        """The next job for a lane. One that the lane still holds was lost, by `how`: it is dealt again, or given up
        with the event of its end."""
        event = None
        self.seen[kind].add(lane)
        if lane in self.held:
            _, held = self.held.pop(lane)
            # they were held for the lane that is dead
            ray.get([self.home.release.remote(each.trial_id) for each in held.each()])
            again, event = self.deaths.after(held, how)
            self.waiting[kind].extendleft(reversed(again))
        if self.waiting[kind]:
            self.held[lane] = kind, self.waiting[kind].popleft()
        return (self.held[lane][1] if lane in self.held else None), event

    def done(self, lane: str) -> None:
        self.held.pop(lane, None)

    def lanes(self) -> dict[str, int]:
        """How many lanes have come so far, of the classes that still have jobs to deal."""
        return {kind: len(self.seen[kind]) for kind, jobs in self.waiting.items() if jobs}

    def unfinished(self) -> set[str]:
        """The classes whose jobs have not all ended."""
        return {kind for kind, jobs in self.waiting.items() if jobs} | {kind for kind, _ in self.held.values()}


def on_this_node() -> Any:
    """Where an actor is put that reads and writes the driver's files."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
