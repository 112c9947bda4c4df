"""The script by which a shell completes `ablate`: commands, options, choices, files, studies, trials, names.

Commands and options come from the parser by shtab; studies and trials are looked up in `results` when they are asked
for, names of components and variants are those that there were when the script was made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from ablate import registry
from ablate.catalogue import NAMED
from ablate.newgrid import presets, sizes, studies
from ablate.overlays import overlays

FOLDERS = {"STUDY": "studies", "TRIAL": "trials"}  # of the results, by what an argument is called
FILES = ("GRID", "FILE", "REPORT", "TABLE", "PATH")
DIRECTORIES = ("DIR", "OTHER_RESULTS")
PREAMBLE = {
    "bash": "\n".join(
        f'_ablate_{folder}() {{ compgen -W "$(command ls results/{folder} 2>/dev/null)" -- "$1"; }}'
        for folder in FOLDERS.values()
    ),
    "zsh": "\n".join(
        f"_ablate_{folder}() {{ local -a found; found=(results/{folder}/*(N/:t)); compadd -a found }}"
        for folder in FOLDERS.values()
    ),
}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for `bash` or `zsh`. It marks the parser's arguments with what they are completed by."""
    names = _names()
    for command, action in _arguments(parser):
        if known := names.get((command, action.dest)):
            action.choices = known
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif folder := FOLDERS.get(str(action.metavar)):
            action.complete = dict.fromkeys(PREAMBLE, f"_ablate_{folder}")  # type: ignore[attr-defined]
    return shtab.complete(parser, shell, preamble=PREAMBLE)  # type: ignore[arg-type]


def _names() -> dict[tuple[str, str], list[str]]:
    """Words by the command and the argument."""
    components = sorted({entry.name for entry in registry.catalogue()})
    return {
        ("list", "slot"): [*registry.KINDS, *NAMED],
        ("check", "name"): components,
        ("show", "name"): list(overlays()),
        ("init", "vary"): list(registry.SLOTS),
        ("init", "variants"): [name for name, overlay in overlays().items() if not overlay.preset],
        ("init", "source"): [*presets(), *studies()],
        ("init", "size"): list(sizes()),
    }


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every argument of every command with the command's name; `fit` gets its own, which are read elsewhere."""
    from analysis.command import options_of

    commands = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    options_of(commands.choices["fit"])
    for name, command in commands.choices.items():
        yield from ((name, action) for action in command._actions)
