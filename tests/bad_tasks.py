"""Tasks that are wrong on purpose, one fault each, as bad_components.py has components."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ablate import register
from ablate.spec import TrainSpec
from ablate.tasks.base import Batch, Meter
from ablate.tasks.lm import LanguageModelling

made = itertools.count()


@register("task", "draws_anew", paper="none")
class DrawsAnew(LanguageModelling):
    """Its batches depend on how many were made before."""

    def batches(self, train: TrainSpec, seed: int) -> Any:
        return super().batches(train, seed + next(made))


@register("task", "one_batch", paper="none")
class OneBatch(LanguageModelling):
    """The same batch in every step."""

    def batches(self, train: TrainSpec, seed: int) -> Any:
        windows = super().batches(train, 0)

        class Same:
            def __getitem__(self, step: int) -> Batch:
                return windows[0]

        return Same()


@register("task", "by_length", paper="none")
class ByLength(LanguageModelling):
    """A longer run reads other batches."""

    def batches(self, train: TrainSpec, seed: int) -> Any:
        return super().batches(train, seed + train.steps)


@register("task", "too_many_rows", paper="none")
class TooManyRows(LanguageModelling):
    """Held-out batches of its own size."""

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        return super().held_out(split, at_most, 5)


class MeanOfMeans(Meter):
    """Batches count alike, however many targets they have."""

    def add(self, model: Any, batch: Batch) -> None:
        nll = batch.nll(model)
        self.total = self.total + (nll.mean() * len(batch) ** 2)
        self.count += len(batch)


@register("task", "mean_of_means", paper="none")
class MeansOfBatches(LanguageModelling):
    """What it measures depends on how the rows are cut into batches."""

    def meter(self, split: str, final: bool) -> Meter:
        return MeanOfMeans()


@register("task", "unmeasured", paper="none")
class Unmeasured(LanguageModelling):
    """Its headline metric is never measured."""

    metric = "beauty"


@register("task", "leaks_padding", paper="none")
class LeaksPadding(LanguageModelling):
    """Marks the last places of its rows as padding, and scores the loss with padding seen."""

    causal = False

    def batches(self, train: TrainSpec, seed: int) -> Any:
        windows = super().batches(train, seed)

        class Padded:
            def __getitem__(self, step: int) -> Batch:
                batch = windows[step]
                valid_BT = torch.ones_like(batch.targets, dtype=torch.bool)
                valid_BT[:, -4:] = False
                return replace(batch, counts=valid_BT, marks={"valid_BT": valid_BT})

        return Padded()

    def losses(self, model: Any, batch: Batch) -> Tensor:
        return replace(batch, marks={}).nll(model)


@register("task", "sums", paper="none")
class Sums(LanguageModelling):
    """Its objective is a sum where a mean is due."""

    def objective(self, model: Any, batch: Batch, train: TrainSpec) -> tuple[Tensor, Tensor]:
        objective, nll = super().objective(model, batch, train)
        return objective * len(batch), nll


@register("task", "learns_nothing", paper="none")
class LearnsNothing(LanguageModelling):
    """Its objective has no slope."""

    def objective(self, model: Any, batch: Batch, train: TrainSpec) -> tuple[Tensor, Tensor]:
        objective, nll = super().objective(model, batch, train)
        return objective * 0, nll


@register("task", "vague_facts", paper="none")
class VagueFacts(LanguageModelling):
    """A baseline without a value."""

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "baselines": [{"name": "chance", "metric": "loss"}]}


@register("task", "other_measure", paper="none")
class OtherMeasure(LanguageModelling):
    """A baseline in a metric that results are not given in."""

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "baselines": [{"name": "chance", "metric": "accuracy", "value": 0.5}]}


@register("task", "wrong_form", paper="none")
class WrongForm(LanguageModelling):
    """Says that it trains models of images, and has none."""

    forms = ("tokens", "image")
