"""What Ray runs: lanes, which are Tune trials that train one spec after another, and the deck that deals them.

Tune needs a second or more to start an actor, and cancels the actor that it is starting when another one
becomes free; with a Tune trial for every short spec the cluster runs nearly serially (measured: 20 trials of
0.2 s on 4 slots at a mean parallelism of 0.7 to 1.4). So what Tune schedules is a lane: an actor of one resource
class that takes specs from the deck until there are none. It trains them in a worker process of its own, so that a
trial that dies or hangs does not cost the actor. Every spec commits its own record; a lane that dies costs only the
spec under way, which the deck deals again.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from ablate.run.executor import Deaths
from ablate.run.process import Worker
from ablate.run.worker import Event
from ablate.train.trial import Job

DECK = "ablate-deck"
STOP_PATIENCE_S = 10.0
STEP_S = 1.0  # a lane reports to Tune about this often


@ray.remote(num_cpus=0, max_restarts=-1)
class Deck:
    """The jobs that are not yet dealt, by resource class, and which lane holds which."""

    def __init__(self, jobs: dict[str, list[Job]]):
        self.waiting = {kind: deque(each) for kind, each in jobs.items()}
        self.held: dict[str, Job] = {}
        self.deaths = Deaths()

    def deal(self, lane: str, kind: str, how: str = "the death of its actor") -> tuple[Job | None, Event | None]:
        """The next job for a lane. One that the lane still holds was lost, by `how`: it is dealt again, or given up
        with the event of its end."""
        event = None
        if (held := self.held.pop(lane, None)) is not None:
            event = self.deaths.count(held, how)
            if event is None:
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
        self.worker: Worker | None = None
        self.holds = False  # a job of this actor's; one that the deck has for this lane is a dead actor's

    def step(self) -> dict[str, Any]:
        """Work for about a second, or to the end of the deck; every event of a trial's end is passed on."""
        deadline = time.monotonic() + STEP_S
        passed: list[Event] = []
        latest: Event | None = None
        while (left := deadline - time.monotonic()) > 0:
            if self.worker is None or not self.holds:
                if not self._take(passed):
                    return {"events": json.dumps(passed), "done": True}
                continue
            try:
                if not self.worker.pipe.poll(left):
                    break
                event = self.worker.recv()
            except (EOFError, ConnectionResetError):
                self._lost(passed)
                continue
            if "idle" in event:
                ray.get(self.deck.done.remote(self.lane))
                self.holds = False
            elif "status" in event or "fatal" in event:
                passed.append(event)
                latest = None
            else:
                latest = event
        return {"events": json.dumps([*passed, *([latest] if latest else [])]), "done": False}

    def _take(self, passed: list[Event], **lost: str) -> bool:
        """Begin the next job of the deck, if there is one."""
        job: Job | None
        event: Event | None
        job, event = ray.get(self.deck.deal.remote(self.lane, self.kind, **lost))
        if event is not None:
            passed.append(event)
        self.holds = job is not None
        if job is not None:
            self.worker = self.worker or Worker()
            self._send(replace(job, device=self.device))
        return self.holds

    def _send(self, job: Job) -> None:
        assert self.worker is not None
        try:
            self.worker.send(job)
        except OSError:  # it died while it was idle: no fault of the trial
            self.worker.kill()
            self.worker = Worker()
            self.worker.send(job)

    def _lost(self, passed: list[Event]) -> None:
        """The worker has died: the deck says whether its trial is tried again."""
        assert self.worker is not None
        how = self.worker.fate()
        self.worker.kill()
        self.worker = None
        self._take(passed, how=how)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve as another lane: nothing of a trial outlives its worker, so there is nothing to undo."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """End the worker: a trial under way leaves a checkpoint."""
        if self.worker is not None:
            self.worker.end(STOP_PATIENCE_S)
            self.worker = None

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # the trial's folder owns its checkpoints

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass
