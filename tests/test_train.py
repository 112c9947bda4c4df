"""Training one trial: the same numbers whatever happens to the process, and truthful ones."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import job, spec, train

from ablate import registry
from ablate.data.corpora import corpus_of
from ablate.run.ledger import Ledger, TrialFolder
from ablate.spec import TrialSpec
from ablate.tasks.base import Batch
from ablate.train import training
from ablate.train.run import TrainingRun
from ablate.train.steps import evaluation_steps
from ablate.train.trial import run_trial

CPU = torch.device("cpu")

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"train.dropout": 0.2},
    "accumulation": {"train.accumulate": 2, "train.dropout": 0.1},
    "bf16": {"train.precision": "bf16"},
    "smoothing": {"train.label_smoothing": 0.1, "train.z_loss": 1e-3},
    **{f"optimizer {each.name}": {"train.optimizer": each.name} for each in registry.catalogue("optimizer")},
    "nesterov": {"train.optimizer": {"name": "sgd", "nesterov": True}},
    **{f"schedule {each.name}": {"train.schedule": each.name} for each in registry.catalogue("schedule")},
}


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")


def disturb_process() -> None:
    """What another trial could have left behind in a worker."""
    torch.manual_seed(random.randrange(1 << 30))
    np.random.seed(random.randrange(1 << 30))
    torch.rand(random.randrange(1, 9))
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")


def last_losses(folder: TrialFolder) -> dict[str, float]:
    return {row["split"]: row["loss"] for row in folder.rows()}


# ---- interruption


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_trial_stopped_at_every_place_gives_the_same_curve(
    settings: dict[str, Any], ledger: Ledger, other_ledger: Ledger
) -> None:
    """Stopped and resumed after every step, at every evaluation, and between the last step and the record."""
    trial = spec(settings)
    whole = train(ledger, trial)
    folder = other_ledger.trial(trial.trial_id)
    places: list[int] = []
    while folder.record() is None and len(places) < 20:
        disturb_process()
        under_way = run_trial(job(other_ledger, trial, progress_every_s=0))
        event = next(under_way)
        under_way.close()
        places.append(event["step"])
    assert places == [*range(1, 13), 12]  # the last one only wrote the record
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert [row["step"] for row in whole.rows() if row["split"] == "valid"] == [0, 1, 3, 12]
    ours, theirs = (torch.load(each.weights)["model"] for each in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert folder.record()["metrics"] == whole.record()["metrics"]  # type: ignore[index]
    assert [each["event"] for each in folder.history()] == [
        "start",
        "stop",
        *["resume", "stop"] * 11,
        "resume",
        "end",
    ]


def test_a_trial_killed_at_any_moment_gives_the_same_curve(
    ledger: Ledger, other_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves a checkpoint of some time ago beside a curve that went on, maybe torn; or no checkpoint."""
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", math.inf)  # one after every step
    trial = spec({"train.dropout": 0.1})
    moments: list[tuple[bytes, bytes]] = []  # checkpoint, curve
    folder = ledger.trial(trial.trial_id)
    for _ in run_trial(job(ledger, trial, progress_every_s=0, checkpoint_every_s=0)):
        checkpoint = folder.checkpoint.read_bytes() if folder.checkpoint.exists() else b""
        moments.append((checkpoint, folder.metrics.read_bytes()))
    whole = folder.metrics.read_bytes()
    moments.pop()  # it has its record
    assert not moments[0][0] and len({checkpoint for checkpoint, _ in moments}) > 5
    left = [
        *moments,
        *[(checkpoint, moments[-1][1]) for checkpoint, _ in moments[:-1]],  # long after the checkpoint
        (moments[5][0], moments[-1][1] + b'{"step": 12, "tok'),
    ]
    again = other_ledger.trial(trial.trial_id)
    resumed = 0
    for checkpoint, curve in left:
        shutil.rmtree(again.folder, ignore_errors=True)
        request = job(other_ledger, trial)
        again.metrics.write_bytes(curve)
        if checkpoint:
            again.checkpoint.write_bytes(checkpoint)
        disturb_process()
        assert [*run_trial(request)][-1]["status"] == "finished"
        assert again.metrics.read_bytes() == whole
        assert not again.checkpoint.exists()
        resumed += again.history()[0]["event"] == "resume"
    assert resumed == sum(bool(checkpoint) for checkpoint, _ in left) > 15


