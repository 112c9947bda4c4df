"""Documents as rows of their own, for a stream of tokens that is otherwise cut anywhere."""

from __future__ import annotations

import numpy as np

from ablate.errors import UserError


class DocumentRows:
    """Every document of a split begins a row, behind the token that ends documents; a longer one goes on in the next
    row, behind the last token of the row before. Every token is a target once, as in a packed stream.

    Row i is `self[i]`: what is read, and one token more.
    """

    def __init__(self, tokens: np.ndarray, eos: int, seq_len: int):
        if tokens[-1] != eos:
            raise UserError("the last document has no end: was its tokenizer changed?")
        self.tokens, self.eos = tokens, eos
        ends = np.flatnonzero(np.asarray(tokens) == eos) + 1  # behind the documents
        sizes = np.diff(ends, prepend=0)
        parts = -(-sizes // seq_len)
        number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # of a row in its document
        self.starts = np.repeat(ends - sizes, parts) + number * seq_len
        self.lengths = np.minimum(seq_len, np.repeat(ends, parts) - self.starts)
        self.begins = number == 0

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        start, stop = self.starts[row], self.starts[row] + self.lengths[row]
        before = self.eos if self.begins[row] else self.tokens[start - 1]
        return np.concatenate(([before], self.tokens[start:stop])).astype(np.int64)
