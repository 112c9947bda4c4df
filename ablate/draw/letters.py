"""How wide text is, and where it may be broken."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator

# Characters by their width in parts of the size of bold letters, at least those of wide sans-serif fonts
THIN, WIDE = "iljtfrI.,:;|!'()[]{} /·-", "mwMWOQ@%&—→←…×÷"


def pixels(text: str, size: float) -> float:
    """How wide a line of text is at most, in bold letters of a size."""
    return size * sum(map(_part_of_size, text))


def _part_of_size(character: str) -> float:
    if character in THIN:
        return 0.43
    if character in WIDE or ord(character) > 0x2000:
        return 1.1
    return 0.76 if character.isupper() else 0.7


def columns(text: str) -> int:
    """Columns of a terminal that a text takes."""
    wide = (unicodedata.east_asian_width(character) in "WF" for character in text)
    return sum(0 if unicodedata.combining(c) else 1 + w for c, w in zip(text, wide, strict=True))


def wrapped(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """The text in lines that are no wider; a word that is wider alone is cut."""
    lines: list[str] = []
    line = ""
    for piece in pieces(text):
        if line and measure((line + piece).rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        while measure(piece.rstrip()) > width and len(piece) > 1:
            cut = next(k for k in range(len(piece) - 1, 0, -1) if k == 1 or measure(piece[:k]) <= width)
            lines.append(piece[:cut])
            piece = piece[cut:]
        line += piece
    return [*lines, line.rstrip()] if line.strip() else lines


def pieces(text: str) -> Iterator[str]:
    """Words with what ends them: blanks, and signs after which a name may be broken."""
    piece = ""
    for character in text:
        piece += character
        if character in " _(=+/→":
            yield piece
            piece = ""
    if piece:
        yield piece
