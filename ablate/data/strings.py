"""Strings of symbols as a model reads them, and what a language that makes them must say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ablate.errors import SpecError


@dataclass(frozen=True)
class String:
    """One string as a model reads it: ids, what each is to be followed by, and which of those are scored.

    The last target is always a scored one.
    """

    inputs: np.ndarray
    targets: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Language:
    """Strings of any length. Fields are the language's options; what a length counts is said by each.

    A string of length n is `per_length` n + `beside` ids for the model to read.
    """

    shortest: ClassVar[int] = 1
    stride: ClassVar[int] = 1  # from one length to the next
    per_length: ClassVar[int] = 1
    beside: ClassVar[int] = 0

    train_length: int = 20

    def __post_init__(self) -> None:
        between("train_length", self.train_length, self.shortest, 1 << 16)

    @property
    def names(self) -> tuple[str, ...]:
        """The symbol that each id stands for."""
        raise NotImplementedError

    def draw(self, length: int, rng: np.random.Generator) -> String:
        """A random string of this length."""
        raise NotImplementedError

    @property
    def answers(self) -> range:
        """The ids among which the likeliest is the model's answer."""
        return range(len(self.names))

    def longest(self, seq_len: int) -> int:
        """The longest string in `seq_len` ids."""
        return (seq_len - self.beside) // self.per_length // self.stride * self.stride

    def lengths(self, split: str, seq_len: int) -> range:
        """Of a split's strings: up to `train_length`, and in the test split from there to what `seq_len` holds."""
        after_training = self.train_length // self.stride * self.stride + self.stride
        if split == "test":
            return range(after_training, self.longest(seq_len) + 1, self.stride)
        return range(self.shortest, after_training, self.stride)

    def length(self, row: int) -> int:
        """Of the string that is `row` ids to read."""
        return (row - self.beside) // self.per_length

    def check(self, seq_len: int) -> None:
        """Raise `SpecError` where rows of `seq_len` hold no test strings, which are longer than in training."""
        if not self.lengths("test", seq_len):
            longer = self.lengths("train", seq_len)[-1] + self.stride
            need = longer * self.per_length + self.beside
            raise SpecError(
                ["seq_len"],
                f"{seq_len} holds strings up to length {max(0, self.longest(seq_len))}; the test strings are longer "
                f"than those of training, from {longer}: they need {need} or more",
            )


def following(ids: np.ndarray, first: int) -> String:
    """Every id is to be followed by the next; the targets from the one number `first` on are scored."""
    return String(ids[:-1], ids[1:], np.arange(len(ids) - 1) >= first)


def last_scored(ids: np.ndarray, answer: int) -> String:
    """The answer at the last id is scored; before it every id is followed by the next."""
    return String(ids, np.append(ids[1:], answer), np.arange(len(ids)) == len(ids) - 1)


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number}" for number in range(count))


def between(option: str, value: int, low: int, high: int) -> None:
    """Raise `SpecError` unless low <= value <= high."""
    if not low <= value <= high:
        raise SpecError([option], f"{value} must be from {low} to {high:,}")


def symbols_of(ids: Sequence[int], names: Sequence[str]) -> str:
    """A string in its symbols, with spaces between them."""
    return " ".join(names[each] if 0 <= each < len(names) else "?" for each in ids)
