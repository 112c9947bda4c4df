"""What the terminal that is written to can show, and text that fits it."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 240  # columns of tables in a file or a pipe, which has no width: nothing is cut off
PIPED = 100  # columns where nothing says how many there are
BOXES = "┌─┐│└┘┏━┓┃╌╎◂×·→"
FIELD = re.compile(r"\S  +(?=\S)")  # the end of a field, where fields stand below each other


def width(otherwise: int = PIPED) -> int:
    """Columns of the terminal, or what COLUMNS says."""
    return shutil.get_terminal_size((otherwise, 24)).columns


def columns() -> int | None:
    """Columns of the terminal that is printed to; None for a file or a pipe, whose lines are not broken."""
    return width() if sys.stdout.isatty() else None


def draws_boxes() -> bool:
    """Whether the characters that boxes are drawn with can be written."""
    try:
        BOXES.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def replaces_characters() -> None:
    """From now on what the output's encoding lacks is written as `?`, where it would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def filled(text: str, width: int) -> str:
    """The text in lines of at most `width` characters, broken between words."""
    return "\n".join(broken(text, width))


def broken(line: str, width: int | None, hanging: int = 4) -> list[str]:
    """A line as lines that fit, the later ones indented. What cannot be broken, as a path, stays whole."""
    if width is None or len(line) <= width:
        return [line]
    start = line[: len(line) - len(line.lstrip())]
    indent = start + " " * min(hanging, width // 4)
    return textwrap.wrap(
        line.strip(),
        width,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fitted(lines: Iterable[str], width: int | None) -> Iterator[str]:
    """Lines that fit. Indented ones are a table: where one is too long, the first field of each has its own line."""
    for indented, block in groupby(lines, lambda line: line.startswith("  ")):
        rows = list(block)
        start = 0
        if indented and width is not None and max(map(len, rows)) > width:
            start = max((found.end() for row in rows if (found := FIELD.search(row))), default=0)
        for row in rows:
            if not start:
                yield from broken(row, width)
                continue
            yield from broken(row[:start].rstrip(), width)
            if rest := FIELD.sub(lambda gap: gap[0][:3], row[start:].strip()):
                yield from broken("    " + rest if width is None or len(rest) + 4 <= width else "  " + rest, width)


def show(lines: Iterable[str]) -> None:
    """Print lines, broken where they do not fit the terminal."""
    for line in fitted(lines, columns()):
        print(line)


def fits(table: Table, console: Console) -> bool:
    """Whether a table can show all that may not be cut off: always in a file or a pipe."""
    from rich.measure import Measurement

    least = Measurement.get(console, console.options.update(max_width=10_000), table).minimum
    return not console.is_terminal or least <= console.width


def say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is, in lines that fit a terminal."""
    within = console.width if console.is_terminal else None
    for line in fitted(text.splitlines(), within):
        console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)
