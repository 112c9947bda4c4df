"""The commands that keep results: collect garbage, pack and unpack studies, unite results folders."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.errors import UserError, plural

if TYPE_CHECKING:
    from ablate.run.gc import Garbage

DAY_S = 86_400.0
SHOWN = 20  # of each kind; --json has all


def gc(options: Namespace) -> int:
    """List what nobody needs any more; with --yes remove it."""
    from ablate.run import schema
    from ablate.run.gc import Collector, Remover
    from ablate.run.ledger import Ledger

    _require_results(options.results)
    if options.yes:
        schema.prepare(options.results)
    ledger = Ledger(options.results)
    schema.require_current(options.results)
    found = Collector(ledger, options.older_than * DAY_S, options.weights).garbage()
    if options.yes:
        found = Remover(ledger).remove(found)
    if options.json:
        _print_json({"removed": options.yes, "kinds": found.by_kind(), **_garbage_json(found)})
    else:
        _print_garbage(found, options.yes)
    return 0


def _garbage_json(found: Garbage) -> dict[str, Any]:
    items = [asdict(each) | {"path": str(each.path)} for each in found.items]
    return {"items": items, "stays": found.stays}


def _print_garbage(found: Garbage, removed: bool) -> None:
    for kind, sums in found.by_kind().items():
        print(f"{kind}: {sums['count']:,}, {_megabytes(sums['bytes'])}")
        items = [each for each in found.items if each.kind == kind]
        for item in items[:SHOWN]:
            print(f"  {item.path}  {_megabytes(item.bytes)}: {item.why}")
        if len(items) > SHOWN:
            print(f"  and {len(items) - SHOWN:,} more (--json lists them)")
    for each in found.stays:
        print(f"{each['path']} stays: {each['why']}")
    total = _megabytes(sum(item.bytes for item in found.items))
    if removed:
        print(f"removed {plural(len(found.items), 'thing')}, {total}")
    elif found.items:
        print(f"{plural(len(found.items), 'thing')}, {total}, would go: add --yes to remove them")
    else:
        print("nothing to remove")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 50_000 else f"{count:,} bytes"


def _require_results(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"no results folder {folder}: --results names one")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
