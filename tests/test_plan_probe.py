"""What a plan will take: rows measured, hours from what was measured, and the same beside what trials took."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from runs import FAULTS, faulty, own_registry, plan_of, run_here, run_study, spec, train

from ablate import registry
from ablate.errors import UserError
from ablate.rows import Plan
from ablate.run import estimates, measure, probing
from ablate.run.alike import Alike, devices_of
from ablate.run.estimates import keep_estimates, study_hours, trial_seconds
from ablate.run.hours import Rates, rates_said
from ablate.run.ledger import Ledger
from ablate.run.measure import doubled
from ablate.run.probeview import probe_json
from ablate.run.status import print_status, study_status
from ablate.run.study import study_tree
from ablate.spec import TrialSpec
from ablate.train.fitted import new_run
from ablate.train.job import Job

Write = Callable[..., Path]

FIGURES = {  # of a row that is easy to add up
    "setup_s": 1.0,
    "step_s": 0.5,
    "step_quartiles_s": [0.4, 0.6],
    "refits": False,
    "evaluation_s": 10.0,
    "final_evaluation_s": 100.0,
    "looks_s": 3.0,
    "checkpoint_s": 0.1,
    "weights_s": 2.0,
    "memory_bytes": 10**6,
    "micro_batches": 1,
    "rows_at_once": 4,
    "largest_rows": 4,
}


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    """A results folder that shares tokens and costs, and has nothing measured or remembered."""
    results = tmp_path / "results"
    (results / "cache").mkdir(parents=True)
    for name in ("tokens", "cost"):
        (token_cache / name).mkdir(exist_ok=True)
        (results / "cache" / name).symlink_to(token_cache / name)
    return Ledger(results)


@pytest.fixture
def plan(tmp_path: Path, ledger: Ledger) -> Plan:
    return plan_of(TINY, tmp_path, ledger.cache)


@pytest.fixture
def all_loaded() -> None:
    """What is imported while a plugin is there would be forgotten with it."""
    for entry in registry.catalogue():
        registry.load(entry)


# ---- what is measured


def figures_here(ledger: Ledger, asked: TrialSpec) -> dict[str, Any]:
    return measure.measure(Job("probe", str(ledger.root)), asked)


def test_figures_of_a_row(ledger: Ledger) -> None:
    """Every part is measured, nothing is left of it."""
    found = figures_here(ledger, spec({"train.tokens": 64 * 30, "train.accumulate": 2}))
    low, high = found["step_quartiles_s"]
    assert 0 < low <= found["step_s"] <= high and found["steps_timed"] == measure.TIMED
    for name in ("setup_s", "evaluation_s", "final_evaluation_s", "looks_s", "checkpoint_s", "weights_s"):
        assert found[name] > 0, name
    assert found["micro_batches"] == 1 and found["rows_at_once"] == 2 and 2 <= found["largest_rows"] <= 4
    assert found["memory_bytes"] >= 0 and found["refits"] is False
    assert not (ledger.root / "trials").exists()
    assert [*(ledger.cache / "probes").iterdir()] == []


def test_steps_are_the_last_of_the_run(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the largest where rows and batches grow; the first of them are not counted."""
    seen: list[int] = []
    clock = iter([100.0, 50.0, *([2.0] * 5), 4.0, *([2.0] * 20)])

    def timed(act: Callable[[], object]) -> float:
        seen.append(run.step)
        act()
        return next(clock)

    run = new_run(
        spec({"train.tokens": 64 * 40, "train.batch_ramp": 0.5, "train.ramp_parts": 4}),
        torch.device("cpu"),
        ledger.cache,
    )
    monkeypatch.setattr(measure, "PATIENCE_S", 1e9)
    warm, steps = measure._steps(run, timed)
    assert seen == [*range(run.steps - 11, run.steps)]
    assert warm == 150.0 and steps == [2.0] * 5 + [4.0] + [2.0] * 3


def test_slow_steps_are_few(ledger: Ledger) -> None:
    run = new_run(spec({"train.tokens": 64 * 40}), torch.device("cpu"), ledger.cache)

    def hour(act: Callable[[], object]) -> float:
        act()
        return 3600.0

    warm, steps = measure._steps(run, hour)
    assert warm == 7200.0 and steps == [3600.0] * measure.LEAST


def test_a_model_that_is_counted_is_timed_by_its_fits(ledger: Ledger) -> None:
    asked = spec({"arch.model": {"name": "ngram"}})
    found = figures_here(ledger, asked)
    assert found["refits"] and found["steps_timed"] == 1 and found["largest_rows"] is None
    assert trial_seconds({**FIGURES, "refits": True}, asked) == 1 + 3 + 2 + 3 * 0.5 + 3 * 10 + 100


