"""Tokens that the text itself sets apart by spaces: phonemes, letters, notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from ablate.data.tokenizers import EOS, LARGEST, UNK, Tokenizer
from ablate.errors import SpecError
from ablate.registry import register


@register("tokenizer", "symbols", paper="Sejnowski and Rosenberg 1987 (NETtalk: letters to phonemes)")
class SymbolTokenizer(Tokenizer):
    """What stands between white space is one token, whatever it is: `HH AH0 L OW1` are four.

    The `vocab` most frequent symbols of the training split, after <eos> and <unk>; of equally frequent ones those
    that sort first. White space itself is not kept: decoding puts one space between two symbols.
    """

    eos, unk = 0, 1

    def __init__(self, *, vocab: int = 10000):
        if not 3 <= vocab <= LARGEST:
            raise SpecError(["vocab"], f"{vocab} must be from 3 (a symbol, {EOS} and {UNK}) to {LARGEST:,}")
        self.size = vocab

    def train(self, texts: Iterable[str]) -> None:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text.split())
        ordered = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        self.restore(sorted(ordered[: self.size - 2]))

    def encode(self, text: str) -> np.ndarray:
        return np.array([self._ids.get(symbol, self.unk) for symbol in text.split()], dtype=np.int64)

    def unknown_pieces(self, text: str) -> list[str]:
        return [symbol for symbol in text.split() if symbol not in self._ids]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self._symbols[each - 2] if each >= 2 else UNK for each in ids if each != self.eos)

    def state(self) -> list[str]:
        return self._symbols

    def restore(self, state: list[str]) -> None:
        self._symbols = state
        self._ids = {symbol: place for place, symbol in enumerate(state, 2)}
        self.vocab = len(state) + 2
