"""Checks of tasks: each is opened on its own small example, and trained on by a small model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablate import registry
from ablate.spec import ArchSpec, DataSpec, TrainSpec, parse
from ablate.subject import CheckFailed, Subject
from ablate.tasks.base import Batch, Task

ROWS = 6  # of a batch
NEAR = 1e-9  # in float64
STEPS = 60
FORMS: dict[str, dict[str, Any]] = {  # the least that makes a model of each form
    "tokens": {},
    "pair": {"encoder": True},
    "classify": {"head": "classify"},
    "image": {"embedding": {"name": "patch", "patch": 4}, "head": "classify"},
    "denoise": {"model": "dit"},
}


@dataclass(frozen=True)
class Opened:
    """A task on its example, and what a small model of it is made of."""

    task: Task
    arch: ArchSpec
    train: TrainSpec

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        return self.task.build(self.arch, 0, 0.0).to(dtype).eval()

    def batch(self, step: int = 0, seed: int = 0) -> Batch:
        return self.task.batches(self.train, seed)[step]

    def measured(self, split: str, rows: int) -> dict[str, float]:
        """What an untrained model reaches on a split's first rows, so many read at once."""
        model, meter = self.model(), self.task.meter(split, final=True)
        with torch.no_grad():
            for batch in self.task.held_out(split, 12 * self.task.data.row_tokens, rows):
                if len(batch) > max(rows, self.task.rows_together):
                    raise CheckFailed(f"a held-out batch of at most {rows} rows has {len(batch)}")
                meter.add(model, _double(batch))
        return meter.result()


@contextmanager
def opened(subject: Subject) -> Iterator[Opened]:
    """The task, opened on the example that it gives."""
    kind: type[Task] = registry.load(subject.entry)
    with tempfile.TemporaryDirectory() as folder:
        tree = {
            "task": {"name": subject.entry.name, **dict(subject.component.options)},
            **kind.specimen(Path(folder)),
        }
        data = kind.resolve(parse(DataSpec, tree), Path(folder))
        task: Task = registry.make("task", data.task)
        task.open(data, shared_cache())
        arch = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 1, **FORMS[task.forms[0]]})
        yield Opened(task, arch, TrainSpec(batch_tokens=ROWS * data.row_tokens))


@lru_cache(maxsize=1)
def shared_cache() -> Path:
    """A cache folder for this process: the embedded text is cut into tokens once."""
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    return Path(folder.name)


_kept: list[Any] = []  # removed when the process ends


def check_batches(subject: Subject) -> None:
    """The batch of a step is a pure function of the data, the seed and the step, however long the run is; other seeds
    and steps differ."""
    with opened(subject) as one, opened(subject) as other:
        two = replace(other, train=replace(other.train, tokens=3 * other.train.tokens))
        if "train" not in one.task.splits:
            return
        for step in (3, 0):
            _refuse_difference(one.batch(step), two.batch(step), f"two openings give other batches at step {step}")
        for batch in (one.batch(1), one.batch(0, seed=1)):
            if _same(one.batch(0), batch):
                raise CheckFailed("another step or another seed gives the same batch")


def check_held_out(subject: Subject) -> None:
    """Held-out rows are the same each time, and however many are read at once; and so is what is measured."""
    with opened(subject) as one:
        for split in one.task.splits:
            _check_results(one.task, split, one.measured(split, ROWS), one.measured(split, 1))


def _check_results(task: Task, split: str, together: dict[str, float], alone: dict[str, float]) -> None:
    for name in ("loss", task.metric):
        if name not in together:
            raise CheckFailed(f"the {split} split has no {name!r}: {', '.join(together)} are measured")
    for name, value in together.items():
        if name not in alone or not abs(value - alone[name]) <= 1e-6 * max(1, abs(value)):
            raise CheckFailed(f"{split} {name} is {value} in batches, {alone.get(name)} row by row")


