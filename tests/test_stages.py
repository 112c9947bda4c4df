"""Stages: planned, trained from exactly the weights of the stage before, and what happens when one fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Cli
from runs import new_results, run_study

from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.rows import Plan
from ablate.run.ledger import Ledger
from ablate.train.run import TrainingRun

CPU = torch.device("cpu")

GRID = """\
study: staged
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 2560, batch_tokens: 256, lr: 3e-3, eval_points: 2, eval_tokens: 256, final_eval_tokens: 256}
variants:
  plain: {}
  rope: rope
seeds: 2
stages:
  pretrain: {seeds: 1}
  other: {data.path: other.txt, axes: {train.lr: [1e-3, 1e-4]}}
  zero: {data.path: other.txt, train.tokens: 0, seeds: 1}
  chain: {from: other, seeds: [7], train.tokens: 512}
"""
OTHER = "\n".join(f"{i} times {j} is {i * j}" for i in range(60) for j in range(30))


@pytest.fixture
def plan(write: Callable[..., Path], token_cache: Path) -> Callable[..., Plan]:
    write(OTHER, "other.txt")

    def made(text: str = GRID, **replaced: str) -> Plan:
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        return make_plan(load_grid(write(text)), token_cache)

    return made


def test_every_stage_begins_from_each_trial_of_the_one_before(plan: Callable[..., Plan]) -> None:
    made = plan()
    trials = {trial.id: trial for trial in made.trials}
    by_stage: dict[str, list] = {}
    for trial in made.trials:
        by_stage.setdefault(trial.row.stage, []).append(trial)
    counts = {stage: len(each) for stage, each in by_stage.items()}
    assert counts == {"pretrain": 2, "other": 2 * 2 * 2, "zero": 2, "chain": 2 * 2 * 2}
    assert all(trial.spec.parent is None for trial in by_stage["pretrain"])
    for stage, before in (("other", "pretrain"), ("zero", "pretrain"), ("chain", "other")):
        for trial in by_stage[stage]:
            parent = trials[trial.spec.parent]
            assert parent.row.stage == before and parent.row.variant == trial.row.variant
            assert trial.spec.arch == parent.spec.arch  # the solved sizes too
            assert trial.spec.data.tokenizer == parent.spec.data.tokenizer
            assert trial.spec.data.vocabulary == (parent.spec.data.vocabulary or trial.spec.data.vocabulary) != ""
    assert {trial.row.axes for trial in by_stage["chain"]} == {"lr=0.001", "lr=0.0001"}
    assert {trial.spec.train.tokens for trial in by_stage["chain"]} == {512}
    assert {trial.spec.train.lr for trial in by_stage["chain"]} == {3e-3}  # the base's, not the parent's


def test_an_id_depends_on_the_model_that_a_trial_begins_from(plan: Callable[..., Plan]) -> None:
    before, after = plan(), plan(GRID.replace("pretrain: {seeds: 1}", "pretrain: {seeds: 1, train.dropout: 0.1}"))
    ids = [{trial.id for trial in made.trials} for made in (before, after)]
    assert not ids[0] & ids[1]


def test_the_weights_are_exactly_the_parent_s(plan: Callable[..., Plan], ledger: Ledger) -> None:
    """At step 0, before anything is trained: bit for bit, and so are the losses that are measured there."""
    made = plan()
    run_study(made, ledger)
    zeros = [trial for trial in made.trials if trial.row.stage == "zero"]
    for trial in (each for each in made.trials if each.row.stage == "other"):
        weights = ledger.trial(trial.spec.parent).weights
        run = TrainingRun(trial.spec, CPU, ledger.cache, weights)
        for name, value in torch.load(weights)["model"].items():
            assert torch.equal(run.model.state_dict()[name], value), name
        fresh = TrainingRun(trial.spec, CPU, ledger.cache)
        assert not all(
            torch.equal(p, q) for p, q in zip(run.model.parameters(), fresh.model.parameters(), strict=True)
        )
        record = ledger.trial(trial.id).record()
        assert record["parent"] == trial.spec.parent and record["begun"]["fresh"] == []
        first = next(row for row in ledger.trial(trial.id).rows() if row["split"] == "valid")
        (zero,) = [each for each in zeros if each.spec.parent == trial.spec.parent]
        assert first["step"] == 0 and first["loss"] == ledger.trial(zero.id).record()["metrics"]["loss"]


def test_what_begins_from_a_failure_is_recorded_as_one(plan: Callable[..., Plan], ledger: Ledger) -> None:
    """It stays in every table's denominator, and says why."""
    made = plan(GRID.replace("pretrain: {seeds: 1}", "pretrain: {seeds: 1, train.diverge_above: 1e-9}"))
    outcome = run_study(made, ledger)
    assert outcome.exit_code == 1
    for trial in made.trials:
        record = ledger.trial(trial.id).record()
        if trial.row.stage == "pretrain":
            assert record["status"] == "diverged"
        else:
            assert record["status"] == "failed" and trial.spec.parent in record["error"]


