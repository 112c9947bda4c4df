"""How a model is spread over the processes of a trial: a replica in each (DDP) or a part (FSDP2, tensor parallel)."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from ablate import registry
from ablate.build import Tower
from ablate.components.channels.ffn import FFN, GLU
from ablate.components.mixers.attention import Attention
from ablate.contracts import Slot
from ablate.errors import UserError
from ablate.tasks.base import Batch, first_rows
from ablate.train.checkpoint import State
from ablate.train.parallel.ranks import Seat
from ablate.train.run import TrainingRun

warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # no sublayer's output is changed in place
logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # that gathering a weight takes two steps

# the matrices that are split by their output, and those that are split by their input, of one layer after the other
SPLIT: dict[type[nn.Module], tuple[tuple[str, ...], tuple[str, ...]]] = {
    Attention: (("q", "k", "v"), ("out",)),
    FFN: (("up",), ("down",)),
    GLU: (("gate", "up"), ("down",)),
}


class _Objective(nn.Module):
    """What DDP and FSDP2 see of a run: a module whose forward pass is the whole objective."""

    def __init__(self, run: TrainingRun, model: nn.Module):
        super().__init__()
        self.model = model
        self.__dict__["of"] = run  # not a part of the module

    of: TrainingRun

    def forward(self, batch: Batch) -> Any:
        return self.of.task.objective(self.model, batch, self.of.spec.train)


class Replicated:
    """The run's own model and optimizer; gradients are averaged while the backward pass goes on."""

    def __init__(self, run: TrainingRun, seat: Seat):
        self.run, self.model = run, run.model
        self.optimizer = run.optimizer
        self.objective = DistributedDataParallel(
            _Objective(run, run.model),
            process_group=seat.mesh["data"].get_group(),
            find_unused_parameters=_some_unused(run),
            forward_sync_buffers=False,
        )

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the passes of a micro-batch: only the last one's gradients are exchanged."""
        return contextlib.nullcontext() if last else self.objective.no_sync()

    def clip(self, limit: float) -> Tensor:
        norm: Tensor = torch.nn.utils.clip_grad_norm_(self.run.parameters, limit, foreach=True)
        return norm

    def settle(self, whole: bool) -> State | None:
        """Bring the run's model up to date. For a checkpoint (`whole`): what replaces the model's and the optimizer's
        part of the run's own state, None where that is right."""
        return None

    def load(self, state: State) -> None:
        """Go on from a checkpoint that the run has restored."""


def _some_unused(run: TrainingRun) -> bool:
    """Whether a step may leave parameters without a gradient: some do so on a few rows, or there are experts."""
    slots = [module for module in run.model.modules() if isinstance(module, Slot)]
    if any(slot.idle_parameters() for slot in slots):
        return True
    batch = first_rows(run.paced.micro(0), 1).to(run.device)
    run.model.train()
    with run.autocast():
        objective, _ = run.task.objective(run.model, batch, run.spec.train)
    objective.backward()  # type: ignore[no-untyped-call]
    found = any(parameter.grad is None for parameter in run.parameters)
    run.optimizer.zero_grad(set_to_none=True)
    return found