def check_padding_of_rows(subject: Subject) -> None:
    """What stands at padding moves no loss that counts."""
    with opened(subject) as one:
        if "train" not in one.task.splits:
            return
        model, batch = one.model(), _double(one.batch())
        changed = _with_other_padding(batch, one.task.vocab)
        with torch.no_grad():
            losses = [one.task.losses(model, each) for each in (batch, changed)]
        counts = torch.ones_like(losses[0], dtype=torch.bool) if batch.counts is None else batch.counts
        difference = (losses[0] - losses[1]).abs()[counts].max().item()
        if difference > NEAR:
            raise CheckFailed(f"padding leaks: other tokens there move the loss by {difference:.2g}")


def _with_other_padding(batch: Batch, vocab: int) -> Batch:
    """The batch with another token wherever its marks say that there is padding."""
    inputs = list(batch.inputs)
    for name, mark in batch.marks.items():
        if name.startswith("valid"):
            at = next(i for i, each in enumerate(inputs) if each.shape == mark.shape)
            inputs[at] = torch.where(mark, inputs[at], (inputs[at] + 1) % max(1, vocab))
    return Batch(tuple(inputs), batch.targets, batch.counts, batch.marks)


def check_parts(subject: Subject) -> None:
    """The gradient of a batch is that of its micro-batches together, each with its share of the targets."""
    from ablate.tasks.base import shares

    with opened(subject) as one:
        if "train" not in one.task.splits:
            return
        batch, gradients = _double(one.batch()), []
        for size in (len(batch), 2):
            model = one.model()
            parts = batch.split(size)
            for part, share in zip(parts, shares(parts), strict=True):
                torch.manual_seed(0)
                (one.task.objective(model, part, one.train)[0] * share).backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        far = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
        if far > NEAR:
            raise CheckFailed(f"the gradient of micro-batches differs from that of their batch by {far:.2g}")


def check_trains(subject: Subject) -> None:
    """So many steps of a small model lower the loss; the reported loss is that of the targets that count."""
    with opened(subject) as one:
        if "train" not in one.task.splits:
            return
        model = one.model(torch.float32).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        losses = []
        for step in range(STEPS):
            torch.manual_seed(step)
            objective, nll = one.task.objective(model, one.batch(step % 3), one.train)
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
            losses.append(nll.item())
        if not sum(losses[-3:]) < sum(losses[:3]) - 1e-2:
            raise CheckFailed(f"{STEPS} steps take the loss from {losses[0]:.3f} to {losses[-1]:.3f}")


def check_facts(subject: Subject) -> None:
    """What is said of the data: an epoch's tokens, and baselines whose metrics are measured."""
    with opened(subject) as one:
        task = one.task
        if "train" in task.splits and not task.train_tokens > 0:
            raise CheckFailed(f"an epoch has {task.train_tokens} tokens")
        for baseline in task.facts()["baselines"]:
            if not baseline.keys() >= {"name", "metric", "value"}:
                raise CheckFailed(f"a baseline must have a name, a metric and a value: {baseline}")
            measured = one.measured(baseline.get("split", "valid"), ROWS)
            if baseline["metric"] not in measured:
                problem = f"is not measured; {', '.join(measured)} are"
                raise CheckFailed(f"baseline {baseline['name']!r}: {baseline['metric']!r} {problem}")


def check_form(subject: Subject) -> None:
    """Models of the forms that it names can be built for it, counted, and asked for a loss."""
    from ablate.cost import count

    with opened(subject) as one:
        for form in one.task.forms:
            arch = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 1, **FORMS[form]})
            count(arch, one.task.vocab, one.task.length(arch), **one.task.sizes)


def _double(batch: Batch) -> Batch:
    def wide(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    marks = {name: wide(mark) for name, mark in batch.marks.items()}
    return Batch(tuple(map(wide, batch.inputs)), wide(batch.targets), batch.counts, marks)


def _tensors(batch: Batch) -> list[Tensor]:
    counts = [] if batch.counts is None else [batch.counts]
    return [*batch.inputs, batch.targets, *counts, *(batch.marks[name] for name in sorted(batch.marks))]


def _same(one: Batch, two: Batch) -> bool:
    pairs = zip(_tensors(one), _tensors(two), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _refuse_difference(one: Batch, two: Batch, problem: str) -> None:
    if not _same(one, two):
        raise CheckFailed(problem)


TASK_CHECKS = (
    check_batches,
    check_held_out,
    check_padding_of_rows,
    check_parts,
    check_trains,
    check_facts,
    check_form,
)
