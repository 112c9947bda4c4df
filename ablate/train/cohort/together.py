"""K training runs of one architecture as one program along a leading model axis."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ablate import registry
from ablate.tasks.base import Batch, Meter, shares
from ablate.train.cohort.along import Along, Apart
from ablate.train.run import TrainingRun

# what is slow is found by measuring it
warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")

ALIGNED = 64  # elements: where each parameter begins, for kernels that read many at once


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a model's row of the flat storage."""

    start: int
    stop: int
    shape: torch.Size


@dataclass(frozen=True)
class Part:
    """A parameter group of the runs' optimizers: a stretch of each row."""

    names: list[str]
    start: int
    stop: int


class Together:
    """Runs of one shape, at one step, in lockstep. They differ in seed, learning rate, schedule, weight decay,
    clipping and settings of one optimizer.

    All parameters of a model are a row of one tensor (K, N), and so are their gradients: a matrix of K models is a
    batch of matrices, and an optimizer's step is one operation over all of a row. The parameters of each run's own
    model are views of its row, so that it is evaluated, kept and looked into as it would be alone. Its own optimizer
    holds a state from `settle` to the next step alone.

    One member's numbers do not depend on who else is in the cohort. Raises `Apart` where runs cannot be joined.
    """

    def __init__(self, runs: Sequence[TrainingRun]):
        self.runs = list(runs)
        self.device = runs[0].device
        self.program = _Program(runs[0])
        self._evaluated: dict[tuple[int, str, bool], list[dict[str, float]] | None] = {}
        self._join()

    @property
    def step(self) -> int:
        return self.runs[0].step

    def train_step(self) -> None:
        """One step of every run, up to `count_step`."""
        self._evaluated.clear()
        parts = [run.paced.micro(run.step, run.pieces) for run in self.runs]
        if len({len(each) for each in parts}) > 1:
            raise Apart("their steps are computed in different numbers of parts")
        weights = torch.tensor([shares(each) for each in parts], dtype=torch.float32)
        for generator, run in zip(self.generators, self.runs, strict=True):
            generator.manual_seed(run.step_seed())
        model = self.program.run.model
        if not model.training:
            model.train()
        for run in self.runs:
            run.optimizer.state.clear()  # what `settle` gave it
        for leaf in self.leaves.values():
            leaf.grad = None
        nll = torch.zeros(len(self.runs), dtype=torch.float64, device=self.device)
        for index, batches in enumerate(zip(*parts, strict=True)):
            objective, part_nll = self._along("objective", joined(batches, self.device), 0)
            if len(parts[0]) > 1:
                share = weights[:, index].to(self.device)
                objective, part_nll = objective * share, part_nll * share
            objective.sum().backward()
            nll += part_nll
        self._gather()
        norms = self._clip()
        rates = [run.next_rate() for run in self.runs]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rates[group["member"]] * group["rate"]
            optimizer.step()
        for run, loss, norm in zip(self.runs, nll.unbind(), norms.unbind(), strict=True):
            run.after_update(loss, norm)
        self.losses = nll

    def losses_by_run(self) -> list[tuple[TrainingRun, Tensor]]:
        """Each run's loss in the step that is done, for its `count_step`."""
        return list(zip(self.runs, self.losses.unbind(), strict=True))

    def leave(self, run: TrainingRun) -> None:
        """Go on without a run, whose state becomes its own."""
        left = [each for each in self.runs if each is not run]
        for each in self.runs:
            self.settle(each)
        self._part(run)
        self.runs = left
        if left:
            self._join()

    def settle(self, run: TrainingRun) -> None:
        """Give a run's own optimizer the state that the joint one has for it."""
        row = self.runs.index(run)
        state: dict[Tensor, dict[str, Any]] = {}
        named = dict(run.model.named_parameters())
        for part, stretch in zip(self.parts, self.stretches[row], strict=True):
            whole: Mapping[str, Any] = self.optimizer_of[row].state.get(stretch, {})
            for name in part.names if whole else ():
                place = self.places[name]
                inside = slice(place.start - part.start, place.stop - part.start)
                state[named[name]] = {
                    key: value[inside].view(place.shape).clone() if _elementwise(key, value, stretch) else copy(value)
                    for key, value in whole.items()
                }
        run.optimizer.state.clear()
        run.optimizer.state.update(state)

    @torch.no_grad()
    def evaluated(self, run: TrainingRun, split: str, final: bool) -> dict[str, float] | None:
        """A run's metrics, computed for all runs at once; None where it has to be evaluated by itself."""
        key = self.step, split, final
        if key not in self._evaluated:
            self._evaluated[key] = self._evaluate(split, final)
        found = self._evaluated[key]
        return None if found is None else found[self.runs.index(run)]

    def _evaluate(self, split: str, final: bool) -> list[dict[str, float]] | None:
        first = self.runs[0]
        meters = [run.task.meter(split, final) for run in self.runs]
        plain = all(type(meter).add is Meter.add for meter in meters)
        if not plain or first.average is not None:
            return None
        first.model.eval()
        train = first.spec.train
        tokens = train.final_eval_tokens if final else train.eval_tokens
        for batch in first.task.held_out(split, tokens, first.rows_at_once):
            batch = batch.to(self.device)
            rows = self.nll(batch)
            for meter, nll in zip(meters, rows.unbind(), strict=True):
                meter.add_loss(nll, batch)
        return [meter.result() for meter in meters]

    def nll(self, batch: Batch) -> Tensor:
        """What every model says of one batch, (K, ...)."""
        found: Tensor = self._along("nll", batch, None)
        return found

    def gradient(self, row: int, name: str) -> Tensor:
        """That of a parameter of one model."""
        place = self.places[name]
        return self.gradients[row, place.start : place.stop].view(place.shape)

    def _along(self, what: str, batch: Batch, axis: int | None) -> Any:
        """The program for every model; `axis` is the batch's that goes over models, None where all read the same."""
        self.program.what = what
        tensors, form = _opened(batch)

        def one(values: dict[str, Tensor], tensors: list[Tensor]) -> Any:
            return functional_call(self.program, values, (form(tensors),))

        with Along(self.generators), self.runs[0].autocast():
            return vmap(one, in_dims=(0, axis), randomness="error")(self.leaves | self.buffers, tensors)

    def _gather(self) -> None:
        """The gradients as rows; zero for what has had no part in the loss."""
        there: list[Tensor] = []
        grads: list[Tensor] = []
        for leaf, place in zip(self.leaves.values(), self.gradient_views, strict=True):
            if leaf.grad is None:
                place.zero_()
            else:
                there.append(place)
                grads.append(leaf.grad)
        torch._foreach_copy_(there, grads)

    def _clip(self) -> Tensor:
        """Scale each model's gradient to its limit; the norms before that."""
        norms = self.gradients.norm(dim=1)
        self.gradients *= (self.limits / (norms + 1e-6)).clamp(max=1.0)[:, None]
        return norms

    def _join(self) -> None:
        """Move the runs' parameters and optimizer states into rows."""
        self._evaluated.clear()  # of other runs
        K, first = len(self.runs), self.runs[0]
        self.parts, self.places, size = _layout(first)
        self.program = _Program(first)
        self.generators = [torch.Generator(self.device) for _ in self.runs]
        dtype = next(first.model.parameters()).dtype
        rows = torch.zeros(K, size, dtype=dtype, device=self.device)
        self.gradients = torch.zeros_like(rows)
        self.limits = torch.tensor([run.clip_limit for run in self.runs]).to(rows)
        models = [dict(run.model.named_parameters()) for run in self.runs]
        for name, place in self.places.items():
            for row, named in zip(rows, models, strict=True):
                view = row[place.start : place.stop].view(place.shape)
                view.copy_(named[name].detach())
                named[name].data = view
        self.leaves: dict[str, Tensor] = {}
        self.gradient_views: list[Tensor] = []
        for name, place in self.places.items():
            leaf = rows[:, place.start : place.stop].view(K, *place.shape).requires_grad_()
            self.gradient_views.append(self.gradients[:, place.start : place.stop].view(K, *place.shape))
            self.leaves[f"run_model.{name}"] = leaf
        self.buffers = {}
        for name in _changing(first.model):
            together = torch.stack([run.model.get_buffer(name) for run in self.runs])
            for run, own in zip(self.runs, together.unbind(), strict=True):
                run.model.get_buffer(name).data = own
            self.buffers[f"run_model.{name}"] = together
        self._join_optimizers(rows)
        for run in self.runs:
            run.beside = self

    def _join_optimizers(self, rows: Tensor) -> None:
        """One optimizer for each setting of it, with the members that share a rate and a decay in one group."""
        self.stretches: list[list[Tensor]] = []
        groups: dict[str, dict[tuple[float, str, float, float], dict[str, Any]]] = {}
        for member, run in enumerate(self.runs):
            named = {parameter: name for name, parameter in run.model.named_parameters()}
            mine = run.optimizer.param_groups
            if [[named[each] for each in group["params"]] for group in mine] != [part.names for part in self.parts]:
                raise Apart("their optimizers have different groups of parameters")
            train, stretches = run.spec.train, []
            setting = repr(train.optimizer)
            for part, group in zip(self.parts, mine, strict=True):
                stretch = rows[member, part.start : part.stop].detach().requires_grad_()
                stretch.grad = self.gradients[member, part.start : part.stop]
                stretches.append(stretch)
                key = train.lr, repr(train.schedule), group["weight_decay"], group["rate"]
                empty = {"params": [], "weight_decay": key[2], "rate": key[3], "member": member}
                groups.setdefault(setting, {}).setdefault(key, empty)["params"].append(stretch)
            self.stretches.append(stretches)
        made = {}
        for run in self.runs:
            setting = repr(run.spec.train.optimizer)
            if setting not in made:
                choice = registry.make("optimizer", run.spec.train.optimizer)
                made[setting] = choice.build(list(groups[setting].values()), run.spec.train.lr)
        self.optimizers: list[torch.optim.Optimizer] = list(made.values())
        self.optimizer_of = [made[repr(run.spec.train.optimizer)] for run in self.runs]
        for run, optimizer, stretches in zip(self.runs, self.optimizer_of, self.stretches, strict=True):
            self._take_state(run, optimizer, stretches)

    def _take_state(self, run: TrainingRun, optimizer: torch.optim.Optimizer, stretches: Sequence[Tensor]) -> None:
        """Join what a run's own optimizer knows of its parameters."""
        named = dict(run.model.named_parameters())
        for part, stretch in zip(self.parts, stretches, strict=True):
            known = {name: run.optimizer.state.get(named[name]) or {} for name in part.names}
            if not any(known.values()):
                continue
            if not all(known.values()):
                raise Apart("an optimizer has moved a part of its parameters only")
            whole: dict[str, Any] = {}
            for name, values in known.items():
                place = self.places[name]
                for key, value in values.items():
                    if not _elementwise(key, value, named[name]):
                        whole[key] = copy(value)
                        continue
                    joint = whole.setdefault(key, torch.zeros_like(stretch, requires_grad=False))
                    joint[place.start - part.start : place.stop - part.start] = value.flatten()
            optimizer.state[stretch] = whole

    def _part(self, run: TrainingRun) -> None:
        """Make what a run has in the rows its own."""
        for parameter in run.model.parameters():
            parameter.data = parameter.data.clone()
        for name in _changing(run.model):
            buffer = run.model.get_buffer(name)
            buffer.data = buffer.data.clone()
        run.beside = None


