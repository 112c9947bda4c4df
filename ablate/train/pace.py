"""How much a step reads, and in rows of which length: batches that grow, rows that grow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.spec import DataSpec, TrainSpec
from ablate.tasks.base import Batch, Batches


class PacedBatches:
    """The micro-batches of any step, a pure function of what `batches` is one of.

    Rows come in the order that `batches` has them: a smaller step takes the next rows of a batch and leaves the rest
    to those after it. A micro-batch has at most as many rows as without a ramp, so that a step at the border of two
    batches has two.

    During sequence-length warm-up (Li, Zhang and He 2022, arXiv:2108.06084) a row of T tokens is read as rows of l
    tokens, whose context begins anew; the last of them is filled up where l does not divide T. l grows linearly in
    tokens read, from `seq_start` to seq_len, in multiples of 8. Differs from the paper, which throws the rest of each
    row away: here every step has the tokens that it has without warm-up.
    """

    def __init__(self, batches: Batches, data: DataSpec, train: TrainSpec, causal: bool):
        self.batches, self.data, self.train, self.causal = batches, data, train, causal
        self.rows = train.batch_tokens // data.row_tokens  # of a whole batch
        self.total = max(1, train.tokens_at(train.steps))
        self._last: tuple[int, Batch] | None = None

    def micro(self, step: int, pieces: int = 1) -> list[Batch]:
        """What one step reads, in parts that are computed one after the other; each micro-batch in so many pieces, or
        in single rows where there are not as many."""
        parts: list[Batch] = []
        for piece in self._read(step):
            rows = self.rows if self.train.batch_ramp else len(piece)
            parts += piece.split(-(-rows // self.train.accumulate // pieces))
        length = self.length(step)
        return parts if length >= self.data.seq_len else [cut(part, length, self.causal) for part in parts]

    def length(self, step: int) -> int:
        """The longest row of a step."""
        train, longest = self.train, self.data.seq_len
        done = train.tokens_at(step) / self.total
        if not train.seq_warmup or done >= train.seq_warmup:
            return longest
        length = train.seq_start + (longest - train.seq_start) * done / train.seq_warmup
        return int(length) // 8 * 8

    def _read(self, step: int) -> list[Batch]:
        if not self.train.batch_ramp:
            return [self.batches[step]]
        first, stop = (self.train.tokens_at(each) // self.data.row_tokens for each in (step, step + 1))
        found = []
        while first < stop:
            number, at = divmod(first, self.rows)
            end = min(self.rows, at + stop - first)
            if self._last is None or self._last[0] != number:
                self._last = number, self.batches[number]
            found.append(self._last[1].rows(at, end))
            first += end - at
        return found


def cut(batch: Batch, length: int, causal: bool) -> Batch:
    """Rows of T tokens as rows of `length`, each cut in order; every tensor of the batch is (B, T).

    Where the last part of a row is filled up, its filling is not counted, and marked where a model would see it.
    """
    (tokens_BT,) = batch.inputs
    filling = -tokens_BT.shape[1] % length

    def rows(x: Tensor) -> Tensor:
        return F.pad(x, (0, filling)).unflatten(1, (-1, length)).flatten(0, 1)

    counts, marks = batch.counts, dict(batch.marks)
    if filling:
        whole_BT = torch.ones_like(batch.targets, dtype=torch.bool)
        counts = whole_BT if counts is None else counts
        if not causal:
            marks.setdefault("valid_BT", whole_BT)
    inputs, targets = rows(tokens_BT), rows(batch.targets)
    marks = {name: rows(mark) for name, mark in marks.items()}
    return Batch((inputs,), targets, None if counts is None else rows(counts), marks)
