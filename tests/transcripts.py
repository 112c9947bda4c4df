"""Transcripts in documents: a page's files and commands, and whether what is printed is what it shows.

A page has its files in fences with a title (```yaml title="grid.yaml") and its commands in ```console fences: a line
after `$ ` is a command, the lines after it what it prints. A line `...` stands for any lines, ` ...` at a line's end
for any rest. Words compare exactly, but for runs of spaces. What is measured compares loosely: numbers with a decimal
point within 5 % or 0.02, whichever is more; durations, dates, times and ids of trials by their form. A command that
fails shows why: a line that begins with `ablate: `.
"""

from __future__ import annotations

import difflib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RELATIVE, ABSOLUTE = 0.05, 0.02
FENCE = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FORMS = {  # tried in this order at every place of a line
    "date": r"\b\d{4}-\d\d-\d\d\b",
    "time": r"\b\d?\d:\d\d(?::\d\d)?\b",
    "id": r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{12}\b",
    "duration": r"(?<![\w.])\d+(?:\.\d+)? ?(?:ms|s|min|h|seconds?|minutes?|hours?)(?:/trial)?\b",
    "number": r"(?<![\w.])[-+]?\d[\d,]*\.\d+(?:e[-+]?\d+)?",
}
TOKEN = re.compile("|".join(f"(?P<{name}>{form})" for name, form in FORMS.items()))


@dataclass(frozen=True)
class Step:
    """A file to write, or a command and the lines that it is to print."""

    line: int
    file: str = ""
    text: str = ""
    command: str = ""
    shown: tuple[str, ...] = ()


def steps(page: str) -> Iterator[Step]:
    """The files and commands of a page, in its order."""
    for fence in FENCE.finditer(page):
        language, title, body = fence.groups()
        line = page.count("\n", 0, fence.start(3)) + 1
        if title:
            yield Step(line, file=title, text=body)
        elif language == "console":
            lines = body.splitlines()
            begins = [index for index, each in enumerate(lines) if each.startswith("$ ")]
            for begin, end in zip(begins, [*begins[1:], len(lines)], strict=True):
                yield Step(line + begin, command=lines[begin][2:], shown=tuple(lines[begin + 1 : end]))


def replay(page: str, folder: Path, env: Mapping[str, str]) -> int:
    """Write a page's files and run its commands, in a folder. Returns how many; raises `AssertionError` with the
    difference at the first command that prints something else."""
    count = 0
    for step in steps(page):
        if step.file:
            target = folder / step.file
            assert target.resolve().is_relative_to(folder.resolve()), step.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(step.text, encoding="utf-8")
            continue
        ended = subprocess.run(
            ["bash", "-c", step.command],
            cwd=folder,
            env={**env, "PYTHONUNBUFFERED": "1"},  # else errors and output change places
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        count += 1
        printed = ended.stdout.splitlines()
        where = f"line {step.line}: $ {step.command}\n"
        assert matches(step.shown, printed), where + difference(step.shown, printed)
        fails = any(each.startswith("ablate: ") for each in step.shown)
        assert bool(ended.returncode) == fails, f"{where}exit code {ended.returncode}\n{ended.stdout}"
    return count


def matches(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether lines are those that are shown."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(matches(shown[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and same(shown[0], printed[0]) and matches(shown[1:], printed[1:])


def same(shown: str, printed: str) -> bool:
    """Whether a line is the one that is shown."""
    if shown.endswith(" ..."):
        words = len(shown[:-4].split())
        return same(" ".join(shown[:-4].split()), " ".join(printed.split()[:words]))
    mine, theirs = _parts(shown), _parts(printed)
    return len(mine) == len(theirs) and all(map(_alike, mine, theirs))


def difference(shown: Sequence[str], printed: Sequence[str]) -> str:
    """The lines that were not printed (-) and those that are not shown (+)."""
    told = [next((mine for mine in shown if same(mine, each)), each) for each in printed]
    lines = difflib.unified_diff(shown, told, "shown in the page", "printed", lineterm="", n=99)
    return "\n".join(lines)


def _parts(line: str) -> list[tuple[str, str]]:
    """The text between what is measured, and what is measured with its form."""
    parts, end = [], 0
    for token in TOKEN.finditer(line := " ".join(line.split())):
        parts += [("", line[end : token.start()]), (str(token.lastgroup), token.group())]
        end = token.end()
    return [*parts, ("", line[end:])]


def _alike(mine: tuple[str, str], theirs: tuple[str, str]) -> bool:
    if mine[0] != theirs[0]:
        return False
    if mine[0] == "":
        return mine[1] == theirs[1]
    if mine[0] != "number":
        return True
    here, there = (float(each[1].replace(",", "")) for each in (mine, theirs))
    return abs(here - there) <= max(ABSOLUTE, RELATIVE * abs(here))