class _Program(nn.Module):
    """What is computed for one model, of its values and its batch."""

    def __init__(self, run: TrainingRun):
        super().__init__()
        self.run_model = run.model
        self.__dict__["run"] = run  # not a part of the module
        self.what = "objective"

    run: TrainingRun

    def forward(self, batch: Batch) -> Any:
        task = self.run.task
        if self.what == "objective":
            return task.objective(self.run_model, batch, self.run.spec.train)
        return batch.nll(self.run_model)


def joined(batches: Sequence[Batch], device: torch.device) -> Batch:
    """A batch for each model as one, of tensors with a leading axis over models. Raises `Apart` where they differ in
    shape."""
    opened = [_opened(each)[0] for each in batches]
    if len({tuple(tensor.shape for tensor in each) for each in opened}) > 1:
        raise Apart("their batches differ in shape")
    together = [torch.stack(each) for each in zip(*opened, strict=True)]
    return _opened(batches[0])[1](together).to(device)


def _opened(batch: Batch) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Batch]]:
    """A batch's tensors, and what makes a batch of such tensors again."""
    names, inputs = list(batch.marks), len(batch.inputs)
    counted = batch.counts is not None
    tensors = [*batch.inputs, batch.targets, *batch.marks.values(), *([batch.counts] if counted else [])]

    def again(tensors: Sequence[Tensor]) -> Batch:
        marks = dict(zip(names, tensors[inputs + 1 :], strict=False))
        return Batch(tuple(tensors[:inputs]), tensors[inputs], tensors[-1] if counted else None, marks)

    return tensors, again  # type: ignore[return-value]


