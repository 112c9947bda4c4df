"""What a report says behind each trial: its configuration, and what that sets otherwise than the baseline's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.columns import LABELS, cell_name
from analysis.records import read_record


def configurations(results: Path, baseline: str, table: pd.DataFrame) -> dict[str, Any]:
    """What a variant sets otherwise than the baseline in the same cell; every trial with its configuration."""
    parts = dict(iter(table.groupby(list(LABELS), sort=False, dropna=False, observed=True)))
    specs = {key: _settings(results, part) for key, part in parts.items()}
    first = next((key for key in parts if key[1] == baseline), None)
    numbers, anchors, rows = {key: i for i, key in enumerate(parts, 1)}, dict[str, str](), []
    for key, part in parts.items():
        variant = key[1]
        other = first if variant == baseline else (key[0], baseline, *key[2:])
        new = variant not in anchors
        anchors.setdefault(variant, f"variant-{len(anchors) + 1}")
        rows.append(
            {
                "number": numbers[key],
                "anchor": anchors[variant] if new else "",
                "variant": variant,
                "cell": cell_name(dict(zip(LABELS, key, strict=True))),
                "against": numbers[other] if other in parts and other != key else None,
                "changes": _changes(specs.get(other), specs[key]),
                "trial_ids": part["trial_id"].tolist(),
            }
        )
    trials = [
        {
            "id": row.trial_id,
            "variant": row.variant,
            "cell": cell_name(row._asdict()),
            "seed": row.seed,
            "status": row.status,
            "loss": "" if pd.isna(row.loss) else f"{row.loss:.4f}",
            "wall": "" if pd.isna(row.wall_s) else f"{row.wall_s:.1f}",
            "parent": "" if pd.isna(row.parent) else row.parent,
            "commit": "" if pd.isna(row.git_commit) else row.git_commit,
            "configuration": numbers[tuple(getattr(row, name) for name in LABELS)],
        }
        for row in table.itertuples()
    ]
    return {"configurations": rows, "anchors": anchors, "reference": specs.get(first), "trials": trials}


def _settings(results: Path, trials: pd.DataFrame) -> dict[str, str] | None:
    """`arch.position.name` -> `rope`, of the first of a configuration's trials that has ended; None before."""
    ended = trials.loc[trials["status"] != "pending", "trial_id"]
    if not len(ended):
        return None
    record = read_record(results / "trials" / ended.iloc[0]) or {}
    spec = record.get("spec") or {}
    asked = {name: value for name, value in spec.items() if name not in ("seed", "parent", "resources")}
    return dict(_leaves(asked, ""))


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(tree, dict):
        yield path, tree if isinstance(tree, str) else json.dumps(tree)
        return
    for name, value in tree.items():
        yield from _leaves(value, f"{path}.{name}" if path else name)


def _changes(was: dict[str, str] | None, now: dict[str, str] | None) -> list[tuple[str, str, str]] | None:
    """The settings in which two configurations differ, and their values; "not set" where one has none."""
    if was is None or now is None:
        return None
    paths = [path for path in {**was, **now} if was.get(path) != now.get(path)]
    return [(path, was.get(path, "not set"), now.get(path, "not set")) for path in paths]
