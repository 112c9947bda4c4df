"""Recipes: schedules, batches that grow, rows that grow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import plan_of, spec, train

from ablate import registry
from ablate.errors import SpecError, UserError
from ablate.run.ledger import Ledger
from ablate.spec import Component
from ablate.tasks.base import Batch
from ablate.train.pace import cut
from ablate.train.ramp import Ramp
from ablate.train.run import TrainingRun

CPU = torch.device("cpu")


def factors(name: str, steps: int, **options: Any) -> list[float]:
    schedule = registry.make("schedule", Component(name, tuple(sorted(options.items()))))
    return [schedule.factor(step, steps) for step in range(steps)]


# ---- schedules, by hand


def test_one_cycle_is_a_triangle() -> None:
    assert factors("one_cycle", 8) == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert factors("one_cycle", 6, warmup=2, start=0.2, final=0.2) == pytest.approx([0.6, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert factors("one_cycle", 3, warmup=0.0) == pytest.approx([1.0, 0.5, 0.0])


def test_inverse_sqrt_is_noam_at_the_rate_that_its_docstring_gives() -> None:
    d_model, warm, steps = 64, 10, 50
    lr = (d_model * warm) ** -0.5
    noam = [d_model**-0.5 * min(s**-0.5, s * warm**-1.5) for s in range(1, steps + 1)]
    assert [lr * factor for factor in factors("inverse_sqrt", steps, warmup=warm)] == pytest.approx(noam)


def test_the_other_schedules_by_hand() -> None:
    assert factors("linear", 6, warmup=2) == pytest.approx([0.5, 1.0, 1.0, 2 / 3, 1 / 3, 0.0])
    cosine = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(4)]
    assert factors("cosine", 6, warmup=2) == pytest.approx(cosine)
    wsd = factors("wsd", 10, warmup=2, decay=4)
    assert wsd == pytest.approx([0.5, *[1.0] * 5, *[1 - math.sqrt(k / 3) for k in range(4)]])


# ---- the ramp


@pytest.mark.parametrize("shape", ["linear", "doubling"])
@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("batches", [0, 1, 3, 50, 1001])
def test_a_ramp_reads_what_the_run_without_it_reads(shape: Any, parts: int, share: float, batches: int) -> None:
    ramp = Ramp(batches, parts, share, shape)
    sizes = [ramp.units_at(step + 1) - ramp.units_at(step) for step in range(ramp.steps)]
    assert sum(sizes) == batches * parts == ramp.units_at(ramp.steps)
    assert sizes == sorted(sizes) and set(sizes) <= {*range(1, parts + 1)}
    if shape == "doubling":
        assert all(size.bit_count() == 1 for size in sizes)
    small = sum(size for size in sizes if size < parts)
    assert abs(small - share * batches * parts) <= parts * (parts + 1)  # a step of each size at most


def test_every_size_of_a_ramp_has_the_same_share_of_tokens() -> None:
    linear, doubling = Ramp(6000, 4, 0.5, "linear"), Ramp(6000, 4, 0.5, "doubling")
    assert linear.runs == [(4001, 1), (2000, 2), (1333, 3), (3000, 4)]  # a unit was left
    assert doubling.runs == [(6000, 1), (3000, 2), (3000, 4)]


RAMP = {"train.batch_tokens": 128, "train.tokens": 1280, "train.batch_ramp": 0.5, "train.ramp_parts": 4}


def test_a_ramp_reads_the_same_rows_in_the_same_order(token_cache: Path) -> None:
    run = TrainingRun(spec(RAMP), CPU, token_cache)
    plain = TrainingRun(spec({**RAMP, "train.batch_ramp": 0.0, "train.ramp_parts": 8}), CPU, token_cache)
    assert run.steps > plain.steps == 10
    rows = [part.inputs[0] for step in range(run.steps) for part in run.paced.micro(step)]
    whole = [plain.batches[step].inputs[0] for step in range(10)]
    assert torch.equal(torch.cat(rows), torch.cat(whole))
    sizes = [sum(part.targets.numel() for part in run.paced.micro(step)) for step in range(run.steps)]
    train_spec = run.spec.train
    assert sizes == [train_spec.tokens_at(step + 1) - train_spec.tokens_at(step) for step in range(run.steps)]
    assert sizes[0] == 32 and sizes[-1] == 128 and sum(sizes) == 1280
    halves = TrainingRun(spec({**RAMP, "train.accumulate": 2}), CPU, token_cache)
    assert max(len(part) for step in range(run.steps) for part in halves.paced.micro(step)) == 4


def test_records_count_the_tokens_of_a_ramp(ledger: Ledger) -> None:
    trial = spec(RAMP)
    folder = train(ledger, trial)
    record = folder.record()
    assert record is not None and record["status"] == "finished"
    assert record["tokens"] == 1280 and record["steps"] == trial.train.steps > 10
    tokens = {row["step"]: row["tokens"] for row in folder.rows()}
    assert tokens[0] == 0 and tokens[1] == 32 and tokens[record["steps"]] == 1280


def test_a_whole_batch_is_a_step_in_parts(token_cache: Path) -> None:
    """A step that takes the end of one batch and the beginning of the next has the mean of all its rows."""
    torch.set_default_dtype(torch.float64)
    try:
        run = TrainingRun(spec({**RAMP, "train.ramp_shape": "linear"}), CPU, token_cache)
        step = next(step for step in range(run.steps) if len(run.paced.micro(step)) == 2)
        parts = run.paced.micro(step)
        assert len(parts[0]) != len(parts[1])
        run.step = step
        run.train_step()
        reported, _ = run.take_means()
        other = TrainingRun(run.spec, CPU, token_cache)
        one = Batch((torch.cat([part.inputs[0] for part in parts]),), torch.cat([part.targets for part in parts]))
        assert reported == pytest.approx(one.nll(other.model).mean().item(), rel=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- rows that grow

WARM = {"data.seq_len": 32, "train.batch_tokens": 128, "train.tokens": 128 * 40, "train.seq_warmup": 0.5}


def test_rows_grow_by_multiples_of_eight_and_every_step_reads_the_same(token_cache: Path) -> None:
    run = TrainingRun(spec(WARM), CPU, token_cache)
    lengths = [run.paced.length(step) for step in range(run.steps)]
    assert lengths == [8] * 7 + [16] * 7 + [24] * 6 + [32] * 20
    for step in (0, 7, 14, 25):
        (part,) = run.paced.micro(step)
        whole = run.batches[step]
        assert part.n == 128 and part.inputs[0].shape[1] == lengths[step]
        counts = torch.ones_like(part.targets, dtype=torch.bool) if part.counts is None else part.counts
        assert torch.equal(part.inputs[0][counts], whole.inputs[0].flatten())
        assert torch.equal(part.targets[counts], whole.targets.flatten())
    assert run.spec.train.tokens_at(run.steps) == 128 * 40


def test_a_cut_row_is_what_its_parts_are_alone(token_cache: Path) -> None:
    model = TrainingRun(spec(WARM), CPU, token_cache).model.double().eval()
    tokens = torch.randint(0, 256, (2, 20))
    batch = Batch((tokens,), tokens.roll(-1, 1))
    parts = cut(batch, 8, causal=True)
    assert parts.inputs[0].shape == (6, 8) and parts.n == 40
    assert parts.counts is not None
    found = parts.nll(model)[parts.counts]
    alone = [
        model.nll(tokens[row : row + 1, at : at + 8], batch.targets[row : row + 1, at : at + 8]).flatten()
        for row in range(2)
        for at in (0, 8, 16)
    ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-12)
    both_ways = cut(batch, 8, causal=False)
    assert torch.equal(both_ways.marks["valid_BT"], parts.counts)
    assert not cut(batch, 10, causal=False).marks


def test_warmed_trials_train_and_stop_at_the_same_tokens(ledger: Ledger) -> None:
    record = train(ledger, spec({**WARM, "train.accumulate": 2})).record()
    assert record is not None and record["status"] == "finished" and record["tokens"] == 128 * 40


# ---- what is refused, and axes


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"train.batch_ramp": 1.5}, "train.batch_ramp: 1.5 must be a share"),
        ({"train.seq_warmup": -0.1}, "train.seq_warmup: -0.1 must be a share"),
        ({"train.ramp_parts": 4}, "train.ramp_parts: 4 has no effect: train.batch_ramp is 0"),
        ({"train.seq_start": 16}, "train.seq_start: 16 has no effect: train.seq_warmup is 0"),
        ({"train.batch_ramp": 0.5, "train.ramp_parts": 1}, "train.ramp_parts: 1 must be at least 2"),
        (
            {"train.batch_ramp": 0.5, "train.ramp_parts": 6, "train.ramp_shape": "doubling"},
            "train.ramp_parts: 6 must be a power of two",
        ),
        ({"train.batch_ramp": 0.5}, "train.ramp_parts: 8 must divide the 4 rows of a batch"),
        ({"train.seq_warmup": 0.5, "train.seq_start": 12}, "train.seq_start: 12 must be a multiple of 8"),
        ({"train.seq_warmup": 0.5, "train.seq_start": 24}, "seq_start 24 does not fit: rows have 16 tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as raised:
        spec(settings)
    assert problem in str(raised.value)


GRID = """\
study: recipes
base:
  arch: {d_model: 16, n_heads: 2, depth: 1}
  data: {corpus: kjv, seq_len: 16, task: %s}
  train: {tokens: 1024, batch_tokens: 256}
