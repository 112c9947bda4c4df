"""The deck: an actor of the driver's node that deals trials to lanes, and knows which lane holds which."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ablate.run.executor import MAX_DEATHS, give_up
from ablate.run.ledger import Ledger
from ablate.run.worker import Event
from ablate.train.trial import Job


@dataclass(frozen=True)
class Surroundings:
    """What a lane is told besides its jobs: how to see whether it shares the driver's results folder, where to bring
    its trials' files if it does not, and the text of the plugins."""

    marker: str  # a file of the results folder
    token: str  # what is in it
    store: str | None  # where files are kept for nodes without the folder; None: with the driver
    plugins: dict[str, str]  # path -> text


@ray.remote(num_cpus=0)
class Deck:
    """The jobs that are not yet dealt, by resource class, and which lane holds which.

    It is not restarted: it would not know what is under way. It ends with its driver.
    """

    def __init__(self, jobs: dict[str, list[Job]], surroundings: Surroundings):
        self.waiting = {kind: deque(each) for kind, each in jobs.items()}
        self.seen: dict[str, set[str]] = {kind: set() for kind in jobs}
        self.held: dict[str, tuple[str, Job]] = {}
        self.deaths: dict[str, int] = {}
        self.surroundings = surroundings

    def about(self) -> Surroundings:
        return self.surroundings

    def deal(self, lane: str, kind: str) -> tuple[Job | None, Event | None]:
        """The next job for a lane. A lane that still holds one has died with it: it gets that one again."""
        event = None
        self.seen[kind].add(lane)
        if (mine := self.held.pop(lane, None)) is not None:
            held = mine[1]
            self.deaths[held.trial_id] = self.deaths.get(held.trial_id, 0) + 1
            folder = Ledger(Path(held.results)).trial(held.trial_id)
            if folder.record() is None and self.deaths[held.trial_id] >= MAX_DEATHS:
                event = give_up(folder, f"lost: its worker died {MAX_DEATHS} times")
            else:
                folder.note("lost", by="actor died")
                self.waiting[kind].appendleft(held)
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
