"""Prediction of a real number from a text, or from a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate.data.labelled import Example, Layout
from ablate.errors import SpecError, UserError
from ablate.models import Classifier
from ablate.registry import register
from ablate.spec import TrainSpec
from ablate.tasks.base import Batch, Meter
from ablate.tasks.classify import LabelledFiles


@register("task", "regress", paper="Devlin et al. 2019, section 4.1 (STS-B)", form="classify")
class Regress(LabelledFiles):
    """The number that a text or a pair of texts has: loss = (y - f(row))^2, f the one logit of a classifier.

    Numbers are standardised by the training split's mean and deviation, so that a model which says the mean always
    has a loss of about 1; `rmse` is in the numbers' own unit. The options are those of `classify`.
    """

    metric = "pearson"
    higher_is_better = True
    classes = 1

    def __init__(
        self,
        *,
        text: str = "text",
        pair: str | None = None,
        label: str = "label",
        causal: bool = False,
        begin_first: bool = True,
        end_last: bool = False,
        encoding: str = "utf-8",
    ):
        self.causal, self.begin_first, self.end_last = causal, begin_first, end_last
        self.pairs = pair is not None
        self.layout = Layout((text, label) if pair is None else (text, pair, label), encoding)

    @classmethod
    def specimen(cls, folder: Path) -> dict[str, Any]:
        rows = [f"{'many ' * (n % 3)}things number {n},{n % 3 + n / 1000}" for n in range(120)]
        (folder / "examples.csv").write_text("\n".join(["text,label", *rows]))
        return {"seq_len": 32, "path": "examples.csv", "valid": 0.2, "test": 0.2}

    def targets(self, examples: Sequence[Example]) -> tuple[np.ndarray, dict[str, Any]]:
        values = np.array([number_of(each) for each in examples])
        train = values[[each.split == "train" for each in examples]]
        if len(set(train.tolist())) < 2:
            found = f"are {train[0]:g}" if len(train) else "are missing"
            raise UserError(f"{examples[0].place}: all numbers of the training split {found}")
        return (values - train.mean()) / train.std(), {"mean": float(train.mean()), "deviation": float(train.std())}

    def baselines(self, texts: dict[str, Any], targets: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        from ablate.words_baselines import ridge

        return ridge(texts, targets)

    def facts(self) -> dict[str, Any]:
        facts, deviation = super().facts(), self.kept.meta["deviation"]
        rows = [
            {**row, "value": row["value"] * (deviation if row["metric"] == "rmse" else 1.0)}
            for row in facts["baselines"]
        ]
        return {**facts, "mean": self.kept.meta["mean"], "deviation": deviation, "baselines": rows}

    def batch(self, split: str, rows: Any) -> Batch:
        batch = super().batch(split, rows)
        return Batch(batch.inputs, batch.targets.to(torch.get_default_dtype()), marks=batch.marks)

    def objective(self, model: Any, batch: Batch, train: TrainSpec) -> tuple[Tensor, Tensor]:
        for name in ("label_smoothing", "z_loss"):
            if getattr(train, name):
                raise SpecError(["train", name], "has no meaning for task 'regress': set it to 0")
        told_B, aux = told(model, batch)
        loss = (told_B - batch.targets).square().mean()
        return loss + sum(aux.values()), loss.detach()

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return (told(model, batch)[0] - batch.targets).square()

    def meter(self, split: str, final: bool) -> Meter:
        return ValueMeter(self.kept.meta["deviation"])


def number_of(example: Example) -> float:
    """A finite number, or text that spells one. Raises `UserError`."""
    label = example.label
    try:
        number = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{example.place}: the label is {label!r:.60}, must be a number")
    return number


def told(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """What a classifier of one class says of every row, (B,), in float32 at least, and its auxiliary losses."""
    if isinstance(model, Classifier):
        x_BTD, ctx = model(*batch.inputs, **batch.marks)
        return model.head.logits(x_BTD, ctx)[:, 0].to(batch.targets.dtype), ctx.aux
    return model.logits(*batch.inputs, **batch.marks)[:, 0].to(batch.targets.dtype), {}


class ValueMeter(Meter):
    """Squared error of standardised numbers, and rmse in their own unit, Pearson's and Spearman's correlation."""

    def __init__(self, deviation: float):
        super().__init__()
        self.deviation = deviation
        self.told: list[Tensor] = []
        self.values: list[Tensor] = []

    @torch.no_grad()
    def add(self, model: Any, batch: Batch) -> None:
        told_B, _ = told(model, batch)
        self.add_loss((told_B - batch.targets).square(), batch)
        self.told.append(told_B.double().cpu())
        self.values.append(batch.targets.double().cpu())

    def result(self) -> dict[str, float]:
        from ablate.metrics_labels import value_metrics

        found = value_metrics(torch.cat(self.values).numpy(), torch.cat(self.told).numpy())
        return {**super().result(), **found, "rmse": found["rmse"] * self.deviation}
