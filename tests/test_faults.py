"""What a disk or a crash changes is noticed: the trial goes on from what is whole, to the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fabricate
import numpy as np
import pytest
import torch
from runs import events, job, new_results, run_here, spec, train

from ablate.errors import UserError
from ablate.run.files import append_json
from ablate.run.ledger import Ledger, TrialFolder
from ablate.train import checkpoint, training
from ablate.train.start import load_weights
from ablate.train.trial import run_trial
from analysis.records import read_lines
from analysis.table import study_table

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "one bit": lambda content: content[:700] + bytes([content[700] ^ 4]) + content[701:],
    "a bit of a tensor": lambda content: _flipped(content, len(content) // 2),
    "a bit of the checksum": lambda content: _flipped(content, len(content) - 9),
    "cut off": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
}


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> TrialFolder:
    """The undisturbed trial."""
    return train(new_results(tmp_path_factory.mktemp("whole") / "results", token_cache), spec())


def begun(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> TrialFolder:
    """The same trial, stopped after 7 steps with checkpoints of steps 6 and 7."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
        under_way = run_trial(job(ledger, spec(), progress_every_s=0, checkpoint_every_s=0))
        while next(under_way)["step"] < 7:
            pass
        under_way.close()
    return ledger.trial(spec().trial_id)


def assert_ends_as(folder: TrialFolder, whole: TrialFolder) -> None:
    ours, theirs = folder.record(), whole.record()
    assert ours is not None and theirs is not None and ours["metrics"] == theirs["metrics"]
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert folder.weights.read_bytes() == whole.weights.read_bytes()


# ---- checkpoints


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: str, ledger: Ledger, whole: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(ledger, monkeypatch)
    steps = [checkpoint.load(each)["step"] for each in (folder.checkpoint, folder.older_checkpoint)]  # type: ignore[index]
    assert steps == [7, 6]
    folder.checkpoint.write_bytes(DAMAGES[damage](folder.checkpoint.read_bytes()))
    train(ledger, spec())
    assert events(folder) == ["start", "stop", "resume", "end"]
    resumed = folder.history()[2]
    assert (resumed["step"], resumed["fell_back"]) == (6, ["checkpoint.pt"])
    assert_ends_as(folder, whole)
    assert not [*folder.folder.glob("checkpoint*")]