def test_the_largest_micro_batch_is_tried_by_doubling() -> None:
    tried: list[int] = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= 20

    assert doubled(4, 64, fits) == 16 and tried == [8, 16, 32]
    assert doubled(4, 20, fits) == 20 and doubled(4, 4, fits) == 4


HUNGRY = '''\
"""A norm whose device has memory for two rows."""

import torch

from ablate import Norm, register


@register("norm", "hungry", paper="made up")
class Hungry(Norm):
    """x, unchanged."""

    def forward(self, x):
        if self.training and x.dtype is torch.float32 and x.device.type != "meta" and len(x) > 2 and x.ndim == 3:
            raise torch.OutOfMemoryError("no room")
        return x
'''


@pytest.fixture
def hungry(write: Write, all_loaded: None) -> Iterator[None]:
    with own_registry():
        registry.add_plugin(write(HUNGRY, "hungry.py"))
        yield


def test_memory_that_is_refused_is_found_and_remembered(ledger: Ledger, hungry: None) -> None:
    """A probe comes to the pieces that a trial then begins with, and the other way round."""
    asked = spec({"train.batch_tokens": 128, "train.tokens": 1280, "arch.norm": "hungry"})
    found = figures_here(ledger, asked)
    assert found["micro_batches"] == 4 and found["rows_at_once"] == 2
    record = train(ledger, asked).record()
    assert record is not None and record["status"] == "finished" and record["micro_batches"] == 4
    assert [each["event"] for each in ledger.trial(asked.trial_id).history()] == ["start", "end"]
    run = new_run(asked, torch.device("cpu"), ledger.cache)
    assert measure.fits(run, 2) and not measure.fits(run, 3)  # type: ignore[arg-type]
    assert all(each.grad is None for each in run.model.parameters())


# ---- hours


def test_seconds_of_a_trial_are_the_sum_of_its_parts() -> None:
    """12 steps, evaluated after 0, 1, 3 and at the end; checkpoints by the clock, and never more than their share."""
    asked = spec()
    once = 1.0 + 3.0 + 2.0
    assert trial_seconds(FIGURES, asked) == once + 12 * 0.5 + 3 * 10 + 100
    assert trial_seconds(FIGURES, asked, checkpoint_every_s=5) == pytest.approx(once + 6 + 130 + 1 * 0.1)
    slow = {**FIGURES, "step_s": 100.0, "checkpoint_s": 1.0}
    assert trial_seconds(slow, asked, checkpoint_every_s=1) == once + 1200 + 130 + 24  # every 50 s, not every second
    ramped = spec({"train.batch_ramp": 0.5, "train.ramp_parts": 4})
    assert ramped.train.steps > 12
    assert trial_seconds({**FIGURES, "evaluation_s": 0.0}, ramped) == once + 12 * 0.5 + 100


def test_hours_of_a_study(plan: Plan) -> None:
    trials = list(plan.trials)
    seconds = dict(zip([trial.id for trial in trials], (3600.0, 7200.0, 3600.0), strict=False))
    assert study_hours(trials, seconds, 2) == {"trials": 3, "unknown": 1, "device_hours": 4.0, "hours": 2.0}
    assert study_hours(trials, seconds, 100)["hours"] == 2.0  # no shorter than the longest trial
    assert study_hours([], {}, 2) == {"trials": 0, "unknown": 0, "device_hours": 0.0, "hours": 0.0}


def test_money_and_energy() -> None:
    rates = Rates.told("2.50 USD/h", 400)
    assert rates.of(10) == {"cost": 25.0, "currency": "USD", "kwh": 4.0}
    assert rates_said(rates.of(10)) == ", 25.00 USD, 4 kWh"
    assert Rates.told("3 €", None).of(2) == {"cost": 6.0, "currency": "€"}
    assert Rates.told(".5", None).of(2) == {"cost": 1.0, "currency": ""} and Rates.told(None, None).of(2) == {}
    for price in ("cheap", "", "-1 USD", "2,50 USD"):
        with pytest.raises(UserError, match=r"--price .* must be a number and a currency"):
            Rates.told(price, None)
    with pytest.raises(UserError, match="--watts 0 must be above 0"):
        Rates.told(None, 0.0)


