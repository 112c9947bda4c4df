"""Results folders are kept: what `ablate gc` may remove, and how the layout is brought up to date."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fabricate
import pytest
from conftest import ROOT
from runs import run_here, train, wait_for
from runs import spec as small_spec

from ablate.errors import UserError
from ablate.run import gc as gc_module
from ablate.run import schema
from ablate.run.files import write_json
from ablate.run.gc import Collector, Remover
from ablate.run.ledger import Ledger
from ablate.train.trial import plan_trial

HOUR = 3600.0


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, without locks."""
    files = (each for each in folder.rglob("*") if each.is_file() and each.name not in ("lock", schema.LOCK))
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in sorted(files)}


def made(root: Path, **more: Any) -> Ledger:
    """A study of six finished trials."""
    fabricate.study(root, lambda label: 2.0 + label["seed"] / 100, **more)
    return Ledger(root)


def orphan(ledger: Ledger, trial_id: str, parent: str | None = None, status: str | None = "finished") -> Path:
    """A trial of no study."""
    folder = ledger.trial(trial_id).folder
    write_json(folder / "spec.json", {"parent": parent})
    row = {"step": 0, "tokens": 0, "split": "valid", "loss": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    if status is not None:
        record = {"id": trial_id, "status": status, "metrics": {"loss": 1.0}, "wall_s": 1.0}
        write_json(folder / "record.json", record)
    return folder


def age(path: Path, seconds: float) -> Path:
    """Make a path, and all in it, look that old."""
    for each in (*path.rglob("*"), path):
        os.utime(each, (time.time() - seconds,) * 2)
    return path


def collected(ledger: Ledger, *options: object) -> set[str]:
    """What `ablate gc` lists, relative to the results."""
    code, said = run_here("gc", "--results", ledger.root, "--json", *options)
    assert code == 0, said
    return {Path(each["path"]).relative_to(ledger.root).as_posix() for each in json.loads(said)["items"]}


A, B, C, D = (letter * 12 for letter in "abcd")


def test_gc_lists_trials_of_no_study_and_removes_them_when_told(tmp_path: Path) -> None:
    ledger = made(tmp_path)
    before = content(tmp_path)
    orphan(ledger, A)
    orphan(ledger, B, status=None)
    code, said = run_here("gc", "--results", tmp_path)
    assert code == 0 and "trial: 2, " in said and "no study has it" in said and "add --yes" in said
    assert len(ledger.trial_ids()) == 8
    assert collected(ledger, "--yes") == {f"trials/{A}", f"trials/{B}"}
    assert content(tmp_path) == before | {schema.FILE: b'{\n "schema": 1\n}\n'}
    assert collected(ledger) == set()


def test_gc_keeps_what_a_trial_that_stays_begins_from(tmp_path: Path) -> None:
    """A chain C <- B <- A of which a study has A; D begins from B and goes."""
    trials = made(tmp_path).study("made")["trials"]
    ledger = Ledger(tmp_path)
    write_json(ledger.trial(trials[0]["id"]).spec, {"parent": B})
    orphan(ledger, B, C), orphan(ledger, C), orphan(ledger, D, B)
    assert collected(ledger, "--yes") == {f"trials/{D}"}
    assert {B, C} < set(ledger.trial_ids())


def test_gc_removes_children_before_their_parents(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    orphan(ledger, A), orphan(ledger, B, A), orphan(ledger, C, B)
    assert [each.trial for each in Collector(ledger).garbage().items] == [C, B, A]


def test_gc_leaves_running_trials_and_young_ones(tmp_path: Path) -> None:
    ledger = made(tmp_path)
    age(orphan(ledger, A), 3 * 86400), orphan(ledger, B, C), age(orphan(ledger, C), 3 * 86400)
    with ledger.trial(A).locked():
        code, said = run_here("gc", "--results", tmp_path, "--yes")
        assert code == 0 and "but it is running" in said and f"{A} stays" in said
    assert A in ledger.trial_ids() and not {B, C} & set(ledger.trial_ids())
    orphan(ledger, B, C), age(orphan(ledger, C), 3 * 86400)
    age(ledger.trial(A).folder, 3 * 86400)
    assert collected(ledger, "--older-than", 2) == {f"trials/{A}"}  # C is old too, but B begins from it


def test_gc_looks_again_before_it_removes(tmp_path: Path) -> None:
    """A trial that began to run, one that a study has been given, and weights that a stage begins from by now."""
    ledger = made(tmp_path)
    orphan(ledger, A), orphan(ledger, B), orphan(ledger, C)
    first = ledger.trial(ledger.study("made")["trials"][0]["id"])
    first.weights.write_bytes(b"w")
    found = Collector(ledger, weights=True).garbage()
    assert len(found.items) == 4
    write_json(ledger.study_folder("late") / "study.json", {"trials": [{"id": B, "parent": first.id}]})
    with ledger.trial(A).locked():
        left = Remover(ledger).remove(found)
    assert [each.trial for each in left.items] == [C] and first.weights.exists()
    assert [each["why"].split()[0] for each in left.stays] == ["trial", "study", "trial"]
    assert {A, B} < set(ledger.trial_ids())


def test_gc_refuses_when_a_study_cannot_be_read(tmp_path: Path) -> None:
    ledger = made(tmp_path)
    (ledger.study_folder("made") / "study.json").write_text("{")
    code, said = run_here("gc", "--results", tmp_path, "--yes")
    assert code == 2 and "made/study.json is not whole" in said
    assert len(ledger.trial_ids()) == 6
    code, said = run_here("gc", "--results", tmp_path / "nowhere")
    assert code == 2 and "no results folder" in said


def test_gc_of_leftovers_by_their_age(tmp_path: Path) -> None:
    ledger = made(tmp_path)
    one = ledger.trial(ledger.trial_ids()[0]).folder
    left = [one / ".record.json.1.part", one / "lease.3.json", tmp_path / ".import-x" / "f", tmp_path / "a.part"]
    left += [tmp_path / "trials" / f".new-{A}" / "f", ledger.study_folder("made") / ".study.json.7.part"]
    left += [ledger.cache / "cost" / "k.1.part"]
    for each in left:
        each.parent.mkdir(parents=True, exist_ok=True)
        each.write_text("x")
    (one / "record.bad.json").write_text("x")
    (tmp_path / "trials" / f".gone-{A}").mkdir()
    assert collected(ledger) == {f"trials/.gone-{A}"}
    for each in left:
        age(each.parent if each.name == "f" else each, 2 * HOUR)
    wanted = {(each.parent if each.name == "f" else each).relative_to(tmp_path).as_posix() for each in left}
    assert collected(ledger, "--yes") == wanted | {f"trials/.gone-{A}"}
    assert collected(ledger) == set() and (one / "record.bad.json").exists()


def test_gc_of_checkpoints_and_weights(tmp_path: Path) -> None:
    """Checkpoints of trials that never go on; weights, when asked, of those that no stage begins from."""
    outcomes: list[float | str] = [2.0, "diverged", "failed", "running", 2.0, 2.0]
    fabricate.study(tmp_path, lambda label: outcomes[3 * (label["variant"] == "rope") + label["seed"]])
    ledger = Ledger(tmp_path)
    ids = [each["id"] for each in ledger.study("made")["trials"]]
    for each in ids:
        for name in ("checkpoint.pt", "checkpoint.1.pt", "weights.pt"):
            (ledger.trial(each).folder / name).write_text("x")
    ended = [ids[0], ids[1], ids[4], ids[5]]
    assert collected(ledger) == {f"trials/{each}/{name}" for each in ended for name in gc_module.CHECKPOINTS}
    assert not any("weights" in each for each in collected(ledger, "--weights"))  # the study is not done
    study = ledger.study("made") | {"enough": "decided"}
    study["trials"][5]["parent"] = ids[0]
    write_json(ledger.study_folder("made") / "study.json", study)
    listed = {each for each in collected(ledger, "--weights", "--yes") if "weights" in each}
    assert listed == {f"trials/{ids[number]}/weights.pt" for number in (1, 2, 4, 5)}
    assert ledger.trial(ids[0]).weights.exists() and ledger.trial(ids[3]).checkpoint.exists()
    assert sum(ledger.trial(each).record() is not None for each in ids) == 5


def test_gc_of_the_cache(tmp_path: Path) -> None:
    """Tokens that a record, a study or a stage's vocabulary names are kept; nothing goes while a study is open."""
    ledger = made(tmp_path, facts={"fingerprint": "of-study"})
    first = ledger.trial(ledger.trial_ids()[0])
    write_json(first.spec, {"data": {"vocabulary": "of-stage"}})
    record = first.record() or {}
    first.commit(record | {"data": {"fingerprint": "of-record"}})
    for name in ("tokens/of-study", "tokens/of-stage", "images/of-record", "tokens/unknown", "images/other"):
        (ledger.cache / name).mkdir(parents=True)
        (ledger.cache / name / "meta.json").write_text("{}")
        age(ledger.cache / name, 2 * HOUR)
    (ledger.cache / "tokens" / "young").mkdir()
    first.forget_record()
    code, said = run_here("gc", "--results", tmp_path)
    assert code == 0 and "cache stays: study 'made' is not done" in said
    first.commit(record | {"data": {"fingerprint": "of-record"}})
    assert collected(ledger, "--yes") == {"cache/tokens/unknown", "cache/images/other"}
    assert collected(ledger) == set() and len(list(ledger.cache.glob("*/*"))) == 4


SLOW_RMTREE = """
import shutil, sys, time
whole = shutil.rmtree
def slow(path, *rest, **more):
    for number, file in enumerate(sorted(path.iterdir()) if path.is_dir() else ()):
        if number == 1:
            print("half", flush=True)
            time.sleep(600)
        file.unlink()
    whole(path, *rest, **more)
shutil.rmtree = slow
from ablate.cli import main
main(sys.argv[1:])
"""


def killed_at(line: str, script: str, *arguments: object) -> None:
    """Run a script, and kill it once it has printed the line."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            said = process.stdout.readline()
            assert said == f"{line}\n", said + process.stderr.read()
            process.send_signal(signal.SIGKILL)
            assert wait_for(lambda: process.poll(), "its end") == -signal.SIGKILL
        finally:
            process.kill()


def test_a_gc_that_was_killed_leaves_whole_trials_only(tmp_path: Path) -> None:
    ledger = made(tmp_path)
    before = content(tmp_path)
    for each in (A, B, C):
        orphan(ledger, each)
    killed_at("half", SLOW_RMTREE, "gc", "--results", tmp_path, "--yes")
    assert A not in ledger.trial_ids() and {B, C} < set(ledger.trial_ids()) and len(ledger.trial_ids()) == 8
    left, whole = ({each.name for each in (tmp_path / "trials" / name).iterdir()} for name in (f".gone-{A}", B))
    assert left and left < whole | {"lock", "lease.1.json"}
    for each in ledger.trial_ids():
        assert ledger.trial(each).record() and ledger.trial(each).rows()
    assert {f"trials/.gone-{A}", f"trials/{B}"} < collected(ledger, "--yes")
    assert content(tmp_path) == before | {schema.FILE: b'{\n "schema": 1\n}\n'}


def test_a_real_trial_is_trained_again_after_gc_with_the_same_numbers(ledger: Ledger) -> None:
    first = train(ledger, small_spec()).record()
    assert collected(ledger, "--yes") == {f"trials/{small_spec().trial_id}"}
    again = train(ledger, small_spec()).record()
    assert first and again and first["metrics"] == again["metrics"]


def test_a_folder_is_marked_by_the_first_command_that_writes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results")
    assert not ledger.root.exists()
    with ledger.study_lock("mine"):
        assert json.loads((ledger.root / schema.FILE).read_text()) == {"schema": 1}


def test_a_newer_folder_is_not_touched(tmp_path: Path) -> None:
    made(tmp_path)
    write_json(tmp_path / schema.FILE, {"schema": 7})
    before = content(tmp_path)
    for command in (("status", "made"), ("report", "made"), ("gc", "--yes"), ("why", "ab")):
        code, said = run_here(*command, "--results", tmp_path)
        assert code == 2 and "has schema 7, this version of ablate knows 1" in said and "newer" in said
    assert content(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "1"}', '{"schema": 0}', '{"schema": 1, "migrating_to": "x"}'])
def test_a_mark_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / schema.FILE).write_text(text)
    code, said = run_here("status", "made", "--results", tmp_path)
    assert code == 2 and "ledger.json is not what ablate writes" in said


def shout(root: Path) -> None:
    """A made-up migration: the question of every study in capitals."""
    for file in sorted((root / "studies").glob("*/study.json")):
        study = json.loads(file.read_text())
        write_json(file, study | {"question": study["question"].upper()})


def sign(root: Path) -> None:
    (root / "signed").write_text("yes")


MIGRATE = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from ablate.run import files, schema
import test_keeping
whole, done = files.write_json, []
def slow(file, value):
    whole(file, value)
    done.append(file)
    if len(done) == {after}:
        print("half", flush=True)
        time.sleep(600)
schema.write_json = test_keeping.write_json = slow
schema.MIGRATIONS[:] = [test_keeping.shout, test_keeping.sign]
schema.prepare(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_a_migration_that_was_killed_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed after each file that it writes: the journal, two studies, the mark, the next journal."""
    made(tmp_path, name="one"), made(tmp_path, name="two")
    killed_at("half", MIGRATE.format(tests=str(ROOT / "tests"), after=after), tmp_path)
    monkeypatch.setattr(schema, "MIGRATIONS", [shout, sign])
    code, said = run_here("status", "one", "--results", tmp_path)
    assert code == 2 and f"`ablate gc --yes --results {tmp_path}` migrates it" in said
    code, _ = run_here("gc", "--yes", "--results", tmp_path)
    assert code == 0 and json.loads((tmp_path / schema.FILE).read_text()) == {"schema": 3}
    assert {Ledger(tmp_path).study(name)["question"] for name in ("one", "two")} == {"QUESTION: DOES IT HELP?"}
    assert (tmp_path / "signed").exists()
    monkeypatch.setattr(schema, "MIGRATIONS", [])
    with pytest.raises(UserError, match="has schema 3, this version of ablate knows 1"):
        Ledger(tmp_path)


def test_nothing_is_migrated_under_a_running_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = made(tmp_path)
    monkeypatch.setattr(schema, "MIGRATIONS", [sign])
    with ledger.trial(ledger.trial_ids()[0]).locked():
        code, said = run_here("gc", "--yes", "--results", tmp_path)
        assert code == 2 and "is running: wait for it" in said and not (tmp_path / "signed").exists()
    schema.prepare(tmp_path)
    assert (tmp_path / "signed").exists()


def test_planned_trials_of_an_open_study_are_no_garbage(ledger: Ledger) -> None:
    plan_trial(ledger, small_spec())
    listing = [{"id": small_spec().trial_id, "parent": None}]
    write_json(ledger.study_folder("mine") / "study.json", {"trials": listing})
    assert collected(ledger) == set()
