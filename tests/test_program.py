"""The end of the program: nothing that was to be done at it is left out, though nothing loaded is taken apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PROGRAM = """
import atexit, sys, threading, time
import ablate.__main__ as program

class Loaded:
    def __del__(self):
        print("taken apart")

def later():
    time.sleep(0.3)
    print("thread")

def main():
    sys.modules["loaded"] = Loaded()
    atexit.register(print, "at exit")
    threading.Thread(target=later).start()
    print("begun")
    {ending}

program.main = main
program.program()
"""


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        ("raise SystemExit(2)", 2, ""),
        ("raise SystemExit", 0, ""),
        ("raise ValueError('unheard of')", 1, "ValueError: unheard of"),
    ],
)
def test_threads_and_exit_handlers_come_before_the_end(ending: str, code: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / "output"  # not a terminal: what is printed is kept until it is flushed
    with open(file, "w") as output:
        program = [sys.executable, "-c", PROGRAM.format(ending=ending)]
        done = subprocess.run(program, stdout=output, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == code
    assert file.read_text().split("\n") == ["begun", "thread", "at exit", ""]
    assert said in done.stderr


def test_output_that_nobody_reads_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m ablate list | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout.count("\n") == 1 and done.stderr == ""