def test_a_curve_shorter_than_its_checkpoint_starts_again(ledger: Ledger, other_ledger: Ledger) -> None:
    """Rows that the checkpoint counts on are gone, so going on would leave a hole."""
    trial = spec()
    whole = train(ledger, trial)
    folder = other_ledger.trial(trial.trial_id)
    under_way = run_trial(job(other_ledger, trial, progress_every_s=0))
    for _ in range(5):
        next(under_way)
    under_way.close()
    os.truncate(folder.metrics, folder.metrics.stat().st_size - 1)
    train(other_ledger, trial)
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert [each["event"] for each in folder.history()] == ["start", "stop", "start", "end"]


# ---- what the numbers depend on


def test_the_seed_decides_every_number(ledger: Ledger, other_ledger: Ledger) -> None:
    one = train(ledger, spec(seed=1)).metrics.read_bytes()
    disturb_process()
    assert train(other_ledger, spec(seed=1)).metrics.read_bytes() == one
    first, second = last_losses(ledger.trial(spec(seed=1).trial_id)), last_losses(train(ledger, spec(seed=2)))
    assert all(first[split] != second[split] for split in ("batch", "train", "valid", "test"))


def test_nothing_is_left_of_the_trial_before(ledger: Ledger, other_ledger: Ledger) -> None:
    """Two unlike trials in one process, in both orders."""
    pair = [
        spec({"train.dropout": 0.2, "train.precision": "bf16", "train.optimizer": "radam"}),
        spec({"arch.norm": "rmsnorm", "arch.position": "rope", "train.accumulate": 4, "train.clip": None}, seed=3),
    ]
    for trial in pair:
        train(ledger, trial)
    for trial in reversed(pair):
        disturb_process()
        folder, before = train(other_ledger, trial), ledger.trial(trial.trial_id)
        assert folder.metrics.read_bytes() == before.metrics.read_bytes()
        assert folder.weights.read_bytes() == before.weights.read_bytes()
        assert torch.get_float32_matmul_precision() == "highest"  # changes no number on a CPU without such units


def same(one: Batch, two: Batch) -> bool:
    return torch.equal(one.inputs[0], two.inputs[0]) and torch.equal(one.targets, two.targets)


def test_two_variants_see_the_same_batches_and_start_from_the_same_values(token_cache: Path) -> None:
    plain = TrainingRun(spec({"arch.depth": 2}), CPU, token_cache)
    rope = TrainingRun(spec({"arch.depth": 2, "arch.position": "rope", "train.lr": 1e-2}), CPU, token_cache)
    other = TrainingRun(spec({"arch.depth": 2}, seed=1), CPU, token_cache)
    steps = (0, 1, 63, 64, 700)
    for step in steps:
        assert same(plain.batches[step], rope.batches[step])
        assert not same(plain.batches[step], other.batches[step])
    for split in ("train", "valid", "test"):  # whatever the seed
        for ours, theirs in zip(*(run.task.held_out(split, 500, 8) for run in (plain, other)), strict=True):
            assert same(ours, theirs)
    ours, theirs, others = (dict(each.model.named_parameters()) for each in (plain, rope, other))
    assert ours.keys() - theirs.keys() and len(theirs) > 20  # the learned table alone is missing
    assert theirs.keys() < ours.keys()
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name
    drawn = [name for name, value in ours.items() if value.ndim == 2]
    assert drawn and not any(torch.equal(ours[name], others[name]) for name in drawn)


def test_batches_of_a_step_do_not_depend_on_the_steps_before(token_cache: Path) -> None:
    one, two = (TrainingRun(spec(), CPU, token_cache).batches for _ in range(2))
    forward = {step: one[step] for step in range(130)}
    assert all(same(two[step], forward[step]) for step in (129, 0, 64, 63, 128))


# ---- the step


