"""Mirrors the ledger to MLflow: study -> variant -> trial runs. One writer, the driver; never read back.

A trial is published after its record is committed, with its curve, its specification, tags and a truthful
status; the report, once written, stands with the study's run. Runs are looked for by their tags before they are made,
and a trial's last write is the hash of its record: publishing twice changes nothing, publishing after a crash or an
outage completes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.run.files import read_json, write_json
from ablate.run.ledger import Ledger
from ablate.run.mlflow_store import database_of, files_of, forget_files, open_client, passing, shown, trouble_of
from ablate.run.parent_runs import Ended, aggregates, ended, parent_status, study_aggregates
from ablate.run.trial_run import STATUS, identity_tags, log_trial, run_name

PUBLISHED = "published.json"  # beside study.json: what this tracking URI has, to know without asking
REPORT, MODEL = "report", "model"  # folders of artifacts: of a study's run, of a trial's
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the dashboard shows what generative AI needs
NOTE, MOST_OF_A_NOTE = "mlflow.note.content", 5_000  # the description of a run; characters
REMEMBER_EVERY_S = 10.0  # what is forgotten is only looked for once more


class Mirror:
    """Publishes the trials of one study. Trouble with MLflow is remembered and never reaches a trial."""

    def __init__(self, ledger: Ledger, study: Mapping[str, Any], uri: str, log_models: bool = False):
        self.ledger = ledger
        self.study = study
        self.uri = uri
        self.log_models = log_models  # the final weights too, as artifacts
        self.trouble: str | None = None
        self.passing = False  # whether the trouble may be gone in a while
        self._marks_file = ledger.study_folder(study["study"]) / PUBLISHED
        known = self._known()
        self._marks: dict[str, str] = dict(known.get("trials", {}))
        self._models: dict[str, str] = dict(known.get("models", {}))
        self.open = bool(known.get("open"))  # also where a driver died before it gave the parents their status
        self._report = str(known.get("report", ""))
        self._remembered = 0.0
        self._client: Any = None
        self._refused = False  # the server will not have us: not again in this run
        self._parents: dict[str, str] = {}  # key -> id of the run
        self._doubtful: set[str] = set()  # keys of runs that a server may have made although it did not answer
        self._ended: dict[str, Ended] = {}
        self._labels = {trial["id"]: trial for trial in study["trials"]}

    def study_is(self, study: Mapping[str, Any]) -> None:
        """The study has more trials than before, or has come to its end."""
        self.study, self._labels = study, {trial["id"]: trial for trial in study["trials"]}

    def _known(self) -> dict[str, Any]:
        """What was published to this URI before; nothing, when its database file is gone."""
        known = read_json(self._marks_file) or {}
        database = database_of(self.uri)
        gone = database is not None and not database.is_file()
        return {} if gone or known.get("uri") != shown(self.uri) else dict(known)

    def _remember(self, open_: bool) -> None:
        marks = {"uri": shown(self.uri), "open": open_, "trials": self._marks, "models": self._models}
        write_json(self._marks_file, marks | {"report": self._report})
        self.open, self._remembered = open_, time.monotonic()

    def behind(self, ask: bool = False) -> list[str]:
        """Trials that ended and are not published as they ended, by what is remembered; with `ask` all that ended, to
        be looked for in MLflow, whose store may have lost some."""
        out = []
        for trial_id, label in self._labels.items():
            if (record := self.ledger.trial(trial_id).record()) is not None:
                self._ended[trial_id] = ended(record, label, _hash(record))
                if ask or self._marks.get(trial_id) != self._ended[trial_id].mark or self._lacks_model(trial_id):
                    out.append(trial_id)
        return out

    def publish(self, trial_ids: Sequence[str]) -> list[str]:
        """Bring the tracking server up to date with these trials. Returns those to be tried again in a while: what a
        server refuses is not among them."""
        left = list(trial_ids)
        if self._refused:
            return []
        try:
            self._connect()
            if left and not self.open:
                self._remember(open_=True)
        except Exception as error:  # MLflow raises many kinds; none of them may stop a study
            self._in_trouble(error)
            self._refused = not self.passing
            return left if self.passing else []
        while left:
            try:
                self._publish_trial(left[0])
            except Exception as error:
                self._in_trouble(error)
                if self.passing:
                    self._remember(open_=True)
                    return left
            left.pop(0)
        if self.passing:
            self.trouble, self.passing = None, False
        if time.monotonic() - self._remembered > REMEMBER_EVERY_S:
            self._remember(open_=True)
        return []

    def _in_trouble(self, error: Exception) -> None:
        self.trouble, self.passing = trouble_of(error), passing(error, self.uri)

    def close(self) -> bool:
        """Give the study's and variants' runs the status and the numbers that their trials have come to. Whether that
        is done."""
        if not self.open:
            return True
        if self._refused:
            return False
        try:
            self._connect()
            for key in sorted(self._doubtful):
                self._find(key)
            self._doubtful.clear()
            self._close_parents()
            self._remember(open_=bool(self.trouble) and not self.passing)
        except Exception as error:
            self._in_trouble(error)
            return False
        if self.passing:
            self.trouble, self.passing = None, False
        return True

    def _close_parents(self) -> None:
        from mlflow.entities import Metric, RunTag

        for trial_id, label in self._labels.items():
            if trial_id not in self._ended and (record := self.ledger.trial(trial_id).record()) is not None:
                self._ended[trial_id] = ended(record, label, _hash(record))
        groups: dict[str, list[str]] = {"study": list(self._labels)}
        for trial_id, label in self._labels.items():
            groups.setdefault(f"variant:{label['variant']}", []).append(trial_id)
        enough = bool(self.study.get("enough"))
        for key, mine in groups.items():
            if key not in self._parents and (found := self._find(key)) is None:
                continue
            run_id = self._parents.get(key) or found.info.run_id
            over = [self._ended[each] for each in mine if each in self._ended]
            if key == "study":
                metrics, tags = study_aggregates(over, len(mine))
                tags[NOTE] = "\n\n".join(self.study["question"].splitlines())[:MOST_OF_A_NOTE]
            else:
                metrics, tags = aggregates(over, len(mine)), {}
            stamp = int(max((each.ended for each in over), default=0.0) * 1000)
            points = [Metric(name, value, stamp, len(over)) for name, value in metrics.items()]
            self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            for start in range(0, len(points), 1000):
                self._client.log_batch(run_id, metrics=points[start : start + 1000])
            statuses = [each.status for each in over]
            self._client.set_terminated(run_id, parent_status(statuses, len(over) < len(mine) and not enough))

    def attach(self, report: Path) -> None:
        """Keep a report's folder with the study's run, instead of the one before. A study that is not published
        there, or a report that is there already, is left as it is."""
        mark = _folder_hash(report)
        if not self._marks or mark == self._report:
            return
        try:
            self._experiment_of(client := open_client(self.uri))
            self._client = client
            run = self._find("study")
            if run is None:
                raise LookupError(f"there is no run of study {self.study['study']!r}")
            self._report = ""  # until it is whole
            self._remember(self.open)
            forget_files(run, REPORT, self.uri)
            client.log_artifacts(run.info.run_id, str(report), REPORT)
            self._report = mark
            self._remember(self.open)
        except Exception as error:  # as in publish
            self._in_trouble(error)

    def _connect(self) -> None:
        if self._client is None:
            client = open_client(self.uri)
            self._experiment_of(client)
            self._client = client

    def _experiment_of(self, client: Any) -> None:
        name = self.study["study"]
        experiment = client.get_experiment_by_name(name)
        made = experiment.experiment_id if experiment else client.create_experiment(name, files_of(self.uri), KIND)
        self._experiment = made

    def _find(self, key: str) -> Any:
        """The run with this key, None if there is none. Where a server made one whose reply was lost, there may be
        two: the one that is whole is kept, else the older one."""
        quote = '"' if "'" in key else "'"
        asked = f"tags.`ablate.key` = {quote}{key}{quote}"
        found = self._client.search_runs(
            [self._experiment], asked, max_results=10, order_by=["attributes.start_time"]
        )
        runs = sorted(found, key=lambda run: "ablate.record" not in run.data.tags)
        for twin in runs[1:]:
            self._client.delete_run(twin.info.run_id)
        return runs[0] if runs else None

    def _run(self, key: str, name: str, parent: str | None, tags: Mapping[str, str]) -> Any:
        """The run with this key, made if there is none."""
        if (found := self._find(key)) is not None:
            return found
        return self._make(key, name, parent, tags)

    def _make(self, key: str, name: str, parent: str | None, tags: Mapping[str, str]) -> Any:
        all_tags = {"ablate.key": key, "ablate.study": self.study["study"], **tags}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        self._doubtful.add(key)
        made = self._client.create_run(self._experiment, run_name=name, tags=all_tags)
        self._doubtful.discard(key)
        return made

    def _parent(self, key: str, name: str, parent: str | None, tags: Mapping[str, str]) -> str:
        """The id of a study's or a variant's run, which is RUNNING until the driver ends."""
        if key not in self._parents:
            run = self._run(key, name, parent, tags)
            if run.info.status != "RUNNING":
                self._client.update_run(run.info.run_id, status="RUNNING")
            self._parents[key] = run.info.run_id
        return self._parents[key]

    def _publish_trial(self, trial_id: str) -> None:
        folder, label = self.ledger.trial(trial_id), self._labels[trial_id]
        record = folder.record()
        if record is None:
            return
        name, mark = label["variant"], _hash(record)
        self._ended[trial_id] = ended(record, label, mark)
        study = self._parent("study", self.study["study"], None, {"ablate.level": "study"})
        tags = {"ablate.level": "variant", "ablate.variant": name}
        variant = self._parent(f"variant:{name}", name, study, tags)
        key, tags = f"trial:{trial_id}", identity_tags(label, record)
        run = self._run(key, run_name(label), variant, tags)
        if run.data.tags.get("ablate.record", mark) != mark:
            # the trial was run again: the parameters of a run may not be changed
            self._client.set_tag(run.info.run_id, "ablate.key", f"superseded:{trial_id}:{time.time_ns()}")
            self._models.pop(trial_id, None)
            run = self._make(key, run_name(label), variant, tags)
        run_id = run.info.run_id
        if "ablate.record" not in run.data.tags:
            log_trial(self._client, run_id, record, folder.rows())
            self._client.set_terminated(run_id, STATUS[record["status"]])
            self._client.set_tag(run_id, "ablate.record", mark)  # last: everything is there
        if self.log_models and record["status"] == "finished":
            self._publish_model(trial_id, run)
        self._marks[trial_id] = mark

    def _lacks_model(self, trial_id: str) -> bool:
        """Whether the weights of a finished trial are still to be published."""
        if not self.log_models or trial_id in self._models or self._ended[trial_id].status != "finished":
            return False
        return self.ledger.trial(trial_id).weights.is_file()

    def _publish_model(self, trial_id: str, run: Any) -> None:
        """The final weights as an artifact, once: the run has a tag with their hash."""
        file = self.ledger.trial(trial_id).weights
        if not file.is_file():
            return
        mark = _file_hash(file)
        if run.data.tags.get("ablate.weights") != mark:
            self._client.log_artifact(run.info.run_id, str(file), MODEL)
            self._client.set_tag(run.info.run_id, "ablate.weights", mark)
        self._models[trial_id] = mark


def _file_hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _folder_hash(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    content = hashlib.sha256()
    for file in files:
        content.update(file.relative_to(folder).as_posix().encode() + b"\0")
        content.update(hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()[:16]


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
