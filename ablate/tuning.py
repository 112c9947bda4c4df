"""Every variant tuned alike, and reported on what no choice was made by.

tune:
  train.lr: {low: 1e-3, high: 1e-2, points: 5}      # in equal ratios; or a list of values
  seeds: 1                                          # of the sweep: a count, from 1000 on, or a list
  extend: 3                                         # points that a sweep may grow by on either side

Each row of the study - a variant at a size, axis setting and budget - has a sweep of its own over the same values,
several settings crossed. Where the best value is at an end, the sweep grows there by itself until it is not, as for
every row. What is chosen is the vertex of a parabola of the loss in the logarithm of the setting (`analysis.tuning`).
The row is then trained at it with the grid's seeds, which no sweep has seen, and compared on test data: sweeps are
judged by validation data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablate.choices import at, seeds
from ablate.draft import Origin
from ablate.errors import unknown
from ablate.yamlfile import Document

TUNE = "tune"  # the stage of a sweep's trials
FIRST_SEED = 1000
EXTEND = 3
OWN = ("seeds", "extend")
OTHERS = ("stages", "rungs", "predict", "race")


@dataclass(frozen=True)
class Tune:
    """The settings to be tuned, the values that every sweep begins with, its seeds, and how far it may grow."""

    paths: tuple[str, ...]
    grid: tuple[tuple[float, ...], ...]
    seeds: tuple[int, ...]
    extend: int
    origin: Origin

    def values(self) -> list[tuple[float, ...]]:
        """All settings that a sweep begins with."""
        return list(itertools.product(*self.grid))


def tuning(document: Document) -> Tune | None:
    """What a grid tunes, None where it tunes nothing. Raises `UserError`."""
    tree = at(document, ("tune",))
    if tree is None:
        return None
    if not isinstance(tree, Mapping):
        raise document.error(("tune",), f"{tree!r} must be a mapping, as {{train.lr: {{low: 1e-3, high: 1e-2}}}}")
    for other in OTHERS:
        if document.value.get(other):
            raise document.error((other,), f"{other} and tune do not go together yet")
    paths = [str(key) for key in tree if key not in OWN]
    if not paths:
        raise document.error(("tune",), "names no setting, as train.lr: {low: 1e-3, high: 1e-2, points: 5}")
    for path in paths:
        if not path.startswith("train.") or path in ("train.tokens", "train.epochs", "train.batch_tokens"):
            raise document.error(("tune", path), f"{path!r} cannot be tuned: give a number of `train`, as train.lr")
        if path in (document.value.get("axes") or {}):
            raise document.error(("axes", path), f"{path} is tuned: it cannot be an axis as well")
    own, reported = _seeds(document), seeds(document)
    if both := sorted(set(own) & set(reported)):
        raise document.error(("tune", "seeds"), f"{both[0]} is a seed of the study: sweeps need seeds of their own")
    extend = tree.get("extend", EXTEND)
    if type(extend) is not int or extend < 0:
        raise document.error(("tune", "extend"), f"{extend!r} must be a count")
    values = tuple(_values(document, path, tree[path]) for path in paths)
    return Tune(tuple(paths), values, own, extend, Origin(document, ("tune",)))


def _seeds(document: Document) -> tuple[int, ...]:
    given = at(document, ("tune", "seeds"), 1)
    found = seeds(document, ("tune", "seeds"))
    return found if isinstance(given, list) else tuple(FIRST_SEED + seed for seed in found)


def _values(document: Document, path: str, given: Any) -> tuple[float, ...]:
    """Rising values above 0, three at least: two have no middle."""
    place = ("tune", path)
    if isinstance(given, Mapping):
        for key in given:
            if key not in ("low", "high", "points"):
                raise document.error((*place, str(key)), unknown("key", key, ("low", "high", "points")))
        low, high, points = given.get("low", 0), given.get("high", 0), given.get("points", 5)
        if not _positive(low) or not _positive(high) or not low < high:
            raise document.error(place, f"{dict(given)} needs low and high, 0 < low < high")
        if type(points) is not int or points < 3:
            raise document.error((*place, "points"), f"{points!r} must be a count of at least 3")
        return tuple(float(f"{each:.3g}") for each in np.geomspace(low, high, points))
    if not isinstance(given, list) or len(given) < 3 or not all(map(_positive, given)) or sorted(set(given)) != given:
        raise document.error(place, f"{given!r} must be {{low, high, points}}, or at least 3 rising numbers above 0")
    return tuple(map(float, given))


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
