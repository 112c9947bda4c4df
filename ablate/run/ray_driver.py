"""The process that drives Ray: `python -m ablate.run.ray_driver`, started by the Ray executor.

Its own process, so that the noise of Ray's daemons goes to a log file and a crash of theirs is not the command's.
Reads one JSON line of orders from stdin, writes events as JSON lines to stdout. When stdin closes, the command
is gone or wants to stop: the trials are stopped and Ray is shut down.
"""

from __future__ import annotations

import os

for _key, _value in {  # all of it before `import ray`
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(_key, _value)

import json
import signal
import socket
import sys
import tempfile
import threading
import time
from typing import Any

import ray
from ray import tune

from ablate.run.ray_lane import DECK, Deck, Lane
from ablate.train.trial import Job

STOP_PATIENCE_S = 15.0


class Feed(tune.search.Searcher):
    """Gives Tune a lane for each class that still has jobs, as often as Tune has room for one.

    It finds the deck by its name: Tune copies a searcher, and a handle that is copied outside of Ray's tasks can
    make Ray believe that nobody needs the actor any more.
    """

    def __init__(self, kinds: dict[str, dict[str, Any]], counts: dict[str, int]):
        super().__init__(metric="events", mode="min")
        self.kinds, self.left = kinds, dict(counts)
        self.lanes = 0

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        kinds: list[str] = ray.get(ray.get_actor(DECK).kinds_waiting.remote())
        for kind in kinds:
            if self.left[kind]:
                self.left[kind] -= 1
                self.lanes += 1
                return {"lane": f"lane-{self.lanes:05d}", "kind": kind, **self.kinds[kind]}
        return tune.search.Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class Speaker(tune.Callback):
    """Passes the lanes' events on. A `fatal` one ends everything at once."""

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        for event in json.loads(result.get("events", "[]")):
            say(event)


def say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    orders = json.loads(sys.stdin.readline())
    init: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if orders["address"]:
        init["address"] = orders["address"]
    else:
        init |= {
            "address": "local",  # else a cluster that another study has started here would be joined
            "num_cpus": orders["slots"],
            "num_gpus": orders["gpus"],
            "object_store_memory": 100 * 2**20,
            "include_dashboard": False,
        }
    threading.Thread(target=_follow_stdin, daemon=True).start()
    try:
        _reachable(orders["address"])
        ray.init(**init)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = (
            f"the Ray cluster at {orders['address']} cannot be reached" if orders["address"] else "Ray cannot start"
        )
        say({"fatal": f"{where}: {str(error).splitlines()[0]}", "code": 2})
        return
    have = ray.cluster_resources()
    for kind in orders["kinds"].values():
        for name, need in (("CPU", kind["cpus"]), ("GPU", kind["gpus"])):
            if need > have.get(name, 0):
                message = f"a trial asks for {need:g} {name}s, but the Ray cluster has {have.get(name, 0):g}"
                say({"fatal": message, "code": 2})
                return
    say({"ready": True, "slots": have.get("CPU", 0)})
    jobs = {kind: [Job(**job) for job in each] for kind, each in orders["jobs"].items()}
    deck = Deck.options(name=DECK, lifetime=None).remote(jobs)  # type: ignore[attr-defined]
    try:
        ray.get(deck.kinds_waiting.remote())  # it runs
        _tune(orders, jobs)
    finally:
        ray.shutdown()


def _reachable(address: str | None) -> None:
    """Raise `OSError` when nothing listens at host:port: Ray itself would try for ten minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.split("//")[-1], int(port)), timeout=10).close()


def _tune(orders: dict[str, Any], jobs: dict[str, list[Job]]) -> None:
    def needs(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        bundle = {"CPU": config["cpus"], **({"GPU": config["gpus"]} if config["gpus"] else {})}
        return tune.PlacementGroupFactory([bundle])

    counts = {kind: len(each) for kind, each in jobs.items()}
    with tempfile.TemporaryDirectory(prefix="ablate-tune-") as scratch:  # Tune's own state is thrown away
        tune.Tuner(
            tune.with_resources(Lane, needs),
            tune_config=tune.TuneConfig(
                search_alg=Feed(orders["kinds"], counts),
                num_samples=sum(counts.values()),
                reuse_actors=True,
                max_concurrent_trials=orders["lanes"],
                trial_name_creator=lambda trial: trial.config["lane"],
                trial_dirname_creator=lambda trial: trial.config["lane"],
            ),
            run_config=tune.RunConfig(
                name=f"tune-{time.time_ns()}",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=-1),  # the deck counts deaths, by spec
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                callbacks=[Speaker()],
            ),
        ).fit()


def _follow_stdin() -> None:
    """Leave when the command does. Ray's local daemons share this process' fate."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)  # Tune then stops its actors, and their trials leave a checkpoint
    time.sleep(STOP_PATIENCE_S)
    os._exit(0)


if __name__ == "__main__":
    main()
