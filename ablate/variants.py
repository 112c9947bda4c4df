"""The `variants` of a grid: what is compared.

variants: {name: {dotted.path: value}, name: rmsnorm+rope, name: {use: rope, priority: 2}}      # or a list of names
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablate.draft import Draft, Origin
from ablate.errors import UserError
from ablate.overlays import BASELINE, compose
from ablate.spec import SECTIONS
from ablate.yamlfile import Document

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Variant:
    """One row of the comparison. `use` names registered variants; `settings` come on top.

    Those of a higher `priority` run first, and are the last that a budget leaves out.
    """

    name: str
    use: str
    settings: Mapping[str, Any]
    origin: Origin
    priority: float = 0.0

    @property
    def is_combination(self) -> bool:
        """Whether several changes were asked for as a combination."""
        return "+" in self.use

    def lay_on(self, draft: Draft) -> Draft:
        draft = draft.copy()
        for overlay in self.overlays():
            draft.lay_overlay(overlay, self.origin)
        draft.lay(self.settings, self.origin)
        return draft

    def overlays(self) -> list[Any]:
        try:
            return compose(self.use) if self.use else []
        except UserError as error:
            raise self.origin.error(str(error)) from None

    def paths(self) -> set[str]:
        """The dotted paths that this variant sets."""
        paths = {path for overlay in self.overlays() for path in overlay.settings}
        for key, value in self.settings.items():
            paths |= {f"{key}.{name}" for name in value} if key in SECTIONS else {key}
        return paths


def variants_of(document: Document) -> tuple[Variant, ...]:
    """The variants of a grid, the baseline first. Raises `UserError` with the file and the line."""
    tree = document.value.get("variants", {BASELINE: None})
    tree = {} if tree is None else tree
    if isinstance(tree, list):
        variants = []
        for index, name in enumerate(tree):
            origin = Origin(document, ("variants", str(index)))
            if not isinstance(name, str):
                raise origin.error(f"{name!r} must be the name of a variant, or a combination a+b")
            variants.append(_checked(Variant(name, name, {}, origin)))
    elif isinstance(tree, Mapping):
        variants = [_variant(document, name, body) for name, body in tree.items()]
    else:
        raise document.error(("variants",), f"{tree!r} must be a mapping or a list of names")
    if not variants:
        raise document.error(("variants",), "is empty: give at least the baseline, as {baseline: {}}")
    seen: set[str] = set()
    for variant in variants:
        if variant.name in seen:
            raise variant.origin.error(f"variant {variant.name!r} is given twice")
        seen.add(variant.name)
    return tuple(variants)


def _variant(document: Document, name: str, body: Any) -> Variant:
    origin = Origin(document, ("variants", name))
    if not all(NAME.fullmatch(part) for part in name.split("+")):
        raise origin.error(f"{name!r} must be letters, digits, '_', '-', '.' and '+'")
    if body is None:
        body = {}
    if isinstance(body, str):
        body = {"use": body}
    if not isinstance(body, Mapping):
        raise origin.error(f"{body!r} must be a mapping of dotted paths, or the name of a registered variant")
    use = body.get("use", "")
    if not isinstance(use, str):
        raise origin.error(f"{use!r} must be the name of a registered variant", ("use",))
    priority = body.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int | float) or not math.isfinite(priority):
        raise origin.error(f"{priority!r} must be a number, higher for what runs first (default: 0)", ("priority",))
    settings = {key: value for key, value in body.items() if key not in ("use", "priority")}
    return _checked(Variant(name, use, settings, origin, float(priority)))


def _checked(variant: Variant) -> Variant:
    variant.overlays()
    return variant
