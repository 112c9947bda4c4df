"""One training run in memory: model, optimizer, schedule, and the step. Files are `trial.py`'s business."""

from __future__ import annotations

import contextlib
import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ablate import registry
from ablate.contracts import Slot
from ablate.diagnose import by_layer
from ablate.spec import TrialSpec
from ablate.tasks.base import Task, first_rows, shares
from ablate.train.checkpoint import State
from ablate.train.finetune import DecayToStart, Mixout, distances, taken_from, top_layers
from ablate.train.optim import decay_groups
from ablate.train.pace import PacedBatches
from ablate.train.profile import NoProfile
from ablate.train.start import begin_from, load_weights
from ablate.train.steps import evaluation_steps
from ablate.train.sums import Sums

if TYPE_CHECKING:
    from ablate.train.cohort.together import Together

LOOKED_AT = 8  # rows of validation data that are looked at layer by layer
CHECK_EVERY = 10  # steps between looks at the loss: a fixed grid, so that a divergence has one step
_MIX = 0x9E3779B97F4A7C15  # odd constant that spreads (seed, step) over 64 bits


class Diverged(Exception):
    """The loss is not finite, or above the stated multiple of the first one."""


class Run:
    """A trial's state between steps: what training by gradients and by counting have in common.

    `state()` and `restore()` carry all of it, bit for bit.
    """

    def __init__(self, spec: TrialSpec, device: torch.device, cache: Path, parent: Path | None = None):
        """`parent` is the file of the weights to begin from."""
        self.spec = spec
        self.device = device
        self.task: Task = registry.make("task", spec.data.task)
        self.task.open(spec.data, cache)
        self.steps = spec.train.steps
        model = self.task.build(spec.arch, spec.seed, spec.train.dropout)
        self.begun: dict[str, Any] | None = None
        if parent is not None:
            self.begun = begin_from(model, load_weights(parent), top_layers(model, spec.train.reinit_layers))
        self.model: nn.Module = model.to(device)
        self.eval_steps = evaluation_steps(self.steps, spec.train.eval_points)
        self.step = 0
        self.profile = NoProfile()
        self.followed: list[Sums] = []  # of the curves of trials that have these steps in common
        self.pieces = 1  # in which a micro-batch is computed where memory is short: see `memory.Pieces`

    @property
    def rows_at_once(self) -> int:
        """Rows that are evaluated together: as many as are trained together."""
        train = self.spec.train
        rows = max(1, train.batch_tokens // self.spec.data.row_tokens // train.accumulate)
        return -(-rows // self.pieces)

    def close(self) -> None:
        """Let go of what is not this process'."""

    def train_step(self) -> None:
        """Go on by one step at least, and not beyond the next evaluation."""
        raise NotImplementedError

    def take_means(self) -> tuple[float, float]:
        """Mean training loss and gradient norm since the last call."""
        raise NotImplementedError

    def take_maxima(self) -> dict[str, float]:
        """The largest training loss and gradient norm of a step since the last call, `loss_max` and `grad_norm_max`;
        empty where training has no steps."""
        return {}

    def rate(self) -> float:
        """The learning rate of the last step; nan where there is none."""
        return math.nan

    def cooled_steps(self) -> int:
        """How many of the last steps had less than the highest learning rate, since that was last in force."""
        return 0

    @property
    def forks(self) -> bool:
        """Whether its states do not depend on the length of the run, but for the schedule's: see `forks`."""
        return False

    def state(self) -> State:
        raise NotImplementedError

    def restore(self, state: State) -> None:
        raise NotImplementedError

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.spec.train.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    @torch.no_grad()
    def evaluate(self, split: str, final: bool) -> dict[str, float]:
        """The metrics of a split's fixed sample, `loss` first, in evaluation mode."""
        train = self.spec.train
        model = self.measured()
        model.eval()
        meter = self.task.meter(split, final)
        tokens = train.final_eval_tokens if final else train.eval_tokens
        for batch in self.task.held_out(split, tokens, self.rows_at_once):
            with self.autocast():
                meter.add(model, batch.to(self.device))
        return meter.result()

    def splits_at(self, last: bool) -> list[str]:
        """The splits that are evaluated: all after the last step."""
        splits = self.task.splits
        on_the_way = ("train", "valid") if "train_curve" in self.spec.train.diagnostics else ("valid",)
        return [split for split in splits if last or split in on_the_way]

    def measured(self) -> nn.Module:
        """The model that is evaluated and kept."""
        return self.model

    def by_layer(self) -> dict[str, list[float | None]] | None:
        """What `diagnose.by_layer` sees on a few rows of validation data."""
        split = "valid" if "valid" in self.task.splits else self.task.splits[-1]
        batch = first_rows(self.task.held_out(split, LOOKED_AT * self.spec.data.row_tokens, LOOKED_AT), LOOKED_AT)
        batch = batch.to(self.device)
        with self.autocast():
            return by_layer(self.measured(), batch.inputs, batch.marks)


class TrainingRun(Run):
    """A run of an optimizer."""

    def __init__(self, spec: TrialSpec, device: torch.device, cache: Path, parent: Path | None = None):
        super().__init__(spec, device, cache, parent)
        train = spec.train
        self.average: nn.Module | None = None
        if train.ema:
            self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.parameters = list(self.model.parameters())
        self.constrained = constrained(self.model)
        self.schedule = registry.make("schedule", train.schedule)
        groups = self._groups()
        self.decay = DecayToStart(groups) if train.decay_to == "start" else None
        self.mixout: Mixout | None = None
        if train.mixout and self.begun is not None:
            self.mixout = Mixout(self.model, taken_from(self.model, self.begun), train.mixout, spec.seed)
        self.optimizer: torch.optim.Optimizer = registry.make("optimizer", train.optimizer).build(groups, train.lr)
        self.batches = self.task.batches(train, spec.seed)
        self.paced = PacedBatches(self.batches, spec.data, train, self.task.causal)
        self.first_loss = math.nan
        self.sums = Sums(device)  # since the last row
        self.beside: Together | None = None  # the program that trains it along with others

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters, with the rate that their depth and the init's width give them."""
        train, named = self.spec.train, dict(self.model.named_parameters())
        depths = {}
        if train.layer_decay != 1:
            depths = {each: train.layer_decay**below for each, below in distances(self.model).items()}
        widths = {named[name]: rate for name, rate in self.task.rates(self.spec.arch, self.model).items()}
        return decay_groups(self.model, train.weight_decay, depths, widths)

    def train_step(self) -> None:
        """One optimizer step. Its batch and its dropout depend on (seed, step) alone.

        Raises `Diverged`, on a fixed grid of steps.
        """
        train, lap = self.spec.train, self.profile.lap
        self.profile.begin()
        self._seed_dropout()
        rate = self.next_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        if not self.model.training:  # it walks through all modules: 1 % of a tiny step
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        lap("optimizer")
        parts = self.paced.micro(self.step, self.pieces)
        if self.mixout is not None:
            self.mixout.mix(self.step)
        nll = torch.zeros((), dtype=torch.float64, device=self.device)
        for part, share in zip(parts, shares(parts), strict=True):
            batch = part.to(self.device)
            lap("data")
            with self.autocast():
                objective, part_nll = self.task.objective(self.model, batch, train)
            lap("forward")
            (objective * share).backward()
            nll += part_nll * share
            lap("backward")
        if self.mixout is not None:
            self.mixout.unmix()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_limit, foreach=True)
        if self.decay is not None:
            self.decay.pull(rate)
        self.optimizer.step()
        self.after_update(nll, norm)
        lap("optimizer")
        self.count_step(nll)

    @property
    def clip_limit(self) -> float:
        """The largest gradient norm that is let through."""
        return math.inf if self.spec.train.clip is None else self.spec.train.clip

    def next_rate(self) -> float:
        """The learning rate of the step that comes."""
        return self.spec.train.lr * self.schedule.factor(self.step, self.steps)

    def after_update(self, nll: Tensor, norm: Tensor) -> None:
        """What follows an optimizer's step: constraints, the average, and sums of its loss and gradient norm."""
        for module in self.constrained:
            module.after_step((self.step + 1) / self.steps)
        if self.average is not None:
            self._follow(self.average)
        for sums in (self.sums, *self.followed):
            sums.add(nll, norm)

    def count_step(self, nll: Tensor) -> None:
        """The step is done. Raises `Diverged`, on a fixed grid of steps."""
        if self.step == 0:
            self.first_loss = nll.item()
        self.step += 1
        if self.step % CHECK_EVERY == 0 or self.step == self.steps:
            self._check(nll.item())

    @torch.no_grad()
    def _follow(self, average: nn.Module) -> None:
        """average = decay average + (1 - decay) model. The decay is min(ema, (1 + s) / (10 + s)) at step s, so that
        a short run does not keep its first values."""
        decay = min(self.spec.train.ema, (1 + self.step) / (10 + self.step))
        mine: list[Tensor] = list(average.parameters())
        torch._foreach_lerp_(mine, list[Tensor](self.parameters), 1 - decay)
        for buffer, theirs in zip(average.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(theirs)

    def measured(self) -> nn.Module:
        return self.model if self.average is None else self.average

    def evaluate(self, split: str, final: bool) -> dict[str, float]:
        known = None if self.beside is None else self.beside.evaluated(self, split, final)
        return super().evaluate(split, final) if known is None else known

    def _seed_dropout(self) -> None:
        """By the generators themselves: `torch.manual_seed` keeps a stack trace, 0.15 ms against 0.002."""
        seed = self.step_seed()
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def step_seed(self) -> int:
        """Of what is drawn in the step that comes."""
        return (self.spec.seed * 0x100000001 + self.step) * _MIX % 2**63

    def _check(self, loss: float) -> None:
        bound = self.spec.train.diverge_above * self.first_loss
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {self.step}")
        if loss > bound:
            raise Diverged(
                f"the loss {loss:.3f} at step {self.step} is above {self.spec.train.diverge_above:g} x "
                f"the first, {self.first_loss:.3f}"
            )

    def take_means(self) -> tuple[float, float]:
        return self.sums.take_means()

    def take_maxima(self) -> dict[str, float]:
        return self.sums.take_maxima()

    def rate(self) -> float:
        return self.spec.train.lr * self.schedule.factor(max(self.step - 1, 0), self.steps)

    def cooled_steps(self) -> int:
        factors = [self.schedule.factor(step, self.steps) for step in range(self.step)]
        return factors[::-1].index(max(factors)) if factors else 0

    @property
    def forks(self) -> bool:
        return not self.constrained  # whose constraints are told how much of the run is done

    def state(self) -> State:
        if self.beside is not None:
            self.beside.settle(self)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "first_loss": self.first_loss,
            **self.sums.state(),
            **({} if self.average is None else {"average": self.average.state_dict()}),
        }

    def restore(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.first_loss = state["first_loss"]
        self.sums.restore(state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def constrained(model: nn.Module) -> list[Slot]:
    """The modules that have something to do after every optimizer step."""
    slots = [module for module in model.modules() if isinstance(module, Slot)]
    return [slot for slot in slots if type(slot).after_step is not Slot.after_step]
