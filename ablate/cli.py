"""The command line: thin commands over the library, heavy imports only where a command needs them."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablate import commands, commands_keeping, commands_start, commands_study
from ablate.errors import UserError
from ablate.run.options import EXECUTORS
from ablate.terminal import replaces_characters
from analysis.errors import AnalysisError
from analysis.typed import Parser


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = Parser(
        prog="ablate",
        description="Architecture ablations and scaling laws from one grid.yaml.",
        epilog="Exit codes: 0 done, 1 some trials failed, 2 wrong input, 3 stopped as asked with trials to go, "
        "75 disk full, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"ablate {_version()}")
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _start_commands(sub)
    _study_commands(sub)
    _report_commands(sub)
    _component_commands(sub)
    _result_commands(sub)
    _keeping_commands(sub)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["fit"]:  # its options are those of `python -m analysis`, which imports more than help may cost
        from analysis.command import main as fit

        return fit(given[1:], "ablate fit")
    options = parser().parse_args(given)
    replaces_characters()
    try:
        return int(options.action(options))
    except (UserError, AnalysisError) as error:
        print(f"ablate: {error}", file=sys.stderr)
        return getattr(error, "code", 2)
    except KeyboardInterrupt:
        print("ablate: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        if not _stdout_is_closed():
            print(f"ablate: {error}", file=sys.stderr)
            return 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        from ablate.run.files import full_disk, not_allowed

        full = full_disk(error)
        print(f"ablate: {error}{full or not_allowed(error)}", file=sys.stderr)
        return 75 if full else 2
    except ModuleNotFoundError as error:
        if error.name not in ("fcntl", "resource"):
            raise
        print(
            f"ablate: this command needs Linux or macOS (the module {error.name}): on Windows use WSL",
            file=sys.stderr,
        )
        return 2


def _stdout_is_closed() -> bool:
    """Whether nobody reads what is printed any more, as in `ablate list | head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _start_commands(sub: Any) -> None:
    init = _command(sub, "init", "write a commented grid to begin with, which plans as it is", commands_start.init)
    commands_start.init_options(init)
    _results(init)

    doctor = _command(sub, "doctor", "this machine and the results: what works, what is slow", commands_start.doctor)
    doctor.add_argument("--full", action="store_true", help="also start Ray, and compile a model: up to a minute")
    _results(doctor)
    _json(doctor)

    schema = _command(sub, "schema", "the JSON Schema of grids, by which editors complete", commands_start.schema)
    schema.add_argument("--out", type=Path, metavar="FILE", help="write it there")
    schema.add_argument("--plugin", action="append", default=[], metavar="FILE", help="with components of your file")

    completion = _command(sub, "completion", "a script that completes commands in a shell", commands_start.completion)
    completion.add_argument("shell", choices=("bash", "zsh"))


def _study_commands(sub: Any) -> None:
    run = _command(sub, "run", "train what is missing of a grid, then report", commands_study.run)
    _grid(run)
    _results(run)
    _running(run)

    pause = _command(
        sub, "pause", "stop a running study, here or on another host; `resume` goes on", commands_study.pause
    )
    pause.add_argument("study", metavar="STUDY")
    _results(pause)

    resume = _command(
        sub, "resume", "go on with a study: its grid and options as they were kept", commands_study.resume
    )
    resume.add_argument("study", metavar="STUDY")
    _results(resume)

    plan = _command(
        sub, "plan", "trials, parameters, FLOPs, match residuals of a grid; runs nothing", commands_study.plan
    )
    _grid(plan)
    _results(plan)
    plan.add_argument("--probe", action="store_true", help="measure a few real steps of every row: hours, memory")
    plan.add_argument("--fresh", action="store_true", help="with --probe: measure again what was measured before")
    plan.add_argument("--workers", type=_count, metavar="N", help="with --probe: trials at once, as of run")
    _rates(plan)
    _json(plan)

    status = _command(sub, "status", "done, running, failed, to go; hours estimated and taken", commands_study.status)
    status.add_argument("study", metavar="STUDY")
    _results(status)
    _rates(status)
    _json(status)


def _running(run: argparse.ArgumentParser) -> None:
    """Where and how far a study is run."""
    run.add_argument("--executor", choices=EXECUTORS, default="local", help="where trials run (default: local)")
    run.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="trials at once (default: one a CPU core or GPU); 0: one after another in this process, which a trial "
        "that hangs or exits takes with it",
    )
    run.add_argument(
        "--address", metavar="ADDR", help="an existing Ray cluster, HOST:PORT or auto, with --executor ray"
    )
    run.add_argument("--store", metavar="URI", help="where its nodes keep trials' files, with --address")
    run.add_argument("--ship", action="store_true", help="send this code to its nodes, with --address")
    run.add_argument("--tracking-uri", metavar="URI", help="MLflow server or store (default: SQLite in the results)")
    _models(run)
    run.add_argument("--check-drift", action="store_true", help="train a baseline trial again on this machine")
    run.add_argument("--no-forks", action="store_true", help="train the steps that trials have in common in each")
    run.add_argument("--no-compile", action="store_true", help="never use torch.compile, not even where it pays")
    run.add_argument(
        "--cohorts",
        type=_count,
        metavar="K",
        help="train up to K trials as one program that differ in seed, rates and optimizer settings alone; 0 for "
        "none (default: on GPUs, where that is measured to be faster)",
    )
    run.add_argument("--profile", action="store_true", help="measure where the time of a step goes, for the report")
    run.add_argument("--retry-failed", action="store_true", help="try failed trials again")
    run.add_argument("--checkpoint-every", type=float, default=15.0, metavar="S", help="seconds (default: 15)")
    run.add_argument(
        "--max-hours", type=_hours, metavar="H", help="then stop: trials under way leave checkpoints, exit code 3"
    )
    run.add_argument(
        "--budget",
        metavar="COST",
        help="train what fits, by priority, leave out the rest: '40 gpu-h', '8 cpu-h', '1e18 flops'",
    )
    run.add_argument(
        "--pack",
        type=_count,
        nargs="?",
        const=8,
        default=0,
        metavar="N",
        help="let trials share a GPU as far as its memory goes, N at most (default: 8); several run slower each",
    )


def _report_commands(sub: Any) -> None:
    report = _command(
        sub, "report", "tables, fits and figures of a study: HTML, Markdown, CSV", commands_study.report
    )
    report.add_argument("study", metavar="STUDY")
    _results(report)
    report.add_argument("--tracking-uri", metavar="URI", help="MLflow server or store that has the study, as of run")

    power = _command(sub, "power", "how many seeds a difference needs, by the noise of a study", commands_study.power)
    power.add_argument("study", metavar="STUDY")
    power.add_argument("--delta", type=float, required=True, metavar="D", help="the difference to be shown")
    power.add_argument("--power", type=float, default=0.8, metavar="P", help="with this probability (default: 0.8)")
    _results(power)
    _json(power)

    verify = _command(sub, "verify", "recompute every number of a report from the ledger", commands_study.verify)
    verify.add_argument("report", metavar="REPORT", type=Path, help="report.html, its folder, or a study's name")
    _results(verify)
    _json(verify)

    _command(sub, "fit", "scaling laws of any table of trained models: `ablate fit --help`", None)


def _component_commands(sub: Any) -> None:
    listing = _command(sub, "list", "components and variants, with their papers", commands.list_components)
    listing.add_argument("slot", nargs="?", metavar="SLOT", help="one slot, or 'variant' or 'preset'")
    listing.add_argument("--plugin", action="append", default=[], metavar="FILE", help="also those of your file")
    _json(listing)

    show = _command(
        sub,
        "show",
        "one architecture drawn: parameters, FLOPs, difference from its baseline or another",
        commands.show,
    )
    show.add_argument("name", metavar="NAME", help="a preset, a variant, or a composition as llama2+alibi")
    show.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help="change a size"
    )
    show.add_argument("--diff", metavar="OTHER", help="beside another architecture, what differs marked in both")
    show.add_argument("--svg", metavar="FILE", help="draw it into FILE, what differs marked")
    show.add_argument("--plugin", action="append", default=[], metavar="FILE", help="with components of your file")
    _json(show)

    check = _command(sub, "check", "contract checks of components, plugins included", commands.check)
    check.add_argument("name", nargs="?", metavar="NAME", help="one component (default: all)")
    check.add_argument("--plugin", action="append", default=[], metavar="FILE", help="also those of your file")
    _json(check)


def _result_commands(sub: Any) -> None:
    why = _command(sub, "why", "why a trial, or each of a study, was run, reused or resumed", commands.why)
    why.add_argument("trial", metavar="TRIAL", help="a trial's id, or its beginning; or a study")
    _results(why)
    _json(why)

    track = _command(sub, "track", "publish to MLflow what its server has not got, from the ledger", commands.track)
    track.add_argument("study", nargs="?", metavar="STUDY")
    track.add_argument("--all", action="store_true", help="every study of the results")
    track.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow server or store (default: SQLite in the results)"
    )
    _models(track)
    _results(track)

    _sample(_command(sub, "sample", "what a finished trial's model generates", commands.sample))

    ui = _command(sub, "ui", "the MLflow dashboard on the results, on this machine only", commands.ui)
    _results(ui)
    ui.add_argument("--port", type=int, default=5000, metavar="N", help="(default: 5000)")
    ui.add_argument("--tracking-uri", metavar="URI", help="another store (default: SQLite in the results)")


def _keeping_commands(sub: Any) -> None:
    gc = _command(sub, "gc", "what nobody needs any more: trials of no study, leftovers, cache", commands_keeping.gc)
    _results(gc)
    gc.add_argument("--yes", action="store_true", help="remove it (otherwise it is listed only)")
    gc.add_argument("--older-than", type=_days, default=0.0, metavar="DAYS", help="only what has not changed since")
    gc.add_argument("--weights", action="store_true", help="also final weights that no stage begins from")
    _json(gc)

    export = _command(sub, "export", "a study with its trials as one file", commands_keeping.export)
    export.add_argument("study", metavar="STUDY")
    _results(export)
    export.add_argument("--out", type=Path, metavar="FILE", help="(default: STUDY.tar.gz)")
    export.add_argument("--weights", action="store_true", help="with the final weights")
    export.add_argument("--force", action="store_true", help="overwrite FILE whatever it holds")

    take = _command(sub, "import", "add an exported study, once all of it was verified", commands_keeping.import_)
    take.add_argument("archive", type=Path, metavar="FILE", help="what `ablate export` wrote")
    _results(take)
    _rename(take)
    _json(take)

    merge = _command(sub, "merge", "add what the results of another machine have", commands_keeping.merge)
    merge.add_argument("other", type=Path, metavar="OTHER_RESULTS", help="the folder to take from; it is only read")
    merge.add_argument(
        "--into", type=Path, default=Path("results"), metavar="DIR", help="the results to add to (default: results)"
    )
    merge.add_argument("--dry-run", action="store_true", help="only say what would be added")
    _rename(merge)
    _json(merge)


def _sample(sample: argparse.ArgumentParser) -> None:
    sample.add_argument("trial", metavar="TRIAL", help="a finished trial's id, or its beginning")
    _results(sample)
    prompts = sample.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="what to go on from: the trial's task says what it means")
    prompts.add_argument("--prompt-file", metavar="FILE", help="the same from a file, without its last line end")
    sample.add_argument("--count", type=_count, default=1, metavar="N", help="how many samples (default: 1)")
    sample.add_argument("--length", type=_count, metavar="N", help="tokens at most (default: the task's)")
    sample.add_argument("--temperature", type=float, metavar="X", help="draw from p^(1/X) (default: 1)")
    sample.add_argument("--top-k", type=_count, metavar="K", help="draw from the K most probable tokens")
    sample.add_argument("--top-p", type=float, metavar="P", help="draw from the fewest tokens that have P together")
    sample.add_argument("--min-p", type=float, metavar="P", help="draw from tokens with P times the best one's")
    sample.add_argument("--greedy", action="store_true", help="the most probable token each time")
    sample.add_argument("--beam", type=_count, metavar="W", help="beam search of width W")
    sample.add_argument("--length-penalty", type=float, metavar="A", help="of a beam's sequences (default: 0.6)")
    sample.add_argument("--seed", type=_count, metavar="S", help="of what is drawn (default: 0)")
    sample.add_argument("--out", type=Path, metavar="FILE", help="where images are written, as PNG")
    sample.add_argument("--plugin", action="append", default=[], metavar="FILE", help="with components of the trial")
    _json(sample)


def _command(sub: Any, name: str, help_: str, action: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = sub.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
    command.set_defaults(action=action)
    return command


def _grid(command: argparse.ArgumentParser) -> None:
    command.add_argument("grid", type=Path, metavar="GRID", help="a grid.yaml")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="overrides",
        help="override a value of the grid, as train.lr=1e-3 or seeds=5",
    )
    command.add_argument("--as", metavar="NAME", dest="as_profile", help="as one of the grid's profiles: study_NAME")


def _results(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="results folder (default: results)",
    )


def _rates(command: argparse.ArgumentParser) -> None:
    command.add_argument("--price", metavar="X/h", help='of a device hour (GPU, else CPU core), as "2.50 USD"')
    command.add_argument("--watts", type=float, metavar="W", help="that one device draws: energy in kWh")


def _models(command: argparse.ArgumentParser) -> None:
    command.add_argument("--log-models", action="store_true", help="also the weights of finished trials, to MLflow")


def _rename(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rename", action="store_true", help="studies whose name is taken get another")


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="machine-readable output")


def _number(kind: type[float], legal: Callable[[float], bool], words: str) -> Callable[[str], float]:
    """What reads an option's number, and says what it must be."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not legal(value):
            raise argparse.ArgumentTypeError(f"{text!r} must be {words}")
        return value

    return read


_count = _number(int, lambda value: value >= 0, "a whole number from 0")
_hours = _number(float, lambda value: 0 < value < float("inf"), "a number of hours above 0, as 0.5")
_days = _number(float, lambda value: 0 <= value < 1e6, "a number of days from 0")


def _version() -> str:
    from ablate import __version__

    return __version__
