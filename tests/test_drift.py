"""Trials of several machines or libraries: comparisons across them are flagged, and the drift is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricate
import pytest
from conftest import TINY
from runs import new_results, plan_of, run_here, run_study, with_database

from ablate.run.drift import check_drift
from ablate.run.environment import environment
from ablate.run.ledger import Ledger
from analysis.drift import Rerun, apart, pairs_across, reruns, set_of, trials_of
from analysis.report import write_report
from analysis.table import read_study

Write = Callable[..., Path]
HERE = ("a processor", "cpu", "2.8", "", "", "c0ffee")


def study(root: Path) -> list[dict[str, Any]]:
    """Three seeds of two variants; those of the variant's seeds 1 and 2 are of another torch, as the baseline's 2."""
    labels = fabricate.study(root, lambda t: 2.0 + t["seed"] / 100 + 0.1 * (t["variant"] == "rope"))
    for label in labels:
        if (label["variant"], label["seed"]) in {("rope", 1), ("rope", 2), ("base", 2)}:
            change(root, label["id"], torch="2.9")
    return labels


def change(root: Path, trial: str, **facts: Any) -> None:
    file = root / "trials" / trial / "record.json"
    record = json.loads(file.read_text())
    record["environment"] |= facts
    file.write_text(json.dumps(record))


def test_pairs_across_sets_are_counted(tmp_path: Path) -> None:
    labels = study(tmp_path)
    facts = json.loads((tmp_path / "studies" / "made" / "study.json").read_text())
    records = {
        each["id"]: json.loads((tmp_path / "trials" / each["id"] / "record.json").read_text()) for each in labels
    }
    (found,) = pairs_across(trials_of(facts, records), "base").values()
    assert found == (3, 1)  # seed 1 alone: seed 2 of both is of the other set


@pytest.mark.parametrize("fact", ["gpu", "cpu", "torch", "threads", "ablate", "git_commit", "device"])
def test_every_fact_makes_another_set(fact: str) -> None:
    facts = {"cpu": "c", "torch": "t", "threads": 1, "ablate": "a", "git_commit": "g", "device": "cpu"}
    assert set_of(facts) != set_of(facts | {fact: "other"})
    assert set_of(facts) == set_of(facts | {"host": "another", "python": "3.12"}) and set_of(None) is None


def test_the_report_and_status_flag_what_was_compared_across_sets(tmp_path: Path) -> None:
    study(tmp_path)
    text = write_report(tmp_path, "made").markdown.read_text()
    assert "## Machines and libraries" in text and "which differ in torch: 3 on" in text
    assert "(1 of 3 pairs across machines or libraries)" in text
    assert "| rope | 3 | 1 |" in text


def test_a_study_of_one_set_says_nothing(tmp_path: Path) -> None:
    fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 100)
    text = write_report(tmp_path, "made").markdown.read_text()
    assert "Machines and libraries" not in text and "pairs across" not in text


@pytest.mark.parametrize(
    ("change_", "outcome"),
    [
        (0.0, "identical"),
        (1e-6, "rounding"),
        (4e-3, "within"),
        (4e-2, "beyond"),
    ],
)
def test_a_trial_that_was_trained_again_is_compared(tmp_path: Path, change_: float, outcome: str) -> None:
    """The noise of a seed is 0.01."""
    (label, *_) = study(tmp_path)
    rows = [
        json.loads(line) for line in (tmp_path / "trials" / label["id"] / "metrics.jsonl").read_text().splitlines()
    ]
    rows = [row | {"loss": row["loss"] + change_} for row in rows]
    file = tmp_path / "drift" / "there" / f"{label['id']}.json"
    file.parent.mkdir(parents=True)
    there = {"cpu": "another", "device": "cpu", "torch": "2.8", "git_commit": "c0ffee"}
    file.write_text(json.dumps({"environment": there, "rows": rows, "loss": 2.0 + change_}))
    facts = json.loads((tmp_path / "studies" / "made" / "study.json").read_text())
    record = json.loads((tmp_path / "trials" / label["id"] / "record.json").read_text())
    others = {each["id"]: json.loads((tmp_path / "trials" / each["id"] / "record.json").read_text())
              for each in facts["trials"]}  # fmt: skip
    (found,) = reruns(tmp_path, facts, others)
    assert (found.outcome, found.first, found.again[0]) == (outcome, HERE, "another")
    assert found.noise == pytest.approx(0.01) and record["status"] == "finished"
    text = write_report(tmp_path, "made").markdown.read_text()
    assert found.words in text


def test_curves_of_other_rows_are_not_alike() -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert apart(rows, rows) == 0 and apart(rows, rows[:1]) == math.inf
    assert apart(rows, [rows[0], {"step": 3, "loss": 1.0}]) == math.inf
    assert apart(rows, [rows[0], {"step": 2, "loss": None}]) == math.inf
    assert apart(rows, [rows[0], {"step": 2, "loss": 1.25}]) == pytest.approx(0.2)
    assert Rerun("a", HERE, HERE, math.inf, 0.5, None).outcome == "different"


def test_a_trial_of_a_cohort_is_trained_again_in_its_program(ledger: Ledger, write: Write) -> None:
    """Which gives other bits than a trial alone, and the same whoever is beside it."""
    cohorts = ("--workers", 0, "--cohorts", 2, "--check-drift")
    code, said = run_here("run", write(TINY), "--results", with_database(ledger).root, *cohorts)
    assert code == 0 and "identical to the bit" in said, said


def test_the_cheapest_baseline_trial_is_trained_again_on_each_set(
    tmp_path: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a set, beside its record, which stays as it is."""
    ledger: Ledger = new_results(tmp_path / "results", token_cache)
    plan = plan_of(TINY, tmp_path, token_cache)
    run_study(plan, ledger)
    before = {each: (ledger.trial(each).folder / "record.json").read_bytes() for each in ledger.trial_ids()}
    (here,) = check_drift(ledger, plan)
    assert here.outcome == "identical" and here.trial_id == plan.trials[0].id and here.first == here.again

    def elsewhere(device: Any) -> dict[str, Any]:
        return environment(device) | {"cpu": "another", "torch": "9.9"}

    monkeypatch.setattr("ablate.run.drift.environment", elsewhere)
    monkeypatch.setattr("ablate.train.record.environment", elsewhere)
    for _ in range(2):
        found = check_drift(ledger, plan)
        assert sorted(each.again[0] == "another" for each in found) == [False, True]
    assert len(list((ledger.root / "drift").glob("*/*.json"))) == 2 and not list(ledger.root.glob(".drift-*"))
    assert {each: (ledger.trial(each).folder / "record.json").read_bytes() for each in ledger.trial_ids()} == before
    code, said = run_here("run", tmp_path / "grid.yaml", "--results", ledger.root, "--workers", 0, "--check-drift")
    assert code == 0 and said.count("drift: trial") == 2 and "identical to the bit" in said
    record = ledger.trial(plan.trials[-1].id).folder / "record.json"
    record.write_text(record.read_text().replace('"threads": 1', '"threads": 7'))
    code, said = run_here("status", "tiny", "--results", ledger.root)
    assert "not run alike: 3 trials on" in said and "rope: 1 of 2 pairs across these" in said


@pytest.mark.parametrize("content", ["", "[1]", '{"rows": 7}', '{"rows": [1], "environment": {}, "loss": 1}'])
def test_damaged_reruns_and_estimates_are_left_out(tmp_path: Path, content: str) -> None:
    label, *_ = study(tmp_path)
    rerun = tmp_path / "drift" / "0123" / f"{label['id']}.json"
    rerun.parent.mkdir(parents=True)
    facts, record = read_study(tmp_path, "made"), Ledger(tmp_path).trial(label["id"]).record()
    assert record is not None
    rerun.write_text(content.replace("{}", json.dumps(record["environment"])))
    estimates = content if not content.startswith("{") else json.dumps({label["id"]: json.loads(content)})
    (tmp_path / "studies" / "made" / "estimates.json").write_text(estimates)
    assert reruns(tmp_path, facts, {label["id"]: record}) == []
    code, said = run_here("status", "made", "--results", tmp_path)
    assert code == 0 and "6 finished" in said
