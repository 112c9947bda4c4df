"""How a model is spread over the processes of a trial: a replica in each (DDP) or a part (FSDP2, tensor parallel)."""

from __future__ import annotations

import contextlib
import copy
import math
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
from ablate.errors import UserError
from ablate.tasks.base import Batch
from ablate.train.checkpoint import State
from ablate.train.parallel.ranks import Seat
from ablate.train.run import TrainingRun

warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # no sublayer's output is changed in place

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
        self.run = run
        self.optimizer = run.optimizer
        group = seat.mesh["data"].get_group()
        self.objective = DistributedDataParallel(
            _Objective(run, run.model), process_group=group, find_unused_parameters=True, forward_sync_buffers=False
        )

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the passes of a micro-batch: only the last one's gradients are exchanged."""
        return contextlib.nullcontext() if last else self.objective.no_sync()

    def clip(self, limit: float) -> Tensor:
        norm: Tensor = torch.nn.utils.clip_grad_norm_(self.run.parameters, limit, foreach=True)
        return norm

    def train(self) -> None:
        if not self.run.model.training:
            self.run.model.train()

    def settle(self, whole: bool) -> State | None:
        """Bring the run's model up to date; and, for a checkpoint, its optimizer: None where they are."""
        return None

    def load(self, state: State) -> None:
        """Go on from a checkpoint that the run has restored."""


class Sharded:
    """A part of every weight, gradient and optimizer state in each process. The run's own model is brought up to date
    where it is looked at: rank 0 has room for it, and the others keep theirs off their devices."""

    def __init__(self, run: TrainingRun, seat: Seat):
        self.run, self.seat = run, seat
        self.model = copy.deepcopy(run.model).to(run.device)
        if seat.parallel.tensor > 1:
            _split(self.model, seat)
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

    def train(self) -> None:
        if not self.model.training:
            self.model.train()

    def settle(self, whole: bool) -> State | None:
        if not whole:
            for name, mine in self.model.named_parameters():
                value = mine.full_tensor() if isinstance(mine, DTensor) else mine  # all processes take part
                if self.seat.rank == 0:
                    self.run.model.get_parameter(name).data.copy_(value)
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        if self.seat.rank != 0:
            return None
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


def _by_mesh(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Those that are spread over the same processes, together: one operation cannot take others as well."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(found.values())


def _split(model: nn.Module, seat: Seat) -> None:
    """Give each process its part of the heads and of the hidden units. Raises `UserError` where nothing is split."""
    parts, mesh, found = seat.parallel.tensor, seat.mesh["tensor"], 0
    for module in model.modules():
        if type(module) not in SPLIT:
            continue
        columns, rows = SPLIT[type(module)]
        widths = [module.n_heads] if isinstance(module, Attention) else [module.get_submodule(rows[0]).in_features]
        if any(int(width) % parts for width in widths):  # type: ignore[arg-type]
            raise UserError(f"resources.parallel.tensor {parts} does not divide {widths[0]} heads or hidden units")
        plan: Any = {name: ColwiseParallel() for name in columns} | {name: RowwiseParallel() for name in rows}
        parallelize_module(module, mesh, plan)
        if isinstance(module, Attention):
            module.n_heads //= parts
        found += 1
    if not found:
        known = ", ".join(each.component for each in SPLIT)  # type: ignore[attr-defined]
        raise UserError(f"resources.parallel.tensor {parts}: nothing of this model is split; what is: {known}")


def limit_of(run: TrainingRun) -> float:
    return math.inf if run.spec.train.clip is None else run.spec.train.clip
