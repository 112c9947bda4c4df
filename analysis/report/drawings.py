"""The architectures of a study's variants, as `ablate run` has drawn them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

OPEN = 3  # drawings that are seen at once; more are folded away
INSIDE = 16  # that the page itself holds; the others are files beside it alone


@dataclass(frozen=True)
class Drawn:
    """One drawing. `svg` is empty where it could not be made."""

    variant: str
    file: str
    svg: bytes
    changes: list[tuple[str, str, str]]
    uri: str
    open: bool
    words: str


def drawings(study: Path, variants: list[str]) -> list[Drawn]:
    """The baseline's drawing and those of the variants that are reported; none of a study that has not been drawn."""
    folder = study / "drawings"
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    entries = [each for each in index["drawn"] if each["variant"] in variants]
    found = []
    for number, entry in enumerate(entries):
        svg = _read(folder / entry["file"]) if entry["file"] else b""
        inside = bool(svg) and number < INSIDE
        name = f"architecture_{entry['variant']}.svg"
        found.append(
            Drawn(
                entry["variant"],
                name,
                svg,
                [tuple(each) for each in entry["changes"]],
                "data:image/svg+xml;base64," + base64.b64encode(svg).decode() if inside else "",
                len(entries) <= OPEN or number == 0,
                name if svg else f"not drawn: {entry.get('trouble', 'its file is gone')}",
            )
        )
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
