"""What Ray runs: lanes, which are Tune trials that train one spec after another, and the deck that deals them.

Tune needs a second or more to start an actor, and cancels the actor that it is starting when another one
becomes free; with a Tune trial for every short spec the cluster runs nearly serially (measured: 20 trials of
0.2 s on 4 slots at a mean parallelism of 0.7 to 1.4). So what Tune schedules is a lane: an actor of one resource
class that takes specs from the deck until there are none. Every spec commits its own record; a lane that dies
costs only the spec under way, which the deck deals again.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ablate.run.executor import MAX_DEATHS, give_up
from ablate.run.ledger import Ledger
from ablate.run.worker import Event, work
from ablate.train.trial import Job

DECK = "ablate-deck"
STEP_S = 1.0  # a lane reports to Tune about this often


@ray.remote(num_cpus=0, max_restarts=-1)
class Deck:
    """The jobs that are not yet dealt, by resource class, and which lane holds which."""

    def __init__(self, jobs: dict[str, list[Job]]):
        self.waiting = {kind: deque(each) for kind, each in jobs.items()}
        self.held: dict[str, Job] = {}
        self.deaths: dict[str, int] = {}

    def deal(self, lane: str, kind: str) -> tuple[Job | None, Event | None]:
        """The next job for a lane. A lane that still holds one has died with it: it gets that one again."""
        event = None
        if (held := self.held.pop(lane, None)) is not None:
            self.deaths[held.trial_id] = self.deaths.get(held.trial_id, 0) + 1
            folder = Ledger(Path(held.results)).trial(held.trial_id)
            if folder.record() is None and self.deaths[held.trial_id] >= MAX_DEATHS:
                event = give_up(folder, f"lost: its worker died {MAX_DEATHS} times")
            else:
                folder.note("lost", by="actor died")
                self.waiting[kind].appendleft(held)
        if self.waiting[kind]:
            self.held[lane] = self.waiting[kind].popleft()
        return self.held.get(lane), event

    def done(self, lane: str) -> None:
        self.held.pop(lane, None)

    def kinds_waiting(self) -> list[str]:
        return [kind for kind, jobs in self.waiting.items() if jobs]


class Lane(tune.Trainable):
    """A warm actor: trains jobs of its class one after another, and reports their events to the driver."""

    def setup(self, config: dict[str, Any]) -> None:
        if not config["gpus"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset, and then all devices are seen
        self.lane, self.kind = config["lane"], config["kind"]
        self.device = "cuda" if config["gpus"] else "cpu"
        self.deck = ray.get_actor(DECK)
        self.events: Any = iter(())
        self.holds = False  # a job of this actor's; one that the deck has for this lane is a dead actor's

    def step(self) -> dict[str, Any]:
        """Work for about a second, or to the end of the deck; every event of a trial's end is passed on."""
        begun = time.monotonic()
        passed: list[Event] = []
        latest: Event | None = None
        while time.monotonic() - begun < STEP_S:
            event = next(self.events, None)
            if event is None:
                if not self._take(passed):
                    return {"events": json.dumps(passed), "done": True}
            elif event.keys() & {"status", "fatal", "busy"}:
                passed.append(event)
                latest = None
            else:
                latest = event
        return {"events": json.dumps([*passed, *([latest] if latest else [])]), "done": False}

    def _take(self, passed: list[Event]) -> bool:
        if self.holds:
            ray.get(self.deck.done.remote(self.lane))
        job: Job | None
        event: Event | None
        job, event = ray.get(self.deck.deal.remote(self.lane, self.kind))
        if event is not None:
            passed.append(event)
        self.holds = job is not None
        if job is not None:
            self.events = work(replace(job, device=self.device))
        return self.holds

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve as another lane: nothing of a trial outlives it, so there is nothing to undo."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        if hasattr(self.events, "close"):
            self.events.close()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # the trial's folder owns its checkpoints

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass
