"""The parts of a grid that are lists of alternatives: crossed axes, seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.draft import Origin
from ablate.errors import unknown
from ablate.yamlfile import Document

MOST_SEEDS = 10_000
Place = tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """One setting of a size or of the axes: its label, and its paths with their values."""

    label: str
    settings: Mapping[str, Any]
    origin: Origin


def axes(document: Document, place: Place = ("axes",)) -> tuple[Choice, ...]:
    """The cells of the crossed axes that stand at a place of the grid; one without settings where there are none."""
    lists = []
    for path, values in mapping(document, place).items():
        lists.append([(path, value) for value in values_of(document, (*place, path), values)])
    cells = []
    for cell in itertools.product(*lists):
        label = ", ".join(f"{path.split('.')[-1]}={show(value)}" for path, value in cell)
        cells.append(Choice(label, dict(cell), Origin(document, place)))
    return tuple(cells)


def seeds(document: Document, place: Place = ("seeds",), otherwise: Any = 1) -> tuple[int, ...]:
    """The seeds at a place of the grid: a count, or a list."""
    found = at(document, place, otherwise)
    if isinstance(found, int) and not isinstance(found, bool):
        if found > MOST_SEEDS:
            raise document.error(place, f"{found} are too many: give a count up to {MOST_SEEDS}, or a list")
        found = list(range(found))
    if not isinstance(found, list) or not all(type(seed) is int and 0 <= seed < 2**31 for seed in found):
        raise document.error(place, f"{found!r} must be a count, or a list of whole numbers from 0")
    if not found:
        raise document.error(place, "there are no seeds, so the grid is empty: give at least 1")
    if len(set(found)) < len(found):
        raise document.error(place, f"{found} has a seed twice")
    return tuple(found)


def at(document: Document, place: Place, otherwise: Any = None) -> Any:
    """What stands at a place of the grid."""
    tree = document.value
    for key in place:
        if not isinstance(tree, Mapping) or key not in tree:
            return otherwise
        tree = tree[key]
    return tree


def mapping(document: Document, place: Place) -> Mapping[str, Any]:
    """The mapping at a place of the grid, empty where nothing stands."""
    tree = at(document, place)
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise document.error(place, f"{tree!r} must be a mapping")
    return tree


def block(document: Document, name: str, keys: Sequence[str], shape: str) -> Mapping[str, Any] | None:
    """A block of the grid that may have these keys, None where there is none; `shape` says how one looks.

    Raises `UserError`.
    """
    tree = at(document, (name,))
    if tree is None:
        return None
    if not isinstance(tree, Mapping):
        raise document.error((name,), f"{tree!r} must be a mapping{shape}")
    for key in tree:
        if key not in keys:
            raise document.error((name, str(key)), unknown("key", key, keys))
    return tree


def values_of(document: Document, place: Place, values: Any) -> list[Any]:
    values = values if isinstance(values, list) else [values]
    if not values:
        raise document.error(place, "the list is empty, so the grid is: give at least one value")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise document.error(place, f"{show(value)} is in the list twice")
    return values


def show(value: Any) -> str:
    """A value as a label: a component by its name and options."""
    if isinstance(value, Mapping):
        options = ",".join(f"{key}={each}" for key, each in value.items() if key != "name")
        return f"{value.get('name', '')}({options})" if options else str(value.get("name", ""))
    return f"{value:g}" if isinstance(value, float) else str(value)
