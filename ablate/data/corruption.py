"""How text is corrupted for a model to restore it: which places, which spans. All of it is drawn by key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


def generator(key: str) -> np.random.Generator:
    """Random numbers that are a pure function of the key, on any machine."""
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little"))
    )


def places(draw: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """So many different places of each row of a (rows, length), in order; all choices are equally likely."""
    return np.sort(draw.random(shape).argsort(1)[:, :count], 1)


def masked(
    draw: np.random.Generator, tokens_BM: np.ndarray, mask: int, vocab: int, mask_share: float, random_share: float
) -> np.ndarray:
    """What stands where tokens are to be restored: [MASK], a random one of `vocab` tokens, or the token itself.

    Each place by itself: with probability `mask_share` the first, `random_share` the second.
    """
    kind_BM = draw.random(tokens_BM.shape)
    random_BM = (draw.random(tokens_BM.shape) * vocab).astype(np.int64)
    kept_BM = np.where(kind_BM < mask_share + random_share, random_BM, tokens_BM)
    return np.where(kind_BM < mask_share, mask, kept_BM)


@dataclass(frozen=True)
class Spans:
    """How many of a window's `length` tokens are taken out, and in how many spans.

    round(length noise) tokens in round(that / mean) spans, at least one, and no more than there are tokens to lie
    between them.
    """

    length: int
    noise: int
    spans: int

    @classmethod
    def of(cls, length: int, noise: float, mean: float) -> Spans:
        taken = min(max(1, round(length * noise)), length - 1)
        return cls(length, taken, min(max(1, round(taken / mean)), taken, length - taken))

    @property
    def source(self) -> int:
        """Tokens of the corrupted window: what is left, and a sentinel for each span."""
        return self.length - self.noise + self.spans

    @property
    def target(self) -> int:
        """Tokens of what is taken out: a sentinel before each span, and one at the end."""
        return self.noise + self.spans + 1


def longest(at_most: int, noise: float, mean: float) -> Spans | None:
    """The longest window whose corrupted form and whose target both have at most so many tokens; None for none."""
    found = None
    for length in range(2, 2 * at_most + 1):  # half of a window's tokens stand on one of the two sides at least
        spans = Spans.of(length, noise, mean)
        if max(spans.source, spans.target) <= at_most:
            found = spans
    return found


def segments(draw: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """`total` as a sum of so many positive lengths; all such sums are equally likely."""
    cuts = np.sort(draw.random(total - 1).argsort()[: parts - 1]) + 1
    return np.diff(np.concatenate(([0], cuts, [total])))


def taken_out(draw: np.random.Generator, spans: Spans) -> Iterator[tuple[int, int, int]]:
    """Where each span begins, where it ends, and where the one before it ended: a window opens with what is left."""
    left, taken = segments(draw, spans.length - spans.noise, spans.spans), segments(draw, spans.noise, spans.spans)
    before = 0
    for keep, take in zip(left.tolist(), taken.tolist(), strict=True):
        yield before + keep, before + keep + take, before
        before += keep + take


def corrupt_spans(
    draw: np.random.Generator, window: np.ndarray, spans: Spans, first_sentinel: int
) -> tuple[np.ndarray, np.ndarray]:
    """The window with each span as one sentinel, and the target: sentinel, span, ..., the sentinel after the last.

    Sentinels are first_sentinel, first_sentinel + 1, ... in order of their spans.
    """
    source: list[Any] = []
    target: list[Any] = []
    for index, (start, stop, before) in enumerate(taken_out(draw, spans)):
        sentinel = [first_sentinel + index]
        source += [window[before:start], sentinel]
        target += [sentinel, window[start:stop]]
    target.append([first_sentinel + spans.spans])
    return np.concatenate(source), np.concatenate(target)
