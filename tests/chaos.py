"""SIGKILL at random moments over a study, of whoever takes part in it; what must hold is looked at after each.

    PYTHONPATH=. python tests/chaos.py --kills 100 [--ray] [--seed 0]

prints how often whom, and how much was trained in vain.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runs import Command, events, new_results, run_here, undisturbed, wait_for, with_database

from ablate.run.ledger import Ledger
from ablate.run.status import study_status

GRID = """\
study: chaos
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 153_600, batch_tokens: 128, lr: 3e-3, dropout: 0.1, eval_points: 20, eval_tokens: 256}
variants:
  plain: {}
  rope: rope
seeds: 3
"""
LASTING = ("status", "metrics", "spec", "layers", "params_total", "train_flops", "tokens", "steps")
LONGEST_S = 4.0  # from one strike to the next
AT_START = 0.25  # so often the first strike does not wait for training to go on
LET_GO_S = 20.0  # a process that ends gives its memory back, and is seen no more, before its files
RESTARTS = 2  # strikes at others than the driver in one run: three deaths would give a trial up

PLANNED = (".spec.json.", ".identity.json.")  # a driver's, who does not hold the trial: `ablate gc` removes them

Written = dict[str, tuple[int, bytes]]


@dataclass
class Chaos:
    """A study, run again and again while its processes are killed."""

    folder: Path
    expected: Ledger
    ray: bool = False
    seed: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    finished: int = 0  # studies that came to their end

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.grid = self.folder / "chaos.yaml"
        self.grid.write_text(GRID, encoding="utf-8")
        self.ledger = self._new()

    def _new(self) -> Ledger:
        name = f"results-{self.finished}"
        return with_database(new_results(self.folder / name, self.expected.cache.resolve()))

    @property
    def command(self) -> tuple[object, ...]:
        executor = ("--executor", "ray") if self.ray else ()
        where = ("--results", self.ledger.root, "--workers", 2, "--checkpoint-every", 0.1)
        return ("run", self.grid, *where, *executor)

    def run(self, kills: int) -> None:
        """Strike until there were so many kills, in as many studies as that takes; then let the last one end."""
        while sum(self.struck.values()) < kills:
            written = self.written()
            with Command(self.folder, *self.command) as command:
                self._strike_again_and_again(command)
                code = command.wait()
                command.wait_until_alone()
                said = command.output()
            self.look(written)
            assert "Traceback" not in said, said
            if code == 0:
                self.end()
                self.finished += 1
                self.ledger = self._new()
        code, said = run_here(*self.command)
        assert code == 0, said
        self.end()

    def _strike_again_and_again(self, command: Command) -> None:
        if self.random.random() > AT_START:
            before = self._trained()
            command.wait_for(lambda: self._trained() != before or command.process.poll() is not None, "training")
        for _ in range(self.random.randint(0, RESTARTS)):
            if not self._wait(command):
                return
            self._strike(command, "another")
        if self._wait(command):
            self._strike(command, self.random.choice(("driver", "driver and another", "all")))

    def _wait(self, command: Command) -> bool:
        """Some time; whether the command is still there."""
        deadline = time.monotonic() + self.random.uniform(0, LONGEST_S)
        while command.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return command.process.poll() is None

    def _trained(self) -> list[int]:
        """How long each curve is."""
        folders = [self.ledger.trial(each) for each in self.ledger.trial_ids()]
        return [each.metrics.stat().st_size for each in folders if each.metrics.exists()]

    def _strike(self, command: Command, whom: str) -> None:
        driver, others = command.process.pid, sorted(command.alive().keys() - {command.process.pid})
        one = [self.random.choice(others)] if others else []
        hit = {"driver": [driver], "another": one, "driver and another": [driver, *one], "all": [driver, *others]}
        names = command.alive()
        for pid in hit[whom]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if hit[whom]:
            self.struck[f"another: {_kind(names.get(one[0], ''))}" if whom == "another" else whom] += 1

    def written(self) -> Written:
        """Every record, with the time of its writing."""
        found = {}
        for trial_id in self.ledger.trial_ids():
            file = self.ledger.trial(trial_id).folder / "record.json"
            if file.exists():
                found[trial_id] = (file.stat().st_mtime_ns, file.read_bytes())
        return found

    def look(self, before: Written) -> None:
        """What must hold whenever all processes are gone."""
        now = self.written()
        for trial_id, written in before.items():
            assert now[trial_id] == written, f"{trial_id} had ended, and was written again"
        for trial_id in now:  # a record that is there is whole, and so is what it stands for
            folder, expected = self.ledger.trial(trial_id), self.expected.trial(trial_id)
            assert folder.status() == "finished", folder.record()
            assert folder.metrics.read_bytes() == expected.metrics.read_bytes()
            assert folder.weights.read_bytes() == expected.weights.read_bytes()
        if "chaos" in self.ledger.study_names():
            wait_for(lambda: not study_status(self.ledger, "chaos")["running"], "trials that nobody holds", LET_GO_S)
            assert study_status(self.ledger, "chaos")["finished"] == len(now)

    def end(self) -> None:
        """What must hold when the study has come to its end."""
        self.look({})
        assert self.ledger.trial_ids() == self.expected.trial_ids()
        for trial_id in self.expected.trial_ids():
            folder = self.ledger.trial(trial_id)
            ours, theirs = folder.record(), self.expected.trial(trial_id).record()
            assert ours is not None and theirs is not None
            assert {key: ours[key] for key in LASTING} == {key: theirs[key] for key in LASTING}
            assert events(folder).count("end") == 1
            left = {file.name for file in folder.folder.iterdir() if file.name.endswith(".part")}
            left -= {name for name in left if name.startswith(PLANNED)}
            assert not left, left

    def attempts(self) -> Iterator[str]:
        for number in range(self.finished + 1):
            ledger = Ledger(self.folder / f"results-{number}")
            for trial_id in ledger.trial_ids():
                yield from events(ledger.trial(trial_id))


def _kind(command_line: str) -> str:
    for kind in ("raylet", "gcs_server", "ray_driver", "forkserver", "resource_tracker", "ray::", "dashboard", "ray"):
        if kind in command_line:
            return kind.strip(":")
    return "other"


def expected(folder: Path, cache: Path) -> Ledger:
    """What the study comes to when nobody disturbs it."""
    return undisturbed(GRID, folder, cache)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "cache").mkdir()
        begun = time.perf_counter()
        chaos = Chaos(folder, expected(folder, folder / "cache"), options.ray, options.seed)
        alone = time.perf_counter() - begun
        try:
            chaos.run(options.kills)
        finally:
            print(f"{sum(chaos.struck.values())} kills in {time.perf_counter() - begun - alone:.0f} s:")
            for whom, times in sorted(chaos.struck.items()):
                print(f"  {times:4} {whom}")
            count = Counter(chaos.attempts())
            print(f"{chaos.finished + 1} studies; " + ", ".join(f"{n} {event}" for event, n in sorted(count.items())))


if __name__ == "__main__":
    main()
