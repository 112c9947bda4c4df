"""Mirrors the ledger to MLflow: study -> variant -> trial runs. One writer, the driver; never read back.

A trial is published after its record is committed, with its curve, its specification, tags and a truthful
status; the report, once written, stands with the study's run. Runs are found again by their tags, and a trial's last
write is the hash of its record: publishing twice changes nothing, publishing after a crash completes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.run.files import read_json, write_json
from ablate.run.ledger import Ledger
from ablate.run.mlflow_store import database_of, files_of, forget_files, open_client
from ablate.spec import flatten

STATUS = {"finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED"}
BATCH_METRICS, BATCH_PARAMS = 1000, 100  # MLflow's documented limits a call
PUBLISHED = "published.json"  # beside study.json: what this tracking URI has, to know without asking
REPORT = "report"  # the folder of a study's artifacts


class Mirror:
    """Publishes the trials of one study. Trouble with MLflow is remembered and never reaches a trial."""

    def __init__(self, ledger: Ledger, study: Mapping[str, Any], uri: str):
        self.ledger = ledger
        self.study = study
        self.uri = uri
        self.trouble: str | None = None
        self._marks_file = ledger.study_folder(study["study"]) / PUBLISHED
        known = self._known()
        self._marks: dict[str, str] = dict(known.get("trials", {}))
        self._open = bool(known.get("open"))  # a driver died before it gave the parents their status
        self._report = str(known.get("report", ""))
        self._client: Any = None
        self._runs: dict[str, Any] = {}  # key -> run, of this study
        self._labels = {trial["id"]: trial for trial in study["trials"]}

    def study_is(self, study: Mapping[str, Any]) -> None:
        """The study has more trials than before, or has come to its end."""
        self.study, self._labels = study, {trial["id"]: trial for trial in study["trials"]}

    def _known(self) -> dict[str, Any]:
        """What was published to this URI before; nothing, when its database file is gone."""
        known = read_json(self._marks_file) or {}
        database = database_of(self.uri)
        gone = database is not None and not database.is_file()
        return {} if gone or known.get("uri") != self.uri else dict(known)

    def _remember(self, open_: bool) -> None:
        marks = {"uri": self.uri, "open": open_, "trials": self._marks, "report": self._report}
        write_json(self._marks_file, marks)
        self._open = open_

    def behind(self) -> list[str]:
        """Trials that ended and are not published as they ended."""
        out = []
        for trial_id in self._labels:
            record = self.ledger.trial(trial_id).record()
            if record is not None and self._marks.get(trial_id) != _hash(record):
                out.append(trial_id)
        return out

    def publish(self, trial_ids: list[str]) -> None:
        """Bring the tracking server up to date with these trials."""
        if self.trouble and self._client is None:  # it was not to be reached: not again in this run
            return
        try:
            self._connect()
            for trial_id in trial_ids:
                record = self.ledger.trial(trial_id).record()
                if record is not None:
                    self._publish_trial(trial_id, record)
                    self._marks[trial_id] = _hash(record)
            self._remember(open_=True)
        except Exception as error:  # MLflow raises many kinds; none of them may stop a study
            self.trouble = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def close(self) -> None:
        """Give the study's and variants' runs the status that their trials have come to."""
        if self.trouble or not self._open:
            return
        statuses = {trial_id: self.ledger.trial(trial_id).status() for trial_id in self._labels}
        try:
            self._connect()
            for key in self._parents():
                mine = [
                    statuses[trial_id]
                    for trial_id, label in self._labels.items()
                    if key in ("study", f"variant:{label['variant']}")
                ]
                self._client.set_terminated(
                    self._runs[key].info.run_id, _parent_status(mine, bool(self.study.get("enough")))
                )
            self._remember(open_=False)
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"

    def attach(self, report: Path) -> None:
        """Keep a report's folder with the study's run, instead of the one before. A study that is not published
        there, or a report that is there already, is left as it is."""
        mark = _folder_hash(report)
        if not self._marks or mark == self._report:
            return
        try:
            client = open_client(self.uri)
            run = self._study_run(client)
            self._report = ""  # until it is whole
            self._remember(self._open)
            forget_files(run, REPORT, self.uri)
            client.log_artifacts(run.info.run_id, str(report), REPORT)
            self._report = mark
            self._remember(self._open)
        except Exception as error:  # as in publish
            self.trouble = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def _study_run(self, client: Any) -> Any:
        """The study's own run. Raises `LookupError`."""
        name = self.study["study"]
        experiment = client.get_experiment_by_name(name)
        filters = "tags.`ablate.key` = 'study'"
        found = client.search_runs([experiment.experiment_id], filters, max_results=1) if experiment else []
        if not found:
            raise LookupError(f"there is no run of study {name!r}")
        return found[0]

    def _parents(self) -> list[str]:
        """Keys of the runs of the study and of its variants, of those that there are."""
        keys = ["study", *sorted({f"variant:{label['variant']}" for label in self._labels.values()})]
        return [key for key in keys if key in self._runs]

    def _connect(self) -> None:
        if self._client is not None:
            return
        client = open_client(self.uri)
        name = self.study["study"]
        experiment = client.get_experiment_by_name(name)
        self._experiment = (
            experiment.experiment_id if experiment else client.create_experiment(name, files_of(self.uri))
        )
        token = None
        while True:
            page = client.search_runs([self._experiment], max_results=1000, page_token=token)
            for run in page:
                if key := run.data.tags.get("ablate.key"):
                    self._runs[key] = run
            token = page.token
            if not token:
                break
        for key in self._parents():
            client.update_run(self._runs[key].info.run_id, status="RUNNING")
        self._client = client

    def _run(self, key: str, name: str, parent: Any, tags: Mapping[str, str]) -> Any:
        """The run with this key, made if there is none."""
        if key not in self._runs:
            all_tags = {"ablate.key": key, "ablate.study": self.study["study"], **tags}
            if parent is not None:
                all_tags["mlflow.parentRunId"] = parent.info.run_id
            self._runs[key] = self._client.create_run(self._experiment, run_name=name, tags=all_tags)
        return self._runs[key]

    def _publish_trial(self, trial_id: str, record: Mapping[str, Any]) -> None:
        label = self._labels[trial_id]
        study = self._run("study", self.study["study"], None, {"ablate.level": "study"})
        variant = self._run(
            f"variant:{label['variant']}",
            label["variant"],
            study,
            {"ablate.level": "variant", "ablate.variant": label["variant"]},
        )
        words = (label["variant"], label.get("stage"), label["size"], f"seed {label['seed']}")
        name = " ".join(str(each) for each in words if each)
        tags = {
            "ablate.level": "trial",
            "ablate.trial_id": trial_id,
            "ablate.variant": label["variant"],
            "ablate.size": str(label["size"]),
            "ablate.seed": str(label["seed"]),
            "ablate.status": record["status"],
        }
        if label.get("stage"):
            tags |= {"ablate.stage": label["stage"], "ablate.parent": label["parent"] or ""}
        mark = _hash(record)
        run = self._run(f"trial:{trial_id}", name, variant, tags)
        if run.data.tags.get("ablate.record") == mark:
            return
        if "ablate.record" in run.data.tags:  # the trial was run again: its parameters may not be changed
            self._client.set_tag(run.info.run_id, "ablate.key", f"superseded:{trial_id}:{time.time_ns()}")
            del self._runs[f"trial:{trial_id}"]
            run = self._run(f"trial:{trial_id}", name, variant, tags)
        self._log(run.info.run_id, trial_id, record)
        self._client.set_terminated(run.info.run_id, STATUS[record["status"]])
        self._client.set_tag(run.info.run_id, "ablate.record", mark)  # last: everything is there

    def _log(self, run_id: str, trial_id: str, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, Param

        params = [
            Param(path, str(value)[:6000])
            for path, value in flatten(record.get("spec") or {})
            if path and value is not None and value != ""
        ]
        stamp = int(record["ended"] * 1000)  # of the record: publishing again makes the same points
        metrics = [
            Metric(f"{row['split']}/{key}", value, stamp, row["step"])
            for row in self.ledger.trial(trial_id).rows()
            for key, value in row.items()
            if key not in ("step", "tokens", "split") and _is_number(value)
        ]
        last = record.get("steps") or 0
        summary = {**record["metrics"], **{key: record.get(key) for key in SUMMARY}}
        metrics += [Metric(key, value, stamp, last) for key, value in summary.items() if _is_number(value)]
        for start in range(0, len(params), BATCH_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + BATCH_PARAMS])
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH_METRICS])
        for key in ("torch", "device", "gpu", "cpu", "git_commit"):
            if value := (record.get("environment") or {}).get(key):
                self._client.set_tag(run_id, f"ablate.{key}", str(value))
        if record.get("error"):
            self._client.set_tag(run_id, "ablate.error", str(record["error"])[:5000])


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


class BackgroundMirror:
    """The mirror on a thread of its own, so that no trial waits for MLflow's seconds of start-up."""

    def __init__(self, mirror: Mirror):
        self.mirror = mirror
        self._waiting: queue.Queue[str | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def add(self, trial_id: str) -> None:
        self._waiting.put(trial_id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def close(self) -> str | None:
        """Publish what is waiting; return what went wrong, if anything did."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
        self.mirror.close()
        return self.mirror.trouble

    def _work(self) -> None:
        ended = False
        while not ended:
            ids = [self._waiting.get()]
            while not self._waiting.empty():
                ids.append(self._waiting.get())
            ended = None in ids
            self.mirror.publish([each for each in ids if each is not None])


def _parent_status(statuses: list[str], enough: bool) -> str:
    """KILLED when trials are still to come, as the driver ends; FAILED when one failed; else FINISHED. With `enough`
    none is to come: the planner has left out what has not ended."""
    if not enough and any(status in ("pending", "running") for status in statuses):
        return "KILLED"
    return "FAILED" if "failed" in statuses else "FINISHED"


def _folder_hash(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    content = hashlib.sha256()
    for file in files:
        content.update(file.relative_to(folder).as_posix().encode() + b"\0")
        content.update(hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()[:16]


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