class Sharded:
    """A part of every weight, gradient and optimizer state in each process. The run's own model is brought up to date
    where it is looked at: rank 0 has room for it, and the others keep theirs off their devices."""

    def __init__(self, run: TrainingRun, seat: Seat):
        self.run, self.seat = run, seat
        self.model = copy.deepcopy(run.model).to(run.device)
        if seat.parallel.tensor > 1:
            for module, plan in split(self.model, seat.parallel.tensor, seat.parallel.data):
                parallelize_module(module, seat.mesh["tensor"], plan)
                if isinstance(module, Attention):
                    module.n_heads //= seat.parallel.tensor
        names = {parameter: name for name, parameter in run.model.named_parameters()}
        self.order = [names[parameter] for group in run.optimizer.param_groups for parameter in group["params"]]
        for tower in (module for module in self.model.modules() if isinstance(module, Tower)):
            for function in (each for layer in tower.functions.values() for each in layer):  # type: ignore[attr-defined]
                fully_shard(function, mesh=seat.mesh["data"])
        self.objective: Any = fully_shard(
            _Objective(run, self.model), mesh=seat.mesh["data"], reshard_after_forward=False
        )
        mine = dict(self.model.named_parameters())
        groups = []
        for group in run.optimizer.param_groups:
            settings = {key: group[key] for key in ("weight_decay", "rate")}
            parts = _by_mesh([mine[names[parameter]] for parameter in group["params"]])
            groups += [{"params": part, **settings} for part in parts]
        train = run.spec.train
        self.optimizer: torch.optim.Optimizer = registry.make("optimizer", train.optimizer).build(groups, train.lr)
        if isinstance(self.optimizer, torch.optim.SGD):  # torch has no fused one of parts
            for group in self.optimizer.param_groups:
                group.update(fused=False, foreach=True)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.objective.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def clip(self, limit: float) -> Tensor:
        grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norms: list[Any] = [torch.nn.utils.get_total_norm(part, foreach=True) for part in _by_mesh(grads)]
        norm = torch.stack([each.full_tensor() if isinstance(each, DTensor) else each for each in norms]).norm()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([each.to_local() if isinstance(each, DTensor) else each for each in grads], scale)
        return norm

    def settle(self, whole: bool) -> State | None:
        if not whole:
            for name, mine in self.model.named_parameters():
                value = mine.full_tensor() if isinstance(mine, DTensor) else mine  # all processes take part
                if self.seat.rank == 0:
                    self.run.model.get_parameter(name).data.copy_(value)
            for name, buffer in self.model.named_buffers():
                self.run.model.get_buffer(name).copy_(buffer)
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        if self.seat.rank != 0:
            return None
        self.run.model.load_state_dict(model)
        number = {name: index for index, name in enumerate(self.order)}
        own = self.run.optimizer.state_dict()["param_groups"]
        values_of: Any = optimizer["state"]
        state = {number[name]: values for name, values in values_of.items()}
        ordered = {index: state[index] for index in sorted(state)}
        return {"model": model, "optimizer": {"state": ordered, "param_groups": own}}

    def load(self, state: State) -> None:
        named = {self.order[index]: values for index, values in state["optimizer"]["state"].items()}
        _, mine = get_state_dict(self.model, self.optimizer, options=StateDictOptions())
        options = StateDictOptions(full_state_dict=True)
        whole = {"state": named, "param_groups": mine["param_groups"]}
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=whole, options=options
        )
        self.run.optimizer.state.clear()  # it is held in parts alone


def _by_mesh(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Those that are spread over the same processes, together: one operation cannot take others as well."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(found.values())


def split(model: nn.Module, parts: int, data: int = 1) -> list[tuple[nn.Module, dict[str, Any]]]:
    """The modules whose heads or hidden units are divided into so many parts, and how each of their matrices is.
    Everything else is computed whole in every process. Each part is held in `data` shards, of equal size. Raises
    `UserError` where that cannot be, or is nothing."""
    found: list[tuple[nn.Module, dict[str, Any]]] = []
    for module in model.modules():
        if type(module) not in SPLIT:
            continue
        columns, rows = SPLIT[type(module)]
        of_heads = isinstance(module, Attention)
        width = module.n_heads if of_heads else module.get_submodule(rows[0]).in_features
        if int(width) % parts:  # type: ignore[arg-type]
            what = "heads" if of_heads else "hidden units"
            raise UserError(f"resources.parallel.tensor {parts} does not divide {width} {what}")
        if any((wide := module.get_submodule(name).out_features) % (parts * data) for name in columns):  # type: ignore[operator]
            raise UserError(f"resources.parallel: {wide} units are not {parts} times {data} parts of equal size")
        plan: dict[str, Any] = {name: ColwiseParallel() for name in columns}
        found.append((module, plan | {name: RowwiseParallel() for name in rows}))
    if not found:
        known = ", ".join(each.component for each in SPLIT)  # type: ignore[attr-defined]
        raise UserError(f"resources.parallel.tensor {parts}: nothing of this model is split; what is: {known}")
    return found