def test_trials_to_go_alone_are_counted(plan: Plan, ledger: Ledger) -> None:
    done, *others = plan.trials
    train(ledger, done.spec)
    figures = {row.spec.row_id: FIGURES for row in plan.rows}
    tree = probe_json(plan, ledger, figures, 2, Rates.told("36 EUR", None))
    one = trial_seconds(FIGURES, done.spec)
    assert [row["to_go"] for row in tree["rows"]] == [1, 2] and tree["trials"] == len(others) == 3
    assert tree["device_hours"] == pytest.approx(3 * one / 3600) and tree["hours"] == pytest.approx(1.5 * one / 3600)
    assert tree["cost"] == pytest.approx(36 * 3 * one / 3600)
    bad = {**figures, plan.rows[1].spec.row_id: {"failed": "out of memory"}}
    tree = probe_json(plan, ledger, bad, 2, Rates())
    assert tree["unknown"] == 2 and tree["trials"] == 1 and tree["rows"][1]["trial_s"] is None


# ---- the command


@pytest.mark.slow
def test_the_command_measures_once_and_reports_what_goes_wrong(write: Write, ledger: Ledger) -> None:
    """Two rows that work, one that raises, one that kills its process; kept, and measured again where it is asked."""
    write(FAULTS, "faults.py")
    grid = write(faulty(TINY, "raises", "dies") + "sizes:\n  s: {arch.depth: 1}\nbudgets: {tokens: [6400, 12800]}\n")
    base = ("plan", grid, "--results", ledger.root, "--probe")
    with own_registry():
        code, said = run_here(*base, "--workers", 2, "--price", "2 USD", "--watts", 100)
    assert code == 0, said
    assert said.count("measuring") == 3  # a row of two budgets is measured once
    assert "RuntimeError: the norm [/is upset]" in said and "its process ended by SIGKILL" in said
    assert "4 trials to go" in said and "USD" in said and "kWh" in said
    assert "8 trials of rows that failed are not counted" in said
    assert not (ledger.root / "trials").exists() and not (ledger.root / "studies").exists()
    (file,) = (ledger.cache / "probes").iterdir()
    kept = json.loads(file.read_text())
    assert kept["steps_timed"] == 9

    file.write_text(json.dumps({**kept, "step_s": 3600.0}))
    with own_registry():
        code, said = run_here(*base, "--json")
    tree = json.loads(said[said.index("{") :])["probe"]
    first, second = tree["rows"][:2]
    assert code == 0 and first["step_s"] == 3600.0 and second["trial_s"] - first["trial_s"] > 24 * 3600
    with own_registry():
        code, said = run_here(*base, "--json", "--fresh")
    assert json.loads(said[said.index("{") :])["probe"]["rows"][0]["step_s"] < 3600.0


