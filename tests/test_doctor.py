"""`ablate doctor`: what is wrong on purpose is found, with what to do; a sound place has no problem."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablate import doctor, doctor_full, doctor_results
from ablate.cli import main
from ablate.doctor import NOTE, OK, PROBLEM, Finding
from ablate.run.lease import held
from ablate.run.schema import known, prepare

Usage = namedtuple("Usage", "total used free")


def only(findings: Any, subject: str) -> Finding:
    (found,) = [each for each in findings if each.subject == subject]
    return found


def test_a_sound_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    assert main(["doctor", "--results", str(results), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    subjects = {each["subject"] for each in tree}
    wanted = {"versions", "GPU", "precision", "CPU", "threads", "memory", "disk", "fsync", "results", "leases"}
    assert wanted | {"MLflow", "torch.compile", "Ray", "/dev/shm"} <= subjects
    assert {each["status"] for each in tree} <= {OK, NOTE}
    assert all(each["advice"] for each in tree if each["status"] == NOTE)
    assert not results.exists(), "looking makes nothing"


def test_a_problem_is_told_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ledger.json").write_text(json.dumps({"schema": known() + 1}))
    assert main(["doctor", "--results", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "problem  results" in out and "use the version of ablate that wrote it" in out and "1 problem" in out


def test_what_cannot_be_looked_at_is_a_problem_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(doctor, "memory", broken)
    found = doctor.examine(tmp_path)
    assert only(found, "broken").status == PROBLEM and "the driver is gone" in only(found, "broken").found
    assert only(found, "Ray").status == OK


@pytest.mark.parametrize(("free_gb", "status"), [(0.1, PROBLEM), (2.0, NOTE), (50.0, OK)])
def test_free_space(free_gb: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free_gb * 1e9))
    assert only(doctor_results.disk(tmp_path), "disk").status == status


def test_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_results, "sync_ms", lambda _: 150.0)
    found = only(doctor_results.disk(tmp_path), "fsync")
    assert found.status == NOTE and "150.0 ms" in found.found and "local disk" in found.advice


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert only(doctor_results.disk(tmp_path / "file" / "results"), "disk").status == PROBLEM


def test_what_is_held_and_what_was_left(tmp_path: Path) -> None:
    prepare(tmp_path)
    left = tmp_path / "trials" / "0123456789ab"
    left.mkdir(parents=True)
    file = left / "lease.3.json"
    file.write_text(json.dumps({"host": "gone", "pid": 1, "when": 1.0, "machine": "gone", "token": "t"}))
    long_ago = time.time() - 86_400
    os.utime(file, (long_ago, long_ago))
    with held(tmp_path / "studies" / "mine"):
        found = only(doctor_results.leases(tmp_path), "leases")
    assert found.status == NOTE
    assert f"mine by {os.uname().nodename} (pid {os.getpid()})" in found.found and "0123456789ab" in found.found
    file.unlink()
    assert only(doctor_results.leases(tmp_path), "leases") == Finding(OK, "leases", "0 folders held")


def test_a_store_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("torn" * 1000)
    found = only(doctor_results.mlflow_store(tmp_path), "MLflow")
    assert found.status == PROBLEM and "ablate track --all" in found.advice


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    found = only(doctor_results.mlflow_store(tmp_path), "MLflow")
    assert found.status == NOTE and "does not answer" in found.found and "secret" not in str(found)


def test_a_quota_below_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_quota", lambda: 0.5)
    found = only(doctor.cpus(), "CPU")
    assert found.status == NOTE and "quota is 0.5" in found.found and "--workers 1" in found.advice


def test_a_driver_that_torch_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "_driver", lambda: "570.1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in only(doctor.devices(), "GPU").found
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert only(doctor.devices(), "GPU").status == NOTE


def test_a_gpu_that_others_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="Big GPU"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1e9, 80e9))
    found = only(doctor.devices(), "GPU")
    assert found.status == NOTE and "Big GPU, 1.0 of 80.0 GB free" in found.found


def test_what_full_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_full, "STARTED", "raise OSError('no port')")
    found = only(doctor_full.ray_starts(True), "Ray")
    assert found.status == PROBLEM and "no port" in found.found and "--executor local" in found.advice
    monkeypatch.setattr(doctor_full, "STARTED", "pass")
    assert only(doctor_full.ray_starts(True), "Ray").status == OK
