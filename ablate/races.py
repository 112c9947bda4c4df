"""Add seeds only where a row is not decided yet.

race: {first: 3, most: 12, level: 0.05, smallest: 0.0, spend: 1e16}

The plan's trials are candidates. Every variant begins with its `first` seeds; after that only those go on whose
paired difference from the baseline is not yet told from 0 (from +- `smallest`, in the metric's units) and may still
be, until `most` seeds or until `spend` FLOPs have been spent. `level` is the probability of any false verdict in the
study, over all rows and looks. See `analysis.racing` for `futile`, `bounds` and `noise`.

With `promote` (`ablate.promoting`) the race is at the largest scale alone, between the baseline and what was
promoted: `level` and `spend` are of those rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablate.choices import block, seeds
from ablate.errors import unknown
from ablate.yamlfile import Document

NAMES = {"bounds": ("pocock", "obrien_fleming"), "noise": ("own", "pooled")}
KEYS = ("first", "most", "level", "smallest", "futile", *NAMES, "spend")
OTHERS = ("rungs", "predict", "stages")  # keys of a grid that it does not go with


@dataclass(frozen=True)
class Race:
    """Seeds at the first and the last look, the error, the smallest effect of interest, when to give up, how the
    error is spent, whose noise is measured, and the FLOPs that it may all take."""

    first: int
    most: int
    level: float = 0.05
    smallest: float = 0.0
    futile: float = 0.1
    bounds: str = "obrien_fleming"
    noise: str = "own"
    spend: float | None = None


def race(document: Document) -> Race | None:
    """The race that a grid asks for, None where it does not. Raises `UserError`."""
    tree = block(document, "race", KEYS, ", as {first: 3, most: 12}")
    if tree is None:
        return None
    for other in OTHERS:
        if document.value.get(other):
            raise document.error((other,), f"{other} and race do not go together: both say which trials are run")
    there = len(seeds(document))
    most = _whole(document, tree, "most", there, 2, there, f"the grid's seeds are {there}")
    first = _whole(document, tree, "first", min(3, most), 2, most, f"most is {most}")
    found: dict[str, Any] = {"first": first, "most": most}
    for key, low, high, legal in (
        ("level", 1e-7, 0.5, "a probability above 1e-7 and below 0.5"),
        ("smallest", 0.0, float("inf"), "a number from 0"),
        ("futile", 0.0, 1.0, "a probability from 0 (never) to below 1"),
        ("spend", 0.0, float("inf"), "a number above 0"),
    ):
        value = tree.get(key)
        if value is None:
            continue
        zero = value == 0 and key in ("smallest", "futile")
        if isinstance(value, bool) or not isinstance(value, int | float) or not (zero or low < value < high):
            raise document.error(("race", key), f"{value!r} must be {legal}")
        found[key] = float(value)
    for key, known in NAMES.items():
        if key in tree and tree[key] not in known:
            raise document.error(("race", key), unknown(key, tree[key], known))
        found |= {key: tree[key]} if key in tree else {}
    return Race(**found)


def _whole(
    document: Document, tree: Mapping[str, Any], key: str, otherwise: int, low: int, high: int, why: str
) -> int:
    value = tree.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise document.error(("race", key), f"{value!r} must be a whole number from {low} to {high}: {why}")
    return value
