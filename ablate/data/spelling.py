"""What it costs to spell what a tokenizer does not know, so that bits per byte pay for the whole text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

END = 256  # ends a piece
SYMBOLS = 257


class Spelling:
    """The bytes of unknown pieces, counted in every split.

    A model of words says only that a word is unknown. To write the word itself takes its bytes and an end, each by
    its frequency in the unknown pieces of the training split, one added to every count:
    -sum_b n_b log2 ((m_b + 1) / sum_c (m_c + 1)) bits, n_b of the split and m_b of the training split. What a text
    costs with them is the length of a code from which the pieces can be read, as in Mielke and Eisner 2019,
    arXiv:1804.08205, whose speller is a recurrent network.
    """

    def __init__(self, splits: Iterable[str]):
        self.counts = {split: np.zeros(SYMBOLS, dtype=np.int64) for split in splits}

    def add(self, split: str, pieces: list[str]) -> None:
        values = np.frombuffer("".join(pieces).encode(), dtype=np.uint8)
        self.counts[split] += np.bincount(values, minlength=SYMBOLS)
        self.counts[split][END] += len(pieces)

    def bits(self, split: str) -> float:
        """Of all unknown pieces of a split."""
        seen = self.counts["train"] + 1
        return float(self.counts[split] @ -np.log2(seen / seen.sum()))
