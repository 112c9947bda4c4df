"""The help of every command, word for word. After a change: `python tests/test_cli_help.py` writes it anew."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import pytest

from ablate.cli import main

GOLDEN = Path(__file__).parent / "golden" / "help"
TOP = "ablate"


def printed_help(command: str) -> str:
    """What `ablate COMMAND --help` prints on a terminal of 100 columns."""
    out, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*([] if command == TOP else [command]), "--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return out.getvalue()


def commands() -> list[str]:
    """As the top help lists them."""
    return re.findall(r"^    (\w+)(?: |$)", printed_help(TOP), re.MULTILINE)


def test_every_command_has_its_golden_help() -> None:
    assert sorted(each.stem for each in GOLDEN.glob("*.txt")) == sorted([TOP, *commands()])
    assert {"run", "plan", "list", "show", "check", "status", "report", "why", "ui"} <= set(commands())


@pytest.mark.parametrize("command", sorted(each.stem for each in GOLDEN.glob("*.txt")))
def test_help(command: str) -> None:
    text = printed_help(command)
    assert text == (GOLDEN / f"{command}.txt").read_text()
    assert all(len(line) <= 100 and line == line.rstrip() for line in text.splitlines())


WRONG = [
    ([], "the following arguments are required: COMMAND"),
    (["plam"], "invalid choice: 'plam'"),
    (["plan"], "the following arguments are required: GRID"),
    (["run"], "the following arguments are required: GRID"),
    (["show"], "the following arguments are required: NAME"),
    (["status"], "the following arguments are required: STUDY"),
    (["report"], "the following arguments are required: STUDY"),
    (["why"], "the following arguments are required: TRIAL"),
    (["plan", "g.yaml", "--jsn"], "unrecognized arguments: --jsn"),
    (["plan", "g.yaml", "h.yaml"], "unrecognized arguments: h.yaml"),
    (["plan", "g.yaml", "--set"], "expected one argument"),
    (["run", "g.yaml", "--workers", "many"], "'many' must be a whole number from 0"),
    (["run", "g.yaml", "--workers", "-1"], "'-1' must be a whole number from 0"),
    (["run", "g.yaml", "--executor", "slurm"], "invalid choice: 'slurm'"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(each[0]) or "nothing" for each in WRONG])
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.startswith("usage: ablate") and words in err


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for old in GOLDEN.glob("*.txt"):
        old.unlink()
    for name in (TOP, *commands()):
        (GOLDEN / f"{name}.txt").write_text(printed_help(name))
