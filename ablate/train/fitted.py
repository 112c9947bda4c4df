"""Training by counting: the run of a model without a gradient."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ablate import registry
from ablate.spec import TrialSpec
from ablate.train.checkpoint import State
from ablate.train.run import Run, TrainingRun


class FittedRun(Run):
    """Up to each evaluation the model is fitted anew, to the first tokens of the training split, as many as a run
    of an optimizer would have read by then (all of the split, where that is less): its curve is over data.

    Optimizer, schedule, dropout and the seed have no part in it.
    """

    def train_step(self) -> None:
        self.step = min(step for step in self.eval_steps if step > self.step)
        tokens = self.task.stream(self.spec.train.tokens_at(self.step))
        self.model.fit(tokens.to(self.device))  # type: ignore[operator]

    def take_means(self) -> tuple[float, float]:
        """The loss on a sample of the training split; there is no gradient."""
        return self.evaluate("train", final=False)["loss"], math.nan

    def state(self) -> State:
        return {"model": self.model.state_dict(), "step": self.step}

    def restore(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.step = state["step"]


def new_run(spec: TrialSpec, device: torch.device, cache: Path, parent: Path | None = None) -> Run:
    """The kind of run that the specification's model needs."""
    model = spec.arch.model
    fitted = model is not None and getattr(registry.load(registry.find("model", model.name)), "fitted", False)
    return (FittedRun if fitted else TrainingRun)(spec, device, cache, parent)
