"""Where MLflow keeps what the driver tells it: an SQLite file in the results, or any tracking URI."""

from __future__ import annotations

import logging
import os
import re
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
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# the driver tries again itself (`ablate.run.background`): MLflow would send a request anew whose reply was lost, and
# make a run twice
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
PASSING = (408, 429, 503)  # HTTP statuses of what may be otherwise in a while; of a server also the others from 500


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


def shown(text: str) -> str:
    """A URI, or a message that has some, without user names and passwords."""
    return CREDENTIALS.sub("", text)


def passing(error: Exception, uri: str) -> bool:
    """Whether it may be otherwise in a while: a server that is down or busy, a locked database."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import HTTPError, RequestException

    remote = uri.startswith(("http://", "https://"))
    if isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, RequestException):
        return True
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        return False
    return status in PASSING or (remote and status >= 500)


def trouble_of(error: Exception) -> str:
    """One line that says what is wrong, and what to do where the server wants to know who asks."""
    text = str(error)
    status = re.search(r"error code (40[13])\b|\b(40[13]) Client Error", text)
    if status:
        variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        code = status[1] or status[2]
        why = "the server asks for credentials" if code == "401" else "the server does not allow it"
        return f"HTTP {code}: {why}: set {variables}"
    return shown(f"{type(error).__name__}: {text.splitlines()[0] if text else ''}")


def _make(database: Path) -> None:
    from mlflow.tracking import MlflowClient

    part = database.with_name(f".{database.name}.{os.getpid()}.part")
    try:
        MlflowClient(tracking_uri=f"{SQLITE}{part}").search_experiments(max_results=1)
        os.replace(part, database)
    finally:
        part.unlink(missing_ok=True)
