"""What a trial's MLflow run holds: its name, tags, parameters, curve and results, in calls within MLflow's limits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablate.spec import flatten
from analysis.records import is_number

STATUS = {"finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED"}
# In a call of log_batch: MLflow's limits, the last less 10 %
MOST_OF_ALL, MOST_PARAMS, MOST_BYTES = 1000, 100, 900_000
LONGEST_PARAM, LONGEST_TAG, LONGEST_NAME = 6000, 5000, 250
SUMMARY = (
    "params_total",
    "params_non_embedding",
    "flops_per_token",
    "train_flops",
    "tokens",
    "tokens_per_s",
    "wall_s",
    "peak_memory_bytes",
)


def run_name(label: Mapping[str, Any]) -> str:
    """A trial's labels as the name of its run."""
    words = (label["variant"], label.get("stage"), label["size"], f"seed {label['seed']}")
    return " ".join(str(each) for each in words if each)


def identity_tags(label: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """The tags that a trial's run is made with."""
    tags = {
        "ablate.level": "trial",
        "ablate.trial_id": label["id"],
        "ablate.variant": label["variant"],
        "ablate.size": str(label["size"]),
        "ablate.seed": str(label["seed"]),
        "ablate.status": record["status"],
    }
    if label.get("stage"):
        tags |= {"ablate.stage": label["stage"], "ablate.parent": label["parent"] or ""}
    return tags


def log_trial(client: Any, run_id: str, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Parameters, curve, results and the tags of what ran it. A repeated point is the same point: its time is that of
    the record."""
    from mlflow.entities import Metric, Param, RunTag

    params = [
        Param(path, str(value)[:LONGEST_PARAM])
        for path, value in flatten(record.get("spec") or {})
        if path and value is not None and value != ""
    ]
    environment = record.get("environment") or {}
    facts = {key: environment.get(key) for key in ("torch", "device", "gpu", "cpu", "git_commit")}
    facts["error"] = record.get("error")
    tags = [RunTag(f"ablate.{key}", str(value)[:LONGEST_TAG]) for key, value in facts.items() if value]
    stamp = int(record["ended"] * 1000)
    metrics = [
        Metric(legal(f"{row['split']}/{key}"), value, stamp, row["step"])
        for row in rows
        for key, value in row.items()
        if key not in ("step", "tokens", "split") and is_number(value)
    ]
    last = record.get("steps") or 0
    summary = {**record["metrics"], **{key: record.get(key) for key in SUMMARY}}
    metrics += [Metric(legal(key), value, stamp, last) for key, value in summary.items() if is_number(value)]
    for part in _calls(params):
        client.log_batch(run_id, params=part)
    client.log_batch(run_id, tags=tags, metrics=metrics[: MOST_OF_ALL - len(tags)])
    for start in range(MOST_OF_ALL - len(tags), len(metrics), MOST_OF_ALL):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_OF_ALL])


def _calls(params: list[Any]) -> Iterator[list[Any]]:
    """Parameters in parts of at most so many, and so many bytes."""
    part: list[Any] = []
    size = 0
    for each in params:
        own = len(f"{each.key}{each.value}".encode()) + 50
        if part and (len(part) == MOST_PARAMS or size + own > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(each)
        size += own
    if part:
        yield part


def legal(name: str) -> str:
    """A metric's name that MLflow takes: what it refuses becomes `_`, and a hash sets apart what that makes alike."""
    parts = [re.sub(r"[^\w\-. ]", "_", part).strip(" .") for part in name.split("/")]
    made = "/".join(part for part in parts if part)
    if made == name and len(made) <= LONGEST_NAME:
        return made
    return f"{made[: LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
