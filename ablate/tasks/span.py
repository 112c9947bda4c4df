"""Span corruption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ablate.data.batches import TrainBatches, eval_windows
from ablate.data.corruption import corrupt_spans, generator, longest
from ablate.data.rows import padded
from ablate.data.tokenizers import Specials
from ablate.errors import UserError, within
from ablate.registry import register
from ablate.spec import DataSpec, TrainSpec
from ablate.tasks.base import Batch, Meter
from ablate.tasks.lm import TextStream
from ablate.tasks.mlm import DrawnBatches, TokenMeter


@register("task", "span", paper="Raffel et al. 2020, arXiv:1910.10683, sections 3.1.4 and 3.3.4", form="pair")
class SpanCorruption(TextStream):
    """Restore the spans that were taken out of a text: loss = -log p(target | corrupted) in nats per target token.

    Of a window of n tokens, round(n noise) are taken out in round(that / mean_span) spans. Both they and what is
    left are cut into positive lengths at random, and interleaved, what is left first. Each span becomes one sentinel
    in the source; the target is sentinel, span, sentinel, span, ..., one sentinel more. n is the largest for which
    source and target have at most seq_len tokens, which is what a row counts as in budgets and in costs.
    The decoder begins with a start token. Differs from the paper's code: no end token behind either; sentinels are as
    many as are needed, not 100, and their ids ascend; windows of running text, not packed documents.
    """

    forms: ClassVar[tuple[str, ...]] = ("pair",)

    def __init__(self, *, noise: float = 0.15, mean_span: float = 3.0):
        within("task 'span': noise", noise, 0, 1)
        within("task 'span': mean_span", mean_span, 1)
        self.noise, self.mean_span = noise, mean_span

    def open(self, data: DataSpec, cache: Path) -> None:
        super().open(data, cache)
        self.specials = Specials(self.tokens.vocab)
        spans = longest(data.seq_len, self.noise, self.mean_span)
        if spans is None:
            raise UserError(
                f"task 'span': no corrupted window fits into seq_len {data.seq_len}: raise it to 3 at least"
            )
        self.spans = spans

    @property
    def vocab(self) -> int:
        return self.specials.sentinel(self.spans.spans) + 1

    @property
    def train_tokens(self) -> int:
        """A row of `seq_len` tokens stands for a window, which is longer."""
        return super().train_tokens * self.data.seq_len // self.spans.length

    def facts(self) -> dict[str, Any]:
        spans = self.spans
        sizes = {"window": spans.length, "source": spans.source, "target": spans.target, "spans": spans.spans}
        return super().facts() | {f"{name}_per_row": size for name, size in sizes.items()} | {"baselines": []}

    def windows(self, train: TrainSpec, seed: int) -> TrainBatches:
        tokens, rows = self.tokens, train.batch_tokens // self.data.seq_len
        return TrainBatches(tokens.splits["train"], self.spans.length, rows, tokens.fingerprint, seed)

    def corrupted(self, windows: np.ndarray, key: str) -> Batch:
        """What is made of windows, whose last tokens are left out; the key says what is drawn."""
        draw, first = generator(key), self.specials.sentinel(0)
        pairs = [corrupt_spans(draw, window, self.spans, first) for window in windows[:, :-1]]
        return pair_batch([source for source, _ in pairs], [target for _, target in pairs], self.specials)

    def batches(self, train: TrainSpec, seed: int) -> DrawnBatches:
        return DrawnBatches(self.windows(train, seed), self.corrupted)

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        windows = max(1, at_most // self.data.seq_len)
        found = eval_windows(self.tokens.splits[split], self.spans.length, windows * self.spans.length)
        return self.corrupted(found, f"{self.tokens.fingerprint}/{split}").split(rows)

    def meter(self, split: str, final: bool) -> Meter:
        return TokenMeter()


def pair_batch(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], specials: Specials) -> Batch:
    """Sources and what is to be said of each, padded; the decoder is given its target one place late."""
    source_BS, valid_BS = padded(sources, specials.pad)
    target_BT, counts_BT = padded(targets, specials.pad)
    begin_B1 = torch.full((len(target_BT), 1), specials.start)
    marks: dict[str, Tensor] = {} if bool(valid_BS.all()) else {"valid_BS": valid_BS}
    given_BT = torch.cat((begin_B1, target_BT[:, :-1]), 1)
    return Batch((source_BS, given_BT), target_BT, None if bool(counts_BT.all()) else counts_BT, marks)
