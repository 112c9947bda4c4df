"""Causal language modelling."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablate.data.batches import TrainBatches, eval_windows
from ablate.data.tokens import Tokens, prepare
from ablate.registry import register
from ablate.spec import DataSpec, TrainSpec
from ablate.tasks.base import Batch, Meter, Task


class TextStream(Task):
    """A task on windows of running text. Subclasses say what is made of a window."""

    def open(self, data: DataSpec, cache: Path) -> None:
        self.data = data
        self.tokens: Tokens = prepare(data, cache)

    @property
    def vocab(self) -> int:
        return self.tokens.vocab

    @property
    def vocabulary(self) -> str:
        return self.tokens.fingerprint

    @property
    def train_tokens(self) -> int:
        return len(self.tokens.splits["train"])

    def facts(self) -> dict[str, Any]:
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
            "baselines": [{"name": "unigram entropy", "metric": "loss", "value": tokens.unigram_entropy}],
        }

    def windows(self, train: TrainSpec, seed: int) -> TrainBatches:
        """Windows of seq_len + 1 tokens for every step."""
        tokens, size = self.tokens, train.batch_tokens // self.data.seq_len
        return TrainBatches(tokens.splits["train"], self.data.seq_len, size, tokens.fingerprint, seed)

    def stream(self, at_most: int) -> Tensor:
        return torch.from_numpy(self.tokens.splits["train"][:at_most].astype(np.int64))


@register("task", "lm", paper="Bengio et al. 2003; Radford et al. 2018")
class LanguageModelling(TextStream):
    """Predict every token from those before it: loss = -log p(w_t | w_<t) in nats per token.

    A window of seq_len + 1 tokens gives seq_len predictions. Bits per byte are
    loss / ln 2 / (bytes per token of the split), perplexity is e^loss.
    """

    def batches(self, train: TrainSpec, seed: int) -> LanguageBatches:
        return LanguageBatches(self.windows(train, seed))

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        windows = torch.from_numpy(eval_windows(self.tokens.splits[split], self.data.seq_len, at_most))
        return next_token(windows).split(rows)

    def meter(self, split: str, final: bool) -> Meter:
        return TextMeter(self.tokens.bytes_per_token[split])


class TextMeter(Meter):
    """Loss, and what follows from it: bits per byte of the split's raw text, perplexity."""

    def __init__(self, bytes_per_token: float):
        super().__init__()
        self.bytes_per_token = bytes_per_token

    def result(self) -> dict[str, float]:
        loss = super().result()["loss"]
        return {
            "loss": loss,
            "bits_per_byte": loss / math.log(2) / self.bytes_per_token,
            "perplexity": math.exp(min(loss, 700.0)),
        }


class LanguageBatches:
    """Windows as batches."""

    def __init__(self, windows: TrainBatches):
        self.windows = windows

    def __getitem__(self, step: int) -> Batch:
        return next_token(torch.from_numpy(self.windows[step]))


def next_token(windows: Tensor) -> Batch:
    """Every token of a window but the last, and what follows each."""
    return Batch((windows[:, :-1],), windows[:, 1:])