variants: {plain: {}}
axes:
  train.batch_ramp: [0.0, 0.5]
  train.seq_warmup: [0.0, 0.5]
  train.schedule: [cosine, one_cycle]
"""


def test_recipes_are_axes(tmp_path: Path, token_cache: Path) -> None:
    rows = plan_of(GRID % "lm", tmp_path, token_cache).rows
    assert len({row.spec.train for row in rows}) == 8
    assert {row.tokens for row in rows} == {1024}
    assert len({row.spec.train.steps for row in rows}) == 2


def test_a_task_without_rows_that_can_be_cut_is_refused_by_name(tmp_path: Path, token_cache: Path) -> None:
    with pytest.raises(UserError, match="task 'span' has rows that cannot be cut shorter"):
        plan_of(GRID.replace("arch: {", "arch: {encoder: true, ") % "span", tmp_path, token_cache)


def test_defaults_leave_the_identity_of_trials_alone() -> None:
    from ablate.spec import canonical

    names = ("batch_ramp", "seq_warmup", "layer_decay", "reinit_layers", "decay_to", "mixout", "ramp_parts")
    tree = canonical(spec())
    assert not set(names) & set(tree["train"]) and "vocab_multiple" not in tree["data"]
    assert replace(spec(), seed=0).trial_id == spec().trial_id