def test_a_measured_row_is_known_by_what_it_depends_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither seed nor length; but the device, its threads, and the version of torch."""

    def file(asked: TrialSpec) -> Path:
        return probing.kept(ledger.cache, asked)

    here = file(spec())
    assert here == file(spec(seed=1)) == file(spec({"train.tokens": 6400}))
    assert here != file(spec({"train.batch_tokens": 128})) and here != file(spec({"resources.cpus": 2}))
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert here != file(spec())
    monkeypatch.undo()
    monkeypatch.setattr(probing, "device_name", lambda _: "another")
    assert here != file(spec())


def test_options_that_need_a_probe(write: Write, ledger: Ledger) -> None:
    grid = write(TINY)
    for option in (("--fresh",), ("--workers", 2), ("--price", "2 USD"), ("--watts", 3)):
        code, said = run_here("plan", grid, "--results", ledger.root, *option)
        assert code == 2 and f"ablate: {option[0]} is for hours" in said
    code, said = run_here("plan", grid, "--results", ledger.root, "--probe", "--price", "cheap")
    assert code == 2 and "--price 'cheap' must be a number" in said


# ---- estimated and taken


def label(variant: str, number: int = 0, **others: Any) -> dict[str, Any]:
    plain = {"stage": "", "size": "s", "axes": "", "budget": "", "tuned": {}, "train_flops": 10.0}
    return {**plain, "id": f"{variant}{number}", "variant": variant, **others}


def ended(wall_s: float, cpu: str = "here", status: str = "finished") -> dict[str, Any]:
    return {"status": status, "wall_s": wall_s, "environment": {"cpu": cpu}, "ended": wall_s}


def test_trials_alike_tell_what_one_takes() -> None:
    """The row first, then the architecture at another length, then all by FLOPs; of this device, and finished."""
    labels = [label("a", n) for n in range(4)] + [label("b")]
    records = {"a0": ended(1.0), "a1": ended(3.0), "a2": ended(99.0, "there"), "a3": ended(99.0, status="failed")}
    alike = Alike(labels, {**records, "b0": ended(20.0)}, "here")
    assert alike.seconds(label("a", 9)) == (2.0, "trials of its row")
    assert alike.seconds(label("a", 9, budget="more", train_flops=50.0)) == (
        10.0,
        "trials of its variant and size",
    )
    assert alike.seconds(label("c", train_flops=20.0)) == (6.0, "the FLOPs of other trials")
    assert Alike(labels, records, "nowhere").seconds(label("a")) is None
    gpu = {"spec": {"resources": {"gpus": 0.5, "cpus": 3}}, "environment": {"gpu": "H"}}
    assert devices_of(gpu) == 0.5 and devices_of({**gpu, "environment": {"cpu": "C"}}) == 3 and devices_of(None) == 1


@pytest.mark.slow
def test_estimates_are_kept_and_compared(
    plan: Plan, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written when a study begins, from the measured row; what has begun keeps its estimate."""
    monkeypatch.setattr(estimates.probing, "known", lambda cache, asked: FIGURES)
    first, *others = plan.trials
    outcome = run_study(Plan(plan.grid, plan.rows, (first,), plan.facts), ledger)
    assert outcome.exit_code == 0
    one = trial_seconds(FIGURES, first.spec)
    tree = study_status(ledger, "tiny", Rates.told("3600 EUR", None))
    (trial,) = tree["trials"]
    assert trial["estimated_s"] == one and trial["source"] == "measured steps" and trial["to_go_s"] is None
    record = ledger.trial(first.id).record()
    assert record is not None and trial["taken_s"] == record["wall_s"]
    assert tree["hours"]["compared"] == {"trials": 1, "estimated": one / 3600, "taken": record["wall_s"] / 3600}
    assert tree["hours"]["rates_taken"]["cost"] == pytest.approx(record["wall_s"])

    monkeypatch.setattr(estimates.probing, "known", lambda cache, asked: None)
    labels = study_tree(plan)["trials"]
    (ledger.study_folder("tiny") / "study.json").write_text(json.dumps(study_tree(plan) | {"enough": ""}))
    keep_estimates(ledger, plan, labels, [first.id])
    tree = study_status(ledger, "tiny")
    rows = {each["id"]: each for each in tree["trials"]}
    assert rows[first.id]["estimated_s"] == one
    assert {rows[each.id]["source"] for each in others} == {"trials of its row", "the FLOPs of other trials"}
    (mate,) = [each.id for each in others if rows[each.id]["source"] == "trials of its row"]
    assert rows[mate]["to_go_s"] == pytest.approx(record["wall_s"])
    assert tree["hours"]["to_go"] == pytest.approx(sum(rows[each.id]["to_go_s"] for each in others) / 3600)
    print_status(tree)
    said = capsys.readouterr().out.splitlines()[1]
    assert "taken (1 trial with an estimate: " in said and "to go" in said and "no estimate" not in said


def test_a_trial_under_way_has_less_to_go(plan: Plan, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates.probing, "known", lambda cache, asked: FIGURES)
    trial = plan.trials[0]
    tree = study_tree(plan)
    folder = ledger.study_folder("tiny")
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(tree))
    keep_estimates(ledger, plan, tree["trials"], [])
    under_way = ledger.trial(trial.id)
    train(ledger, trial.spec, until=5)
    rows = {each["id"]: each for each in study_status(ledger, "tiny")["trials"]}
    reached = max(row["tokens"] for row in under_way.rows()) / trial.spec.train.tokens
    assert 0 < reached < 1
    assert rows[trial.id]["to_go_s"] == pytest.approx((1 - reached) * trial_seconds(FIGURES, trial.spec))
    assert rows[plan.trials[1].id]["to_go_s"] == trial_seconds(FIGURES, trial.spec)

    monkeypatch.setattr(estimates.probing, "known", lambda cache, asked: {**FIGURES, "setup_s": 1000.0})
    keep_estimates(ledger, plan, tree["trials"], [])  # the next run: what has begun keeps what was expected of it
    rows = {each["id"]: each for each in study_status(ledger, "tiny")["trials"]}
    assert rows[trial.id]["estimated_s"] == trial_seconds(FIGURES, trial.spec)
    assert rows[plan.trials[1].id]["estimated_s"] == trial_seconds(FIGURES, trial.spec) + 999


def test_a_study_of_which_nothing_is_known(plan: Plan, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    tree = study_tree(plan)
    folder = ledger.study_folder("tiny")
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(tree))
    keep_estimates(ledger, plan, tree["trials"], [])
    assert not (folder / "estimates.json").exists()
    print_status(study_status(ledger, "tiny"))
    assert capsys.readouterr().out.splitlines()[1] == "0 s taken; no estimate of 4 trials to go"
