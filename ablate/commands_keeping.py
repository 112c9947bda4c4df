"""The commands that keep results: collect garbage, pack and unpack studies, unite results folders."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands import print_json
from ablate.errors import UserError, plural
from ablate.terminal import show

if TYPE_CHECKING:
    from ablate.run.gc import Garbage
    from ablate.run.merge import Merge

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
        print_json({"removed": options.yes, "kinds": found.by_kind(), **_garbage_json(found)})
    else:
        show(_garbage_lines(found, options.yes))
    return 0


def _garbage_json(found: Garbage) -> dict[str, Any]:
    items = [asdict(each) | {"path": str(each.path)} for each in found.items]
    return {"items": items, "stays": found.stays}


def _garbage_lines(found: Garbage, removed: bool) -> Iterator[str]:
    for kind, sums in found.by_kind().items():
        yield f"{kind}: {sums['count']:,}, {_megabytes(sums['bytes'])}"
        items = [each for each in found.items if each.kind == kind]
        for item in items[:SHOWN]:
            yield f"  {item.path}  {_megabytes(item.bytes)}: {item.why}"
        if len(items) > SHOWN:
            yield f"  and {len(items) - SHOWN:,} more (--json lists them)"
    for each in found.stays:
        yield f"{each['path']} stays: {each['why']}"
    total = _megabytes(sum(item.bytes for item in found.items))
    if removed:
        yield f"removed {plural(len(found.items), 'thing')}, {total}"
    elif found.items:
        yield f"{plural(len(found.items), 'thing')}, {total}, would go: add --yes to remove them"
    else:
        yield "nothing to remove"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 50_000 else f"{count:,} bytes"


def export(options: Namespace) -> int:
    """Write a study's archive."""
    from ablate.run.archive import export as pack
    from ablate.run.ledger import Ledger

    out = options.out or Path(f"{options.study}.tar.gz")
    done = pack(Ledger(options.results), options.study, out, options.weights, options.force)
    print(f"{done.file}: study {options.study} with {plural(len(done.trials), 'trial')}, {_megabytes(done.bytes)}")
    if done.left_out:
        print(f"{plural(len(done.left_out), 'trial')} left out that have not ended")
    return 0


def import_(options: Namespace) -> int:
    """Add an archive's study to the results."""
    from ablate.run.archive import import_archive

    done = import_archive(options.archive, options.results, options.rename)
    if options.json:
        print_json({"study": done.study, **asdict(done.merged), "unchecked": done.unchecked})
    else:
        _print_merge(done.merged, "")
        for trial_id, why in done.unchecked.items():
            print(f"trial {trial_id} is taken by its record, its id was not computed anew: {why}")
    return 1 if done.merged.conflicts else 0


def merge(options: Namespace) -> int:
    """Add what another results folder has and this one has not."""
    from ablate.run.ledger import Ledger
    from ablate.run.merge import merge as unite

    _require_results(options.other)
    done = unite(Ledger(options.other), Ledger(options.into), options.dry_run, options.rename)
    if options.json:
        print_json({"merged": not options.dry_run, **asdict(done)})
    else:
        _print_merge(done, "would be " if options.dry_run else "")
    return 1 if done.conflicts else 0


def _print_merge(done: Merge, would: str) -> None:
    each: dict[str, Any]
    print(
        f"{plural(len(done.added), 'trial')} {would}added, {len(done.replaced):,} {would}replaced by their result, "
        f"{done.kept:,} here already; weights of {len(done.weights):,} {would}added"
    )
    for name, target in done.studies.items():
        print(f"study {name}{'' if name == target else f' as {target}'}: {would}united")
    for each in done.skipped:
        print(f"trial {each['trial']} left out: {each['why']}")
    for each in done.conflicts:
        if "study" in each:
            count = each["trials"]
            print(
                f"conflict: study {each['study']} has {count['theirs']} trials there, others than {count['ours']} "
                f"here: ours is kept; --rename adds theirs as {each['would_be']}"
            )
            continue
        print(f"conflict: trial {each['trial']} has other numbers there: ours are kept")
        for key, (here, there) in each["differs"].items():
            print(f"  {key}: {here} here, {there} there")
        print(f"  here: {_words(each['ours'])}; there: {_words(each['theirs'])}")


def _words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items()) or "not said"


def _require_results(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"no results folder {folder}: --results names one")
