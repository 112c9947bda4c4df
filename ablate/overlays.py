"""Named variants: overlays of dotted paths, the presets they start from, and their composition `a+b+c`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ablate.errors import UserError, unknown
from ablate.yamlfile import Document, read_yaml

FOLDER = Path(__file__).parent / "variants"
QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of these files no mistake has to be explained
BASELINE = "baseline"  # the base as it stands


@dataclass(frozen=True)
class Overlay:
    """A named set of dotted paths and values. A preset is a whole architecture and may say at which sizes."""

    name: str
    paper: str
    settings: Mapping[str, Any]
    preset: bool = False
    at: Mapping[str, Any] | None = None


@lru_cache(maxsize=1)
def overlays() -> dict[str, Overlay]:
    """All presets and variants of this package, by name."""
    found: dict[str, Overlay] = {}
    for document in _documents():
        tree = document.value
        each: list[Overlay] = []
        for name, body in tree.get("presets", {}).items():
            each.append(Overlay(name, body["paper"], body["set"], preset=True, at=body["at"]))
        for name, settings in tree.get("variants", {}).items():
            each.append(Overlay(name, tree["paper"], settings))
        for overlay in each:
            if overlay.name in found or overlay.name == BASELINE:
                raise document.error((), f"variant {overlay.name!r} is defined twice")
            found[overlay.name] = overlay
    return found


@lru_cache(maxsize=1)
def ladders() -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Named size ladders."""
    return {name: rungs for document in _documents() for name, rungs in document.value.get("ladders", {}).items()}


def _documents() -> list[Document]:
    return [read_yaml(file, QUICK) for file in sorted(FOLDER.glob("*.yaml"))]


def compose(name: str) -> list[Overlay]:
    """The overlays of `a+b+c`, in order; a preset may only come first, and no two may set the same path.

    Raises `UserError` naming what is unknown or contradictory.
    """
    parts = []
    for word in name.split("+"):
        word = word.strip()
        if word == BASELINE:
            continue
        if word not in overlays():
            raise UserError(unknown("variant", word, [BASELINE, *overlays()], "ablate list variant"))
        parts.append(overlays()[word])
    setters: dict[str, str] = {}
    for index, overlay in enumerate(parts):
        if overlay.preset:
            if index:
                raise UserError(f"preset {overlay.name!r} must come first in {name!r}: it sets everything")
            continue
        for path in overlay.settings:
            if path in setters:
                raise UserError(f"{name!r}: {setters[path]!r} and {overlay.name!r} both set {path}")
            setters[path] = overlay.name
    return parts
