"""The contract of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ablate.build import build_model, init_of
from ablate.data.corpora import resolve
from ablate.errors import UserError
from ablate.spec import ArchSpec, DataSpec, TrainSpec

if TYPE_CHECKING:
    from ablate.sampling import SampleRequest


@dataclass(frozen=True)
class Batch:
    """Rows that are read together: every tensor has them first.

    A model is called as `model.nll(*inputs, targets, **marks)`; marks are its keyword arguments, as `valid_BT`.
    `counts` says which targets are scored; None for all.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    counts: Tensor | None = None
    marks: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def n(self) -> int:
        """How many targets are scored."""
        return self.targets.numel() if self.counts is None else int(self.counts.sum())

    def _each(self, change: Any) -> Batch:
        counts = None if self.counts is None else change(self.counts)
        marks = {name: change(mark) for name, mark in self.marks.items()}
        return Batch(tuple(change(each) for each in self.inputs), change(self.targets), counts, marks)

    def to(self, device: torch.device) -> Batch:
        """On a device; to a GPU through pinned memory, else the host would wait for the kernels before the copy."""
        if device.type != "cuda":
            return self._each(lambda tensor: tensor.to(device))
        return self._each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))

    def rows(self, start: int, stop: int) -> Batch:
        return self._each(lambda tensor: tensor[start:stop])

    def split(self, size: int) -> list[Batch]:
        """In parts of `size` rows; the last may have fewer."""
        return [self] if size >= len(self) else [self.rows(at, at + size) for at in range(0, len(self), size)]

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values`, of the targets' shape, over the targets that are scored."""
        if self.counts is None:
            return values.mean()
        return (values * self.counts).sum() / self.counts.sum().clamp(min=1)

    def nll(self, model: Any) -> Tensor:
        """What the model says of each target, in nats, of the targets' shape."""
        nll: Tensor = model.nll(*self.inputs, self.targets, **self.marks)
        return nll


class Batches(Protocol):
    """The batch of any step, on the CPU: a pure function of the data, the seed and the step."""

    def __getitem__(self, step: int) -> Batch: ...


class Meter:
    """Gathers what a model makes of a split's batches. Here: the mean loss in nats over its targets."""

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def add(self, model: nn.Module, batch: Batch) -> None:
        self.add_loss(batch.nll(model), batch)

    def add_loss(self, nll: Tensor, batch: Batch) -> None:
        nll = nll.double() if batch.counts is None else nll.double() * batch.counts
        self.total = self.total.to(nll.device) + nll.sum()
        self.count += batch.n

    def result(self) -> dict[str, float]:
        """The split's metrics: `loss`, and what else the task measures."""
        return {"loss": self.total.item() / max(1, self.count)}


class Task:
    """What is learned, from which batches, and how it is measured. Opened on its data before anything else."""

    causal: bool = True  # of the model's tower, or of its decoder
    forms: ClassVar[tuple[str, ...]] = ("tokens",)  # of the models that it can train: see `registry.register`
    cuts: ClassVar[bool] = False  # whether rows may be cut into shorter ones: see `ablate.train.pace.cut`
    splits: tuple[str, ...] = ("train", "valid", "test")
    corpora: ClassVar[tuple[str, ...]] = ("kjv",)  # data that it knows by name; the first is the default
    rows_together: ClassVar[int] = 1  # of held-out rows, that are only measured beside each other
    metric: str = "loss"  # the one that a table of tasks shows
    higher_is_better: bool = False
    writes_file: ClassVar[bool] = False  # whether `generate` writes a file instead of printing
    data: DataSpec

    @classmethod
    def resolve(cls, data: DataSpec, folder: Path) -> DataSpec:
        """The specification with absolute paths and the fingerprint of its content. `folder` is the grid's.

        Raises `SpecError` for data that are not there.
        """
        return resolve(data, folder, cls.corpora)

    @classmethod
    def specimen(cls, folder: Path) -> dict[str, Any]:
        """Settings of `data` for a small example, whose files are written to the folder: what `ablate check` checks
        the task on. Unless overridden, the task's own first corpus in rows of 16."""
        return {"seq_len": 16}

    def open(self, data: DataSpec, cache: Path) -> None:
        """Read the data's description and map its tokens. Cheap when the cache is there."""
        raise NotImplementedError

    @property
    def vocab(self) -> int:
        """Tokens that the model knows: the tokenizer's, and the task's own behind them. 0 without tokens."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> str:
        """The folder of the token cache that has the tokenizer, for stages after this one; empty without tokens."""
        return ""

    @property
    def max_len(self) -> int:
        """The longest sequence that the model is built for."""
        return self.data.seq_len

    def length(self, arch: ArchSpec) -> int:
        """The longest sequence that a model of this architecture is built for, where the architecture decides it."""
        return self.max_len

    @property
    def shape(self) -> dict[str, Any]:
        """What else the model is told of the data: keyword arguments of `build_model`."""
        return {"causal": self.causal}

    @property
    def sizes(self) -> dict[str, Any]:
        """`shape`, and what the data's specification says of tables."""
        multiple = self.data.vocab_multiple
        return self.shape | ({"vocab_multiple": multiple} if multiple > 1 else {})

    @property
    def train_tokens(self) -> int:
        """Tokens of the training split: so many make an epoch."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a report says of the data: sizes, and `baselines`, a list of {name, metric, value} to compare with:
        what is reached without a model, or with a simple one; on validation data, unless `split` says `test`."""
        raise NotImplementedError

    def build(self, arch: ArchSpec, seed: int, dropout: float) -> nn.Module:
        return build_model(arch, self.vocab, self.length(arch), seed=seed, dropout=dropout, **self.sizes)  # type: ignore[no-any-return]

    def rates(self, arch: ArchSpec, model: nn.Module) -> Mapping[str, float]:
        """What the initialisation makes of the learning rate, by the parameter's name; 1 where nothing is said."""
        return init_of(arch, self.vocab, self.length(arch), **self.sizes).rates(model)

    def batches(self, train: TrainSpec, seed: int) -> Batches:
        """The training batches, of train.batch_tokens / data.row_tokens rows."""
        raise NotImplementedError

    def stream(self, at_most: int) -> Tensor:
        """The training split's first tokens, for a model that counts them."""
        raise UserError("the task has no stream of tokens to count: a model fitted by counting needs task 'lm'")

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        """A fixed sample of a split, about `at_most` tokens, the same for every trial on this data; in batches of
        at most `rows` rows."""
        raise NotImplementedError

    def objective(self, model: Any, batch: Batch, train: TrainSpec) -> tuple[Tensor, Tensor]:
        """What is minimised and the loss that is reported, both means over the batch's targets."""
        loss, nll, aux = model.objective(
            *batch.inputs, batch.targets, **batch.marks, label_smoothing=train.label_smoothing, z_loss=train.z_loss
        )
        total = batch.mean(loss)
        for extra in aux.values():
            total = total + extra
        return total, batch.mean(nll.detach())

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The plain loss of every target, of the targets' shape: what diagnostics look at."""
        return batch.nll(model)

    def meter(self, split: str, final: bool) -> Meter:
        """A fresh meter. `final` is the evaluation at the end, which may take its time."""
        return Meter()

    def generate(self, model: nn.Module, request: SampleRequest) -> list[str]:
        """What a trained model generates, `request.count` texts: for `ablate sample`.

        The task says what `request.prompt` means, what stands for it where there is none, and what ends a text;
        `request.continuations` decodes. Raises `UserError` for a prompt that it cannot read. One that writes a file
        (`writes_file`) writes `request.out` and says what it wrote.
        """
        raise UserError(f"task {self.data.task.name!r} has nothing to generate")


def first_rows(batches: Iterable[Batch], rows: int) -> Batch:
    """The first batch's first rows, for a look inside."""
    return next(iter(batches)).rows(0, rows)


def shares(parts: Sequence[Batch]) -> list[float]:
    """The part of a step's targets that each of its micro-batches has."""
    counts = [part.n for part in parts]
    return [count / max(1, sum(counts)) for count in counts]
