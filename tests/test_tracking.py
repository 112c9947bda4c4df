"""MLflow mirrors the ledger: nested runs, truthful statuses, no duplicates, and never in a study's way."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from mirrored import content_at, runs_at
from runs import new_results, plan_of, run_here, with_database

from ablate.run import background
from ablate.run.executor import give_up
from ablate.run.ledger import Ledger
from ablate.run.tracking import Mirror
from ablate.spec import flatten
from ablate.train.trial import plan_trial

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

GRID = TINY.replace("  rope: rope\n", "  rope: rope\n  hot: {train.lr: 1e6}\n")  # diverges
LOST = "lost: its worker died 3 times"


class Killed(BaseException):
    """Ends the publishing as a kill does: nothing handles it."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    """A study with finished and diverged trials, and one that was given up; in a database that the run made."""
    folder = tmp_path_factory.mktemp("published")
    ledger = new_results(folder / "results", token_cache)
    (lost,) = [each for each in plan_of(GRID, folder, token_cache).trials if label(each) == ("rope", 1)]
    give_up(plan_trial(ledger, lost.spec), LOST)
    code, said = run_here("run", folder / "grid.yaml", "--results", ledger.root, "--workers", 0)
    assert code == 1 and "MLflow" not in said, said
    assert "trained 5, reused 1: 3 finished, 2 diverged, 1 failed" in said
    return ledger


@pytest.fixture
def copied(published: Ledger, tmp_path: Path) -> Ledger:
    """The same results, to be changed."""
    shutil.copytree(published.root, tmp_path / "results", symlinks=True)
    return Ledger(tmp_path / "results")


def label(trial: Any) -> tuple[str, int]:
    return trial.row.variant, trial.spec.seed


def uri_of(ledger: Ledger) -> str:
    return f"sqlite:///{ledger.root / 'mlflow.db'}"


def runs_of(ledger: Ledger, study: str = "tiny") -> dict[str, Run]:
    return runs_at(uri_of(ledger), study)


def content(ledger: Ledger, study: str = "tiny", ids: bool = False) -> dict[str, Any]:
    return content_at(uri_of(ledger), study, ids)


def study_of(ledger: Ledger, *variants: str) -> dict[str, Any]:
    """The study as the driver knows it; only the trials of these variants, where any are named."""
    study = ledger.study("tiny")
    if variants:
        study["trials"] = [each for each in study["trials"] if each["variant"] in variants]
    return study


def mirror(ledger: Ledger, *variants: str) -> Mirror:
    return Mirror(ledger, study_of(ledger, *variants), uri_of(ledger))


def lost_in(ledger: Ledger) -> str:
    (lost,) = [each for each in ledger.trial_ids() if ledger.trial(each).status() == "failed"]
    return lost


def again(ledger: Ledger, *options: object) -> tuple[int, str]:
    grid = ledger.root / "again.yaml"
    grid.write_text(GRID)
    return run_here("run", grid, "--results", ledger.root, "--workers", 0, *options)


# ---- what is published


def test_runs_are_nested_study_variant_trial(published: Ledger) -> None:
    held, trials = content(published), study_of(published)["trials"]
    assert held.keys() == {
        "study",
        *(f"variant:{name}" for name in ("plain", "rope", "hot")),
        *(f"trial:{each['id']}" for each in trials),
    }
    assert held["study"]["parent"] is None and held["study"]["tags"]["ablate.level"] == "study"
    for name in ("plain", "rope", "hot"):
        assert held[f"variant:{name}"]["parent"] == "study" and held[f"variant:{name}"]["name"] == name
    for each in trials:
        run = held[f"trial:{each['id']}"]
        assert run["parent"] == f"variant:{each['variant']}"
        tags = {key: run["tags"][f"ablate.{key}"] for key in ("study", "variant", "seed", "trial_id", "level")}
        assert tags == {
            "study": "tiny",
            "variant": each["variant"],
            "seed": str(each["seed"]),
            "trial_id": each["id"],
            "level": "trial",
        }


def test_statuses_are_those_of_the_ledger(published: Ledger) -> None:
    held = content(published)
    expected = {"finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
    seen = set()
    for each in study_of(published)["trials"]:
        status = published.trial(each["id"]).status()
        run = held[f"trial:{each['id']}"]
        assert (run["status"], run["tags"]["ablate.status"]) == (expected[status], status)
        seen.add(status)
        error = published.trial(each["id"]).record()["error"]  # type: ignore[index]
        assert run["tags"].get("ablate.error") == error
    assert seen == expected.keys()
    assert held["variant:plain"]["status"] == "FINISHED"
    assert held["variant:rope"]["status"] == held["study"]["status"] == "FAILED"


def test_curves_parameters_and_results_are_there(published: Ledger) -> None:
    held = content(published)
    for each in study_of(published)["trials"]:
        folder, run = published.trial(each["id"]), held[f"trial:{each['id']}"]
        record = folder.record()
        assert record is not None
        asked = {path: str(value) for path, value in flatten(record["spec"]) if value not in (None, "")}
        assert run["params"] == asked
        assert asked["train.lr"] == ("1000000.0" if each["variant"] == "hot" else "0.003")
        if record["status"] == "finished":
            assert asked["arch.position.name"] == ("rope" if each["variant"] == "rope" else "learned")
            assert [value for _, value, _ in run["curves"]["loss"]] == [record["metrics"]["loss"]]
            for key in ("params_total", "train_flops", "tokens_per_s", "wall_s"):
                assert [value for _, value, _ in run["curves"][key]] == [record[key]]
        for split in ("batch", "train", "valid", "test"):
            points = [(row["step"], row["loss"]) for row in folder.rows() if row["split"] == split]
            points = [(step, value) for step, value in points if value is not None]
            found = [(step, value) for step, value, _ in run["curves"].get(f"{split}/loss", [])]
            assert found == points
        stamps = {stamp for curve in run["curves"].values() for _, _, stamp in curve}
        assert stamps <= {int(record["ended"] * 1000)}


def test_no_file_is_left_where_the_command_was_given(
    published: Ledger, copied: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (copied.root / "mlflow.db").unlink()
    assert again(copied)[0] == 1
    assert list((tmp_path / "here").iterdir()) == []
    assert (copied.root / "mlflow.db").exists()


# ---- again


def test_publishing_twice_changes_nothing(published: Ledger, copied: Ledger) -> None:
    before = content(copied, ids=True)
    assert again(copied)[0] == 1  # moved: the database there is another one, as far as the harness knows
    assert content(copied, ids=True) == before
    (copied.study_folder("tiny") / "published.json").unlink()
    assert again(copied)[0] == 1
    assert content(copied, ids=True) == before
    assert mirror(copied).behind() == []
    database = (copied.root / "mlflow.db").read_bytes()
    assert again(copied)[0] == 1
    assert (copied.root / "mlflow.db").read_bytes() == database  # not even opened for writing


def test_a_lost_database_is_made_anew(published: Ledger, copied: Ledger) -> None:
    assert again(copied)[0] == 1
    (copied.root / "mlflow.db").unlink()
    code, said = again(copied)
    assert code == 1 and "trained 0, reused 6" in said
    assert content(copied) == content(published)


def test_a_trial_that_is_tried_again_gets_a_new_run(published: Ledger, copied: Ledger) -> None:
    """Parameters and curves of a run are not changed afterwards; the first attempt keeps its truthful status."""
    lost = lost_in(copied)
    before = content(copied, ids=True)
    code, said = again(copied, "--retry-failed")
    assert code == 0 and "trained 1, reused 5: 4 finished, 2 diverged" in said
    (copied.study_folder("tiny") / "published.json").unlink()
    assert again(copied)[0] == 0  # connects once more, now that there is a superseded run
    after = content(copied, ids=True)
    (superseded,) = after.keys() - before.keys()
    assert superseded.startswith(f"superseded:{lost}:")
    assert after[superseded]["id"] == before[f"trial:{lost}"]["id"] and after[superseded]["status"] == "FAILED"
    assert after[f"trial:{lost}"]["status"] == "FINISHED" and after[f"trial:{lost}"]["params"]
    assert after["variant:rope"]["status"] == after["study"]["status"] == "FINISHED"
    assert after["variant:hot"]["status"] == "FINISHED"  # it has results: diverging is one
    kept = [f"trial:{each['id']}" for each in study_of(copied)["trials"] if each["id"] != lost]
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_an_interrupted_study_says_so_until_it_is_finished(copied: Ledger) -> None:
    """KILLED while trials are to come; the trials that ended are published once."""
    lost = lost_in(copied)
    (copied.root / "mlflow.db").unlink()
    copied.trial(lost).forget_record()  # as if it were still to come
    made = mirror(copied)
    made.publish(made.behind())
    assert {run.info.status for key, run in runs_of(copied).items() if not key.startswith("trial:")} == {"RUNNING"}
    made.close()
    held = runs_of(copied)
    assert held["study"].info.status == held["variant:rope"].info.status == "KILLED"
    assert held["variant:plain"].info.status == "FINISHED" and f"trial:{lost}" not in held
    ids = {key: run.info.run_id for key, run in held.items()}
    assert again(copied)[0] == 0
    after = runs_of(copied)
    assert after["study"].info.status == after["variant:rope"].info.status == "FINISHED"
    assert {key: after[key].info.run_id for key in ids} == ids and len(after) == len(ids) + 1


# ---- the report


def report_of(ledger: Ledger) -> dict[str, bytes]:
    """The report's files as they lie with the study's run, by their place in it."""
    client = MlflowClient(tracking_uri=uri_of(ledger))
    run = runs_of(ledger)["study"]
    folders, found = ["report"], {}
    while folders:
        for each in client.list_artifacts(run.info.run_id, folders.pop()):
            if each.is_dir:
                folders.append(each.path)
            else:
                file = Path(client.download_artifacts(run.info.run_id, each.path))
                found[each.path.removeprefix("report/")] = file.read_bytes()
    return found


def written(ledger: Ledger) -> dict[str, bytes]:
    folder = ledger.study_folder("tiny") / "report"
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def own(copied: Ledger) -> Ledger:
    """The same results in a store of their own."""
    with_database(copied)
    (copied.study_folder("tiny") / "published.json").unlink()
    made = mirror(copied)
    made.publish(made.behind())
    made.close()
    assert made.trouble is None
    return copied


def test_the_report_is_with_the_run_of_its_study(published: Ledger) -> None:
    assert report_of(published) == written(published)
    assert {"report.html", "comparison.csv", "tables/narang.tex"} <= written(published).keys()
    assert runs_of(published)["study"].info.status == "FAILED"  # which that did not change


def test_the_next_report_takes_its_place(own: Ledger) -> None:
    folder = own.study_folder("tiny") / "report"
    (folder / "mine.csv").write_text("a")
    code, said = run_here("report", "tiny", "--results", own.root)
    assert code == 0 and "MLflow" not in said and report_of(own) == written(own)
    (folder / "mine.csv").unlink()
    assert run_here("report", "tiny", "--results", own.root)[0] == 0
    assert report_of(own) == written(own) and "mine.csv" not in report_of(own)


def test_a_report_that_is_there_asks_nothing(own: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_here("report", "tiny", "--results", own.root)[0] == 0
    monkeypatch.setattr("ablate.run.tracking.open_client", lambda uri: pytest.fail("asked"))
    code, said = run_here("report", "tiny", "--results", own.root)
    assert code == 0 and "MLflow" not in said
    assert mirror(own).behind() == []  # what else is there is still known


def test_a_report_that_cannot_be_kept_is_written_and_tried_again(
    own: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has become again what was kept before."""

    def full(*arguments: Any) -> None:
        raise OSError("no space left\nanywhere")

    assert run_here("report", "tiny", "--results", own.root)[0] == 0
    kept, more = report_of(own), own.study_folder("tiny") / "report" / "mine.csv"
    more.write_text("a")
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_artifacts", full)
        code, said = run_here("report", "tiny", "--results", own.root)
    assert code == 0 and "has not got the report: OSError: no space left; `ablate report tiny` tries again" in said
    assert "report.html" in written(own) and report_of(own) == {}
    more.unlink()
    code, said = run_here("report", "tiny", "--results", own.root)
    assert code == 0 and "MLflow" not in said and report_of(own) == kept == written(own)


