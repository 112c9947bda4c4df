"""Masked language modelling: which places, what stands there, what is scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import spec, train

from ablate import registry
from ablate.data.corruption import generator, masked, places
from ablate.errors import UserError
from ablate.run.ledger import Ledger
from ablate.tasks.base import Batch, Task
from ablate.tasks.mlm import TokenMeter


def opened(cache: Path, task: Any = "mlm", **data: Any) -> Task:
    """The task of a small trial."""
    settings = {f"data.{name}": value for name, value in {"seq_len": 32, **data}.items()}
    made = spec({"data.task": task, "train.batch_tokens": 128, **settings})
    found: Task = registry.make("task", made.data.task)
    found.open(made.data, cache)
    return found


def small(**settings: Any) -> Any:
    return spec({"train.batch_tokens": 3200, "train.tokens": 3200, "data.seq_len": 32, **settings}).train


def test_exactly_the_rate_is_selected_in_every_row_and_every_place_alike(token_cache: Path) -> None:
    task = opened(token_cache)
    counts = torch.cat([task.batches(small(), 0)[step].counts for step in range(40)])  # type: ignore[misc]
    assert counts.shape == (4000, 32) and set(counts.sum(1).tolist()) == {round(0.15 * 32)}
    share, deviation = 5 / 32, math.sqrt(5 / 32 * 27 / 32 / 4000)
    assert (counts.double().mean(0) - share).abs().max() < 4.5 * deviation


def test_of_the_selected_80_percent_are_masked_10_random_10_kept() -> None:
    tokens = np.full((1000, 50), 7)
    found = masked(generator("draw"), tokens, 300, 256, 0.8, 0.1)
    share = {"mask": (found == 300).mean(), "kept": (found == 7).mean()}
    random = found[(found != 300) & (found != 7)]
    assert share["mask"] == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / found.size))
    assert share["kept"] == pytest.approx(0.1 + 0.1 / 256, abs=4 * math.sqrt(0.09 / found.size))
    assert random.size / found.size == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / found.size))
    assert random.min() == 0 and random.max() == 255  # of the tokenizer's, none of the task's own
    frequency = np.bincount(random, minlength=256)
    assert np.delete(frequency, 7).std() < 1.5 * math.sqrt(random.size / 256)


def test_choices_of_places_are_equally_likely() -> None:
    found = places(generator("x"), (12_000, 4), 2)
    assert (found[:, 0] < found[:, 1]).all()
    frequency = np.unique(found, axis=0, return_counts=True)[1]
    assert len(frequency) == 6 and abs(frequency - 2000).max() < 4.5 * math.sqrt(2000 * 5 / 6)


def test_only_selected_places_are_changed_and_all_of_them_are_scored(token_cache: Path) -> None:
    task = opened(token_cache, {"name": "mlm", "mask": 1.0, "random": 0.0})
    batch = task.batches(small(), 0)[3]
    assert batch.counts is not None and batch.n == 100 * 5
    assert task.vocab == 256 + 4 and not batch.marks
    assert torch.equal(batch.inputs[0] == 257, batch.counts)
    assert torch.equal(torch.where(batch.counts, batch.targets, batch.inputs[0]), batch.targets)
    assert batch.targets.max() < 256


def test_batches_are_a_function_of_data_seed_and_step(token_cache: Path) -> None:
    one, two = opened(token_cache), opened(token_cache)
    batches, again = one.batches(small(), 0), two.batches(small(), 0)
    assert torch.equal(batches[5].inputs[0], again[5].inputs[0])
    assert not torch.equal(batches[5].counts, batches[6].counts)  # type: ignore[arg-type]
    assert not torch.equal(batches[5].counts, one.batches(small(), 1)[5].counts)  # type: ignore[arg-type]


def test_held_out_masks_are_fixed_whatever_the_batches(token_cache: Path) -> None:
    task = opened(token_cache)
    whole = next(iter(task.held_out("valid", 320, 100)))
    parts = list(task.held_out("valid", 320, 3))
    assert len(whole) == 10 and [len(part) for part in parts] == [3, 3, 3, 1]
    assert torch.equal(torch.cat([part.inputs[0] for part in parts]), whole.inputs[0])
    assert not torch.equal(whole.counts, next(iter(task.held_out("test", 320, 100))).counts)  # type: ignore[arg-type]


class Says:
    """A model that gives a fixed distribution everywhere."""

    def __init__(self, probabilities: list[float]):
        self.log_p_V = torch.tensor(probabilities, dtype=torch.float64).log()

    def log_probs(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.log_p_V.expand(*tokens_BT.shape, -1)


def test_loss_and_accuracy_are_those_of_the_selected_places() -> None:
    batch = Batch(
        (torch.zeros(2, 3, dtype=torch.long),),
        torch.tensor([[0, 1, 2], [0, 1, 0]]),
        torch.tensor([[True, True, False], [False, False, True]]),
    )
    meter = TokenMeter()
    for part in batch.split(1):
        meter.add(Says([0.5, 0.25, 0.25]), part)  # type: ignore[arg-type]
    expected = -(math.log(0.5) + math.log(0.25) + math.log(0.5)) / 3
    assert meter.result() == {"loss": pytest.approx(expected), "accuracy": pytest.approx(2 / 3)}


def test_it_trains(ledger: Ledger) -> None:
    record = train(ledger, spec({"data.task": "mlm", "arch.head": "bert"})).record()
    assert record is not None and record["status"] == "finished", record
    assert {"loss", "accuracy", "test_accuracy"} <= set(record["metrics"])
    assert record["data"]["masked_per_row"] == 2
    names = {(each["name"], each["metric"]) for each in record["data"]["baselines"]}
    assert names == {("unigram entropy", "loss"), ("most frequent token", "accuracy")}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "mlm", "rate": 1.5}, "rate 1.5 must be from 0 to 1"),
        ({"name": "mlm", "mask": 0.8, "random": 0.3}, "random 0.3 must be from 0 to 0.2"),
        ({"name": "mlm", "rate": 0.01}, "rate 0.01 of seq_len 32 is less than one token"),
    ],
)
def test_options_that_cannot_be(token_cache: Path, task: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(token_cache, task)
