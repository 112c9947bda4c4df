"""What the tests that train share: specifications, results folders, undisturbed runs, commands that can be killed."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from conftest import ROOT
from rich.console import Console

from ablate import registry
from ablate.cli import main
from ablate.data.corpora import resolve
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.rows import Plan
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.local import LocalExecutor
from ablate.run.study import Outcome, StudyRun
from ablate.spec import TrialSpec, parse
from ablate.train.job import Job
from ablate.train.trial import plan_trial, run_trial

T = TypeVar("T")

SMALL = {  # 12 steps, evaluated after 0, 1, 3 and 12 of them
    "arch.d_model": 16,
    "arch.n_heads": 2,
    "arch.depth": 1,
    "data.corpus": "kjv",
    "data.seq_len": 16,
    "train.tokens": 768,
    "train.batch_tokens": 64,
    "train.lr": 3e-3,
    "train.precision": "fp32",
    "train.eval_points": 3,
    "train.eval_tokens": 64,
    "train.final_eval_tokens": 128,
}

# Trials of 400 steps with dropout: long enough to be killed in the middle, with numbers that would tell. They
# report at every evaluation, so that they can also be stopped within a part of a second.
LONG = """\
study: long
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 51_200, batch_tokens: 128, lr: 3e-3, dropout: 0.1, eval_points: 20, eval_tokens: 256}
variants:
  plain: {}
  rope: rope
seeds: 2
"""

# Trials that differ in length alone, and have their first steps in common.
LADDER = """\
study: ladder
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train:
    batch_tokens: 256
    lr: 3e-3
    dropout: 0.1
    schedule: {name: wsd, warmup: 2, decay: 0.2}
    eval_points: 3
    eval_tokens: 512
    final_eval_tokens: 1024
variants:
  plain: {}
  rope: rope
budgets: {tokens: [3_200, 4_480, 6_400, 8_960, 12_800]}
seeds: 1
"""

FAULTS = '''\
"""Norms that go wrong while training: not while the architecture is counted or evaluated."""

import os
import signal

from ablate import Norm, register


class Passing(Norm):
    def forward(self, x):
        if self.training and x.device.type != "meta":
            self.fault()
        return x


@register("norm", "raises", paper="made up")
class Raises(Passing):
    """Raises."""

    def fault(self):
        raise RuntimeError("the norm [/is upset]")


@register("norm", "reads", paper="made up")
class Reads(Passing):
    """Needs a file that is not there."""

    def fault(self):
        open("no such table")


@register("norm", "exits", paper="made up")
class Exits(Passing):
    """Ends its process."""

    def fault(self):
        os._exit(7)


@register("norm", "dies", paper="made up")
class Dies(Passing):
    """Kills its process."""

    def fault(self):
        os.kill(os.getpid(), signal.SIGKILL)
'''


def faulty(grid: str, *norms: str) -> str:
    """A grid with the variants `plain` and these, for a folder with FAULTS in faults.py."""
    variants = "".join(f"  {name}: {{arch.norm: {name}}}\n" for name in norms)
    return grid.replace("  rope: rope\n", variants) + "match: none\nplugins: [faults.py]\n"


def spec(overrides: Mapping[str, Any] | None = None, seed: int = 0) -> TrialSpec:
    """A small trial; `overrides` are dotted paths."""
    tree: dict[str, Any] = {"seed": seed}
    for path, value in {**SMALL, **(overrides or {})}.items():
        section, key = path.split(".")
        tree.setdefault(section, {})[key] = value
    made = parse(TrialSpec, tree)
    return replace(made, data=resolve(made.data, Path()))


def new_results(folder: Path, cache: Path) -> Ledger:
    """An empty results folder with the shared token cache."""
    folder.mkdir(parents=True)
    (folder / "cache").symlink_to(cache)
    return Ledger(folder)


def with_database(ledger: Ledger) -> Ledger:
    """The results with MLflow's empty database in them, which takes seconds to make: it is made once."""
    empty = ledger.cache.resolve() / "empty-mlflow.db"
    if not empty.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow.tracking import MlflowClient

            MlflowClient(tracking_uri=f"sqlite:///{empty}").search_experiments(max_results=1)
    shutil.copy(empty, ledger.root / "mlflow.db")
    return ledger


def plan_of(text: str, folder: Path, cache: Path) -> Plan:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    return make_plan(load_grid(file, []), cache)


def job(ledger: Ledger, trial: TrialSpec, **settings: Any) -> Job:
    """What a worker would be told of a trial, which is planned here. No checkpoint comes by the clock."""
    plan_trial(ledger, trial)
    return Job(trial.trial_id, str(ledger.root), **{"checkpoint_every_s": 1e9, **settings})