def _layout(run: TrainingRun) -> tuple[list[Part], dict[str, Place], int]:
    """Where a run's parameters lie in its row, by the groups of its optimizer; and the row's length."""
    named = {parameter: name for name, parameter in run.model.named_parameters()}
    if not all(parameter.requires_grad for parameter in named):
        raise Apart("some parameters are frozen")
    parts, places, at = [], {}, 0
    for group in run.optimizer.param_groups:
        names, start = [named[parameter] for parameter in group["params"]], at
        for name, parameter in zip(names, group["params"], strict=True):
            places[name] = Place(at, at + parameter.numel(), parameter.shape)
            at += -(-parameter.numel() // ALIGNED) * ALIGNED
        parts.append(Part(names, start, at))
    return parts, places, at


def _changing(model: nn.Module) -> list[str]:
    """The buffers that belong to a model's state, which training may change; others are constants of its shape."""
    kept = model.state_dict(keep_vars=True)
    return [name for name, _ in model.named_buffers() if name in kept]


def _elementwise(name: str, value: Any, of: Tensor) -> bool:
    """Whether an optimizer's value is one of each element, and not of the whole tensor, as its count of steps is."""
    return isinstance(value, Tensor) and name != "step" and value.shape == of.shape


def copy(value: Any) -> Any:
    """A tensor of its own."""
    return value.clone() if isinstance(value, Tensor) else value
