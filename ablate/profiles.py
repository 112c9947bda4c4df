"""Profiles: the same study as a larger machine would run it, `profiles: {one_gpu: {seeds: 5, train.lr: 1e-3}}`.

A profile has the paths of `--set` with values, and `--as one_gpu` lays them over the grid. It changes how large and
how often, not what is asked: sizes, budgets, repetitions, training, resources, and a variant's settings by its name.
What is run so is a study of its own, `NAME_one_gpu`; its trials are whatever their specifications say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ablate.draft import sections_with
from ablate.errors import UserError, unknown
from ablate.names import wrong_with
from ablate.spec import SECTIONS
from ablate.yamlfile import Document, Path_

WHOLE = (
    "axes",
    "sizes",
    "budgets",
    "match",
    "tolerance",
    "seeds",
    "rungs",
    "predict",
    "tune",
    "race",
    "smallest",
    "promote",
)


def profiles(document: Document) -> dict[str, Mapping[str, Any]]:
    """Every profile of a grid, checked as far as that goes without choosing one. Raises `UserError`."""
    tree = document.value.get("profiles")
    tree = {} if tree is None else tree
    if not isinstance(tree, Mapping):
        raise document.error(
            ("profiles",), f"{tree!r} must be a mapping of names to settings, as {{one_gpu: {{seeds: 5}}}}"
        )
    for name, settings in tree.items():
        if wrong := wrong_with(name):
            raise document.error(("profiles", name), f"{name!r} {wrong}")
        if not isinstance(settings, Mapping) or not settings:
            raise document.error(("profiles", name), f"{settings!r} must be a mapping of settings, as {{seeds: 5}}")
        for key in settings:
            _place(document, name, key)
    return dict(tree)


def lay_profile(document: Document, name: str) -> None:
    """Lay a profile over its grid: errors in it keep its own lines. Raises `UserError` for a name that it lacks."""
    known = profiles(document)
    if not known:
        raise UserError(f"--as {name}: {document.file} has no profiles")
    if name not in known:
        raise UserError(f"--as {name}: {unknown('profile', name, known)}")
    for key, value in known[name].items():
        _put(document, _place(document, name, key), value, ("profiles", name, key))


def _place(document: Document, name: str, key: str) -> Path_:
    """Where in the grid a key of a profile belongs."""
    first, _, rest = key.partition(".")
    if first in SECTIONS and rest:
        return ("base", key)
    if first in WHOLE:
        return (first, rest) if rest else (first,)
    if first == "variants" and rest:
        variants = document.value.get("variants")
        if not isinstance(variants, Mapping) or rest not in variants:
            raise document.error(("profiles", name, key), unknown("variant", rest, variants or ()))
        return (first, rest)
    known = sections_with(first) or (*WHOLE, *(f"{section}.…" for section in SECTIONS), "variants.NAME")
    raise document.error(("profiles", name, key), unknown("path", key, known))


def _put(document: Document, place: Path_, value: Any, origin: Path_) -> None:
    tree = document.value
    if len(place) == 2:
        inner = tree.get(place[0])
        if inner is not None and not isinstance(inner, Mapping):
            raise document.error(origin, f"{place[0]} is not a mapping in this grid: give all of {place[0]}")
        tree[place[0]] = tree = dict(inner or {})
    if place[0] == "base":
        tree.pop(place[-1], None)  # last in order: it is laid over the rest
    tree[place[-1]] = value  # elsewhere it keeps its place: the first variant is the baseline
    for path in [path for path in document.lines if path[: len(place)] == place]:
        del document.lines[path]
    for path, line in list(document.lines.items()):
        if path[: len(origin)] == origin:
            document.lines[place + path[len(origin) :]] = line
