"""The ledger: what counts as done, whatever a crash has left, and who may touch what at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from runs import events, job, new_results, spec, train

from ablate.cli import main
from ablate.errors import UserError
from ablate.run import ledger as ledger_module
from ablate.run.executor import give_up
from ablate.run.ledger import Ledger, TrialFolder
from ablate.spec import to_tree
from ablate.train import checkpoint, training
from ablate.train.trial import plan_trial, run_trial

HOLD = """
import sys
from pathlib import Path
from ablate.run.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
with ledger.trial(sys.argv[3]).locked() if sys.argv[2] == "trial" else ledger.study_lock(sys.argv[3]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Killed(BaseException):
    """Ends a trial as a kill does: nothing in the harness handles it."""


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    return new_results(tmp_path / "results", token_cache)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> TrialFolder:
    """The undisturbed trial."""
    return train(new_results(tmp_path_factory.mktemp("whole") / "results", token_cache), spec())


def begun(ledger: Ledger, steps: int = 5) -> TrialFolder:
    """The same trial, stopped in the middle with a checkpoint."""
    under_way = run_trial(job(ledger, spec(), progress_every_s=0))
    for _ in range(steps):
        next(under_way)
    under_way.close()
    return ledger.trial(spec().trial_id)


@contextmanager
def held(ledger: Ledger, kind: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a trial or a study."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ledger.root), kind, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def cuts(content: bytes) -> list[bytes]:
    """What a crash can leave of a file."""
    size = len(content)
    return [content[:at] for at in (0, 1, size // 3, size // 2, size - 2)]


# ---- records


def test_a_record_appears_whole_and_by_rename(
    ledger: Ledger, whole: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the rename there is no record, and nothing stays of a write that failed."""
    record = whole.record()
    assert record is not None
    folder = ledger.trial(whole.id)
    folder.folder.mkdir(parents=True)
    seen: list[Any] = []

    def refuse(part: Path, file: Path) -> None:
        seen.append((json.loads(Path(part).read_text()), Path(file).exists(), folder.status()))
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="no"):
            folder.commit(record)
    assert seen == [(record, False, "pending")]
    assert folder.record() is None and list(folder.folder.iterdir()) == []
    folder.commit(record)
    assert folder.record() == record and folder.status() == "finished"


def test_a_record_must_say_how_the_trial_ended(ledger: Ledger) -> None:
    with pytest.raises(AssertionError):
        ledger.trial("0123456789ab").commit({"status": "running"})
    assert ledger.trial_ids() == []


def test_the_record_says_what_was_asked_and_what_came_out(whole: TrialFolder) -> None:
    record = whole.record()
    assert record is not None
    assert record["id"] == whole.id == spec().trial_id and record["group_id"] == spec(seed=9).group_id
    assert record["spec"] == to_tree(spec()) == json.loads(whole.spec.read_text())
    assert record["train_flops"] == record["tokens"] * (
        record["flops_per_token"] + record["flops_per_token_backward"]
    )
    assert record["train_flops_6nd"] == 6 * record["params_non_embedding"] * record["tokens"]
    assert sum(record["params_by_slot"].values()) == record["params_total"]
    assert 0 < record["tokens"] / record["tokens_per_s"] <= record["wall_s"]


@pytest.mark.parametrize("cut", range(5))
def test_a_torn_record_is_none(cut: int, ledger: Ledger, whole: TrialFolder) -> None:
    """The trial then runs again, to the same end."""
    folder = train(ledger, spec())
    file = folder.folder / "record.json"
    content = file.read_bytes()
    file.write_bytes(cuts(content)[cut])
    assert folder.record() is None and folder.status() == "unreadable"
    train(ledger, spec())
    assert (folder.folder / "record.bad.json").read_bytes() == cuts(content)[cut]
    assert folder.status() == "finished" and folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert events(folder) == ["start", "end", "start", "end"]


def test_an_ended_trial_is_not_trained_again(ledger: Ledger) -> None:
    folder = train(ledger, spec())
    files = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.folder.iterdir()}
    reported = [*run_trial(job(ledger, spec()))]
    assert [(each["id"], each["status"]) for each in reported] == [(folder.id, "finished")]
    assert reported[0]["loss"] == folder.record()["metrics"]["loss"]  # type: ignore[index]
    for file, (_, content) in files.items():
        assert file.read_bytes() == content
    assert (folder.folder / "record.json").stat().st_mtime_ns == files[folder.folder / "record.json"][0]


# ---- curves and checkpoints


def test_torn_lines_of_a_curve_are_left_out(ledger: Ledger, whole: TrialFolder) -> None:
    rows, lines = whole.rows(), whole.metrics.read_bytes().splitlines(keepends=True)
    folder = ledger.trial(whole.id)
    folder.folder.mkdir(parents=True)
    for at in range(len(lines[-1])):
        folder.metrics.write_bytes(b"".join(lines[:-1]) + lines[-1][:at])
        assert folder.rows() == rows[:-1]
    folder.metrics.write_bytes(b"".join(lines) + b'{"step": 12, "spl\xff')
    assert folder.rows() == rows
    folder.metrics.unlink()
    assert folder.rows() == []


def test_a_note_after_a_torn_line_is_kept(ledger: Ledger) -> None:
    """A full disk can tear the last line of a file that is appended to later."""
    folder = begun(ledger)
    with open(folder.attempts, "ab") as stream:
        stream.write(b'{"event": "st')
    train(ledger, spec())
    assert events(folder) == ["start", "stop", "resume", "end"]


def test_a_checkpoint_that_cannot_be_read_means_starting_again(ledger: Ledger, whole: TrialFolder) -> None:
    content = begun(ledger).checkpoint.read_bytes()
    middle = len(content) // 2
    left = [
        *cuts(content),
        bytes(len(content)),  # the size is on disk, the content is not
        content[:middle] + bytes(len(content) - middle),
        bytes(middle) + content[middle:],
        b"not a checkpoint",
        json.dumps({"step": 3}).encode(),
    ]
    folder = ledger.trial(whole.id)
    for torn in left:
        (folder.folder / "record.json").unlink(missing_ok=True)
        folder.attempts.unlink()
        folder.checkpoint.write_bytes(torn)
        train(ledger, spec())
        assert events(folder) == ["start", "end"] and folder.status() == "finished", torn[:20]
        assert folder.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_checkpoint_of_another_shape_means_starting_again(ledger: Ledger, whole: TrialFolder) -> None:
    """A readable file that is not a state of this harness."""
    import torch

    folder = begun(ledger)
    torch.save([1, 2], folder.checkpoint)
    train(ledger, spec())
    assert events(folder) == ["start", "stop", "start", "end"]
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_any_rename_ends_in_the_same_numbers(
    moment: str, ledger: Ledger, whole: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints, the weights, the record: each is replaced by a rename, and a kill can come on either side."""
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
    folder = ledger.trial(whole.id)
    replace, written = os.replace, []
    kill_at = 0

    def rename(part: Path, file: Path) -> None:
        written.append(Path(file).name)
        if moment == "before" and len(written) == kill_at:
            raise Killed
        replace(part, file)
        if moment == "after" and len(written) == kill_at:
            raise Killed

    killed = []
    request = job(ledger, spec(), checkpoint_every_s=0)
    monkeypatch.setattr(os, "replace", rename)
    while True:
        kill_at += 1
        written.clear()
        for file in folder.folder.iterdir():
            if file != folder.spec:
                file.unlink()
        try:
            for _ in run_trial(request):
                pass
            break  # there was no rename of this number
        except Killed:
            killed.append(written[-1])
        assert folder.status() == ("finished" if (moment, killed[-1]) == ("after", "record.json") else "pending")
        kill, kill_at = kill_at, 0
        assert [*run_trial(request)][-1]["status"] == "finished"
        kill_at = kill
        assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
        assert folder.weights.read_bytes() == whole.weights.read_bytes()
        assert folder.record()["metrics"] == whole.record()["metrics"]  # type: ignore[index]
    saved = ["checkpoint.pt"] + ["checkpoint.1.pt", "checkpoint.pt"] * killed.count("checkpoint.1.pt")
    assert killed == [*saved, "weights.pt", "record.json"] and len(saved) >= 15


def test_a_kill_between_the_record_and_letting_go_of_the_checkpoint(
    ledger: Ledger, whole: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record counts: nothing is trained again."""
    begun(ledger)
    folder = ledger.trial(whole.id)
    unlink = Path.unlink

    def refuse(file: Path, missing_ok: bool = False) -> None:
        if file == folder.checkpoint:
            raise Killed
        unlink(file, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(Killed):
            train(ledger, spec())
    assert folder.status() == "finished" and folder.checkpoint.exists()
    train(ledger, spec())
    assert events(folder) == ["start", "stop", "resume"] and folder.metrics.read_bytes() == whole.metrics.read_bytes()


def test_what_a_kill_left_half_written_is_removed(ledger: Ledger) -> None:
    folder = begun(ledger)
    names = ("checkpoint.pt", "weights.pt", "record.json")
    for name in names:
        (folder.folder / f".{name}.123.part").write_bytes(b"half")
    train(ledger, spec())
    left = {file.name for file in folder.folder.iterdir()}
    asked = {"spec.json", "identity.json"}
    assert left == {*asked, "metrics.jsonl", "attempts.jsonl", "lock", "weights.pt", "record.json"}


def test_a_full_disk_is_not_the_trials_fault(
    ledger: Ledger, whole: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record; with space again it goes on."""
    folder = ledger.trial(whole.id)
    request = job(ledger, spec())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("save", "commit"):
        with monkeypatch.context() as patch:
            patch.setattr(*((checkpoint, "save") if place == "save" else (TrialFolder, "commit")), full)
            with pytest.raises(OSError, match="No space left"):
                for _ in run_trial(request):
                    pass
        assert folder.record() is None
    train(ledger, spec())
    assert folder.status() == "finished" and folder.metrics.read_bytes() == whole.metrics.read_bytes()


# ---- planning and failing


def test_planning_keeps_what_an_ended_trial_was_asked(ledger: Ledger) -> None:
    """Until it ends, the place of its text is where it lies now; one that is not whole is written anew."""
    folder = plan_trial(ledger, spec())
    content = folder.spec.read_bytes()
    assert json.loads(content) == to_tree(spec()) and folder.status() == "pending"
    before = folder.spec.stat().st_ino
    assert plan_trial(ledger, spec()).spec.stat().st_ino == before
    folder.spec.write_bytes(content[:-9])
    assert plan_trial(ledger, spec()).spec.read_bytes() == content
    moved = replace(spec(), data=replace(spec().data, corpus=None, path="moved.txt"))
    assert moved.trial_id == folder.id
    assert json.loads(plan_trial(ledger, moved).spec.read_text())["data"]["path"] == "moved.txt"
    plan_trial(ledger, spec())
    train(ledger, spec())
    record = folder.record()
    assert plan_trial(ledger, moved).record() == record
    assert folder.spec.read_bytes() == content


def test_a_folder_with_another_trials_specification_is_refused(ledger: Ledger) -> None:
    request = job(ledger, spec())
    (ledger.trial(spec().trial_id).spec).write_text(json.dumps(to_tree(spec(seed=5))))
    with pytest.raises(UserError, match=rf"says trial {spec(seed=5).trial_id}, not {spec().trial_id}"):
        next(run_trial(request))
    assert ledger.trial(spec().trial_id).record() is None


def test_a_trial_that_fails_says_why_and_stays_failed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ledger.trial(spec().trial_id)
    under_way = run_trial(job(ledger, spec(), progress_every_s=0))
    assert [next(under_way)["step"] for _ in range(3)] == [1, 2, 3]
    end = under_way.throw(RuntimeError("a shape is wrong"))
    assert end["status"] == "failed" and end["error"] == "RuntimeError: a shape is wrong"
    assert [*under_way] == []
    record = folder.record()
    assert record is not None and record["status"] == "failed" and record["id"] == folder.id
    assert "a shape is wrong" in record["traceback"] and "Traceback" in record["traceback"]
    assert record["metrics"]["loss"] is None and record["metrics"]["last_loss"] > 0
    assert record["spec"] == to_tree(spec()) and record["environment"]["torch"]
    assert [*run_trial(job(ledger, spec()))][-1]["status"] == "failed"
    folder.forget_record()
    assert folder.status() == "pending"
    assert train(ledger, spec()).status() == "finished"
    assert events(folder) == ["start", "end", "start", "end"]


def test_giving_a_trial_up_is_a_failure_with_its_reason(ledger: Ledger) -> None:
    folder = plan_trial(ledger, spec())
    assert give_up(folder, "lost: its worker died") == {
        "id": folder.id,
        "status": "failed",
        "loss": None,
        "error": "lost: its worker died",
    }
    assert folder.status() == "failed" and folder.record()["error"] == "lost: its worker died"  # type: ignore[index]


# ---- locks


def test_two_processes_cannot_train_one_trial(
    ledger: Ledger, whole: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "LOCK_PATIENCE_S", 0.3)
    request = job(ledger, spec())
    folder = ledger.trial(whole.id)
    assert folder.status() == "pending"
    with held(ledger, "trial", whole.id) as holder:
        assert folder.running() and folder.status() == "running"
        with pytest.raises(UserError, match=f"trial {whole.id} is being trained by .+ [(]pid {holder.pid}[)] since "):
            next(run_trial(request))
        assert not folder.metrics.exists()
        os.kill(holder.pid, signal.SIGKILL)  # the kernel frees what a killed process held
        holder.wait()
        assert folder.status() == "pending"
        train(ledger, spec())
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_lock_that_is_freed_in_time_is_waited_for(ledger: Ledger, whole: TrialFolder) -> None:
    """As after a driver was killed, whose workers live a little longer."""
    request = job(ledger, spec())
    with held(ledger, "trial", whole.id) as holder:
        killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {holder.pid}"])
        assert [*run_trial(request)][-1]["status"] == "finished"
        killer.wait()


def test_a_trial_is_running_while_it_is_trained(ledger: Ledger) -> None:
    under_way = run_trial(job(ledger, spec(), progress_every_s=0))
    folder = ledger.trial(spec().trial_id)
    states = [folder.status()]
    next(under_way)
    states.append(folder.status())
    under_way.close()
    states.append(folder.status())
    assert states == ["pending", "running", "pending"]


def test_a_second_driver_is_sent_away(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(TINY)
    with held(ledger, "study", "tiny"):
        assert main(["run", str(grid), "--results", str(ledger.root)]) == 2
    said = capsys.readouterr()
    assert (
        "another `ablate run`, " in said.err and "is at study 'tiny'" in said.err and "ablate status tiny" in said.err
    )
    assert ledger.trial_ids() == [] and ledger.study_names() == []
    with ledger.study_lock("tiny"):  # it is free again, and studies do not hinder each other
        assert ledger.study_folder("other").exists() is False
        with ledger.study_lock("other"):
            pass


# ---- looking up


def test_trials_are_found_by_the_beginning_of_their_id(ledger: Ledger) -> None:
    ids = ["aa0000000000", "aa0000000001", "ab0000000000"]
    for each in ids:
        ledger.trial(each).folder.mkdir(parents=True)
    assert ledger.trial_ids() == ids
    assert ledger.find_trial("ab").id == ids[2] and ledger.find_trial(ids[1]).id == ids[1]
    with pytest.raises(UserError, match=r"'aa' begins the ids of 2 trials: aa0000000000, aa0000000001"):
        ledger.find_trial("aa")
    with pytest.raises(UserError, match="no trial 'b'"):
        ledger.find_trial("b")
    with pytest.raises(UserError, match="no trial"):
        Ledger(ledger.root / "nowhere").find_trial("aa")


def test_an_unknown_study_is_named_with_those_that_there_are(ledger: Ledger) -> None:
    with pytest.raises(UserError, match=r"no study 'tiny' in .*: `ablate run GRID` makes one"):
        ledger.study("tiny")
    folder = ledger.study_folder("tiny")
    folder.mkdir(parents=True)
    words = dict.fromkeys(("study", "question", "baseline", "match"), "tiny")
    tree = {**words, "tolerance": 0.01, "data": {}, "rows": [], "trials": []}
    (folder / "study.json").write_text(json.dumps(tree))
    assert ledger.study("tiny") == tree
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        ledger.study("tinny")
