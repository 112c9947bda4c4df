"""Runs that end as they were asked, by the clock or `ablate pause`: the same command, or `ablate resume`, goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY
from runs import FAULTS, LONG, curves, events, new_results, own_registry, run_here, wait_for, with_database

from ablate import registry
from ablate.cli import main
from ablate.run import stopping
from ablate.run.ledger import Ledger

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LOOK_EVERY_S", 0.02)


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    return with_database(new_results(tmp_path / "results", token_cache))


def begun(ledger: Ledger) -> bool:
    return any(len(ledger.trial(each).rows()) > 5 for each in ledger.trial_ids())


@pytest.mark.slow
def test_after_its_hours_no_trial_begins(
    ledger: Ledger, undisturbed_long: Ledger, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps as a trial is under way: it leaves a checkpoint, no other begins, a report is written."""
    clock = SimpleNamespace(monotonic=lambda: 1e12 if begun(ledger) else 0.0)
    command = ("run", write(LONG), "--results", ledger.root, "--workers", 0)
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "time", clock)
        code, said = run_here(*command, "--max-hours", 1000)
    assert code == 3 and "time is up with 4 trials to go: the same command goes on from here" in said
    assert [events(ledger.trial(each)) for each in ledger.trial_ids()].count(["start", "stop"]) == 1
    assert (ledger.study_folder("long") / "report" / "report.html").exists()
    assert not json.loads(run_here("status", "long", "--results", ledger.root, "--json")[1])["paused"]
    code, said = run_here(*command, "--max-hours", 1000)
    assert code == 0 and "4 finished" in said
    assert curves(ledger) == curves(undisturbed_long)


@pytest.mark.slow
def test_a_paused_study_is_resumed_from_what_it_has_kept(
    ledger: Ledger, undisturbed_long: Ledger, write: Write
) -> None:
    """The grid as it was, its overrides and the folder of its plugins: the file itself may have changed since."""
    for entry in registry.catalogue():
        registry.load(entry)  # else `own_registry` forgets them
    write(FAULTS, "faults.py")
    grid = write(LONG.replace("seeds: 2", "seeds: 7") + "plugins: [faults.py]\n")
    where = ("--results", str(ledger.root))

    def pause() -> None:
        wait_for(lambda: begun(ledger), "a trial that has begun")
        assert main(["pause", "long", *where]) == 0

    with own_registry():
        asking = threading.Thread(target=pause)
        asking.start()
        code, said = run_here("run", grid, *where, "--workers", 1, "--set", "seeds=2")
        asking.join()
        assert code == 3 and "its driver, if one is running, stops within seconds" in said
        assert "paused with 4 trials to go" in said and "report:" not in said
        code, said = run_here("status", "long", *where)
        assert "4 pending" in said and "paused: `ablate resume long` goes on" in said
        grid.write_text("study: other\n")
        code, said = run_here("resume", "long", *where)
    assert code == 0 and "trained 4, reused 0: 4 finished" in said
    assert curves(ledger) == curves(undisturbed_long)
    assert "paused" not in run_here("status", "long", *where)[1]


def test_what_cannot_be_paused_or_resumed(ledger: Ledger, write: Write) -> None:
    for command in ("pause", "resume"):
        code, said = run_here(command, "none", "--results", ledger.root)
        assert code == 2 and "no study 'none'" in said
    for hours in ("0", "-1", "nan", "soon"):
        with pytest.raises(SystemExit) as ended:
            run_here("run", write(TINY), "--max-hours", hours)
        assert ended.value.code == 2
