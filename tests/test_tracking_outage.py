"""Outages of MLflow: killed servers, lost replies, refused credentials. A mirror ends complete, nothing is twice."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from mirrored import MlflowClient, Server, content_at, runs_at
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from rich.console import Console
from runs import new_results, plan_of, run_here, run_study, wait_for, with_database

from ablate.run import background
from ablate.run.background import BackgroundMirror, Patience
from ablate.run.ledger import Ledger
from ablate.run.local import LocalExecutor
from ablate.run.mlflow_store import open_client, shown
from ablate.run.parent_runs import ended, study_aggregates
from ablate.run.study import StudyRun
from ablate.run.tracking import Mirror
from ablate.run.trial_run import legal

QUICK = Patience(first_s=0.01, most_s=0.05, end_s=60)
WRITES = ("create_experiment", "create_run", "log_batch", "set_tag", "set_terminated", "update_run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    """A finished study, with its mirror in the results."""
    folder = tmp_path_factory.mktemp("trained")
    ledger = new_results(folder / "results", token_cache)
    outcome = run_study(plan_of(TINY, folder, token_cache), ledger)
    assert outcome.exit_code == 0 and outcome.tracking_trouble is None
    return ledger


def own_mirror(ledger: Ledger, folder: Path, trials: int | None = None) -> Mirror:
    """A mirror of the same records in an empty store, which remembers nothing."""
    folder.mkdir(exist_ok=True)
    other = Ledger(folder)
    (folder / "trials").symlink_to(ledger.root / "trials") if not (folder / "trials").exists() else None
    (folder / "cache").symlink_to(ledger.cache.resolve()) if not (folder / "cache").exists() else None
    with_database(other)
    study = ledger.study("tiny")
    study["trials"] = study["trials"][:trials]
    (other.study_folder("tiny") / "published.json").unlink(missing_ok=True)
    return Mirror(other, study, f"sqlite:///{folder / 'mlflow.db'}")


def publish(mirror: Mirror, patience: Patience = QUICK) -> str | None:
    made = BackgroundMirror(mirror, patience)
    for trial_id in mirror.behind():
        made.add(trial_id)
    return made.close()


# ---- servers


class Midway(LocalExecutor):
    """Kills a server once it has a trial, and starts it again when all trials but the last have ended."""

    def __init__(self, server: Server, trials: int):
        super().__init__(0)
        self.server, self.trials, self.ended = server, trials, 0

    def run(self, jobs: Any, on_event: Any, stop: threading.Event) -> None:
        def told(event: dict[str, Any]) -> None:
            on_event(event)
            if event.get("status", "paused") == "paused":
                return
            self.ended += 1
            if self.ended == 1:
                wait_for(lambda: len(runs_at(self.server.store)) >= 3, "the first trial's run")
                self.server.kill()
            elif self.ended == self.trials - 1:
                self.server.start()

        super().run(jobs, told, stop)


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_a_study_has_all_in_the_end(
    tmp_path: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(background, "PATIENCE", Patience(first_s=0.2, most_s=2, end_s=240))
    ledger = new_results(tmp_path / "results", token_cache)
    plan = plan_of(TINY, tmp_path, token_cache)
    with Server(tmp_path) as server:
        server.wait()
        executor = Midway(server, len(plan.trials))
        outcome = StudyRun(ledger, plan, executor, Console(quiet=True), checkpoint_every_s=1e9).run(server.uri)
        assert outcome.tracking_trouble is None and outcome.exit_code == 0 and executor.ended == 4
        held = content_at(server.uri)
        again = Mirror(ledger, ledger.study("tiny"), server.uri)
        assert again.behind() == []
        assert run_here("track", "tiny", "--results", ledger.root, "--tracking-uri", server.uri)[0] == 0
        assert content_at(server.uri) == held
    assert capsys.readouterr().out == ""  # MLflow would say where every run is to be seen
    mirror = own_mirror(ledger, tmp_path / "undisturbed")
    assert publish(mirror) is None
    assert held == content_at(mirror.uri)
    assert len(held) == 1 + 2 + 4 and {run["status"] for run in held.values()} == {"FINISHED"}


# ---- lost replies


@pytest.mark.slow
@pytest.mark.parametrize("arrives", [True, False], ids=["done, reply lost", "not done"])
def test_a_connection_that_dies_at_any_call_is_made_good_in_the_same_run(
    arrives: bool, trained: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, dies_at = 0, 0

    def dying(name: str) -> Callable[..., Any]:
        real = getattr(MlflowClient, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            made = real(*arguments, **options) if arrives or calls != dies_at else None
            if calls == dies_at:
                raise MlflowException("the connection died", TEMPORARILY_UNAVAILABLE)
            return made

        return call

    for name in WRITES:
        monkeypatch.setattr(MlflowClient, name, dying(name))
    assert publish(own_mirror(trained, tmp_path / "own", 1)) is None
    total, expected = calls, content_at(f"sqlite:///{tmp_path / 'own' / 'mlflow.db'}")
    assert total > 8 and {run["status"] for run in expected.values()} == {"FINISHED"}
    for dies_at in range(1, total + 1):
        calls = 0
        mirror = own_mirror(trained, tmp_path / "own", 1)
        assert publish(mirror) is None
        assert content_at(mirror.uri) == expected, f"died at call {dies_at} of {total}"


def test_a_run_that_a_server_made_too_late_goes(trained: Ledger, tmp_path: Path) -> None:
    """Its reply was lost, it was not there when it was looked for, and came after another was made."""
    mirror = own_mirror(trained, tmp_path / "own")
    ids = mirror.behind()
    mirror.publish(ids)
    client = MlflowClient(tracking_uri=mirror.uri)
    held = runs_at(mirror.uri)
    first = held[f"trial:{ids[0]}"]
    client.create_run(first.info.experiment_id, tags={"ablate.key": f"trial:{ids[0]}"}, start_time=1)
    mirror._doubtful.add(f"trial:{ids[0]}")
    assert mirror.close()
    assert runs_at(mirror.uri)[f"trial:{ids[0]}"].info.run_id == first.info.run_id


def test_what_a_server_refuses_keeps_no_other_trial_back(
    trained: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = own_mirror(trained, tmp_path / "own")
    refused, *others = mirror.behind()
    real = MlflowClient.create_run

    def create_run(self: Any, *arguments: Any, **options: Any) -> Any:
        if options["tags"].get("ablate.trial_id") == refused:
            raise MlflowException("refused\nfor ever")
        return real(self, *arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "create_run", create_run)
        assert publish(mirror) == "MlflowException: refused"
    assert {f"trial:{each}" for each in others} <= runs_at(mirror.uri).keys()
    again = Mirror(mirror.ledger, mirror.study, mirror.uri)
    assert again.behind() == [refused] and publish(again) is None
    assert f"trial:{refused}" in runs_at(mirror.uri)


def test_pauses_grow_to_a_limit_and_differ() -> None:
    pauses = [Patience(first_s=1, most_s=8).pauses() for _ in range(20)]
    drawn = [[next(each) for _ in range(6)] for each in pauses]
    for k, longest in enumerate((1, 2, 4, 8, 8, 8)):
        column = [row[k] for row in drawn]
        assert longest / 2 <= min(column) < max(column) <= longest


# ---- who asks


class Doorkeeper(http.server.BaseHTTPRequestHandler):
    """Lets a request through to a server where it has the right credentials."""

    server_uri, wanted = "", ""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != self.wanted:
            self.answer(401, b"who are you?")
            return
        kind = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
        asked = urllib.request.Request(self.server_uri + self.path, body or None, kind, method=self.command)
        try:
            with urllib.request.urlopen(asked, timeout=60) as reply:
                self.answer(reply.status, reply.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, error.read())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def door() -> Iterator[str]:
    """The address of a doorkeeper, for user `me` with password `sesame`."""
    Doorkeeper.wanted = "Basic " + base64.b64encode(b"me:sesame").decode()
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Doorkeeper)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{serving.server_port}"
    serving.shutdown()


def test_a_server_that_asks_for_credentials_is_named_and_the_study_goes_on(
    door: str, tmp_path: Path, token_cache: Path
) -> None:
    ledger = new_results(tmp_path / "results", token_cache)
    (tmp_path / "grid.yaml").write_text(TINY)
    uri = f"http://you:guess@{door}"
    code, said = run_here(
        "run", tmp_path / "grid.yaml", "--results", ledger.root, "--workers", 0, "--tracking-uri", uri
    )
    assert code == 0 and "4 finished" in said
    (line,) = [each for each in said.splitlines() if "MLflow" in each]
    for word in ("HTTP 401", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        assert word in line
    kept = [file for file in ledger.root.rglob("*") if file.is_file() and "cache" not in file.parts]
    assert not any(b"guess" in file.read_bytes() for file in kept) and "guess" not in said
    code, said = run_here("track", "tiny", "--results", ledger.root, "--tracking-uri", uri)
    assert code == 1 and "HTTP 401" in said and "guess" not in said


@pytest.mark.slow
def test_credentials_of_the_environment_open_the_door(
    door: str, trained: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(tmp_path) as server:
        server.wait()
        monkeypatch.setattr(Doorkeeper, "server_uri", server.uri)
        mirror = own_mirror(trained, tmp_path / "own")
        mirror.uri = f"http://{door}"
        assert "HTTP 401" in str(publish(mirror))
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame")
        mirror = own_mirror(trained, tmp_path / "own")
        mirror.uri, mirror.log_models = f"http://{door}", True
        assert publish(mirror) is None
        held = content_at(server.uri)
        assert len(held) == 7 and {run["status"] for run in held.values()} == {"FINISHED"}
        trial = runs_at(server.uri)[f"trial:{mirror.study['trials'][0]['id']}"]
        (weights,) = MlflowClient(tracking_uri=server.uri).list_artifacts(trial.info.run_id, "model")
        assert weights.path == "model/weights.pt"
    marks = (mirror.ledger.study_folder("tiny") / "published.json").read_text()
    assert "sesame" not in marks and len(json.loads(marks)["models"]) == 4


def test_addresses_are_shown_without_passwords() -> None:
    assert shown("http://me:sesame@host:5000/x") == "http://host:5000/x"
    assert shown("to postgresql://a:b@c/d failed, mail a@b") == "to postgresql://c/d failed, mail a@b"
    assert shown("sqlite:///a/b@c.db") == "sqlite:///a/b@c.db"


# ---- what more is published


def test_parents_have_the_means_of_their_trials(trained: Ledger, tmp_path: Path) -> None:
    mirror = own_mirror(trained, tmp_path / "own")
    assert publish(mirror) is None
    runs = runs_at(mirror.uri)
    records = {each["id"]: trained.trial(each["id"]).record() or {} for each in mirror.study["trials"]}
    for name in ("plain", "rope"):
        mine = [records[each["id"]] for each in mirror.study["trials"] if each["variant"] == name]
        a, b = (each["metrics"]["loss"] for each in mine)
        said = runs[f"variant:{name}"].data.metrics
        cell = next(key for key in said if key.endswith("/loss_mean")).removesuffix("/loss_mean")
        assert said[f"{cell}/loss_n"] == said["trials/finished"] == 2 and said["trials/failed"] == 0
        assert said[f"{cell}/loss_mean"] == pytest.approx((a + b) / 2)
        assert said[f"{cell}/loss_sd"] == pytest.approx(abs(a - b) / 2**0.5)
        assert said[f"{cell}/loss_se"] == pytest.approx(abs(a - b) / 2)
        assert said["compute/train_flops"] == pytest.approx(sum(each["train_flops"] for each in mine))
        assert said["compute/hours"] == pytest.approx(sum(each["wall_s"] for each in mine) / 3600)
    study = runs["study"].data
    means = {name: runs[f"variant:{name}"].data.metrics[f"{cell}/loss_mean"] for name in ("plain", "rope")}
    assert study.tags["ablate.best_variant"] == min(means, key=lambda name: means[name])
    assert study.metrics["best/score"] == pytest.approx(min(means.values()))
    assert study.metrics["trials/finished"] == 4 and study.metrics["trials/to_come"] == 0
    assert study.tags["mlflow.note.content"] == "\n\n".join(mirror.study["question"].splitlines())
    client = open_client(mirror.uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None and experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_best_of_a_study_is_none_of_its_sweeps(trained: Ledger) -> None:
    """A sweep's trials take as much compute, and the best of many values is lower by luck."""
    study = trained.study("tiny")
    record = trained.trial(study["trials"][0]["id"]).record() or {}
    label = study["trials"][0]
    swept = ended(record | {"metrics": {"loss": 1.0}}, label | {"stage": "tune", "variant": "rope"}, "")
    _, tags = study_aggregates([ended(record, label, ""), swept], 2)
    assert tags["ablate.best_variant"] == label["variant"] and "tune" not in tags["ablate.best_cell"]
    assert study_aggregates([swept], 2)[1] == {}


