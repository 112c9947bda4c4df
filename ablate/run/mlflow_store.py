"""Where MLflow keeps what the driver tells it: an SQLite file in the results, or any tracking URI."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from ablate.run.files import locked

SQLITE = "sqlite:///"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
# MLflow would try a server that is not there for minutes at the end of every study; the next run catches up
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def default_uri(results: Path) -> str:
    """SQLite in the results folder, unless MLFLOW_TRACKING_URI says otherwise."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{(results / 'mlflow.db').resolve()}"


def database_of(uri: str) -> Path | None:
    """The file of an SQLite store; None for another kind."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def files_of(uri: str) -> str | None:
    """Where an experiment keeps files: beside an SQLite store, not in the folder that we happen to be in."""
    database = database_of(uri)
    return (database.resolve().parent / "mlartifacts").as_uri() if database else None


def forget_files(run: Any, folder: str, uri: str) -> None:
    """Remove a folder of a run's files, from stores that can. Raises `FileExistsError` where an SQLite store keeps
    files elsewhere than beside itself: it was copied from there, and they are another's.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place, own = run.info.artifact_uri, files_of(uri)
    if own is not None and not place.startswith(f"{own}/"):
        raise FileExistsError(f"the store keeps files in {place}, and lies in another folder now")
    with suppress(NotImplementedError):
        get_artifact_repository(place, tracking_uri=uri).delete_artifacts(folder)


def open_client(uri: str) -> Any:
    """A client, quiet. A new SQLite store is made whole or not at all, by one process at a time.

    MLflow makes its tables in dozens of migrations, and cannot go on from one that a full disk interrupted.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in (QUIET | PATIENCE).items()})
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        database = database_of(uri)
        if database is not None and not database.exists():
            with locked(database.with_suffix(".lock")):
                if not database.exists():
                    _make(database)
        return MlflowClient(tracking_uri=uri)


def _make(database: Path) -> None:
    from mlflow.tracking import MlflowClient

    part = database.with_name(f".{database.name}.{os.getpid()}.part")
    try:
        MlflowClient(tracking_uri=f"{SQLITE}{part}").search_experiments(max_results=1)
        os.replace(part, database)
    finally:
        part.unlink(missing_ok=True)