def _in_float64(settings: dict[str, Any], cache: Path) -> list[tuple[float, float]]:
    """(batch loss, gradient norm) of every step, in double precision."""
    torch.set_default_dtype(torch.float64)
    run = TrainingRun(spec({"train.batch_tokens": 128, "train.tokens": 1280, **settings}), CPU, cache)
    assert all(each.dtype == torch.float64 for each in run.parameters)
    rows = []
    for _ in range(run.steps):
        run.train_step()
        rows.append(run.take_means())
    return rows


def test_accumulation_equals_one_large_batch(token_cache: Path) -> None:
    """The mean over parts is the mean over the whole; in double precision only the order of sums is left.

    1e-9 is far above what ten steps make of rounding errors of 1e-16, and far below what one missing or
    doubled example (1/8 of a batch) would do.
    """
    whole = _in_float64({}, token_cache)
    for parts in (2, 8):
        np.testing.assert_allclose(_in_float64({"train.accumulate": parts}, token_cache), whole, rtol=1e-9)


def test_the_gradient_is_clipped_and_reported_unclipped(ledger: Ledger) -> None:
    sgd = {"train.optimizer": "sgd", "train.weight_decay": 0.0, "train.final_eval_tokens": 64}
    free, tight = (train(ledger, spec({**sgd, "train.clip": clip})) for clip in (None, 1e-6))
    norms = [[row["grad_norm"] for row in each.rows() if "grad_norm" in row] for each in (free, tight)]
    assert norms[0][0] == norms[1][0] > 1e-3  # the first gradient, before any update
    before, after = [[row["loss"] for row in tight.rows() if row["split"] == "valid"][at] for at in (0, -1)]
    assert after == pytest.approx(before, abs=1e-4)  # steps of at most 3e-8, with momentum, lead nowhere
    assert last_losses(free)["valid"] < before - 0.1


def test_weight_decay_is_on_matrices_alone(token_cache: Path) -> None:
    """One AdamW step with and without: matrices differ by lr * decay * w, vectors not at all."""
    made = {
        decay: TrainingRun(spec({"train.weight_decay": decay, "train.schedule": "constant"}), CPU, token_cache)
        for decay in (0.0, 0.5)
    }
    start = {name: value.detach().clone() for name, value in made[0.0].model.named_parameters()}
    for run in made.values():
        run.train_step()
    free, decayed = (dict(run.model.named_parameters()) for run in made.values())
    kinds = {value.ndim for value in start.values()}
    assert {1, 2} <= kinds
    for name, value in start.items():
        if value.ndim < 2:
            assert torch.equal(decayed[name], free[name]), name
        else:
            torch.testing.assert_close(free[name] - decayed[name], 3e-3 * 0.5 * value, rtol=1e-3, atol=1e-7)
    grouped = [id(each) for group in made[0.5].optimizer.param_groups for each in group["params"]]
    assert sorted(grouped) == sorted(id(each) for each in made[0.5].parameters)


# ---- divergence


@pytest.mark.parametrize(
    "settings",
    [{"train.lr": 1e6}, {"train.lr": 1e6, "train.optimizer": "sgd", "train.clip": None}],
    ids=["adamw", "sgd, unclipped"],
)
def test_a_loss_that_is_not_finite_ends_the_trial_as_diverged(settings: dict[str, Any], ledger: Ledger) -> None:
    trial = spec({**settings, "train.tokens": 64 * 200})
    end = [*run_trial(job(ledger, trial))][-1]
    folder = ledger.trial(trial.trial_id)
    record = folder.record()
    assert record is not None and end["status"] == record["status"] == folder.status() == "diverged"
    assert record["metrics"]["loss"] is None and end["loss"] is None
    assert record["error"] == f"the loss is nan at step {record['steps']}"
    assert 0 < record["steps"] < 200 and record["tokens"] == record["steps"] * 64
    assert record["spec"]["train"]["lr"] == 1e6 and record["params_total"] > 0 and record["environment"]["torch"]
    rows = folder.rows()
    assert rows[0]["step"] == 0 and rows[0]["loss"] > 0  # what there was of a curve is kept
    assert rows[-1]["step"] == record["steps"] and rows[-1]["loss"] is None
    for file in (folder.metrics, folder.folder / "record.json"):
        for line in file.read_text().splitlines() if file is folder.metrics else [file.read_text()]:
            json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert not folder.checkpoint.exists()