def test_numbers_of_parents_follow_the_trials_and_are_not_repeated(trained: Ledger, tmp_path: Path) -> None:
    mirror = own_mirror(trained, tmp_path / "own", 3)
    first = mirror.behind()[:2]
    mirror.publish(first)
    mirror.close()
    mirror.publish(mirror.behind())
    mirror.close()
    held = content_at(mirror.uri)
    assert [step for step, _, _ in held["study"]["curves"]["trials/finished"]] == [3]
    full = Mirror(mirror.ledger, trained.study("tiny"), mirror.uri)
    assert publish(full) is None
    assert [(step, value) for step, value, _ in content_at(mirror.uri)["study"]["curves"]["trials/finished"]] == [
        (3, 3),
        (4, 4),
    ]


def test_weights_are_published_once(trained: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = own_mirror(trained, tmp_path / "own", 1)
    (trial_id,) = mirror.behind()
    assert publish(mirror) is None
    with_models = Mirror(mirror.ledger, mirror.study, mirror.uri, log_models=True)
    assert with_models.behind() == [trial_id] and publish(with_models) is None
    run = runs_at(mirror.uri)[f"trial:{trial_id}"]
    client = MlflowClient(tracking_uri=mirror.uri)
    got = Path(client.download_artifacts(run.info.run_id, "model/weights.pt"))
    assert got.read_bytes() == trained.trial(trial_id).weights.read_bytes()
    monkeypatch.setattr(MlflowClient, "log_artifact", lambda *_: pytest.fail("sent again"))
    anew = Mirror(mirror.ledger, mirror.study, mirror.uri, log_models=True)
    assert anew.behind() == []
    anew.publish(anew.behind(ask=True))
    assert anew.trouble is None


@pytest.mark.parametrize(
    "name", ["a=b/loss", "../x", "a//b", "/a", "a" * 300, "grösse/loss", "a:b/loss", "ümlaut, tokens=6_400/loss_mean"]
)
def test_names_of_metrics_are_legal_and_stay_apart(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(legal(name))
    assert legal(name) == legal(name) and legal(name) != legal(name.replace("=", "-") + "'")
    assert legal("valid/loss") == "valid/loss"


# ---- the command


def test_a_lost_store_is_made_anew_by_track(trained: Ledger, tmp_path: Path) -> None:
    mirror = own_mirror(trained, tmp_path / "own")
    assert publish(mirror) is None
    expected = content_at(mirror.uri)
    ledger = with_database(mirror.ledger)  # an empty one in its place: what is remembered is wrong
    (ledger.study_folder("tiny") / "study.json").write_text(json.dumps(mirror.study))
    assert Mirror(ledger, mirror.study, mirror.uri).behind() == []
    code, said = run_here("track", "--all", "--results", ledger.root)
    assert code == 0 and "tiny: 4 trials at sqlite:///" in said
    assert content_at(mirror.uri) == expected


def test_track_wants_one_study_or_all(trained: Ledger) -> None:
    for given in ([], ["tiny", "--all"]):
        code, said = run_here("track", *given, "--results", trained.root)
        assert code == 2 and "name one study, or give --all; studies: tiny" in said
    code, said = run_here("track", "tinny", "--results", trained.root)
    assert code == 2 and "tiny" in said
    with trained.study_lock("tiny"):
        code, said = run_here("track", "tiny", "--results", trained.root)
    assert code == 2 and "another `ablate run`" in said
