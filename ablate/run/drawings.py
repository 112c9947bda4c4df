"""The drawings of a study's variants, kept beside it: reports are written without building any model."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from ablate import registry
from ablate.arch import ArchSpec
from ablate.cost import source_hash
from ablate.draw.anatomy import Given, figure
from ablate.draw.notes import changes, notes
from ablate.draw.svg import draw
from ablate.rows import Plan, Row
from ablate.run.files import read_json, write_json, write_text
from ablate.spec import canonical_arch, digest

FOLDER, INDEX = "drawings", "index.json"
GENERATOR = ("generator", "masked")  # what only replaced-token detection tells


def keep_drawings(plan: Plan, study: Path) -> None:
    """Write an SVG of every variant at the first of its sizes, marked where it differs from the baseline there, and
    what differs in words. One that is there already is left; one that cannot be made is left out, with the reason."""
    rows: dict[str, Row] = {}
    for row in (*plan.rows, *(sweep.row for sweep in plan.sweeps)):
        rows.setdefault(row.variant, row)
    baseline = rows[plan.baseline]
    folder = study / FOLDER
    known = {each["variant"]: each for each in (read_json(folder / INDEX) or {}).get("drawn", [])}
    drawn = [_keep(row, baseline, folder, known.get(name, {})) for name, row in rows.items()]
    write_json(folder / INDEX, {"baseline": plan.baseline, "drawn": drawn})


def _keep(row: Row, baseline: Row, folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    arch, base = row.spec.arch, baseline.spec.arch
    asked = digest([canonical_arch(arch), canonical_arch(base), dict(row.told), source_hash(), drawing_hash()])
    file = folder / f"{row.variant}.svg"
    if known.get("of") == asked and file.is_file():
        return known
    entry: dict[str, Any] = {"variant": row.variant, "at": row.cell, "of": asked, "changes": changes(base, arch)}
    try:
        write_text(file, draw(figure(row.variant, given(row, base), said(row, base))))
    except Exception as error:  # a drawing is worth no study
        return entry | {"file": None, "trouble": f"{type(error).__name__}: {error}"}
    return entry | {"file": file.name}


def given(row: Row, baseline: ArchSpec) -> Given:
    """What is drawn of a row: of replaced-token detection the network that detects."""
    shape = {
        name: value for name, value in row.told.items() if name not in ("vocab", "max_len", "causal", *GENERATOR)
    }
    return Given(row.spec.arch, row.told["vocab"], row.told["max_len"], row.told.get("causal", True), shape, baseline)


def said(row: Row, baseline: ArchSpec) -> tuple[str, ...]:
    """What stands below it."""
    lines = [*([f"at {row.cell}"] if row.cell else []), *notes(row.spec.arch, baseline)]
    if share := row.told.get("generator"):
        lines.append(f"its input comes from a network of the same kind, {share:.0%} as wide, that fills in tokens")
    return tuple(lines)


@lru_cache(maxsize=1)
def drawing_hash() -> str:
    """Hash of how drawings are made."""
    files = sorted((registry.PACKAGE / "draw").glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
