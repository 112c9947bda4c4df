"""Rows of examples: which of them a step reads, and how rows of different lengths become one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ablate.data.batches import keys_of, permute

BLOCK = 64  # batches that are sorted by length together


class RowOrder:
    """Which rows each step reads: every row once an epoch, in an order of its own every epoch.

    A pure function of `key` and the step. With `lengths`, batches are made of rows of about the same length: those
    of 64 batches, or of an epoch where it has fewer, are sorted by length, cut, and the batches visited in a random
    order (Sutskever et al. 2014).
    """

    def __init__(self, rows: int, batch: int, key: str, lengths: np.ndarray | None = None):
        self.rows, self.batch, self.key, self.lengths = rows, batch, key, lengths
        self._block = -1
        self._size = BLOCK  # sorted over several epochs, a row's repetitions would come to lie in one batch
        if lengths is not None:
            self._size = max(1, min(BLOCK, rows // batch))
        self._order = np.empty((0, batch), dtype=np.int64)

    def __getitem__(self, step: int) -> np.ndarray:
        block, place = divmod(step, self._size)
        if block != self._block:
            first = block * self._size * self.batch
            rows = self._visited(np.arange(first, first + self._size * self.batch, dtype=np.int64))
            if self.lengths is not None:
                rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            order = rows.reshape(self._size, self.batch)
            if self.lengths is not None:
                order = order[permute(np.arange(self._size), self._size, keys_of(f"{self.key}/block/{block}"))]
            self._block, self._order = block, order
        return self._order[place]

    def _visited(self, index: np.ndarray) -> np.ndarray:
        epochs = index // self.rows
        found = np.empty_like(index)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = permute(index[here] % self.rows, self.rows, keys_of(f"{self.key}/{epoch}"))
        return found


def padded(rows: Sequence[np.ndarray], fill: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of ids as (B, T), shorter ones filled up at the end, and which places are no filling, (B, T).

    T is the longest row's length unless given; an empty row is one place of filling that counts as valid, so that
    no softmax over it is empty.
    """
    sizes = [len(row) for row in rows]
    ids = np.full((len(rows), length or max(1, *sizes)), fill, dtype=np.int64)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = row
    valid = np.arange(ids.shape[1]) < np.maximum(1, sizes)[:, None]
    return torch.from_numpy(ids), torch.from_numpy(valid)


def spread(rows: int, at_most: int) -> np.ndarray:
    """About `at_most` of the numbers 0 .. rows - 1, evenly spaced, the same always."""
    count = max(1, min(rows, at_most))
    return np.arange(count) * rows // count