def test_a_loss_above_the_stated_multiple_of_the_first_is_divergence(ledger: Ledger) -> None:
    folder = train(ledger, spec({"train.diverge_above": 0.5}))
    record = folder.record()
    assert record is not None and record["status"] == "diverged"
    assert "above 0.5 x the first" in record["error"] and record["steps"] == 10
    assert record["metrics"]["last_loss"] == [row["loss"] for row in folder.rows() if row["split"] == "valid"][-1]
    assert train(ledger, spec({"train.diverge_above": 1.5})).status() == "finished"


def test_a_trial_whose_last_update_spoils_it_has_diverged(ledger: Ledger) -> None:
    """Every training loss was finite; the weights at the end are not."""
    folder = train(ledger, spec({"train.tokens": 64, "train.lr": 1e38, "train.optimizer": "sgd", "train.clip": None}))
    record = folder.record()
    assert record is not None and record["status"] == "diverged", record
    assert record["metrics"]["loss"] is None and record["error"] == "the train loss is nan at step 1"


def test_a_diverged_trial_diverges_alike_after_an_interruption(ledger: Ledger, other_ledger: Ledger) -> None:
    trial = spec({"train.diverge_above": 0.5})
    whole = train(ledger, trial)
    folder = other_ledger.trial(trial.trial_id)
    for _ in range(10):  # the tenth step is the one that diverges
        under_way = run_trial(job(other_ledger, trial, progress_every_s=0))
        next(under_way)
        under_way.close()
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert folder.record()["error"] == whole.record()["error"]  # type: ignore[index]


# ---- what is learned and measured


def test_a_small_model_learns_more_than_letter_frequencies(ledger: Ledger) -> None:
    trial = spec(
        {
            "arch.d_model": 32,
            "data.seq_len": 32,
            "train.batch_tokens": 1024,
            "train.tokens": 200 * 1024,
            "train.lr": 1e-2,
            "train.eval_tokens": 2048,
            "train.final_eval_tokens": 16384,
        }
    )
    record = train(ledger, trial).record()
    assert record is not None
    entropy = record["data"]["unigram_entropy"]
    assert 3.0 < entropy < 3.3  # of the letters of the King James Bible
    for split in ("loss", "train_loss", "test_loss"):
        assert record["metrics"][split] < entropy - 0.2


def test_the_reported_loss_is_without_smoothing(ledger: Ledger) -> None:
    """The same weights and batch give the same reported loss; what is minimised differs."""
    plain = train(ledger, spec()).rows()
    smooth = train(ledger, spec({"train.label_smoothing": 0.4, "train.z_loss": 0.01})).rows()
    assert smooth[0]["split"] == "valid" and smooth[0] == plain[0]  # the same initial weights
    ours, theirs = ([row for row in rows if row["split"] == "batch"] for rows in (smooth, plain))
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)  # by two formulas, in fp32
    assert ours[0]["grad_norm"] != pytest.approx(theirs[0]["grad_norm"], rel=1e-3)
    assert smooth[-1]["loss"] != plain[-1]["loss"]


@pytest.mark.parametrize(("steps", "points"), [(1, 1), (12, 3), (25, 12), (1000, 12), (10_000, 5), (3, 20)])
def test_evaluations_are_spaced_by_a_constant_factor(steps: int, points: int) -> None:
    found = sorted(evaluation_steps(steps, points))
    assert found[0] == 0 and found[-1] == steps and len(found) <= points + 2
    inner = np.array(found[1:], dtype=float)
    assert inner[0] == max(1, round(steps / 100)) or points == 1
    if len(inner) == points > 2:  # none fell together
        factor = (steps / max(1, steps / 100)) ** (1 / (points - 1))
        exact = inner[-1] / factor ** np.arange(points - 1, -1, -1)
        assert np.abs(inner - exact).max() <= 0.5 + 1e-9


