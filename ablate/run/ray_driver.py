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
from pathlib import Path
from typing import Any

import ray
from ray import tune

import ablate
from ablate.run.ray_deck import Deck, Surroundings, on_this_node
from ablate.run.ray_executor import OBJECT_STORE
from ablate.run.ray_home import Home
from ablate.run.ray_lane import Lane
from ablate.run.ray_nodes import look, nodes, refusal
from ablate.train.job import Job

STOP_PATIENCE_S = 15.0
WATCH_S = 3.0
NODE_PATIENCE_S = 30.0  # a node may be on its way
PENDING = 16  # lanes of one class that may wait for room
ended = threading.Event()  # all that Tune does


class Feed(tune.search.Searcher):
    """Gives Tune a lane for each class that still has jobs, as long as few of that class wait for room: a class for
    which there is little room does not keep the others waiting.

    It finds the deck by its name: Tune copies a searcher, and a handle that is copied outside of Ray's tasks can
    make Ray believe that nobody needs the actor any more.
    """

    def __init__(self, run: str, counts: dict[str, int]):
        super().__init__(metric="events", mode="min")
        self.run, self.counts = run, counts
        self.given = dict.fromkeys(counts, 0)

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        come: Any = ray.get(ray.get_actor(f"{self.run}-deck").lanes.remote())
        left = [kind for kind in come if self.given[kind] < self.counts[kind]]
        if not left:
            return tune.search.Searcher.FINISHED
        kind = min(left, key=lambda kind: self.given[kind] - come[kind])
        if self.given[kind] - come[kind] >= PENDING:
            return None  # later
        self.given[kind] += 1
        return {"lane": f"lane-{sum(self.given.values()):05d}", "kind": kind, "run": self.run}

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
    address, kinds = orders["address"], orders["kinds"]
    threading.Thread(target=_follow_stdin, daemon=True).start()
    try:
        _reachable(address)
        ray.init(**_init(orders))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"the Ray cluster at {address} cannot be reached" if address else "Ray cannot start"
        say({"fatal": f"{where}: {str(error).splitlines()[0]}", "code": 2})
        return
    try:
        found = nodes()
        problem = refusal(kinds, found.values())
        if address and not problem:
            problem = look(found, imported_here()[1], imported_here)
        if problem:
            say({"fatal": problem, "code": 2})
            return
        say({"ready": True, "slots": sum(node.get("CPU", 0) for node in found.values())})
        _train(orders, set(found))
    finally:
        ray.shutdown()


def _init(orders: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `ray.init`: for a cluster of our own, or for the one at an address."""
    init: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not orders["address"]:
        return init | {
            "address": "local",  # else a cluster that another study has started here would be joined
            "num_cpus": orders["slots"],
            "num_gpus": orders["gpus"],
            "object_store_memory": OBJECT_STORE,
            "include_dashboard": False,
        }
    if orders["ship"]:
        import analysis

        code = [str(Path(each.__file__).parent) for each in (ablate, analysis) if each.__file__]
        init["runtime_env"] = {"py_modules": code}
    return init | {"address": orders["address"]}


def imported_here() -> tuple[str, str, str]:
    """The host, its version of this package with a hash of its code, and what keeps it from being imported.

    Ray carries this function by its code, since this module is a script: it needs nothing of the package."""
    import hashlib
    import os
    from pathlib import Path

    try:
        import ablate
        import ablate.run.ray_lane
    except Exception as error:  # whatever is wrong there
        return os.uname().nodename, "", f"{type(error).__name__}: {error}"
    folder, content = Path(ablate.__file__).parent, hashlib.sha256()
    for file in sorted(each for each in folder.rglob("*") if each.suffix in (".py", ".yaml")):
        content.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return os.uname().nodename, f"{ablate.__version__} ({content.hexdigest()[:8]})", ""


def _train(orders: dict[str, Any], found: set[str]) -> None:
    """Deal all jobs to lanes. The actors have names of this run's own: several drivers share a cluster."""
    run = f"ablate-{orders['token']}"
    jobs = {kind: [Job.of_json(job) for job in each] for kind, each in orders["jobs"].items()}
    about = Surroundings(orders["marker"], orders["token"], orders["store"], orders["plugins"])
    here = on_this_node()
    keeping = Home.options(name=f"{run}-home", scheduling_strategy=here)  # type: ignore[attr-defined]
    home = keeping.remote(orders["results"], orders["store"])
    deck = Deck.options(name=f"{run}-deck", scheduling_strategy=here).remote(jobs, about, home)  # type: ignore[attr-defined]
    ray.get([deck.lanes.remote(), home.names.remote("")])  # they run
    threading.Thread(target=_watch, args=(deck, orders["kinds"], found), daemon=True).start()
    try:
        _tune(orders, run, {kind: len(each) for kind, each in jobs.items()})
        if left := ray.get(deck.unfinished.remote()):
            say({"fatal": f"Ray ended with trials to go that ask for {' and '.join(sorted(left))}", "code": 1})
    finally:
        ended.set()


def _watch(deck: Any, kinds: dict[str, Any], known: set[str]) -> None:
    """End the run when a node that joins cannot serve it, or when none is left that could: Tune waits for ever."""
    lacking, ours = 0.0, imported_here()[1]
    while not ended.wait(WATCH_S):
        try:
            found = nodes()
            if not found:
                raise RuntimeError("none of its nodes is alive")
            left = {kind: kinds[kind] for kind in ray.get(deck.unfinished.remote(), timeout=60)}
            problem = look(found.keys() - known, ours, imported_here)
        except Exception as error:  # whatever becomes of a cluster that is ending, it is the end of this run
            if ended.is_set():
                return
            gone = f"the Ray cluster is gone: {(str(error) or repr(error)).splitlines()[0]}"
            say({"fatal": f"{gone}; run the command again to go on", "code": 1})
            return
        known = set(found)
        missing = refusal(left, found.values())
        lacking = lacking + WATCH_S if missing else 0.0
        if problem or lacking > NODE_PATIENCE_S:
            say({"fatal": problem or f"nodes have gone: {missing}", "code": 1})
            return


def _reachable(address: str | None) -> None:
    """Raise `OSError` when nothing listens at host:port: Ray itself would try for ten minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.split("//")[-1], int(port)), timeout=10).close()


def _tune(orders: dict[str, Any], run: str, counts: dict[str, int]) -> None:
    kinds = orders["kinds"]

    def needs(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([kinds[config["kind"]]])

    with tempfile.TemporaryDirectory(prefix="ablate-tune-") as scratch:  # Tune's own state is thrown away
        tune.Tuner(
            tune.with_resources(Lane, needs),
            tune_config=tune.TuneConfig(
                search_alg=Feed(run, counts),
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
