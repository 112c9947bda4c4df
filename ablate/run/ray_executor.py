"""The Ray executor: starts the driver process, feeds it jobs, and passes its events on."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.run.executor import Fatal, OnEvent
from ablate.run.files import write_text
from ablate.run.store import FileStore
from ablate.spec import Resources
from ablate.train.job import Job

OBJECT_STORE = 100 * 2**20  # bytes, of a cluster of our own: trials pass files, not objects
LANES = 512  # most lanes at once, on a cluster
# Nobody starts a daemon of a cluster of our own anew: one that is gone is waited for no longer than this
OWN_CLUSTER = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
ADDRESSES = "run the command on a node of the cluster, with its head's HOST:PORT or auto"


class RayExecutor:
    """Ray Tune over this machine (`slots` CPUs and `gpus` GPUs), or over the cluster at `address`."""

    def __init__(
        self, slots: int, gpus: int, address: str | None, log: Path, ship: bool = False, store: str | None = None
    ):
        if address is not None and address.startswith("ray://"):
            raise UserError(f"--address {address}: Ray's client cannot drive Tune; {ADDRESSES}")
        self.slots = slots
        self.gpus = gpus
        self.address = address
        self.log = log
        self.ship = ship
        self.store = store
        if store is not None:
            FileStore(store)  # refuse here what cannot be opened

    def run(self, jobs: Sequence[tuple[Job, Resources]], on_event: OnEvent, stop: threading.Event) -> None:
        for _, need in jobs if self.address is None else ():  # else the driver finds out what the cluster has
            for name, ask, have in (("CPU", need.cpus, self.slots), ("GPU", need.gpus or 0, self.gpus)):
                if ask > have:
                    raise UserError(f"a trial asks for {ask:g} {name}s, but there are {have}: see --workers")
            if need.custom:
                names = ", ".join(name for name, _ in need.custom)
                raise UserError(f"resources.custom ({names}) are of a Ray cluster's nodes: add --address")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "ablate.run.ray_driver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=None if self.address else {**OWN_CLUSTER, **os.environ},
                start_new_session=True,  # Ctrl-C is this process' to handle
            )
        assert driver.stdin is not None and driver.stdout is not None
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=_listen, args=(driver.stdout, events), daemon=True).start()
        try:
            driver.stdin.write(json.dumps(self._orders(jobs)).encode() + b"\n")
            driver.stdin.flush()
            self._follow(events, on_event, stop, driver)
        except BrokenPipeError:
            pass  # it died before it read its orders: reported below
        finally:
            driver.stdin.close()
            try:
                driver.wait(timeout=30)
            except subprocess.TimeoutExpired:
                driver.kill()
                driver.wait()
            with contextlib.suppress(ProcessLookupError, PermissionError):  # there are none
                os.killpg(driver.pid, signal.SIGKILL)  # daemons of its cluster that have outlived it
            self._marker.unlink(missing_ok=True)
        if driver.returncode and not stop.is_set():
            how = f"the Ray driver ended with exit code {driver.returncode}: see {self.log}"
            raise Fatal(f"{how}; run the command again to go on", 1)

    @property
    def _marker(self) -> Path:
        """By its random content a node finds out whether it sees this results folder."""
        return self.log.with_name("home")

    def _orders(self, jobs: Sequence[tuple[Job, Resources]]) -> dict[str, Any]:
        """The jobs by resource class: lanes are of one class each."""
        kinds: dict[str, dict[str, float]] = {}
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for job, need in jobs:
            kind = ",".join(f"{name}={amount:g}" for name, amount in need.of_ray().items())
            kinds[kind] = need.of_ray()
            job = replace(job, threads=need.cpus, progress_every_s=1.0)
            by_kind.setdefault(kind, []).append(asdict(job))
        token = uuid.uuid4().hex
        write_text(self._marker, token)
        return {
            "address": self.address,
            "slots": self.slots,
            "gpus": self.gpus,
            "lanes": LANES if self.address else self.slots,
            "kinds": kinds,
            "jobs": by_kind,
            "results": jobs[0][0].results,
            "marker": str(self._marker.resolve()),
            "token": token,
            "ship": self.ship,
            "store": self.store,
            "plugins": {file: Path(file).read_text(encoding="utf-8") for file in jobs[0][0].plugins},
        }

    def _follow(self, events: Any, on_event: OnEvent, stop: threading.Event, driver: Any) -> None:
        while not stop.is_set():
            try:
                event = events.get(timeout=0.5)
            except queue.Empty:
                continue
            if event is None:
                return
            if "fatal" in event:
                error = UserError(event["fatal"]) if event["code"] == 2 else None
                raise error or Fatal(event["fatal"], event["code"])
            if "id" in event:
                on_event(event)


def _listen(stream: Any, events: Any) -> None:
    with stream:
        for line in stream:
            try:
                events.put(json.loads(line))
            except json.JSONDecodeError:
                continue  # some library wrote to stdout
    events.put(None)
