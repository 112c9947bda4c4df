"""Who was trained with whom, as a trial's attempts say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

EVENT = "cohort"
NOTE = "by one program for all of them: the same numbers as alone, up to rounding"
REDRAWN = f"{NOTE}, and but for dropout, whose masks are another draw of the same distribution"


def cohort_of(history: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The `size` and the members, `of`, of the largest cohort in which a trial was trained since its first step; None
    where it was trained by itself all the time."""
    found: dict[str, Any] | None = None
    for note in history:
        if note["event"] == "start":
            found = None
        elif note["event"] == EVENT:
            members = note.get("of") or []
            if found is None or len(members) > found["size"]:
                note_of = REDRAWN if note.get("device") == "cuda" else NOTE
                found = {"size": len(members), "of": members, "note": note_of}
    return found
