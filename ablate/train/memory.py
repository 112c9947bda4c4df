"""Out of memory: a step is computed in more pieces, where these have the gradient of the whole."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ablate import registry
from ablate.errors import UserError
from ablate.run.environment import device_name
from ablate.run.files import read_json, write_json
from ablate.spec import TrainSpec, TrialSpec, digest
from ablate.tasks.base import Batch, Task, shares

LOOKED_AT = 3  # rows that are computed whole and in two pieces, of 2 and 1, which weigh differently
ROUNDING = 1e-5  # of a gradient's norm: what is computed in float32 whatever its input differs by less
NOTHING = 1e-10  # of the largest norm: a gradient that is zero but for rounding
SAME = "computed in pieces: the same gradient up to rounding"
REDRAWN = f"{SAME} and for dropout, whose masks are another draw of the same distribution"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, by the device or by this machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "memory: you tried to allocate" in str(error)  # torch's on a CPU


def free(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Pieces:
    """In how many pieces each micro-batch of a trial is computed: 1, 2, 4 and so on, down to single rows.

    What a trial comes to is remembered for those alike on such a device: see `TrialSpec.row_id`. It is no part of a
    trial's identity.
    """

    def __init__(self, spec: TrialSpec, device: torch.device, cache: Path):
        self.spec, self.device, self.cache = spec, device, cache
        self.rows = spec.train.batch_tokens // spec.data.row_tokens // spec.train.accumulate  # of a micro-batch
        name = device_name(device)
        self.file = cache / "micro" / f"{digest([spec.row_id, name])}.json"
        self._labels = {"row": spec.row_id, "device": name}
        known = read_json(self.file) or {}
        self.count = int(known.get("micro", 1))
        self.redraws = bool(known.get("redraws", False))

    @property
    def note(self) -> str | None:
        """What the pieces mean for the numbers; None where there is one."""
        if self.count == 1:
            return None
        return REDRAWN if self.redraws else SAME

    def state(self) -> dict[str, Any]:
        return {"micro": self.count, "redraws": self.redraws}

    def go_on(self, state: dict[str, Any]) -> None:
        """At least as many pieces as a checkpoint was made with."""
        if state["micro"] > self.count:
            self.count, self.redraws = state["micro"], state["redraws"]

    def double(self, why: str) -> None:
        """Twice as many, after memory was refused with the words `why`; remembered.

        Raises `MemoryError` where there are no smaller pieces, or where these would have another gradient.
        """
        said = f" ({why})" if why else ""
        if self.count >= self.rows:
            raise MemoryError(f"with one row at a time{said}")
        if self.count == 1:
            differs, self.redraws = self._difference()
            if differs is not None:
                raise MemoryError(f"smaller pieces of a batch would be another experiment: {differs}{said}")
        self.count *= 2
        write_json(self.file, self._labels | self.state())

    def _difference(self) -> tuple[str | None, bool]:
        try:
            return difference(self.spec, self.cache)
        except (RuntimeError, TypeError, ValueError, MemoryError, UserError) as error:
            return f"they could not be compared with the whole, by {type(error).__name__}: {error}", False


def difference(spec: TrialSpec, cache: Path) -> tuple[str | None, bool]:
    """What differs between a few rows computed together and in two pieces, None where only rounding does; and
    whether there is dropout, which is left out of the comparison.

    Found by computing it, on the CPU in float64, in training mode, with every parameter moved away from special
    values such as zero: batch statistics, capacities, losses of a batch's load and noise of the model's own show.
    """
    task: Task = registry.make("task", spec.data.task)
    task.open(spec.data, cache)
    batches = task.batches(spec.train, spec.seed)
    batch = in_float64(batches[0].rows(0, LOOKED_AT))
    model = task.build(spec.arch, spec.seed, spec.train.dropout).double().train()
    if getattr(model, "fitted", False):
        return "the model is fitted by counting", False
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    with _WithoutDropout() as mode:
        whole = _gradient(task, copy.deepcopy(model), [batch], spec.train)
        parts = _gradient(task, model, batch.split(2), spec.train)
    least = NOTHING * max(float(each.norm()) for each in whole.values())
    for name, expected in whole.items():
        if not float((parts[name] - expected).norm()) <= ROUNDING * float(expected.norm()) + least:
            return f"they change the gradient or the state of {name}", mode.met
    return None, mode.met


def _gradient(task: Task, model: nn.Module, parts: Sequence[Batch], train: TrainSpec) -> dict[str, Tensor]:
    """The gradient of every parameter, and every buffer as it is afterwards."""
    for part, share in zip(parts, shares(parts), strict=True):
        objective, _ = task.objective(model, part, train)
        (objective * share).backward()  # type: ignore[no-untyped-call]
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {**found, **{name: each.double() for name, each in model.named_buffers()}}


def in_float64(batch: Batch) -> Batch:
    """The batch with its floating-point tensors in double precision."""

    def wide(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    marks = {name: wide(mark) for name, mark in batch.marks.items()}
    return replace(batch, inputs=tuple(map(wide, batch.inputs)), targets=wide(batch.targets), marks=marks)


class _WithoutDropout(TorchFunctionMode):
    """Dropout drops nothing; `met` says whether some would have."""

    met = False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if function in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout):
            p = args[1] if len(args) > 1 else given.get("p", 0.5)
            training = args[2] if len(args) > 2 else given.get("training", True)
            self.met |= bool(training and p)
            return args[0] if args else given["input"]
        if function is F.scaled_dot_product_attention:
            p = args[4] if len(args) > 4 else given.pop("dropout_p", 0.0)
            self.met |= bool(p)
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
        return function(*args, **given)
