"""Ray clusters of several nodes on this host, each a process group of its own that can be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import ROOT
from runs import wait_for

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a head that is gone does not come back
}


class Node:
    """`ray start --block ARGUMENTS`, and the processes that come of it."""

    def __init__(self, log: Path, *arguments: str, wrap: Sequence[str] = (), **env: str):
        self.mark = f"ABLATE_NODE_MARK={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
        options = ["--block", "--disable-usage-stats", "--object-store-memory=80000000", *arguments]
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [*wrap, ray, "start", *options],
                env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT), name: value} | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self, word: str = "") -> list[int]:
        """Those of this node that are alive and whose command has `word` in it."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    if stat[0] not in "ZX" and word in (entry / "cmdline").read_bytes().decode(errors="replace"):
                        found.append(int(entry.name))
            except OSError:
                continue  # it ended
        return found

    def kill(self) -> None:
        """SIGKILL to the node's raylet. Its workers end with it."""
        hit = self.processes("raylet/raylet")
        assert hit, "the node has no raylet"
        for pid in hit:
            os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


class RayCluster:
    """A head, at which drivers on this host arrive, and nodes that come and go."""

    def __init__(self, folder: Path, cpus: int = 1, **resources: float):
        self.log = folder / "cluster.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.nodes: list[Node] = []
        self.head = self._start(
            "--head",
            f"--port={self.port}",
            "--include-dashboard=false",
            *_sizes(cpus, resources),
        )
        wait_for(self._answers, f"a cluster: {self.log}")

    def add(self, cpus: int = 1, **resources: float) -> Node:
        return self._start(f"--address={self.address}", *_sizes(cpus, resources))

    def add_bare(self, place: Path, cpus: int = 1, **resources: float) -> Node:
        """A node that has Ray and torch, and not this package, wherever else it is installed."""
        (place / "ablate").mkdir(parents=True)
        (place / "ablate" / "__init__.py").write_text("raise ImportError('not on this node')\n")
        return self._start(f"--address={self.address}", *_sizes(cpus, resources), PYTHONPATH=str(place))

    def add_without(self, folder: Path, place: Path, cpus: int = 1, **resources: float) -> Node:
        """A node that sees nothing in `folder`, and has `place` for its temporary files. Needs root."""
        place.mkdir()
        hide = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh"]
        return self._start(f"--address={self.address}", *_sizes(cpus, resources), wrap=hide, TMPDIR=str(place))

    def _start(self, *arguments: str, **options: Any) -> Node:
        self.nodes.append(Node(self.log, *arguments, **options))
        return self.nodes[-1]

    def _answers(self) -> bool:
        assert self.head.process.poll() is None, self.log.read_text()[-2000:]
        return "Ray runtime started" in self.log.read_text()

    def count(self) -> int:
        """Nodes that are alive."""
        return int(self._asked("sum(node['Alive'] for node in ray.nodes())"))

    def actors(self) -> int:
        """Actors that are not dead."""
        return int(self._asked("sum(each['State'] != 'DEAD' for each in ray._private.state.actors().values())"))

    def _asked(self, question: str) -> str:
        """What Ray in a process of its own says."""
        options = "log_to_driver=False, logging_level='ERROR'"
        code = f"import ray; ray.init({self.address!r}, {options}); print({question})"
        asked = [sys.executable, "-c", code]
        said = subprocess.run(asked, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=120)
        assert said.returncode == 0, said.stderr[-2000:]
        return said.stdout.split()[-1]

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        for node in reversed(self.nodes):
            node.end()


def _sizes(cpus: int, resources: dict[str, float]) -> list[str]:
    return [f"--num-cpus={cpus}", "--num-gpus=0", f"--resources={json.dumps(resources)}"]
