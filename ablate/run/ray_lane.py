"""What Ray runs: lanes, which are Tune trials that train one spec after another.

Tune needs a second or more to start an actor, and cancels the actor that it is starting when another one
becomes free; with a Tune trial for every short spec the cluster runs nearly serially (measured: 20 trials of
0.2 s on 4 slots at a mean parallelism of 0.7 to 1.4). So what Tune schedules is a lane: an actor of one resource
class that takes specs from the deck until there are none. It trains them in a worker process of its own, so that a
trial that dies or hangs does not cost the actor. Every spec commits its own record; a lane that dies costs only the
spec under way, which the deck deals again. On a node that does not see the driver's results folder it trains in a
folder of the node, and a courier carries the files.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ablate.errors import UserError
from ablate.run.files import full_disk, own_folder, read_json
from ablate.run.lease import Busy
from ablate.run.limits import Limit
from ablate.run.process import Worker
from ablate.run.ray_deck import Surroundings
from ablate.run.ray_home import HomeStore
from ablate.run.store import Courier, FileStore, fetch_folder, write_plugins
from ablate.train.job import Event, Job

STOP_PATIENCE_S = 10.0
STEP_S = 1.0  # a lane reports to Tune about this often


def node_folder() -> Path:
    """Where this node keeps what runs have in common."""
    return own_folder("ablate")


def folder_here(token: str) -> Path:
    """This node's own results folder for one run of a driver; its cache serves all runs."""
    results, cache = node_folder() / token[:12], node_folder() / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    results.mkdir(exist_ok=True)
    if not (results / "cache").exists():
        try:
            (results / "cache").symlink_to(cache)
        except FileExistsError:
            pass  # another lane was as quick
    return results


def sees_results(about: Surroundings) -> bool:
    """Whether the driver's results folder is here what it is there."""
    try:
        return Path(about.marker).read_text() == about.token
    except OSError:
        return False


class Abroad:
    """Trials train in a folder of this node, which does not see the results folder, or there is a store for all."""

    def __init__(self, about: Surroundings, home: Any):
        self.results, self.home = folder_here(about.token), home
        self.store = about.store
        self.couriers: dict[str, tuple[Courier, HomeStore]] = {}  # of the trials under way

    def receive(self, job: Job, passed: list[Event]) -> Job | None:
        """Fetch what a trial, or a cohort, needs; the job as it is here, without those that others train."""
        self.couriers = {}
        here = []
        for each in job.each():
            try:
                here.append(self._receive(each))
            except Busy as busy:
                passed.append({"id": each.trial_id, "busy": str(busy)})
        if not here:
            return None
        return replace(here[0], beside=None if job.beside is None else tuple(here[1:]))

    def _receive(self, job: Job) -> Job:
        origin = HomeStore(self.home)
        origin.take(job.trial_id)
        courier = Courier(FileStore(self.store) if self.store else origin, self.results, origin)
        self.couriers[job.trial_id] = courier, origin
        for folder in ray.get(self.home.cache_folders.remote(job)):
            fetch_folder(origin, folder, self.results)
        spec = read_json(courier.fetch(job.trial_id).spec)
        if spec["parent"] is not None:
            courier.fetch_weights(spec["parent"])
        return replace(job, results=str(self.results))

    def bring(self, at_once: bool = False) -> None:
        """What has changed of the trials under way."""
        for courier, _ in self.couriers.values():
            courier.bring(at_once)

    def end(self, trial_id: str) -> None:
        """Bring home a trial that has ended, and let others have it."""
        courier, origin = self.couriers.pop(trial_id)
        courier.end()
        origin.release(trial_id, ended=True)


class Lane(tune.Trainable):
    """A warm actor: trains jobs of its class one after another, and reports their events to the driver."""

    limit: Limit  # of the job under way

    def setup(self, config: dict[str, Any]) -> None:
        gpus = bool(ray.get_gpu_ids())
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset, and then all devices are seen
        self.lane, self.kind = config["lane"], config["kind"]
        self.device = "cuda" if gpus else "cpu"
        self.deck = ray.get_actor(f"{config['run']}-deck")
        about: Any = ray.get(self.deck.about.remote())
        self.about: Surroundings = about
        self.abroad: Abroad | None = None
        if self.about.store or not sees_results(self.about):
            self.abroad = Abroad(self.about, ray.get_actor(f"{config['run']}-home"))
        self.worker: Worker | None = None
        self.holds: bool = False  # a job of this actor's; one that the deck has for this lane is a dead actor's

    def step(self) -> dict[str, Any]:
        """Work for about a second, or to the end of the deck; every event of a trial's end is passed on."""
        try:
            return self._work()
        except ray.exceptions.RayActorError:
            problem = "an actor that deals trials or keeps their files has died; run the command again to go on"
            return self._fatal(problem, 1)
        except UserError as error:
            return self._fatal(str(error), 2)
        except OSError as error:
            hint = full_disk(error)
            return self._fatal(f"on node {os.uname().nodename}: {error}{hint}", 75 if hint else 1)

    @staticmethod
    def _fatal(problem: str, code: int) -> dict[str, Any]:
        return {"events": json.dumps([{"fatal": problem, "code": code}]), "done": True}

    def _work(self) -> dict[str, Any]:
        deadline = time.monotonic() + STEP_S
        passed: list[Event] = []
        latest: Event | None = None
        while (left := deadline - time.monotonic()) > 0:
            if self.worker is None or not self.holds:
                if not self._take(passed):
                    return {"events": json.dumps(passed), "done": True}
                continue
            try:
                self.limit.enforce(self.worker)
                if not self.worker.pipe.poll(left):
                    break
                event = self.worker.recv()
            except (EOFError, ConnectionResetError):
                self._lost(passed)
                continue
            if "idle" in event:
                self._let_go()
            elif event.keys() & {"status", "fatal", "busy"}:
                if self.abroad is not None and "status" in event:
                    self.abroad.end(event["id"])
                passed.append(event)
                latest = None
            else:
                latest = event
            if self.abroad is not None:
                self.abroad.bring()
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
            plugins = write_plugins(self.about.plugins, job.plugins, node_folder())
            here = job if self.abroad is None else self.abroad.receive(job, passed)
            if here is None:
                self._let_go()
                return True
            self.limit = Limit(here)
            self._send(replace(here, device=self.device, plugins=plugins))
        return job is not None

    def _send(self, job: Job) -> None:
        assert self.worker is not None
        try:
            self.worker.send(job)
        except OSError:  # it died while it was idle: no fault of the trial
            self.worker.discard()
            self.worker = Worker()
            self.worker.send(job)

    def _lost(self, passed: list[Event]) -> None:
        """The worker has died. Past its time limit the trial has failed; else the deck says what follows."""
        assert self.worker is not None
        how = self.worker.fate()
        self.worker.discard()
        self.worker = None
        if self.limit.enforced and (event := self.limit.fail()) is not None:
            passed.append(event)
        if self.abroad is not None:
            self.abroad.bring(at_once=True)
        if not self.limit.enforced:
            self._take(passed, how=how)
            return
        self._let_go()

    def _let_go(self) -> None:
        ray.get(self.deck.done.remote(self.lane))
        self.holds = False

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
            if self.abroad is not None:
                self.abroad.bring(at_once=True)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # the trial's folder owns its checkpoints

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass
