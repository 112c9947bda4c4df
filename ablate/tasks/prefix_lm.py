"""Prefix language modelling."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ablate.data.batches import eval_windows
from ablate.data.corruption import generator
from ablate.decoding import Sample
from ablate.errors import UserError, within
from ablate.registry import register
from ablate.sampling import SampleRequest
from ablate.spec import DataSpec, TrainSpec
from ablate.tasks.base import Batch, Meter
from ablate.tasks.lm import GENERATED, TextMeter, TextStream
from ablate.tasks.mlm import DrawnBatches


@register("task", "prefix_lm", paper="Liu et al. 2018, arXiv:1801.10198; Raffel et al. 2020, arXiv:1910.10683, 3.2.1")
class PrefixLanguageModelling(TextStream):
    """Continue a text whose beginning is read from both sides: loss = -log p(w_t | w_<t) over the suffix.

    The first p tokens of a window are visible to all, the others to later ones; p is drawn for every window, evenly
    from `shortest` to `longest` (seq_len unless given). Predictions of tokens behind the prefix count, the first of
    them made at the prefix's last token. p = 1 is causal language modelling.
    Mixers that cannot see a prefix are refused; relative positions have vectors and buckets for both directions.
    FLOPs called algorithmic are those of the causal mask, without what a prefix adds.
    """

    def __init__(self, *, shortest: int = 1, longest: int | None = None):
        within("task 'prefix_lm': shortest", shortest, 1)
        if longest is not None:
            within("task 'prefix_lm': longest", longest, shortest)
        self.shortest, self.longest = shortest, longest

    def open(self, data: DataSpec, cache: Path) -> None:
        super().open(data, cache)
        most = max(self.shortest, self.longest or data.seq_len)
        if most > data.seq_len:
            raise UserError(f"task 'prefix_lm': a prefix of {most} tokens is longer than seq_len {data.seq_len}")
        self.most = most

    @property
    def shape(self) -> dict[str, Any]:
        return {"causal": True, "prefix": True}

    def divided(self, windows: np.ndarray, key: str) -> Batch:
        """Windows (B, T + 1) with a prefix each, whose lengths come from the key."""
        share_B = generator(key).random(len(windows))
        length_B1 = self.shortest + (share_B * (self.most - self.shortest + 1)).astype(np.int64)[:, None]
        at_T = np.arange(windows.shape[1] - 1)
        tokens = torch.from_numpy(windows)
        prefix_BT, counts_BT = torch.from_numpy(at_T < length_B1), torch.from_numpy(at_T >= length_B1 - 1)
        return Batch((tokens[:, :-1],), tokens[:, 1:], counts_BT, {"prefix_BT": prefix_BT})

    def batches(self, train: TrainSpec, seed: int) -> DrawnBatches:
        return DrawnBatches(self.windows(train, seed), self.divided)

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        windows = eval_windows(self.tokens.splits[split], self.data.seq_len, at_most)
        return self.divided(windows, f"{self.tokens.fingerprint}/{split}").split(rows)

    def meter(self, split: str, final: bool) -> Meter:
        return TextMeter(self.tokens, split)

    def generate(self, model: nn.Module, request: SampleRequest) -> list[str]:
        """The prompt, seen from both sides, and what follows: up to the document's end, or to where the model is
        full, or `request.length` tokens."""
        ids = self.prompt(request.prompt)
        if request.prompt and len(ids) > self.most:
            raise UserError(f"the prompt has {len(ids)} tokens, the longest prefix in training {self.most}")
        found = request.continuations(
            model,
            ids,
            default=Sample(seed=request.seed),
            at_most=GENERATED,
            marks={"prefix_BT": torch.ones(1, len(ids), dtype=torch.bool)},
            stop=self.tokens.eos,
        )
        return [self.tokens.tokenizer.decode([*(ids if request.prompt else []), *each]) for each in found]
