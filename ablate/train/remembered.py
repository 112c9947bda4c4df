"""What is found out once for trials alike, by computing or by measuring, and kept in a folder of the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import ablate
from ablate.run.files import read_json, write_json
from ablate.spec import Component, TrialSpec, digest

# what neither the steps' operations nor their time depend on
COMMON: dict[str, Any] = {
    "lr": 1e-3,
    "weight_decay": 0.1,
    "clip": 1.0,
    "diverge_above": 3.0,
    "schedule": Component("constant"),
}


def common(spec: TrialSpec) -> TrialSpec:
    """The trial with the seed, rates and limits that all of its kind have in such a question."""
    return replace(spec, seed=0, train=replace(spec.train, **COMMON))


def remembered(
    cache: Path, kind: str, spec: TrialSpec, find: Callable[[], dict[str, Any]], again: Any = None, **more: Any
) -> dict[str, Any]:
    """What `find` says, kept for all lengths of a trial, this version of the package and of torch, and what else it
    depends on (`more`). `again` of what is kept says that it has to be found out anew."""
    labels = {"row": spec.row_id, "ablate": ablate.__version__, "torch": torch.__version__, **more}
    file = cache / kind / f"{digest(labels)}.json"
    known = read_json(file)
    if known is None or (again is not None and again(known)):
        known = labels | find()
        write_json(file, known)
    return dict(known)
