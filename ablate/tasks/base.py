"""The contract of a task."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor, nn

from ablate.errors import UserError
from ablate.spec import ArchSpec, DataSpec, TrainSpec


class Batches(Protocol):
    """The batch of any step, as a tensor on the CPU."""

    def __getitem__(self, step: int) -> Tensor: ...


class Task:
    """What is learned, from which batches, and how it is measured. Opened on its data before anything else."""

    causal: ClassVar[bool]
    forms: ClassVar[tuple[str, ...]] = ("tokens",)  # of the models that it can train: see `registry.register`
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test")

    def open(self, data: DataSpec, cache: Path) -> None:
        """Read the data's description and map its tokens. Cheap when the token cache is there."""
        raise NotImplementedError

    @property
    def vocab(self) -> int:
        raise NotImplementedError

    @property
    def train_tokens(self) -> int:
        """Tokens of the training split: so many make an epoch."""
        raise NotImplementedError

    @property
    def max_len(self) -> int:
        """The longest sequence that the model is built for."""
        raise NotImplementedError

    def facts(self) -> dict[str, float | int | str]:
        """What a report says of the data: sizes, the unigram entropy to compare losses with."""
        raise NotImplementedError

    def build(self, arch: ArchSpec, seed: int, dropout: float) -> nn.Module:
        raise NotImplementedError

    def batches(self, batch_tokens: int, seed: int) -> Batches:
        raise NotImplementedError

    def stream(self, at_most: int) -> Tensor:
        """The training split's first tokens, for a model that counts them."""
        raise UserError("the task has no stream of tokens to count: a model fitted by counting needs task 'lm'")

    def held_out(self, split: str, at_most: int) -> Tensor:
        """A fixed sample of a split, about `at_most` tokens: the same for every trial on this data."""
        raise NotImplementedError

    def objective(self, model: nn.Module, batch: Tensor, train: TrainSpec) -> tuple[Tensor, Tensor]:
        """What is minimised and the loss that is reported, both means over the batch's targets."""
        raise NotImplementedError

    def loss_sum(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        """The summed loss in nats over the batch's targets, and their number."""
        raise NotImplementedError

    def derived(self, loss: float, split: str) -> dict[str, float]:
        """Metrics that follow from a split's mean loss."""
        raise NotImplementedError