def test_metrics_that_follow_from_the_loss(ledger: Ledger) -> None:
    """With a tokenizer whose tokens are several bytes, so that bits per byte are not bits per token."""
    trial = spec({"data.tokenizer": {"name": "bpe", "vocab": 1000}})
    folder = train(ledger, trial)
    record = folder.record()
    assert record is not None
    metrics = record["metrics"]
    split_bytes = sum(len(text.encode()) for split, text in corpus_of(trial.data).documents() if split == "valid")
    bytes_per_token = split_bytes / record["data"]["valid_tokens"]
    assert bytes_per_token > 2
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2) / bytes_per_token)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["generalisation_gap"] == pytest.approx(metrics["loss"] - metrics["train_loss"])
    last = last_losses(folder)
    assert metrics["loss"] == last["valid"] and metrics["test_loss"] == last["test"]
    assert record["epochs"] == pytest.approx(768 / record["data"]["train_tokens"])


def test_the_curve_has_a_row_for_every_split_and_evaluation(ledger: Ledger) -> None:
    rows = train(ledger, spec()).rows()
    assert [(row["step"], row["split"]) for row in rows] == [
        (0, "valid"),
        *[(step, split) for step in (1, 3) for split in ("batch", "valid")],
        *[(12, split) for split in ("batch", "train", "valid", "test")],
    ]
    assert all(row["tokens"] == 64 * row["step"] for row in rows)
    run = TrainingRun(spec(), CPU, ledger.cache)
    losses = []
    for _ in range(3):
        run.train_step()
        losses.append(run.take_means()[0])
    means = [row["loss"] for row in rows if row["split"] == "batch"]
    assert means[0] == losses[0] and means[1] == pytest.approx(np.mean(losses[1:]), rel=1e-12)


def test_a_row_has_the_largest_loss_and_gradient_of_its_steps(ledger: Ledger) -> None:
    """Rows after steps 1, 3 and 12: of the steps before each, one by one, the mean and the largest."""
    rows = [row for row in train(ledger, spec()).rows() if row["split"] == "batch"]
    run = TrainingRun(spec(), CPU, ledger.cache)
    steps = []
    for _ in range(run.steps):
        run.train_step()
        steps.append(run.take_means())
    for row, (begin, end) in zip(rows, ((0, 1), (1, 3), (3, 12)), strict=True):
        losses, norms = np.array(steps[begin:end]).T
        assert (row["loss_max"], row["grad_norm_max"]) == (losses.max(), norms.max())
        assert row["loss"] == pytest.approx(losses.mean()) and row["grad_norm"] == pytest.approx(norms.mean())
    assert rows[-1]["loss_max"] > rows[-1]["loss"] and rows[-1]["loss_max"] < rows[0]["loss_max"]


def test_an_evaluation_leaves_training_alone(ledger: Ledger) -> None:
    """More evaluations, the same weights at the end: dropout draws by the step, not by what ran before it."""
    few, many = (train(ledger, spec({"train.dropout": 0.2, "train.eval_points": points})) for points in (2, 9))
    assert few.id != many.id
    one, two = (torch.load(each.weights)["model"] for each in (few, many))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert last_losses(few)["test"] == last_losses(many)["test"]


def test_bf16_is_another_trial_with_nearly_the_same_curve(ledger: Ledger) -> None:
    wide, narrow = spec(), spec({"train.precision": "bf16"})
    assert wide.trial_id != narrow.trial_id
    wide_rows, narrow_rows = train(ledger, wide).rows(), train(ledger, narrow).rows()
    ours, theirs = ([row["loss"] for row in rows] for rows in (wide_rows, narrow_rows))
    assert ours != theirs
    np.testing.assert_allclose(theirs, ours, rtol=0.02)  # bf16 keeps 8 bits: 0.4 % a rounding


def test_the_final_weights_are_those_that_were_measured(ledger: Ledger) -> None:
    trial: TrialSpec = spec()
    folder = train(ledger, trial)
    run = TrainingRun(trial, CPU, ledger.cache)
    state = torch.load(folder.weights)
    assert state["step"] == 12
    run.model.load_state_dict(state["model"])
    metrics = folder.record()["metrics"]  # type: ignore[index]
    names = ("loss", "bits_per_byte", "perplexity")
    assert run.evaluate("test", final=True) == {name: metrics[f"test_{name}"] for name in names}
