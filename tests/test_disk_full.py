"""A full disk, a folder that may not be written: said with the file and the space that is left, and no trial's fault.
With space again the same command comes to the same numbers."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from runs import curves, new_results, run_here, undisturbed, with_database

from ablate.run import files
from ablate.run.ledger import Ledger
from analysis.report import build

ONE = TINY.replace("seeds: 2", "seeds: 1")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    return undisturbed(ONE, tmp_path_factory.mktemp("one"), token_cache)


def fail_on(name: str, code: int, patch: pytest.MonkeyPatch) -> list[str]:
    """The disk refuses what would be written to files of this name, in the middle; returns those refused."""
    refused: list[str] = []

    def refuse(file: Path) -> None:
        if name in file.name:
            refused.append(file.name)
            raise OSError(code, os.strerror(code))

    write_text, save, render, opened = files._write_text, torch.save, build._write_pages, open

    def text(file: Path, content: str) -> None:
        write_text(file, content[: len(content) // 2])
        refuse(file)
        write_text(file, content)

    def tensors(state: Any, stream: Any) -> None:
        refuse(Path(stream.stream.name))
        save(state, stream)

    def lines(file: Path, mode: str, **options: Any) -> Any:
        if name in file.name and mode == "ab+" and file.exists() and file.stat().st_size:
            return _Full(opened(file, mode, **options), code, refused)
        return opened(file, mode, **options)

    def pages(folder: Path, content: Any) -> Any:
        refuse(folder / "report.html")
        return render(folder, content)

    patch.setattr(files, "_write_text", text)
    patch.setattr(torch, "save", tensors)
    patch.setattr(files, "open", lines, raising=False)
    patch.setattr(build, "_write_pages", pages)
    return refused


class _Full:
    """A file on a full disk: a part of what is written gets there."""

    def __init__(self, file: Any, code: int, refused: list[str]):
        self.file, self.code, self.refused, self.begun = file, code, refused, False

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: bytes) -> int:
        if self.begun:
            self.refused.append(self.file.name)
            raise OSError(self.code, os.strerror(self.code))
        self.begun = True
        return int(self.file.write(content[:5]))


def assert_as_expected(ledger: Ledger, expected: Ledger) -> None:
    assert curves(ledger) == curves(expected)
    for each in expected.trial_ids():
        ours, theirs = ledger.trial(each).record(), expected.trial(each).record()
        assert ours is not None and theirs is not None
        assert (ours["status"], ours["metrics"]) == ("finished", theirs["metrics"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "metrics.jsonl", "record.json", "weights.pt", "study.json", "spec.json", "report.html"]
)
def test_a_disk_that_is_full_at_any_write(
    name: str, ledger: Ledger, expected: Ledger, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 75, what ended stays, nothing is recorded as failed."""
    with_database(ledger)
    command = ("run", write(ONE), "--results", ledger.root, "--workers", 0, "--checkpoint-every", 0)
    with monkeypatch.context() as patch:
        refused = fail_on(name, errno.ENOSPC, patch)
        code, said = run_here(*command)
    assert refused and code == 75, said
    place = "report" if name == "report.html" else name
    assert "No space left on device" in said and place in said and "MB free" in said and "Traceback" not in said
    ended = {each: ledger.trial(each).status() for each in ledger.trial_ids()}
    assert set(ended.values()) <= ({"finished"} if place == "report" else {"pending"})
    code, said = run_here(*command)
    assert code == 0, said
    assert_as_expected(ledger, expected)


@pytest.mark.slow
def test_a_folder_that_may_not_be_written(
    ledger: Ledger, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 with the path, wherever it is refused."""
    command = ("run", write(ONE), "--results", with_database(ledger).root, "--workers", 0)
    for code, name in ((errno.EROFS, "record.json"), (errno.EACCES, "study.json")):
        with monkeypatch.context() as patch:
            refused = fail_on(name, code, patch)
            ended, said = run_here(*command)
        assert refused and ended == 2 and os.strerror(code) in said and name in said and "Traceback" not in said
    assert {ledger.trial(each).status() for each in ledger.trial_ids()} == {"pending"}
    file = ledger.root / "a file"
    file.write_text("")
    ended, said = run_here("run", write(ONE), "--results", file / "results")
    assert ended == 2 and f"--results {file / 'results'}: cannot be made: Not a directory" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_small_disk(
    small_disk: Path, expected: Ledger, token_cache: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    """Really full, and read only: as little is free as lets the first trial begin."""
    ledger = new_results(small_disk / "results", token_cache)
    uri = f"sqlite:///{with_database(new_results(tmp_path / 'elsewhere', token_cache)).root / 'mlflow.db'}"
    command = ("run", write(ONE), "--results", ledger.root, "--workers", 0, "--tracking-uri", uri)
    filler = small_disk / "filler"
    space = os.statvfs(small_disk)
    filler.write_bytes(bytes(space.f_bavail * space.f_frsize - 40_000))
    code, said = run_here(*command)
    assert code == 75 and "No space left on device" in said and "0.0 MB free" in said, said
    assert "failed" not in {ledger.trial(each).status() for each in ledger.trial_ids()}
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, said = run_here(*command)
    assert code == 2 and "Read-only file system" in said and str(ledger.root) in said
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    code, said = run_here(*command)
    assert code == 0, said
    assert_as_expected(ledger, expected)
