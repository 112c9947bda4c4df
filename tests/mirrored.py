"""What MLflow holds of a study, for the tests of tracking; and a server of it in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path
from typing import Any

from runs import wait_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


def runs_at(uri: str, study: str = "tiny") -> dict[str, Run]:
    """Every run of a study by its key; none twice. None before its first trial has come."""
    client = MlflowClient(tracking_uri=uri)
    if (experiment := client.get_experiment_by_name(study)) is None:
        return {}
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = {run.data.tags["ablate.key"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def content_at(uri: str, study: str = "tiny", ids: bool = False) -> dict[str, Any]:
    """All that MLflow holds of a study, apart from the times and the names that MLflow itself gives."""
    client = MlflowClient(tracking_uri=uri)
    runs = runs_at(uri, study)
    names = {run.info.run_id: key for key, run in runs.items()}
    return {
        key: {
            "status": run.info.status,
            "name": run.info.run_name,
            "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
            "params": run.data.params,
            "tags": {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")},
            "curves": {
                name: [
                    (each.step, each.value, each.timestamp)
                    for each in client.get_metric_history(run.info.run_id, name)
                ]
                for name in run.data.metrics
            },
            **({"id": run.info.run_id} if ids else {}),
        }
        for key, run in runs.items()
    }


class Server:
    """`mlflow server` with an SQLite store, to be killed and started again on the same port and store."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.store = f"sqlite:///{folder / 'server.db'}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        """Not waiting until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
            )

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def wait(self) -> None:
        wait_for(self.answers, "the server's answer")

    def kill(self) -> None:
        """With SIGKILL, its workers too."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
