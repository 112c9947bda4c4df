"""The processes of one trial: the worker, which is rank 0 and has the trial's files, and those that it starts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ablate import registry
from ablate.resources import Parallel
from ablate.spec import TrialSpec, to_tree

PATIENCE_S = 600.0  # until a rank that waits for the others gives up
END_S = 10.0
GRACE_S = 3.0  # in which rank 0 says what is wrong, where it is the same with all
LOST = 70  # exit code of a worker one of whose ranks has died


@dataclass(frozen=True)
class Seat:
    """A process' place among those of its trial, once they have met."""

    parallel: Parallel
    rank: int
    mesh: DeviceMesh  # of dimensions `data` and `tensor`

    @property
    def data(self) -> int:
        """Which part of every batch is this process'."""
        return self.rank // self.parallel.tensor


def meet(parallel: Parallel, rank: int, device: torch.device, folder: Path) -> Seat:
    """Wait for the others. By a file, as all are of one machine: no port is open."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder / 'meet'}",
        rank=rank,
        world_size=parallel.ranks,
        timeout=timedelta(seconds=PATIENCE_S),
    )
    sizes = (parallel.data, parallel.tensor)
    return Seat(parallel, rank, init_device_mesh(device.type, sizes, mesh_dim_names=("data", "tensor")))


def device_of(rank: int, device: torch.device) -> torch.device:
    """A GPU for each rank, from rank 0's on."""
    return torch.device("cuda", (device.index or 0) + rank) if device.type == "cuda" else device


class Ranks:
    """The other processes of a trial, which do what rank 0 tells them, in its order. They are of its process group,
    so that whatever ends it ends them. When one of them dies, so does rank 0: its executor tries the trial again."""

    def __init__(self, spec: TrialSpec, device: torch.device, cache: Path):
        parallel = spec.resources.parallel
        self.folder = Path(tempfile.mkdtemp(prefix="ablate-ranks-"))
        torch.set_num_threads(max(1, torch.get_num_threads() // parallel.ranks))
        self._ending = False
        self._processes: list[subprocess.Popen[str]] = []
        for rank in range(1, parallel.ranks):
            process = subprocess.Popen([sys.executable, "-m", "ablate.train.parallel.rank"], stdin=-1, text=True)
            self._processes.append(process)
            self._send(
                process,
                rank=rank,
                spec=to_tree(spec),
                device=str(device_of(rank, device)),
                cache=str(cache.resolve()),
                folder=str(self.folder),
                threads=torch.get_num_threads(),
                plugins=list(registry.plugin_files()),
            )
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        try:
            self.seat = meet(parallel, 0, device, self.folder)
        except BaseException:
            self.end()
            raise

    def tell(self, what: str, **how: Any) -> None:
        """What all do next; this process does its own part itself."""
        for process in self._processes:
            self._send(process, do=what, **how)

    @staticmethod
    def _send(process: subprocess.Popen[str], **order: Any) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: `_watch` sees it
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()

    def _watch(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        time.sleep(GRACE_S)
        if not self._ending:  # no collective operation would end
            give_way(f"a process of the trial has ended with exit code {process.returncode}")

    def lost(self) -> bool:
        """Whether one of them was killed, as an operation with it has just failed."""
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            if any((process.poll() or 0) < 0 for process in self._processes):
                return True
            time.sleep(0.1)
        return False

    def end(self) -> None:
        """Let them go; what does not is killed."""
        self._ending = True
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        for process in self._processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def give_way(why: str) -> NoReturn:
    """End this process, for its trial to be tried again."""
    print(why, file=sys.stderr, flush=True)
    os._exit(LOST)


def of_one_process(spec: TrialSpec) -> TrialSpec:
    """The same trial in one process."""
    return replace(spec, resources=replace(spec.resources, parallel=Parallel()))