def test_results_that_were_copied_leave_the_files_of_the_first_alone(published: Ledger, copied: Ledger) -> None:
    before = report_of(published)
    marks = copied.study_folder("tiny") / "published.json"
    marks.write_text(json.dumps(json.loads(marks.read_text()) | {"uri": uri_of(copied), "report": ""}))
    (copied.study_folder("tiny") / "report" / "mine.csv").write_text("a")
    code, said = run_here("report", "tiny", "--results", copied.root)
    assert code == 0 and "and lies in another folder now" in said
    assert report_of(published) == before


def test_a_study_that_was_never_published_gets_no_store(copied: Ledger) -> None:
    (copied.study_folder("tiny") / "published.json").unlink()
    (copied.root / "mlflow.db").unlink()
    code, said = run_here("report", "tiny", "--results", copied.root)
    assert code == 0 and "MLflow" not in said and not (copied.root / "mlflow.db").exists()
    assert run_here("report", "tiny", "--results", copied.root, "--tracking-uri", "http://127.0.0.1:9")[0] == 0


# ---- trouble


def test_a_crash_between_any_two_calls_is_completed(
    published: Ledger, copied: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its n-th writing call, then run again: as if nothing had happened."""
    calls, crash_at = 0, 0

    def crashing(name: str) -> Callable[..., Any]:
        real = getattr(MlflowClient, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == crash_at:
                raise Killed
            return real(*arguments, **options)

        return call

    for name in ("create_experiment", "create_run", "log_batch", "set_tag", "set_terminated", "update_run"):
        monkeypatch.setattr(MlflowClient, name, crashing(name))

    def publish() -> None:
        made = mirror(copied, "plain")
        if behind := made.behind():
            made.publish(behind)
        made.close()

    def begin() -> None:
        nonlocal calls
        calls = 0
        with_database(copied)
        (copied.study_folder("tiny") / "published.json").unlink(missing_ok=True)

    begin()
    publish()
    total, expected = calls, content(copied)
    assert total > 15 and {run["status"] for run in expected.values()} == {"FINISHED"}
    for crash_at in range(1, total + 1):
        begin()
        with pytest.raises(Killed):
            publish()
        publish()
        assert content(copied) == expected, f"killed before call {crash_at} of {total}"


@pytest.mark.parametrize("uri", ["nonsense://nowhere", "sqlite:////proc/nowhere/mlflow.db", "http://127.0.0.1:9"])
def test_a_server_that_is_not_there_does_not_stop_a_study(
    uri: str, tmp_path: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning, the exit code of the trials, and the next run catches up."""
    monkeypatch.setattr(background, "PATIENCE", background.Patience(end_s=0.5))
    ledger = new_results(tmp_path / "results", token_cache)
    grid = tmp_path / "grid.yaml"
    grid.write_text(TINY)
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 0, "--tracking-uri", uri)
    assert code == 0 and "4 finished" in said, said
    assert f"MLflow at {uri}" in said and "was not updated" in said and "run again to catch up" in said
    assert "Traceback" not in said
    with_database(ledger)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(ledger))
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 0)
    assert code == 0 and "trained 0, reused 4" in said and "not updated" not in said
    held = runs_of(ledger)
    assert len(held) == 1 + 2 + 4 and {run.info.status for run in held.values()} == {"FINISHED"}


def test_marks_are_of_one_place(published: Ledger) -> None:
    """What one server has says nothing of another."""
    marks = json.loads((published.study_folder("tiny") / "published.json").read_text())
    assert marks["uri"] == uri_of(published) and len(marks["trials"]) == 6
    assert mirror(published).behind() == []
    other = Mirror(published, study_of(published), "http://127.0.0.1:9")
    assert sorted(other.behind()) == published.trial_ids()
