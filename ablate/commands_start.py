"""What the commands do that a new user begins with. Imports are inside, as in `ablate.commands`."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from ablate.commands import add_plugins, print_json
from ablate.errors import UserError, plural

if TYPE_CHECKING:
    from ablate.rows import Plan

CHOICES = ("vary", "variants", "data", "size", "seeds")  # options of `init` that a study as it is has no use for


def init_options(init: argparse.ArgumentParser) -> None:
    """Those of `ablate init`."""
    init.add_argument(
        "file", type=Path, nargs="?", default=Path("grid.yaml"), metavar="FILE", help="(default: grid.yaml)"
    )
    what = init.add_mutually_exclusive_group()
    what.add_argument("--vary", metavar="SLOT", help="compare the components of one slot (default: position)")
    what.add_argument("--variants", metavar="A,B", help="compare registered variants, as rope,swiglu,rope+swiglu")
    init.add_argument(
        "--from", dest="source", metavar="NAME", help="begin with a preset, or take a study that comes with ablate"
    )
    init.add_argument("--list", action="store_true", help="what --from, --vary and --size may name")
    init.add_argument("--data", metavar="PATH", help="your text, a file or a folder (default: the embedded one)")
    init.add_argument("--size", metavar="NAME", help="d32 to d128, 125M ...; laptop for all to d128 (default: d64)")
    init.add_argument("--seeds", type=int, metavar="N", help="of every variant (default: 3)")
    init.add_argument("--hours", type=float, metavar="H", help="for the command that is printed: --max-hours H")
    init.add_argument("--schema", action="store_true", help="also grid.schema.json beside it, for editors")
    init.add_argument("--force", action="store_true", help="overwrite FILE")


def init(options: Namespace) -> int:
    """Write a grid that plans, and say how to go on."""
    from ablate import newgrid
    from ablate.grid import MODELINE
    from ablate.run.files import write_text

    if options.list:
        _print_choices()
        return 0
    file: Path = options.file
    beside = [file.parent / newgrid.SCHEMA] if options.schema else []
    for each in (file, *beside):
        if each.exists() and not options.force:
            raise UserError(f"{each} exists: give another FILE, or --force to overwrite it")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is no folder: make it first")
    if options.hours is not None and not 0 < options.hours < float("inf"):
        raise UserError(f"--hours {options.hours:g} must be a number above 0")
    text, plan = _planned(options)
    if options.schema:
        text = f"{MODELINE} $schema={newgrid.SCHEMA}\n{text}"
    write_text(file, text)
    for each in beside:
        write_text(each, _schema_text())
    limit = f" --max-hours {options.hours:g}" if options.hours else ""
    results = "" if options.results == Path("results") else f" --results {quote(str(options.results))}"
    typed = quote(str(file))
    print(f"{file}: {plural(len(plan.grid.variants), 'variant')}, {plural(len(plan.trials), 'trial')}")
    print(f"what it comes to:   ablate plan {typed}{results}")
    print(f"hours, measured:    ablate plan {typed} --probe{results}")
    print(f"train and report:   ablate run {typed}{limit}{results}")
    return 0


def _planned(options: Namespace) -> tuple[str, Plan]:
    """A study as it is, or a new grid: of what the options say and, on a terminal, of answers."""
    from ablate import newgrid
    from ablate.errors import unknown

    cache = options.results / "cache"
    source, studies, presets = options.source, newgrid.studies(), newgrid.presets()
    if source in studies:
        for name in CHOICES:
            if getattr(options, name) is not None:
                raise UserError(f"--{name}: study {source!r} is taken as it is; change it in the file, or with --set")
        text = newgrid.copied(studies[source], options.file)
        return text, newgrid.checked(text, options.file, cache)
    if source is not None and source not in presets:
        raise UserError(unknown("preset or study", source, [*presets, *studies]))
    if sys.stdin.isatty() and sys.stdout.isatty():
        _ask(options)
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"--seeds {options.seeds} must be at least 1")
    given = {name: getattr(options, name) for name in ("vary", "size", "seeds") if getattr(options, name) is not None}
    variants = tuple(name.strip() for name in (options.variants or "").split(",") if name.strip())
    data = None if options.data in (None, newgrid.CORPUS) else options.data
    print("planning: seconds, for many or large models minutes", file=sys.stderr, flush=True)
    choices = newgrid.Choices(**given, variants=variants, preset=source, data=data)
    return newgrid.new(choices, options.file, cache)


def _ask(options: Namespace) -> None:
    """Ask for what the options do not say."""
    from rich.prompt import FloatPrompt, IntPrompt, Prompt

    from ablate import newgrid
    from ablate.registry import SLOTS

    if options.vary is None and options.variants is None:
        options.vary = Prompt.ask("What is compared", choices=list(SLOTS), default=newgrid.SLOT)
    if options.data is None:
        options.data = Prompt.ask("Your text, a file or a folder", default=newgrid.CORPUS)
    if options.size is None:
        options.size = Prompt.ask("Size of the model", choices=list(newgrid.sizes()), default=newgrid.SIZE)
    if options.seeds is None:
        options.seeds = IntPrompt.ask("Seeds of every variant", default=newgrid.SEEDS)
    if options.hours is None:
        options.hours = FloatPrompt.ask("Hours it may take, 0 for any", default=0.0) or None


def _print_choices() -> None:
    from ablate import newgrid
    from ablate.registry import SLOTS

    print("presets")
    for name, overlay in newgrid.presets().items():
        print(f"  {name:<24}{overlay.paper}")
    print("studies")
    for name, study in newgrid.studies().items():
        print(f"  {name:<24}{newgrid.question(study)}")
    print(f"slots to vary\n  {', '.join(SLOTS)}\nsizes\n  {', '.join(newgrid.sizes())}")


def schema(options: Namespace) -> int:
    """Print the JSON Schema of grids, or write it."""
    from ablate.run.files import write_text

    add_plugins(options.plugin)
    if options.out is None:
        print(_schema_text(), end="")
    else:
        write_text(options.out, _schema_text())
    return 0


def _schema_text() -> str:
    from ablate.gridschema import grid_schema

    return json.dumps(grid_schema(), indent=1, ensure_ascii=False) + "\n"


def completion(options: Namespace) -> int:
    """Print a shell's script that completes this command."""
    from ablate.cli import parser
    from ablate.completion import script

    print(script(parser(), options.shell))
    return 0


def doctor(options: Namespace) -> int:
    """Look at this machine and at the results; 1 where something does not work."""
    from ablate.doctor import PROBLEM, examine, print_findings

    findings = examine(options.results, options.full)
    if options.json:
        print_json([finding.tree() for finding in findings])
    else:
        print_findings(findings)
    return 1 if any(finding.status == PROBLEM for finding in findings) else 0