def train(ledger: Ledger, trial: TrialSpec, **settings: Any) -> TrialFolder:
    """Train a trial to its end in this process."""
    for _ in run_trial(job(ledger, trial, **settings)):
        pass
    return ledger.trial(trial.trial_id)


def run_study(plan: Plan, ledger: Ledger) -> Outcome:
    """Train what a plan misses, in this process."""
    executor = LocalExecutor(0)
    uri = f"sqlite:///{with_database(ledger).root / 'mlflow.db'}"
    return StudyRun(ledger, plan, executor, Console(quiet=True), checkpoint_every_s=1e9).run(uri)


def run_here(*arguments: object) -> tuple[int, str]:
    """`ablate ARGUMENTS` in this process: its exit code, and what it printed."""
    with io.StringIO() as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        code = main([str(each) for each in arguments])
        return code, stream.getvalue()


@contextlib.contextmanager
def own_registry() -> Iterator[None]:
    """Plugins that a command enters in this process are gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_added", "_classes", "_plugin_files"):
            patch.setattr(registry, name, dict(getattr(registry, name)))
        yield
        stay = {key: cls for key, cls in registry._classes.items() if cls.__module__.startswith("ablate.")}
    registry._classes.update(stay)  # a module is imported once: what it entered stays


def curves(ledger: Ledger) -> dict[str, bytes]:
    """Every trial's metrics.jsonl."""
    return {each: ledger.trial(each).metrics.read_bytes() for each in ledger.trial_ids()}


_undisturbed: dict[str, Ledger] = {}


def undisturbed(text: str, folder: Path, cache: Path) -> Ledger:
    """The results of a grid trained in this process, one trial after the other, without executor or interruption."""
    if text not in _undisturbed:
        ledger = new_results(folder / "undisturbed", cache)
        for trial in plan_of(text, folder, cache).trials:
            train(ledger, trial.spec)
        _undisturbed[text] = ledger
    return _undisturbed[text]


def wait_for(condition: Callable[[], T], what: str, limit_s: float = 240) -> T:
    """Poll until `condition` is true, and return what it returned."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)
    return found


def under_way(ledger: Ledger) -> list[TrialFolder]:
    """The trials that have a checkpoint and no record."""
    folders = [ledger.trial(each) for each in ledger.trial_ids()]
    return [each for each in folders if each.checkpoint.exists() and each.record() is None]


def in_the_middle(ledger: Ledger) -> list[TrialFolder]:
    """The trials under way, once another one has ended."""
    done = any(ledger.trial(each).record() for each in ledger.trial_ids())
    return under_way(ledger) if done else []


def trainer(folder: TrialFolder) -> int:
    """The process that trains a trial, by its own account."""
    return int([each["pid"] for each in folder.history() if each["event"] in ("start", "resume")][-1])


def events(folder: TrialFolder) -> list[str]:
    return [each["event"] for each in folder.history()]


class Command:
    """`ablate ARGUMENTS` in a process of its own, all of whose descendants can be found and ended."""

    def __init__(self, folder: Path, *arguments: object):
        self.mark = f"ABLATE_TEST_MARK={uuid.uuid4().hex}"
        self._sessions: set[int] = set()
        self._log = folder / f"{self.mark[-8:]}.out"
        name, value = self.mark.split("=")
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ablate", *map(str, arguments)],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", name: value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exc: object) -> None:
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def wait(self, limit_s: float = 300) -> int:
        return self.process.wait(timeout=limit_s)

    def wait_for(self, condition: Callable[[], T], what: str, log: Path | None = None) -> T:
        """Poll while the command runs until `condition` is true, and return what it returned."""

        def met_or_ended() -> T | list[str]:
            ended = self.process.poll() is not None
            return condition() or (["ended"] if ended else [])

        found = wait_for(met_or_ended, f"{what}: {self.output()}")
        if found == ["ended"]:
            tail = log.read_text(errors="replace")[-3000:] if log and log.exists() else ""
            raise AssertionError(f"the command ended before {what}: {self.output()}{tail}")
        return found  # type: ignore[return-value]

    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> dict[int, str]:
        """This command's processes, by their environment or their session (a renamed process loses the former)."""
        found, by_session = {}, {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                marked = self.mark.encode() in (entry / "environ").read_bytes()
                name = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue  # it ended
            state, session = stat[0], int(stat[3])
            if state in "ZX":
                continue
            by_session.setdefault(session, {})[int(entry.name)] = name
            if marked:
                found[int(entry.name)] = name
                self._sessions.add(session)
        for session in self._sessions:
            found |= by_session.get(session, {})
        return found

    def wait_until_alone(self, limit_s: float = 90) -> None:
        """Until no process of this command is left."""
        wait_for(lambda: not self.alive(), f"the end of {self.alive()}", limit_s)
