"""How the command line ends when the machine, and not the input, is at fault."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from ablate import commands
from ablate.cli import main


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """As in `ablate list | head -1`."""
    command = subprocess.Popen(
        [sys.executable, "-m", "ablate", "list", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout is not None and command.stderr is not None
    command.stdout.read(1)
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == (b"", 0)
    command.stderr.close()


RAISES = """\
from ablate import commands
from ablate.cli import main
import sys

def fail(options):
    raise BrokenPipeError(32, "a worker is gone")

commands.list_components = fail
sys.exit(main(["list"]))
"""


def test_another_broken_pipe_is_one(tmp_path: Path) -> None:
    """It would otherwise pass for success, with trials untrained."""
    ended = subprocess.run(
        [sys.executable, "-c", RAISES],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "ablate: [Errno 32] a worker is gone\n"


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 75), (errno.EDQUOT, 75), (errno.EACCES, 2)])
def test_the_driver_cannot_write(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: Any) -> int:
        raise OSError(number, os.strerror(number), "results")

    monkeypatch.setattr(commands, "list_components", fail)
    assert main(["list"]) == code
    err = capsys.readouterr().err
    assert err.startswith("ablate: ") and os.strerror(number) in err and len(err.splitlines()) == 1
    assert ("free some space" in err) == (code == 75)
    assert ("--results DIR" in err) == (number == errno.EACCES)


ELSEWHERE = """\
import sys
sys.modules.update(fcntl=None, resource=None)  # as on Windows
from ablate.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("command", "code"), [("list", 0), ("show gpt2", 0), ("plan g.yaml", 2), ("run g.yaml", 2)])
def test_where_there_are_no_locks_of_files(command: str, code: int, tmp_path: Path) -> None:
    """Commands that touch no results work; the others say where they do."""
    (tmp_path / "g.yaml").write_text("variants: [baseline, rope]\n")
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    if code:
        assert ended.stderr.startswith("ablate: this command needs Linux or macOS") and "WSL" in ended.stderr
