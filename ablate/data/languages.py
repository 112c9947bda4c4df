"""Formal languages: strings that are drawn by rule, and what of each is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np

from ablate.data.batches import keys_of, permute
from ablate.data.strings import Language, String, between, following, last_scored, numbered
from ablate.errors import SpecError

VERSION = 1  # raised when a language draws other strings than before
MOST_SYMBOLS = 4096
LARGEST_MODULUS = 512


@dataclass(frozen=True)
class Parity(Language):
    """Bits, and after each the parity of those so far (Hahn 2020, arXiv:1906.06755). Length: bits.

    `every: false` asks once, at a question mark behind the last bit (Deletang et al. 2023, arXiv:2207.02098).
    """

    every: bool = True

    @property
    def beside(self) -> int:  # type: ignore[override]
        return 0 if self.every else 1

    @property
    def names(self) -> tuple[str, ...]:
        return ("0", "1") if self.every else ("0", "1", "?")

    @property
    def answers(self) -> range:
        return range(2)

    def draw(self, length: int, rng: np.random.Generator) -> String:
        bits = rng.integers(2, size=length)
        parity = bits.cumsum() % 2
        if self.every:
            return String(bits, parity, np.ones(length, bool))
        return last_scored(np.append(bits, 2), int(parity[-1]))


@dataclass(frozen=True)
class Dyck(Language):
    """Balanced brackets of k kinds, nested at most `depth` deep: Dyck-(k, m) of Hewitt et al. 2020, arXiv:2010.07515.

    All balanced shapes of a length are equally likely, the kinds of the brackets are independent of each other. The
    loss is that of every symbol and of the end; an answer is a closing bracket, the likeliest of the k kinds where
    one closes. Length: brackets.
    """

    shortest: ClassVar[int] = 2
    stride: ClassVar[int] = 2
    beside: ClassVar[int] = 1  # the start

    brackets: int = 2
    depth: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        between("brackets", self.brackets, 2, MOST_SYMBOLS)  # of one kind, every closing bracket is known
        if self.depth is not None:
            between("depth", self.depth, 1, 1 << 16)

    @property
    def names(self) -> tuple[str, ...]:
        kinds = range(self.brackets)
        return (*(f"({kind}" for kind in kinds), *(f"{kind})" for kind in kinds), "<start>", "<end>")

    @property
    def answers(self) -> range:
        return range(self.brackets, 2 * self.brackets)

    def draw(self, length: int, rng: np.random.Generator) -> String:
        k = self.brackets
        opening = chance_to_open(length, min(self.depth or length, length // 2))
        chance, kinds = rng.random(length).tolist(), rng.integers(k, size=length).tolist()
        open_now: list[int] = []
        ids = [2 * k]
        for at in range(length):
            if chance[at] < opening[length - at][len(open_now)]:
                open_now.append(kinds[at])
                ids.append(kinds[at])
            else:
                ids.append(k + open_now.pop())
        return following(np.array([*ids, 2 * k + 1]), 0)


@lru_cache(maxsize=256)
def chance_to_open(length: int, depth: int) -> list[list[float]]:
    """[r][d]: the share of ways to come from d open brackets to none in r symbols that begin with one more opening,
    never more than `depth` being open."""
    ways = np.zeros(depth + 3)  # of depth d at d + 1, with a 0 on both sides
    ways[1] = 1.0
    table = [[0.0] * (depth + 1)]
    for _ in range(length):
        opened, closed = ways[2:], ways[:-2]
        both = opened + closed
        table.append(np.divide(opened, both, out=np.zeros_like(both), where=both > 0).tolist())
        ways[1:-1] = both / both.max()  # their ratios alone matter, and they grow as 2^r
    return table


@dataclass(frozen=True)
class Blocks(Language):
    """n times each of some letters, and the end. Length: n.

    What is scored follows from the letters before it: all from the second letter's first occurrence on.
    """

    letters: ClassVar[str] = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.letters, "<end>")

    def draw(self, length: int, rng: np.random.Generator) -> String:
        ids = np.append(np.repeat(np.arange(len(self.letters)), length), len(self.letters))
        return following(ids, length)


@dataclass(frozen=True)
class AnBn(Blocks):
    """a^n b^n (Gers and Schmidhuber 2001; Weiss, Goldberg and Yahav 2018, arXiv:1805.04908)."""

    letters: ClassVar[str] = "ab"
    per_length: ClassVar[int] = 2


@dataclass(frozen=True)
class AnBnCn(Blocks):
    """a^n b^n c^n, which is not context-free."""

    letters: ClassVar[str] = "abc"
    per_length: ClassVar[int] = 3


@dataclass(frozen=True)
class Copy(Language):
    """Symbols, a bar, and the same symbols again. What follows the bar is scored, the end included.

    Length: symbols.
    """

    per_length: ClassVar[int] = 2
    beside: ClassVar[int] = 1  # the bar

    symbols: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        between("symbols", self.symbols, 2, MOST_SYMBOLS)

    @property
    def names(self) -> tuple[str, ...]:
        return (*numbered("", self.symbols), "|", "<end>")

    def draw(self, length: int, rng: np.random.Generator) -> String:
        said = rng.integers(self.symbols, size=length)
        return following(np.concatenate((said, [self.symbols], self.again(said), [self.symbols + 1])), length)

    def again(self, said: np.ndarray) -> np.ndarray:
        return said


@dataclass(frozen=True)
class Reversal(Copy):
    """Symbols, a bar, and the same symbols from the last to the first. Length: symbols."""

    def again(self, said: np.ndarray) -> np.ndarray:
        return said[::-1]


@dataclass(frozen=True)
class Induction(Language):
    """Symbols, then one of them again that stood there once: what followed it is asked (Olsson et al. 2022,
    arXiv:2209.11895; as a task Fu et al. 2023, arXiv:2212.14052, where the repeated symbol is always the same).

    Length: the symbols before the repeated one.
    """

    shortest: ClassVar[int] = 2
    beside: ClassVar[int] = 1

    symbols: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        between("symbols", self.symbols, 3, MOST_SYMBOLS)

    @property
    def names(self) -> tuple[str, ...]:
        return numbered("", self.symbols)

    def draw(self, length: int, rng: np.random.Generator) -> String:
        repeated, place = int(rng.integers(self.symbols)), int(rng.integers(length - 1))
        said = rng.integers(self.symbols - 1, size=length)
        said += said >= repeated  # any symbol but that one
        said[place] = repeated
        return last_scored(np.append(said, repeated), int(said[place + 1]))


@dataclass(frozen=True)
class AssociativeRecall(Language):
    """Pairs of a key and a value, then every key again in another order: its value is asked there. Length: pairs.

    Multi-query associative recall of Arora et al. 2023, arXiv:2312.04927. Keys are different from each other, keys
    and values have `symbols` ids each. Differs from the paper: all queries follow each other behind the pairs,
    without other tokens between them, and strings have different numbers of pairs.
    """

    per_length: ClassVar[int] = 3

    train_length: int = 8
    symbols: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        between("symbols", self.symbols, self.train_length + 1, MOST_SYMBOLS)

    @property
    def names(self) -> tuple[str, ...]:
        return numbered("k", self.symbols) + numbered("v", self.symbols)

    @property
    def answers(self) -> range:
        return range(self.symbols, 2 * self.symbols)

    def longest(self, seq_len: int) -> int:
        return min(self.symbols, super().longest(seq_len))  # there are no more keys

    def draw(self, length: int, rng: np.random.Generator) -> String:
        keys = rng.permutation(self.symbols)[:length]
        values = rng.integers(self.symbols, 2 * self.symbols, size=length)
        asked = rng.permutation(length)
        inputs = np.concatenate((np.stack((keys, values), 1).ravel(), keys[asked]))
        targets = np.append(inputs[1 : 2 * length], np.concatenate(([keys[asked[0]]], values[asked])))
        return String(inputs, targets, np.arange(3 * length) >= 2 * length)


@dataclass(frozen=True)
class ModularAddition(Language):
    """`a + b = c` with c = a + b mod `modulus`; c is scored (Power et al. 2022, arXiv:2201.02177). All of one length.

    There are modulus^2 of them: `train_fraction` are for training, and of the others every other one for validation
    and for the test. Differs from the paper: a + b and b + a are always in the same split, so that none is known
    from training by the other.
    """

    beside: ClassVar[int] = 3

    train_length: int = 1  # the only one
    modulus: int = 97
    train_fraction: float = 0.5

    def __post_init__(self) -> None:
        between("modulus", self.modulus, 3, LARGEST_MODULUS)
        if not 0.05 <= self.train_fraction <= 0.95:
            raise SpecError(["train_fraction"], f"{self.train_fraction:g} must be from 0.05 to 0.95")

    @property
    def names(self) -> tuple[str, ...]:
        return (*numbered("", self.modulus), "+", "=")

    @property
    def answers(self) -> range:
        return range(self.modulus)

    def check(self, seq_len: int) -> None:
        if seq_len != 4:
            raise SpecError(["seq_len"], f"{seq_len} must be 4: a row is 'a + b ='")

    def pairs(self, split: str) -> np.ndarray:
        """All (a, b) of a split, (N, 2)."""
        return pairs_of(self.modulus, self.train_fraction)[split]

    def string(self, a: int, b: int) -> String:
        p = self.modulus
        return last_scored(np.array([a, p, b, p + 1]), (a + b) % p)


@cache
def pairs_of(modulus: int, train_fraction: float) -> dict[str, np.ndarray]:
    """(a, b) by split."""
    a, b = np.triu_indices(modulus)
    order = permute(np.arange(len(a)), len(a), keys_of(f"modular addition/{VERSION}/{modulus}"))
    cut = min(max(1, round(train_fraction * len(a))), len(a) - 2)
    parts = {"train": order[:cut], "valid": order[cut::2], "test": order[cut + 1 :: 2]}
    found = {}
    for split, part in parts.items():
        both = np.stack((np.append(a[part], b[part]), np.append(b[part], a[part])), 1)
        found[split] = np.unique(both, axis=0)
    return found


LANGUAGES: dict[str, type[Language]] = {
    "parity": Parity,
    "dyck": Dyck,
    "anbn": AnBn,
    "anbncn": AnBnCn,
    "modular_addition": ModularAddition,
    "reversal": Reversal,
    "copy": Copy,
    "induction": Induction,
    "associative_recall": AssociativeRecall,
}


def make_language(name: str, options: dict[str, Any]) -> Language:
    """The language of that name. Raises `SpecError` for an option that it does not have."""
    kind = LANGUAGES[name]
    known = options_of(kind)
    for option, value in options.items():
        if option not in known:
            raise SpecError(
                [option], f"{value!r} has no effect: language {name!r} has the options {', '.join(sorted(known))}"
            )
    return kind(**options)


def options_of(kind: type[Language]) -> dict[str, Any]:
    """The options of a language and their defaults."""
    found = {each.name: each.default for each in fields(kind)}
    if kind is ModularAddition:
        del found["train_length"]
    return found
