"""Causal language modelling."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ablate.build import build_model
from ablate.data.batches import TrainBatches, eval_windows
from ablate.data.tokens import Tokens, prepare
from ablate.registry import register
from ablate.spec import ArchSpec, DataSpec, TrainSpec
from ablate.tasks.base import Task


@register("task", "lm", paper="Bengio et al. 2003; Radford et al. 2018")
class LanguageModelling(Task):
    """Predict every token from those before it: loss = -log p(w_t | w_<t) in nats per token.

    A window of seq_len + 1 tokens gives seq_len predictions. Bits per byte are
    loss / ln 2 / (bytes per token of the split), perplexity is e^loss.
    """

    causal = True

    def open(self, data: DataSpec, cache: Path) -> None:
        self.data = data
        self.tokens: Tokens = prepare(data, cache)

    @property
    def vocab(self) -> int:
        return self.tokens.vocab

    @property
    def train_tokens(self) -> int:
        return len(self.tokens.splits["train"])

    @property
    def max_len(self) -> int:
        return self.data.seq_len

    def facts(self) -> dict[str, float | int | str]:
        tokens = self.tokens
        return {
            "corpus": str(self.data.corpus or self.data.hub or self.data.path),
            "tokenizer": self.data.tokenizer.name,
            "vocab": tokens.vocab,
            "fingerprint": tokens.fingerprint,
            **{f"{split}_tokens": len(tokens.splits[split]) for split in self.splits},
            "bytes_per_token": tokens.bytes_per_token["valid"],
            "unigram_entropy": tokens.unigram_entropy,
            "unknown_frac": tokens.unknown_frac,
        }

    def build(self, arch: ArchSpec, seed: int, dropout: float) -> nn.Module:
        return build_model(arch, self.vocab, self.max_len, seed=seed, dropout=dropout)

    def batches(self, batch_tokens: int, seed: int) -> _TensorBatches:
        size = batch_tokens // self.data.seq_len
        tokens = self.tokens
        return _TensorBatches(TrainBatches(tokens.splits["train"], self.data.seq_len, size, tokens.fingerprint, seed))

    def stream(self, at_most: int) -> Tensor:
        return torch.from_numpy(self.tokens.splits["train"][:at_most].astype(np.int64))

    def held_out(self, split: str, at_most: int) -> Tensor:
        return torch.from_numpy(eval_windows(self.tokens.splits[split], self.data.seq_len, at_most))

    def objective(self, model: nn.Module, batch: Tensor, train: TrainSpec) -> tuple[Tensor, Tensor]:
        loss_BT, nll_BT, aux = model.objective(  # type: ignore[operator]
            batch[:, :-1], batch[:, 1:], label_smoothing=train.label_smoothing, z_loss=train.z_loss
        )
        loss = loss_BT.mean()
        for extra in aux.values():
            loss = loss + extra
        return loss, nll_BT.detach().mean()

    def loss_sum(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        nll_BT = model.nll(batch[:, :-1], batch[:, 1:])  # type: ignore[operator]
        return nll_BT.double().sum(), nll_BT.numel()

    def derived(self, loss: float, split: str) -> dict[str, float]:
        return {
            "bits_per_byte": loss / math.log(2) / self.tokens.bytes_per_token[split],
            "perplexity": math.exp(min(loss, 700.0)),
        }


class _TensorBatches:
    def __init__(self, windows: TrainBatches):
        self.windows = windows

    def __getitem__(self, step: int) -> Tensor:
        return torch.from_numpy(self.windows[step])
