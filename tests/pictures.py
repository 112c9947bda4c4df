"""What the tests of tasks on images share: the tasks on the digits, and a small trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate import registry
from ablate.data.images import resolve_images
from ablate.spec import DataSpec, TrialSpec, parse

VIT = {
    "embedding": {"name": "patch", "patch": 4},
    "position": "learned",
    "head": {"name": "classify", "pool": "first"},
}


def opened(cache: Path, task: Any = "image", folder: Path = Path(), **data: Any) -> Any:
    """The task on its data."""
    spec = resolved(folder, task=task, **data)
    made = registry.make("task", spec.task)
    made.open(spec, cache)
    return made


def resolved(folder: Path = Path(), **data: Any) -> DataSpec:
    return resolve_images(parse(DataSpec, {"task": "image", **data}), folder)


def trial(task: Any = "image", **fields: Any) -> TrialSpec:
    """A trial on the digits: 12 steps of 16 images."""
    tree: dict[str, Any] = {
        "arch": {"d_model": 16, "n_heads": 2, "depth": 1, **(fields.pop("arch", None) or VIT)},
        "data": {"task": task, "corpus": "digits", "valid": 0.1, "test": 0.1},
        "train": {"tokens": 192, "batch_tokens": 16, "lr": 3e-3, "precision": "fp32", "eval_points": 3, **fields},
    }
    made = parse(TrialSpec, tree)
    return replace(made, data=resolve_images(made.data, Path()))
