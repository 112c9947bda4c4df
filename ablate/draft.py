"""A trial's settings while they are put together: base, size, axes and variant laid over each other.

Every setting remembers where it came from, so that an error found in the end names the line that caused it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ablate.errors import SpecError, UserError, unknown
from ablate.overlays import Overlay
from ablate.spec import SECTIONS, Component, TrialSpec, parse
from ablate.yamlfile import Document

Path_ = tuple[str, ...]
SOURCES = ("corpus", "path", "hub")  # of data: one of them says where they are


@dataclass(frozen=True)
class Origin:
    """A place in a grid: its file, and the path of the key there. `note` says more, as the overlay's name."""

    document: Document
    path: Path_
    note: str = ""

    def error(self, problem: str, below: Path_ = ()) -> UserError:
        return self.document.error((*self.path, *below), f"{self.note}{problem}")

    def below(self, *keys: str) -> Origin:
        """The place of something inside. A named variant has no places inside: it stands in no grid."""
        return self if self.note else Origin(self.document, (*self.path, *keys))


class Draft:
    """A plain tree of settings with their origins."""

    def __init__(self) -> None:
        self.tree: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        self.origins: dict[Path_, Origin] = {}

    def copy(self) -> Draft:
        other = Draft()
        other.tree = copy.deepcopy(self.tree)
        other.origins = dict(self.origins)
        return other

    def begun(self, fresh: Draft) -> Draft:
        """This draft's architecture with the other's data and training: what a stage after this one begins with."""
        other = fresh.copy()
        other.tree["arch"] = copy.deepcopy(self.tree["arch"])
        other.origins = {path: origin for path, origin in other.origins.items() if path[0] != "arch"}
        other.origins |= {path: origin for path, origin in self.origins.items() if path[0] == "arch"}
        return other

    def lay(self, settings: Mapping[str, Any], origin: Origin) -> None:
        """Lay a mapping over the draft: dotted paths, or sections with fields in them.

        Where it says from where the data come, what was said of that before is forgotten.
        """
        if sources := [name for name in SOURCES if _is_set(settings, name)]:
            for name in SOURCES:
                if name not in sources:
                    self.tree["data"].pop(name, None)
        for key, value in settings.items():
            here = Origin(origin.document, (*origin.path, key), origin.note)
            if key in SECTIONS:
                if not isinstance(value, Mapping):
                    raise here.error(f"{value!r} must be a mapping")
                for name, each in value.items():
                    self.set((key, name), each, Origin(here.document, (*here.path, name), here.note))
            else:
                self.set(tuple(key.split(".")), value, here)

    def lay_overlay(self, overlay: Overlay, origin: Origin) -> None:
        """Lay a named variant over the draft; errors name it and the place that asked for it."""
        for path, value in overlay.settings.items():
            note = f"variant {overlay.name!r} sets {path}: "
            self.set(tuple(path.split(".")), value, Origin(origin.document, origin.path, note))

    def set(self, path: Path_, value: Any, origin: Origin) -> None:
        """Set one path. A component may be set whole, or one option of it: `arch.position.base`."""
        if path[0] not in SECTIONS or len(path) < 2:
            hint = sections_with(path[0])
            raise origin.error(f"{unknown('path', '.'.join(path), hint or SECTIONS)}")
        section, name = self.tree[path[0]], path[1]
        if name == "sublayers" and len(path) == 2 and isinstance(value, Mapping):
            for letter, part in value.items():
                self.set((*path, str(letter)), part, origin.below(str(letter)))
            return
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin
        if len(path) == 2:
            section[name] = value
        elif name == "sublayers":
            letters = section.setdefault("sublayers", {})
            default = dict(_default(path[0], name) or ()).get(path[2])
            letters[path[2]] = _patched(letters.get(path[2]), default, path[3:], value, origin)
        else:
            empty: Any = {} if path[:2] in (("resources", "custom"), ("resources", "parallel")) else None
            section[name] = _patched(section.get(name, empty), _default(path[0], name), path[2:], value, origin)

    def spec(self, parent: str | None = None, **sections: Any) -> TrialSpec:
        """The specification; `sections` are resolved ones to take as they are. Errors name their origin."""
        try:
            made = {
                name: sections.get(name) or parse(cls, self.tree[name], (name,)) for name, cls in SECTIONS.items()
            }
            return TrialSpec(**made, parent=parent)
        except SpecError as error:
            raise self.error(error) from None

    def section(self, name: str) -> Any:
        """One parsed section."""
        try:
            return parse(SECTIONS[name], self.tree[name], (name,))
        except SpecError as error:
            raise self.error(error) from None

    def error(self, error: SpecError) -> UserError:
        """The error at the place that set the value, or last set something in its section."""
        for depth in range(len(error.path), 1, -1):
            if origin := self.origins.get(error.path[:depth]):
                below = error.path[depth:]
                if origin.note and below:
                    return origin.error(f"{'.'.join(below)}: {error.problem}")
                return origin.below(*below).error(error.problem)
        if not self.origins:
            return UserError(str(error))
        near = [(path, origin) for path, origin in self.origins.items() if path[:1] == error.path[:1]]
        path, origin = near[-1] if near else list(self.origins.items())[-1]
        if origin.note or not near:
            return origin.error(str(error))
        above = origin.path[:-1] if "." in origin.path[-1] else origin.path[: -len(path)]
        return Origin(origin.document, (*above, *error.path)).error(error.problem)


def _is_set(settings: Mapping[str, Any], name: str) -> bool:
    section = settings.get("data")
    return f"data.{name}" in settings or (isinstance(section, Mapping) and name in section)


def _patched(now: Any, default: Any, options: Path_, value: Any, origin: Origin) -> Any:
    """A component's tree with one option changed, or the value itself when no option is named."""
    if not options:
        return value
    if now is None and isinstance(default, Component):
        now = {"name": default.name, **dict(default.options)}
    if isinstance(now, str):
        now = {"name": now}
    if not isinstance(now, Mapping) or len(options) > 1:
        raise origin.error("there is no such option: only components have options")
    return {**now, options[0]: value}


def _default(section: str, name: str) -> Any:
    return next((field.default for field in fields(SECTIONS[section]) if field.name == name), None)


def sections_with(name: str) -> list[str]:
    """Full paths of the fields called `name`: `position` -> `arch.position`."""
    return [f"{key}.{name}" for key, cls in SECTIONS.items() if name in {field.name for field in fields(cls)}]
