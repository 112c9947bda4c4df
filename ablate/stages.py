"""Stages: models that are trained, and then go on on other data.

stages:
  pretrain: {}                              # the first stage is of the base; settings go on top, in any stage
  polarity:                                 # begins from what `pretrain` has trained, as all but the first do
    from: pretrain
    seeds: 3                                # of each model that it begins from; the grid's unless given
    axes: {train.lr: [1e-4, 3e-4]}          # crossed, in this stage alone
    data.task: classify
    arch.head: classify

A stage has the architecture and the tokenizer of the one that it begins from; `from: null` begins afresh. Sizes,
axes, budgets and variants of the grid are those of the stages that begin afresh, and their successors follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablate.choices import Choice, axes, mapping, seeds
from ablate.draft import Origin
from ablate.errors import unknown
from ablate.spec import SECTIONS
from ablate.yamlfile import Document

OWN = ("from", "seeds", "axes")


@dataclass(frozen=True)
class Stage:
    """One stage. `parent` is the stage it begins from, None where it begins afresh."""

    name: str
    parent: str | None
    seeds: tuple[int, ...]
    axes: tuple[Choice, ...]
    settings: Mapping[str, Any]
    origin: Origin


def stages(document: Document) -> tuple[Stage, ...]:
    """The stages of a grid, in their order; one without a name where it has none. Raises `UserError`."""
    every = seeds(document)
    tree = mapping(document, ("stages",))
    if not tree:
        return (Stage("", None, every, (Choice("", {}, Origin(document, ("stages",))),), {}, Origin(document, ())),)
    found: list[Stage] = []
    for name in tree:
        place = ("stages", str(name))
        body = mapping(document, place)
        earlier = [stage.name for stage in found]
        parent = body.get("from", earlier[0] if earlier else None)
        if parent is not None and parent not in earlier:
            known = unknown("stage before this one", parent, earlier) if earlier else "the first stage begins afresh"
            raise document.error((*place, "from"), known)
        for key in body:
            if key not in OWN and str(key).split(".")[0] not in SECTIONS:
                raise document.error((*place, str(key)), unknown("key", key, (*OWN, *SECTIONS)))
        own = seeds(document, (*place, "seeds")) if "seeds" in body else every
        settings = {key: value for key, value in body.items() if key not in OWN}
        found.append(
            Stage(str(name), parent, own, axes(document, (*place, "axes")), settings, Origin(document, place))
        )
    return tuple(found)
