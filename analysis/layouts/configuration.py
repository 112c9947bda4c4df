"""What each variant of a study was set to, from the specifications of its trials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.columns import CELL
from analysis.table import TableError

SECTIONS = ("arch", "data", "train")


def settings(results: Path, table: pd.DataFrame) -> pd.DataFrame:
    """One row a variant and cell (stage, size, axes, budget), a column a dotted path: `arch.d_model`, `train.lr`.

    A component is its name, `arch.position`, and its options, `arch.position.base`. They are those of the first
    trial of the row that was begun; seeds are not among them. `table` is `analysis.table.study_table`.
    Raises `TableError`.
    """
    found = []
    for labels, trials in table.groupby([*CELL, "variant"], sort=False, dropna=False, observed=True):
        files = [Path(results) / "trials" / str(each) / "spec.json" for each in trials["trial_id"]]
        tree = _spec(next((file for file in files if file.exists()), files[0]))
        paths = {path: value for name in SECTIONS for path, value in _flat(name, tree.get(name))}
        found.append(dict(zip((*CELL, "variant"), labels, strict=True)) | paths)
    return pd.DataFrame(found, columns=None if found else [*CELL, "variant"])


def whole_orders(table: pd.DataFrame) -> dict[str, str]:
    """Each variant's order of sublayers over its whole depth, from `settings`: order `sf` of depth 3 is `sfsfsf`.

    Raises `TableError` for a variant whose order is not the same in all cells.
    """
    orders: dict[str, str] = {}
    for row in table.to_dict("records"):
        whole = str(row["arch.order"]) * int(row["arch.depth"])
        if orders.setdefault(row["variant"], whole) != whole:
            raise TableError(f"variant {row['variant']!r} has several orders: pass the rows of one cell")
    return orders


def _spec(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise TableError(f"trials/{file.parent.name}/{file.name} is missing") from None
    except ValueError:
        raise TableError(f"trials/{file.parent.name}/{file.name} is not whole") from None


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        if "name" in value:
            yield path, value["name"]
        for key, each in value.items():
            if key != "name":
                yield from _flat(f"{path}.{key}", each)
    elif isinstance(value, list):
        yield path, json.dumps(value)
    else:
        yield path, value
