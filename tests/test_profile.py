"""`ablate run --profile`: where a trial's time goes, and nothing else of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from runs import job, new_results, run_here, spec, train, with_database

from ablate.run.ledger import Ledger
from ablate.train import checkpoint, trial
from ablate.train.run import TrainingRun
from ablate.train.trial import run_trial
from analysis.columns import PHASES

Write = Callable[..., Path]


def seconds(ledger: Ledger, trial_id: str) -> dict[str, float]:
    record = ledger.trial(trial_id).record()
    assert record is not None and list(record["profile"]) == list(PHASES)
    found: dict[str, float] = record["profile"]
    return found


def test_the_parts_are_the_time_and_the_numbers_the_same(ledger: Ledger, tmp_path: Path) -> None:
    long = spec({"train.tokens": 12_800, "train.batch_tokens": 64})
    plain = train(new_results(tmp_path / "plain", ledger.cache.resolve()), long)
    folder = train(ledger, long, profile=True)
    assert folder.metrics.read_bytes() == plain.metrics.read_bytes()
    ours, theirs = folder.record(), plain.record()
    assert ours is not None and theirs is not None and theirs["profile"] is None
    parts = seconds(ledger, folder.id)
    assert all(each >= 0 for each in parts.values()) and parts["checkpoint"] == 0
    assert all(parts[each] > 0 for each in ("data", "forward", "backward", "optimizer", "evaluation", "logging"))
    assert 0.5 * ours["wall_s"] < sum(parts.values()) <= ours["wall_s"]


@pytest.mark.parametrize(
    ("where", "name", "phase"),
    [
        (TrainingRun, "evaluate", "evaluation"),
        (checkpoint, "save", "checkpoint"),
        (trial.Trial, "_row", "logging"),
        (TrainingRun, "_follow", "optimizer"),
    ],
)
def test_what_takes_longer_is_seen_where_it_is(
    where: Any, name: str, phase: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(where, name)

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.1)
        return real(*args, **options)

    train(ledger, spec({"train.ema": 0.5, "train.lr": 2e-3}))  # what a process does once is behind it
    monkeypatch.setattr(where, name, slow)
    folder = train(ledger, spec({"train.ema": 0.5}), profile=True, checkpoint_every_s=0.0)
    parts = seconds(ledger, folder.id)
    assert max(parts, key=lambda each: parts[each]) == phase


def test_it_goes_on_after_a_stop(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    one = spec()
    for _ in run_trial(job(ledger, one, profile=True, until=3)):
        pass
    state = checkpoint.load(ledger.trial(one.trial_id).checkpoint)
    assert state is not None and state["profile"]["forward"] > 0
    folder = train(ledger, one, profile=True)
    assert seconds(ledger, folder.id)["forward"] > state["profile"]["forward"]


def test_a_report_has_a_row_for_every_variant(ledger: Ledger, write: Write) -> None:
    code, said = run_here("run", write(TINY), "--results", with_database(ledger).root, "--workers", 0, "--profile")
    assert code == 0, said
    told = (ledger.study_folder("tiny") / "report" / "report.md").read_text()
    section = told.partition("## Where the time goes")[2].partition("## ")[0]
    assert "| plain | 2 |" in section and "| rope | 2 |" in section and "forward, ms a step" in section
