"""Which trials can be trained together: found out by training two of them together and alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ablate.errors import UserError
from ablate.spec import TrialSpec
from ablate.tasks.base import Batch
from ablate.train.cohort.along import Apart
from ablate.train.cohort.together import Together
from ablate.train.fitted import new_run
from ablate.train.memory import LOOKED_AT, NOTHING, ROUNDING, in_float64
from ablate.train.pace import PacedBatches
from ablate.train.remembered import common, remembered
from ablate.train.run import TrainingRun

STEPS = 3
MOVED = 1e-3  # of what a parameter has moved in so many steps: by so much two ways of computing it may differ
NOISE = 1e-6  # of the learning rate: to where rounding moves what has no gradient
TROUBLE = (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError, UserError)


def why_apart(spec: TrialSpec, cache: Path) -> str | None:
    """What keeps trials like this one, with other seeds and rates, from being trained together; None where nothing
    does."""
    alike = common(spec)
    found = remembered(cache, "cohorts", alike, lambda: {"apart": difference(alike, cache)}, asked="apart")
    why: str | None = found["apart"]
    return why


def difference(spec: TrialSpec, cache: Path) -> str | None:
    """On the CPU in float64, on few rows, every parameter moved away from special values such as zero."""
    if spec.parent is not None:
        return "they begin from other trials"
    try:
        alone, together = _pair(spec, cache), _pair(spec, cache)
    except Apart as apart:
        return str(apart)
    try:
        return _compared(alone, Together(together))
    except Apart as apart:
        return str(apart)
    except TROUBLE as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _compared(alone: Sequence[TrainingRun], together: Together) -> str | None:
    before = [[parameter.detach().clone() for parameter in run.parameters] for run in alone]
    for step in range(STEPS):
        together.train_step()
        for run in alone:
            run.train_step()
        for run, loss in together.losses_by_run():
            run.count_step(loss)
        if step == 0 and (name := _other_gradient(alone, together)):
            return f"the gradient of {name} is another one"
    return _other_state(alone, together, before) or _other_evaluation(alone, together)


@torch.no_grad()
def _other_state(alone: Sequence[TrainingRun], together: Together, before: Sequence[Sequence[Tensor]]) -> str | None:
    for run, other, first in zip(alone, together.runs, before, strict=True):
        theirs = dict(other.model.named_parameters())
        for (name, mine), begun in zip(run.model.named_parameters(), first, strict=True):
            moved = float((mine - begun).norm())
            least = NOISE * run.spec.train.lr * mine.numel() ** 0.5
            if not float((mine - theirs[name]).norm()) <= MOVED * moved + least:
                return f"{name} moves elsewhere"
        for name, buffer in run.model.named_buffers():
            if not torch.allclose(buffer.double(), other.model.get_buffer(name).double(), rtol=ROUNDING):
                return f"{name} becomes another one"
    return None


def _other_gradient(alone: Sequence[TrainingRun], together: Together) -> str | None:
    """The name of a parameter whose gradient differs in more than rounding."""
    for row, run in enumerate(alone):
        expected = {name: each.grad for name, each in run.model.named_parameters() if each.grad is not None}
        least = NOTHING * max(float(each.norm()) for each in expected.values())
        for name, gradient in expected.items():
            apart = float((together.gradient(row, name) - gradient).norm())
            if not apart <= ROUNDING * float(gradient.norm()) + least:  # not a number is apart
                return name
    return None


@torch.no_grad()
def _other_evaluation(alone: Sequence[TrainingRun], together: Together) -> str | None:
    batch = alone[0].paced.micro(0)[0]
    for run in [*alone, *together.runs]:
        run.model.eval()
    rows: Tensor = together.nll(batch)
    for run, nll in zip(alone, rows, strict=True):
        if not torch.allclose(batch.nll(run.model), nll, rtol=MOVED):
            return "their evaluation is another one"
    return None


def _pair(spec: TrialSpec, cache: Path) -> list[TrainingRun]:
    found = []
    for seed in (0, 1):
        train = replace(spec.train, lr=spec.train.lr * (1 + seed), precision="fp32")
        run = new_run(replace(spec, seed=seed, train=train), torch.device("cpu"), cache)
        if not isinstance(run, TrainingRun):
            raise Apart("they are not trained by gradients")
        for model in [run.model] if run.average is None else [run.model, run.average]:
            model.double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in run.parameters:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        run.paced = _FewRows(run.paced)  # type: ignore[assignment]
        found.append(run)
    return found


class _FewRows:
    """The first rows of every batch, in float64."""

    def __init__(self, paced: PacedBatches):
        self.paced = paced

    def micro(self, step: int, pieces: int = 1) -> list[Batch]:
        return [in_float64(self.paced.micro(step)[0].rows(0, LOOKED_AT))]
