"""Classifying images: what a step reads, what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import VIT, opened, trial
from runs import train
from torch import nn

from ablate.errors import UserError
from ablate.run.ledger import Ledger
from ablate.spec import TrainSpec, TrialSpec, parse
from ablate.tasks.base import Batch
from ablate.tasks.image import moved

# ---- what a step reads


def step_batches(task: Any, seed: int = 0, rows: int = 32) -> Any:
    return task.batches(TrainSpec(batch_tokens=rows), seed)


def test_pixels_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    task = opened(tmp_path)
    (batch,) = task.held_out("train", 10**6, 10**6)
    (images,) = batch.inputs
    assert images.dtype == torch.float32 and images.double().mean().abs() < 1e-6
    assert images.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_an_epoch_reads_every_image_once(tmp_path: Path) -> None:
    task = opened(tmp_path, valid=0.15, test=0.2)  # 1168 = 16 x 73
    batches = step_batches(task, rows=16)
    seen = [row.numpy().tobytes() for step in range(73) for row in batches[step].inputs[0]]
    assert len(set(seen)) == 1168
    assert [row.numpy().tobytes() for step in range(73, 146) for row in batches[step].inputs[0]] != seen


@pytest.mark.parametrize("option", [{}, {"shift": 2}, {"flip": True}])
def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path, option: dict[str, Any]) -> None:
    task, other = (opened(tmp_path, {"name": "image", **option}) for _ in range(2))
    batches = step_batches(task)
    later = [batches[step].inputs[0] for step in (5, 3, 70)]
    again = step_batches(other)
    for images, step in zip(later, (5, 3, 70), strict=True):
        assert torch.equal(again[step].inputs[0], images)
    assert not torch.equal(step_batches(task, seed=1)[5].inputs[0], later[0])
    if option:
        plain = step_batches(opened(tmp_path))[5]
        assert torch.equal(plain.targets, batches[5].targets) and not torch.equal(plain.inputs[0], later[0])


def test_changes_are_new_in_every_step(tmp_path: Path) -> None:
    """Which images of a batch are flipped: other places in another step."""
    plain, flipped = (step_batches(opened(tmp_path, {"name": "image", "flip": flip})) for flip in (False, True))
    places = [(plain[step].inputs[0] != flipped[step].inputs[0]).any(3).any(2).any(1) for step in (0, 1)]
    assert not torch.equal(*places)


def test_moved_images() -> None:
    """Down and across, by their own number of pixels; zeros come in."""
    pixels = np.arange(1, 13).reshape(2, 1, 2, 3)
    found = moved(pixels, np.array([1, 0]), np.array([0, -2]))
    assert found[0, 0].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert found[1, 0].tolist() == [[9, 0, 0], [12, 0, 0]]


def test_flipped_images_are_half_of_them(tmp_path: Path) -> None:
    plain, flipped = (step_batches(opened(tmp_path, {"name": "image", "flip": flip}), rows=1000)[0].inputs[0]
                      for flip in (False, True))  # fmt: skip
    same = (plain == flipped).all((1, 2, 3))
    turned = (plain.flip(3) == flipped).all((1, 2, 3))
    assert (same | turned).all() and 440 < int(turned.sum()) < 560


def test_a_shift_must_leave_something(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shift 8 moves images of 8 x 8 pixels out of sight"):
        opened(tmp_path, {"name": "image", "shift": 8})


def test_held_out_images_are_the_same_in_batches_of_any_size(tmp_path: Path) -> None:
    task = opened(tmp_path)
    one, two = (list(task.held_out("valid", 30, rows)) for rows in (30, 7))
    assert torch.equal(one[0].inputs[0], torch.cat([batch.inputs[0] for batch in two])) and len(one[0]) == 30


# ---- what is measured


class Says(nn.Module):
    """Classes with given probabilities."""

    def __init__(self, rows: list[list[float]]):
        super().__init__()
        self.log_p = torch.tensor(rows, dtype=torch.float64).log()

    def log_probs(self, images: torch.Tensor) -> torch.Tensor:
        return self.log_p[images[:, 0, 0, 0].long()]


def test_metrics_by_hand(tmp_path: Path) -> None:
    """Said 0 0 1 2 of true 0 1 1 1: accuracy 2/4; F1 2/3 of class 0, 1/2 of class 1, 0 of class 2, which is said."""
    model = Says([[0.5, 0.25, 0.25], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    meter = opened(tmp_path).meter("valid", final=True)
    for rows in ([0, 1, 2], [3]):
        images = torch.tensor(rows, dtype=torch.float64)[:, None, None, None]
        meter.add(model, Batch((images,), torch.tensor([0, 1, 1, 1])[rows]))
    found = meter.result()
    assert found["accuracy"] == 0.5
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["loss"] == pytest.approx(-np.log([0.5, 0.3, 0.7, 0.2]).mean())


def test_baselines(tmp_path: Path) -> None:
    """The commonest training class on the validation split; a logistic regression, fitted once."""
    task = opened(tmp_path)
    majority, regression = task.facts()["baselines"]
    labels = task.images.splits["valid"][1]
    commonest = np.bincount(task.images.splits["train"][1]).argmax()
    assert majority["value"] == np.mean(labels == commonest)
    assert 0.9 < regression["value"] < 1
    kept = task.images.folder / "judge.json"
    kept.write_text('{"accuracy": 0.5}')
    assert task.facts()["baselines"][1]["value"] == 0.5


def test_a_model_has_as_many_positions_as_patches(tmp_path: Path) -> None:
    task = opened(tmp_path)
    for patch, first, rows in ((4, True, 5), (2, True, 17), (2, False, 16), (1, True, 65)):
        embedding = {"name": "patch", "patch": patch, "first": first}
        made = task.build(parse(TrialSpec, {"arch": {**VIT, "embedding": embedding}}).arch, 0, 0.0)
        assert made.position.table.shape[0] == rows


@pytest.mark.parametrize("arch", [None, {"model": "mlp"}, {"model": "lenet"}], ids=["vit", "mlp", "lenet"])
def test_a_trial(ledger: Ledger, arch: dict[str, Any] | None) -> None:
    folder = train(ledger, trial(arch=arch, tokens=960))
    record = folder.record()
    assert record is not None and record["status"] == "finished", record
    metrics = record["metrics"]
    assert metrics["accuracy"] > 0.2 and metrics["loss"] < 2.3 and 0 < metrics["test_f1_macro"] < 1
    assert record["data"]["baselines"][0]["metric"] == "accuracy" and record["epochs"] == pytest.approx(
        960 / 1437, abs=0.01
    )
