"""Train at the largest scale only what the smaller ones speak for.

promote: {wanted: not worse, sure: 0.5, level: 0.05, smallest: 0.0}

Every axis setting is a ladder of scales: its sizes and budgets, the largest being the cell in which the baseline
takes most training FLOPs. All trials below the largest are trained first. At the largest the baseline is trained, and
of the variants those that pass two gates of their own ladder: over all smaller scales they are `wanted` ("not worse"
or "better" than the baseline, at the family-wise error `level`), and a law of the smaller scales gives them the
probability `sure` at least of being ahead at the largest by more than `smallest`, a share of the loss. See
`analysis.promotion`. A ladder needs three scales below its largest.

With `race` the seeds at the largest scale are raced (`ablate.races`); those of the smaller ones are all trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ablate.choices import block
from ablate.errors import unknown
from ablate.yamlfile import Document

WANTED = ("not worse", "better")
KEYS = ("wanted", "sure", "level", "smallest")
OTHERS = {  # keys of a grid that it does not go with, and why
    "predict": "both say which trials are run",
    "rungs": "the gates read final losses, and a trial that a rung stops has none",
    "stages": "a stage begins from trials of the largest scale that may not be trained",
    "tune": "what is trained at the largest scale would follow from rows that sweeps are still to choose",
}


@dataclass(frozen=True)
class Promote:
    """What a variant must show below the largest scale, how sure it must be, the error, the smallest gain."""

    wanted: str = "not worse"
    sure: float = 0.5
    level: float = 0.05
    smallest: float = 0.0


def promotion(document: Document) -> Promote | None:
    """The promotion that a grid asks for, None where it does not. Raises `UserError`."""
    tree = block(document, "promote", KEYS, ", as {wanted: not worse, sure: 0.5}")
    if tree is None:
        return None
    for other, why in OTHERS.items():
        if document.value.get(other):
            raise document.error((other,), f"{other} and promote do not go together: {why}")
    found: dict[str, Any] = {}
    for key, legal in (
        ("sure", "a probability from 0 to below 1"),
        ("level", "a probability above 0 and below 1"),
        ("smallest", "a share of the loss, from 0 to below 1"),
    ):
        value = tree.get(key)
        if value is None:
            continue
        zero = value == 0 and key != "level"
        if isinstance(value, bool) or not isinstance(value, int | float) or not (zero or 0 < value < 1):
            raise document.error(("promote", key), f"{value!r} must be {legal}")
        found[key] = float(value)
    if "wanted" in tree:
        if tree["wanted"] not in WANTED:
            raise document.error(("promote", "wanted"), unknown("wanted", tree["wanted"], WANTED))
        found["wanted"] = tree["wanted"]
    return Promote(**found)
