"""Whatever becomes of the ledger's files: no command ends in a traceback, and no number is read that nobody wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fabricate
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import run_here

from ablate.run.files import write_json
from ablate.train import checkpoint
from analysis.records import read_curve
from analysis.table import study_table

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up study with all the files of a run. Who changes one puts it back."""
    root = tmp_path_factory.mktemp("made")
    labels = fabricate.study(root, lambda label: 2.0 + 0.01 * label["seed"], seeds=(0, 1))
    for each in labels:
        folder = root / "trials" / each["id"]
        write_json(folder / "spec.json", {"arch": {"d_model": 16}, "seed": each["seed"]})
        note = {"event": "start", "time": 1.5, "pid": 7, "host": "here", "step": 0}
        (folder / "attempts.jsonl").write_text(json.dumps(note) + "\n" + json.dumps(note | {"event": "end"}) + "\n")
    ids = [each["id"] for each in labels]
    log = {"time": 1.0, "ended": 2.0, "trained": ids, "reused": []}
    (root / "studies" / "made" / "log.jsonl").write_text(json.dumps(log) + "\n")
    return root


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Random bytes, the beginning, a flipped bit, or, in JSON, a value of another kind."""
    kind = data.draw(st.sampled_from(["bytes", "beginning", "bit", "value", "value", "value"]))
    if kind == "bytes":
        return data.draw(st.binary(max_size=60))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "beginning":
        return content[:at]
    if kind == "bit":
        return content[:at] + bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))]) + content[at + 1 :]
    lines = content.splitlines()
    try:
        tree = json.loads(content)
        lines = [b""]
    except ValueError:
        tree = json.loads(lines[0])
    place = data.draw(st.sampled_from(list(places(tree))))
    return b"\n".join([json.dumps(replaced(tree, place, data.draw(JSON))).encode(), *lines[1:]]) + b"\n"


def says(data: bytes, *path: str) -> Any:
    """What a JSON text has at a path; None where it is none or has nothing there."""
    try:
        tree = json.loads(data)
        for key in path:
            tree = tree[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return tree


@QUICK
@given(data=st.data())
@pytest.mark.parametrize("name", ["record.json", "metrics.jsonl", "attempts.jsonl", "spec.json"])
def test_files_of_a_trial(name: str, made: Path, data: st.DataObject) -> None:
    trial = sorted(each.name for each in (made / "trials").iterdir())[0]
    file = made / "trials" / trial / name
    before, curve = file.read_bytes(), read_curve(made / "trials" / trial / "metrics.jsonl")
    changed = damaged(data, before)
    file.write_bytes(changed)
    try:
        code, said = run_here("status", "made", "--results", made, "--json")
        assert code == 0 and "Traceback" not in said
        (mine,) = [each for each in json.loads(said)["trials"] if each["id"] == trial]
        if name == "record.json":
            assert mine["loss"] is None or mine["loss"] == says(changed, "metrics", "loss")
            assert mine["status"] == says(changed, "status") or f"trials/{trial}/record.json" in mine["error"]
        else:
            assert mine["status"] == "finished" and mine["loss"] == says(
                (file.parent / "record.json").read_bytes(), "metrics", "loss"
            )
        assert run_here("status", "made", "--results", made)[0] == 0
        for command in (["why", trial], ["why", trial, "--json"]):
            code, said = run_here(*command, "--results", made)
            assert code == 0 and "Traceback" not in said
        row = study_table(made, "made").set_index("trial_id").loc[trial]
        assert math.isnan(row["loss"]) or row["loss"] == mine["loss"]
        if name == "metrics.jsonl":
            written = {json.dumps(each, sort_keys=True) for each in _lines(changed)}
            assert {json.dumps(each, sort_keys=True) for each in read_curve(file)} <= written
    finally:
        file.write_bytes(before)
    assert read_curve(made / "trials" / trial / "metrics.jsonl") == curve


def _lines(content: bytes) -> Iterator[Any]:
    for line in content.split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


@QUICK
@given(data=st.data())
@pytest.mark.parametrize("name", ["study.json", "log.jsonl"])
def test_files_of_a_study(name: str, made: Path, data: st.DataObject) -> None:
    """Refused by name, or read as it says."""
    file, trial = made / "studies" / "made" / name, sorted(each.name for each in (made / "trials").iterdir())[0]
    before = file.read_bytes()
    file.write_bytes(damaged(data, before))
    try:
        for command in (["status", "made"], ["status", "made", "--json"], ["why", trial]):
            code, said = run_here(*command, "--results", made)
            assert "Traceback" not in said
            assert code == 0 or (code == 2 and ("study.json" in said or "trial" in said) and command[0] == "status")
    finally:
        file.write_bytes(before)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.slow
@pytest.mark.parametrize("name", ["record.json", "metrics.jsonl"])
def test_a_report_of_damaged_files(name: str, made: Path, data: st.DataObject) -> None:
    trial = sorted(each.name for each in (made / "trials").iterdir())[0]
    file = made / "trials" / trial / name
    before = file.read_bytes()
    file.write_bytes(damaged(data, before))
    try:
        code, said = run_here("report", "made", "--results", made)
        assert code == 0 and "Traceback" not in said, said
    finally:
        file.write_bytes(before)


@QUICK
@given(data=st.data())
def test_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Read as it was written, or not at all."""
    file = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    checkpoint.save(file, {"step": 3, "model": torch.arange(50.0)})
    content = file.read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "beginning", "bit", "more"]))
    at = data.draw(st.integers(0, len(content) - 1))
    changed = {
        "bytes": data.draw(st.binary(max_size=200)),
        "beginning": content[:at],
        "bit": content[:at] + bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))]) + content[at + 1 :],
        "more": content + data.draw(st.binary(min_size=1, max_size=9)),
    }[kind]
    file.write_bytes(changed)
    assert checkpoint.load(file) is None
    file.write_bytes(content)
    assert checkpoint.load(file)["step"] == 3  # type: ignore[index]
