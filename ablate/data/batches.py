"""Batches of token windows. The batch of step t is a pure function of (data fingerprint, seed, t)."""

from __future__ import annotations

import hashlib

import numpy as np

from ablate.errors import UserError

BLOCK = 64  # steps whose windows are drawn together
ROUNDS = 6


class TrainBatches:
    """Windows of seq_len + 1 tokens of a split, each seen once an epoch, in an order of its own every epoch.

    Epoch e cuts the split into windows at a random offset and visits them in a random permutation; both come
    from a keyed cipher, so that any step's batch is computed directly, without state and on any machine alike.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, batch_size: int, fingerprint: str, seed: int):
        self.tokens = tokens
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.windows = (len(tokens) - seq_len) // seq_len  # whole windows left at any offset
        if self.windows < 1:
            raise UserError(f"the training split has {len(tokens)} tokens, too few for a window of seq_len {seq_len}")
        self.key = f"{fingerprint}/{seed}"
        self._reach = np.arange(seq_len + 1)
        self._block = -1
        self._starts: np.ndarray = np.empty((0, 0), dtype=np.int64)

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of one step, (batch_size, seq_len + 1) int64."""
        block, row = divmod(step, BLOCK)
        if block != self._block:
            first = block * BLOCK * self.batch_size
            index = np.arange(first, first + BLOCK * self.batch_size, dtype=np.int64)
            self._starts = self.starts(index).reshape(BLOCK, self.batch_size)
            self._block = block
        return self.tokens[self._starts[row, :, None] + self._reach].astype(np.int64)

    def starts(self, index: np.ndarray) -> np.ndarray:
        """Where the windows number `index` begin, counted from the first window of the run."""
        epochs = index // self.windows
        starts = np.empty_like(index)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            keys = keys_of(f"{self.key}/{epoch}")
            offset = int(keys[-1] % np.uint64(self.seq_len))
            starts[here] = permute(index[here] % self.windows, self.windows, keys) * self.seq_len + offset
        return starts

    def epochs(self, steps: int) -> float:
        """How often the split is seen in so many steps."""
        return steps * self.batch_size / self.windows


def eval_windows(tokens: np.ndarray, seq_len: int, at_most: int) -> np.ndarray:
    """Evenly spaced windows of a split, (n, seq_len + 1) int64, about `at_most` tokens of it; the same always."""
    whole = (len(tokens) - 1) // seq_len
    if whole < 1:
        raise UserError(f"a held-out split has {len(tokens)} tokens, too few for a window of seq_len {seq_len}")
    count = max(1, min(whole, at_most // seq_len))
    starts = np.arange(count) * whole // count * seq_len
    return tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of 0..size-1 applied to `index`: a balanced Feistel network with cycle walking.

    The network permutes the next even power of two; values that fall outside are sent through it again until
    they fall inside, which keeps it a permutation (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains", method 2).
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    out = _feistel(index.astype(np.uint64), half, keys)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], half, keys)
    return out.astype(np.int64)


def _feistel(value: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> bits, value & mask
    for key in keys[:ROUNDS]:
        left, right = right, left ^ (_scramble(right + key) & mask)
    return (left << bits) | right


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys_of(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8 * (ROUNDS + 1)).digest(), dtype="<u8")