def test_a_report_has_the_table_of_transfer(write: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    write(OTHER, "other.txt")
    made = cli("run", write(GRID), "--results", tmp_path / "results", "--workers", 0)
    assert made.returncode == 0, made.stderr
    assert "pre-training loss, then other (lr=0.001) (loss), other (lr=0.0001) (loss), zero (loss)" in made.stdout
    folder = tmp_path / "results" / "studies" / "staged"
    text = (folder / "report" / "report.md").read_text()
    assert "## Transfer" in text and "| other (lr=0.001) (loss) |" in text
    study = json.loads((folder / "study.json").read_text())
    assert study["stages"] == [
        {"name": "pretrain", "from": None},
        {"name": "other", "from": "pretrain"},
        {"name": "zero", "from": "pretrain"},
        {"name": "chain", "from": "other"},
    ]
    again = cli("run", tmp_path / "grid.yaml", "--results", tmp_path / "results", "--workers", 0)
    assert "20 already done, 0 to train" in again.stdout


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("from: other", "from: others", "stages.chain.from: unknown stage before this one 'others'; did you mean"),
        ("from: other", "from: chain", "unknown stage before this one 'chain'"),
        ("pretrain: {seeds: 1}", "pretrain: {from: zero}", "the first stage begins afresh"),
        ("zero: {data.path", "zero: {date.path", "unknown key 'date.path'; did you mean 'data'"),
        ("seeds: [7]", "seeds: 0", "stages.chain.seeds: there are no seeds"),
        (
            "zero: {data.path: other.txt,",
            "zero: {data.tokenizer: characters,",
            "has the tokenizer of the one it begins",
        ),
        ("pretrain: {seeds: 1}", "pretrain: {train.tokens: 0}", "0 measures a trained model as it is"),
        ("train.tokens: 512", "arch.d_model: 32", "the weights to begin from do not fit: they have no tower."),
        ("train.tokens: 512", "train.epochs: 1e-9", "is less than one batch of 256"),
    ],
)
def test_mistakes(plan: Callable[..., Plan], old: str, new: str, said: str) -> None:
    assert old in GRID
    with pytest.raises(UserError) as error:
        plan(GRID.replace(old, new))
    assert said in str(error.value) and "grid.yaml:" in str(error.value)


def test_epochs_are_a_length_of_training(plan: Callable[..., Plan]) -> None:
    """Half an epoch of the split, in whole batches; the same experiment as its tokens."""
    made = plan(GRID.replace("train.tokens: 512", "train.epochs: 0.5"))
    row = next(row for row in made.rows if row.stage == "chain")
    tokens = row.spec.train.tokens
    assert tokens % 256 == 0 and row.spec.train.epochs is None
    by_tokens = plan(GRID.replace("train.tokens: 512", f"train.tokens: {tokens}"))
    assert [trial.id for trial in by_tokens.trials] == [trial.id for trial in made.trials]


# ---- start many, stop early, continue some

RUNGS = """\
study: rungs
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 10240, batch_tokens: 256, lr: 3e-3, eval_points: 6, eval_tokens: 256, final_eval_tokens: 256}
variants:
  plain: {}
  rope: rope
seeds: 4
rungs: {at: [0.2, 0.5], keep: 0.5}
"""


def test_the_best_of_a_row_go_on(write: Callable[..., Path], tmp_path: Path, token_cache: Path) -> None:
    """Of four seeds two go on after the first rung and one after the second, by their losses there; what is trained
    to its end has the numbers of a study without rungs, and a study without them trains what was stopped."""
    made = make_plan(load_grid(write(RUNGS)), token_cache)
    ledger, other = (new_results(tmp_path / name, token_cache) for name in ("with", "without"))
    run_study(made, ledger)
    plain = make_plan(load_grid(write(RUNGS.replace("rungs: {at: [0.2, 0.5], keep: 0.5}\n", ""))), token_cache)
    run_study(plain, other)
    for row in made.rows:
        ids = [trial.id for trial in made.trials if trial.row is row]
        losses = {
            (each["step"], trial): each["loss"]
            for trial in ids
            for each in other.trial(trial).rows()
            if each["split"] == "valid"
        }
        steps = sorted({step for step, _ in losses})
        first, second = (min(steps[1:], key=lambda step: abs(math.log(step / share / 40))) for share in (0.2, 0.5))
        two = sorted(ids, key=lambda trial: losses[first, trial])[:2]
        best = min(two, key=lambda trial: losses[second, trial])
        reached = {trial: max(each["step"] for each in ledger.trial(trial).rows()) for trial in ids}
        assert reached == {each: 40 if each == best else second if each in two else first for each in ids}
        statuses = {trial: ledger.trial(trial).status() for trial in ids}
        assert statuses == {each: "finished" if each == best else "stopped" for each in ids}
        assert ledger.trial(best).rows() == other.trial(best).rows()
    again = run_study(made, ledger)
    assert again.trained == []
    run_study(plain, ledger)
    for trial in plain.trials:
        assert ledger.trial(trial.id).rows() == other.trial(trial.id).rows()
        assert ledger.trial(trial.id).status() == "finished"


@pytest.mark.parametrize(
    ("rungs", "said"),
    [
        ("3", "must be a mapping"),
        ("{at: [0.5, 0.2]}", "rungs.at: [0.5, 0.2] must be rising shares"),
        ("{at: [1.0]}", "must be rising shares"),
        ("{keep: 2}", "rungs.keep: 2 must be a share"),
        ("{keeps: 0.5}", "unknown key 'keeps'; did you mean 'keep'"),
    ],
)
def test_mistakes_of_rungs(write: Callable[..., Path], rungs: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_grid(write(RUNGS.replace("{at: [0.2, 0.5], keep: 0.5}", rungs)))
    assert said in str(error.value) and "grid.yaml:" in str(error.value)
