"""What the pages for newcomers show is what is printed: every transcript is replayed, with the wheel alone, in an
empty folder. `tests/transcripts.py` has the rule by which lines compare."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import ROOT
from installed import Installed
from transcripts import difference, matches, replay, same, steps

PAGES = [page for page in ("README.md", "docs/tutorial.md") if (ROOT / page).is_file()]

LIKE = [
    ("trained 12, reused 0: 12 finished", "trained 12, reused 0: 12 finished"),
    ("rope   -0.1943 [-0.2671, -0.1216]  n=5  better", "rope  -0.1951 [-0.2600, -0.1301]  n=5   better"),
    ("final losses 2.1545 to 2.3488", "final losses 2.20 to 2.25"),
    ("gpt 35,712 +0.00%", "gpt  35,712  +0.01%"),
    ("finished rope seed 1  loss 2.1630  c53592f96141", "finished rope seed 1  loss 2.1631  409ca4871ac4"),
    ("12 s taken, 0.4 h to go since 2026-01-02 03:04:05", "3 s taken, 0.9 h to go since 2027-11-12 13:14:15"),
    ("known: alibi, learned, ...", "known: alibi, learned, none, rope"),
]
UNLIKE = [
    ("trained 12, reused 0: 12 finished", "trained 11, reused 1: 12 finished"),
    ("rope  -0.1943  better", "rope  -0.1943  ≈ baseline"),
    ("rope  -0.1943  better", "rope  -0.2243  better"),
    ("rope  -0.0100  better", "rope  +0.0150  better"),
    ("final losses 2.1545 to 2.3488", "final losses 2.1545 to 2.5488"),
    ("gpt 35,712", "gpt 35,713"),
    ("loss 2.1630  c53592f96141", "loss 2.1630"),
    ("12 s taken", "12 trials taken"),
    ("known: alibi, learned, ...", "known: learned, alibi"),
]
BROKEN = """\
```text title="words.txt"
one
two
three
```

```console
$ cat words.txt
one
...
$ sort words.txt
one
two
three
```
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_shows(page: str, installed: Installed, tmp_path: Path) -> None:
    assert replay((ROOT / page).read_text(encoding="utf-8"), tmp_path, installed.env()) > 0


@pytest.mark.parametrize(("shown", "printed"), LIKE)
def test_lines_that_are_alike(shown: str, printed: str) -> None:
    assert same(shown, printed)


@pytest.mark.parametrize(("shown", "printed"), UNLIKE)
def test_lines_that_are_not(shown: str, printed: str) -> None:
    assert not same(shown, printed)


def test_dots_stand_for_any_lines() -> None:
    assert matches(["a", "...", "c"], ["a", "c"]) and matches(["a", "...", "c"], ["a", "b", "c", "b", "c"])
    assert matches(["..."], []) and not matches(["...", "c"], ["a", "b"]) and not matches(["a"], ["a", "b"])


def test_a_page_that_shows_something_else_fails(tmp_path: Path) -> None:
    """At the command, with what it prints beside what is shown."""
    with pytest.raises(AssertionError) as found:
        replay(BROKEN, tmp_path, os.environ)
    message = str(found.value)
    assert message.startswith("line 11: $ sort words.txt\n")
    assert "\n one\n+three\n two\n-three" in message


def test_a_command_that_fails_must_show_it(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exit code 1"):
        replay("```console\n$ false\n```\n", tmp_path, os.environ)
    assert replay("```console\n$ echo 'ablate: no'; false\nablate: no\n```\n", tmp_path, os.environ) == 1


def test_the_steps_of_a_page() -> None:
    file, first, second = steps(BROKEN)
    assert (file.file, file.text) == ("words.txt", "one\ntwo\nthree\n")
    assert (first.line, first.command, first.shown) == (8, "cat words.txt", ("one", "..."))
    assert second.shown == ("one", "two", "three")
    assert difference(first.shown, ["one"]) != ""