def test_two_damaged_checkpoints_mean_starting_over(
    ledger: Ledger, whole: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(ledger, monkeypatch)
    for file in (folder.checkpoint, folder.older_checkpoint):
        file.write_bytes(_flipped(file.read_bytes(), 900))
    train(ledger, spec())
    assert events(folder) == ["start", "stop", "start", "end"]
    assert folder.history()[2]["fell_back"] == ["checkpoint.pt", "checkpoint.1.pt"]
    assert_ends_as(folder, whole)


@pytest.mark.parametrize("change", ["shorter", "another number"])
def test_a_damaged_curve_is_not_gone_on_with(
    change: str, ledger: Ledger, whole: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(ledger, monkeypatch)
    content = folder.metrics.read_bytes()
    at = content.index(b'"loss": ') + 10
    changed = content[:-4] if change == "shorter" else content[:at] + b"0" + content[at + 1 :]
    assert changed != content
    folder.metrics.write_bytes(changed)
    train(ledger, spec())
    assert_ends_as(folder, whole)


def test_a_checkpoint_that_would_run_code_is_not_read(ledger: Ledger, tmp_path: Path) -> None:
    """Not even one with the right checksum."""
    folder = ledger.trial(spec().trial_id)
    request = job(ledger, spec())

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    checkpoint.save(folder.checkpoint, {"step": Touch()})
    assert [*run_trial(request)][-1]["status"] == "finished"
    assert not (tmp_path / "ran").exists() and folder.history()[0]["fell_back"] == ["checkpoint.pt"]


# ---- weights


def test_weights_are_torchs_own_file_with_a_checksum(whole: TrialFolder) -> None:
    state = checkpoint.load(whole.weights)
    assert state is not None and state["step"] == 12
    theirs = torch.load(whole.weights, weights_only=True)["model"]
    assert all(torch.equal(value, theirs[name]) for name, value in state["model"].items())


@pytest.mark.parametrize("damage", [*DAMAGES, "absent"])
def test_a_stage_does_not_begin_from_damaged_weights(damage: str, ledger: Ledger, whole: TrialFolder) -> None:
    parent = ledger.trial(whole.id)
    parent.folder.mkdir(parents=True)
    if damage != "absent":
        parent.weights.write_bytes(DAMAGES[damage](whole.weights.read_bytes()))
    with pytest.raises(UserError, match=r"weights that this trial begins from are (damaged|missing)"):
        load_weights(parent.weights)
    child = replace(spec(seed=1), parent=whole.id)
    folder = train(ledger, child)
    record = folder.record()
    assert record is not None and record["status"] == "failed" and str(parent.weights) in record["error"]
    assert record["traceback"] is None and json.loads(folder.spec.read_text())["parent"] == whole.id


# ---- records


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[str]]:
    """A made-up study, and the ids of its trials."""
    labels = fabricate.study(tmp_path, lambda label: 2.0 + 0.1 * label["seed"])
    return tmp_path, [each["id"] for each in labels]


def _with(**changes: Any) -> Damage:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


BAD_RECORDS: dict[str, Damage] = {
    **{name: DAMAGES[name] for name in ("cut off", "zeros", "empty", "without its last byte")},
    "a list": lambda content: b"[1]",
    "deep": lambda content: b"[" * 100_000,
    "of another trial": _with(id="ffffffffffff"),
    "no status": _with(status=None),
    "another status": _with(status="running"),
    "no metrics": _with(metrics=[1.5]),
    "a loss in words": _with(metrics={"loss": "low"}),
    "an infinite loss": lambda content: content.replace(b'"loss": 2', b'"loss": 1e9992', 1),
    "a number beyond floats": _with(tokens=10**400),
    "NaN": lambda content: content.replace(b'"loss": 2', b'"loss": NaN, "x": 2', 1),
    "tokens in words": _with(tokens="many"),
    "no specification": _with(spec="lost"),
}


@pytest.mark.parametrize("damage", BAD_RECORDS)
def test_a_record_that_cannot_be_read_is_named_and_the_rest_is_read(
    damage: str, made: tuple[Path, list[str]]
) -> None:
    root, (bad, *others) = made
    file = root / "trials" / bad / "record.json"
    changed = BAD_RECORDS[damage](file.read_bytes())
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    code, said = run_here("status", "made", "--results", root, "--json")
    trials = {each["id"]: each for each in json.loads(said)["trials"]}
    assert code == 0 and {trials[each]["status"] for each in others} == {"finished"}
    assert trials[bad]["status"] == "unreadable" and trials[bad]["loss"] is None
    assert f"trials/{bad}/record.json is not whole" in trials[bad]["error"]
    code, said = run_here("status", "made", "--results", root)
    assert code == 0 and "1 unreadable" in said and f"{bad}  unreadable" in said
    code, said = run_here("why", bad, "--results", root)
    assert code == 0 and "its record cannot be read" in said
    table = study_table(root, "made").set_index("trial_id")
    assert table.loc[bad, "status"] == "pending" and set(table.loc[others, "status"]) == {"finished"}
    assert np.isnan(table.loc[bad, "loss"]) and f"trials/{bad}/record.json is not whole" in table.loc[bad, "error"]


def test_a_record_that_cannot_be_read_is_set_aside_and_made_again(ledger: Ledger, whole: TrialFolder) -> None:
    folder = train(ledger, spec())
    file = folder.folder / "record.json"
    torn = file.read_bytes()[:-40]
    file.write_bytes(torn)
    assert folder.status() == "unreadable"
    train(ledger, spec())
    assert_ends_as(folder, whole)
    assert (folder.folder / "record.bad.json").read_bytes() == torn


# ---- lines


def test_a_torn_last_line_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    rows = [{"time": 1.0, "text": "é"}, {"time": 2.5}]
    for row in rows:
        append_json(file, row)
    line = file.read_bytes().splitlines(keepends=True)[-1]
    for at in range(1, len(line)):
        file.write_bytes(file.read_bytes()[: -len(line)] + line[:at])
        assert read_lines(file) == rows[:1]
        append_json(file, rows[1])
        assert read_lines(file)[-1] == rows[1] and rows[0] in read_lines(file)
        file.unlink()
        for row in rows:
            append_json(file, row)


def test_a_line_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of it."""
    import resource
    import signal

    file = tmp_path / "log.jsonl"
    append_json(file, {"time": 1})
    before, (soft, hard) = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
        with pytest.raises(OSError, match="File too large"):
            append_json(file, {"time": 2, "text": "long" * 20})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before
