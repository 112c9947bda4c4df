"""Generators of formal languages against what defines the languages."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest

from ablate.data.corruption import generator
from ablate.data.languages import (
    LANGUAGES,
    AnBn,
    AnBnCn,
    AssociativeRecall,
    Copy,
    Dyck,
    Induction,
    ModularAddition,
    Parity,
    Reversal,
    chance_to_open,
    make_language,
)
from ablate.data.strings import Language, String
from ablate.errors import SpecError

ENDLESS: list[Language] = [
    Parity(),
    Parity(every=False),
    Dyck(brackets=3),
    Dyck(depth=2),
    AnBn(),
    AnBnCn(),
    Reversal(),
    Copy(symbols=3),
    Induction(symbols=4),
    AssociativeRecall(symbols=12),
]


def strings(language: Language, count: int = 40, seq_len: int = 60) -> list[tuple[int, String]]:
    """Strings of all lengths that there are, some several times."""
    lengths = [*language.lengths("train", seq_len), *language.lengths("test", seq_len)]
    draw = generator(f"test {language!r}")
    return [
        (length, language.draw(length, draw))
        for number in range(count)
        for length in [lengths[number % len(lengths)]]
    ]


def words(language: Language, string: String) -> tuple[list[str], list[tuple[int, str]]]:
    """What is read, and what is scored: (place, symbol)."""
    names = language.names
    scored = [(int(place), names[string.targets[place]]) for place in np.flatnonzero(string.counts)]
    return [names[each] for each in string.inputs], scored


@pytest.mark.parametrize("language", ENDLESS, ids=repr)
def test_every_string_has_its_length_and_ends_with_a_scored_target(language: Language) -> None:
    for length, string in strings(language):
        row = len(string.inputs)
        assert row == len(string.targets) == len(string.counts) == language.per_length * length + language.beside
        assert row <= 60 and language.length(row) == length and string.counts[-1]
        ids = np.concatenate((string.inputs, string.targets))
        assert 0 <= ids.min() and ids.max() < len(language.names)


@pytest.mark.parametrize("every", [True, False])
def test_parity_is_of_the_ones_so_far(every: bool) -> None:
    language = Parity(every=every)
    for length, string in strings(language):
        read, scored = words(language, string)
        naive = [str(read[: at + 1].count("1") % 2) for at in range(length)]
        assert scored == (list(enumerate(naive)) if every else [(length, naive[-1])])
        assert every or read[-1] == "?"


@pytest.mark.parametrize("depth", [None, 1, 3])
def test_brackets_are_balanced_and_not_too_deep(depth: int | None) -> None:
    language = Dyck(brackets=2, depth=depth)
    seen = set()
    for length, string in strings(language, 200):
        read, scored = words(language, string)
        assert read[0] == "<start>" and len(scored) == length + 1
        said = [symbol for _, symbol in scored]
        assert said[:-1] == read[1:] and said[-1] == "<end>"
        open_now: list[str] = []
        for symbol in said[:-1]:
            if symbol[0] == "(":
                open_now.append(symbol[1])
            else:
                assert open_now.pop() == symbol[0]
            seen.add(len(open_now))
        assert not open_now
    assert max(seen) == depth if depth else max(seen) > 3


def balanced(length: int, depth: int) -> set[str]:
    """All balanced strings of one kind of bracket, by trying every string."""
    found = set()
    for signs in product((1, -1), repeat=length):
        heights = np.cumsum(signs)
        if heights.min() >= 0 and heights[-1] == 0 and heights.max() <= depth:
            found.add("".join("(" if sign > 0 else ")" for sign in signs))
    return found


@pytest.mark.parametrize(("length", "depth"), [(8, 4), (8, 2), (6, 1)])
def test_all_balanced_shapes_are_equally_likely(length: int, depth: int) -> None:
    opening = chance_to_open(length, depth)
    every = balanced(length, depth)
    for shape in every:
        chance, height = 1.0, 0
        for at, symbol in enumerate(shape):
            up = opening[length - at][height]
            chance *= up if symbol == "(" else 1 - up
            height += 1 if symbol == "(" else -1
        assert chance == pytest.approx(1 / len(every), rel=1e-12)


def test_long_brackets_do_not_overflow() -> None:
    assert chance_to_open(3000, 1500)[3000][0] == 1.0
    assert np.isfinite(chance_to_open(3000, 1500)).all()


@pytest.mark.parametrize(("language", "letters"), [(AnBn(), "ab"), (AnBnCn(), "abc")])
def test_blocks_score_what_follows_from_before(language: Language, letters: str) -> None:
    for length, string in strings(language):
        read, scored = words(language, string)
        whole = [letter for letter in letters for _ in range(length)]
        assert read == whole
        after = [*whole[1:], "<end>"]
        assert scored == [(at, after[at]) for at in range(length, len(after))]
        assert scored[0][0] == length  # the first b is read, not told


@pytest.mark.parametrize(("language", "turn"), [(Copy(), 1), (Reversal(), -1)])
def test_the_second_half_is_the_first(language: Language, turn: int) -> None:
    for length, string in strings(language):
        read, scored = words(language, string)
        assert read[length] == "|" and len(read) == 2 * length + 1
        assert [symbol for _, symbol in scored] == [*read[:length][::turn], "<end>"]
        assert [place for place, _ in scored] == list(range(length, 2 * length + 1))
        assert read[length + 1 :] == read[:length][::turn]


def test_induction_asks_what_followed_the_only_other_place() -> None:
    language = Induction(symbols=5)
    places = set()
    for length, string in strings(language, 300):
        read, scored = words(language, string)
        assert read[:-1].count(read[-1]) == 1 and len(read) == length + 1
        at = read.index(read[-1])
        places.add(at)
        assert at < length - 1 and scored == [(length, read[at + 1])]
    assert len(places) > 20


def test_recall_asks_every_key_once() -> None:
    language = AssociativeRecall(symbols=16)
    orders = set()
    for length, string in strings(language, 100):
        read, scored = words(language, string)
        pairs = dict(zip(read[: 2 * length : 2], read[1 : 2 * length : 2], strict=True))
        assert len(pairs) == length and all(key[0] == "k" and value[0] == "v" for key, value in pairs.items())
        asked = read[2 * length :]
        assert sorted(asked) == sorted(pairs)
        assert scored == [(2 * length + at, pairs[key]) for at, key in enumerate(asked)]
        orders.add(asked == list(pairs))
    assert orders == {True, False}  # the order of the queries is not always that of the pairs


def test_lengths_of_the_splits() -> None:
    language = Dyck(train_length=7)
    assert list(language.lengths("train", 13)) == [2, 4, 6] == list(language.lengths("valid", 13))
    assert list(language.lengths("test", 13)) == [8, 10, 12]
    assert list(Copy(train_length=3).lengths("test", 11)) == [4, 5]
    assert list(AssociativeRecall(train_length=4, symbols=6).lengths("test", 300)) == [5, 6]  # there are 6 keys


@pytest.mark.parametrize(("modulus", "fraction"), [(7, 0.5), (12, 0.3), (97, 0.5), (3, 0.95), (3, 0.05)])
def test_sums_are_split_without_leaks(modulus: int, fraction: float) -> None:
    language = ModularAddition(modulus=modulus, train_fraction=fraction)
    parts = {split: {(a, b) for a, b in language.pairs(split).tolist()} for split in ("train", "valid", "test")}
    assert all(parts.values())
    assert sum(map(len, parts.values())) == modulus**2 == len(set().union(*parts.values()))
    for pairs in parts.values():
        assert all((b, a) in pairs for a, b in pairs)
    if modulus > 10:
        assert len(parts["train"]) / modulus**2 == pytest.approx(fraction, abs=0.06)
        assert len(parts["valid"]) == pytest.approx(len(parts["test"]), rel=0.1)


def test_a_sum() -> None:
    language = ModularAddition(modulus=5)
    string = language.string(4, 3)
    assert words(language, string) == (["4", "+", "3", "="], [(3, "2")])


def test_kinds_and_symbols_are_uniform() -> None:
    draw = generator("uniform")
    language = Copy(symbols=4)
    counts = Counter(int(each) for _ in range(400) for each in language.draw(20, draw).inputs[:20])
    assert set(counts) == {0, 1, 2, 3} and all(abs(count - 2000) < 200 for count in counts.values())
    kinds = Counter(int(each) for _ in range(400) for each in Dyck(brackets=3).draw(20, draw).targets[:-1])
    assert set(kinds) == set(range(6)) and all(abs(count - 8000 / 6) < 150 for count in kinds.values())


@pytest.mark.parametrize(
    ("name", "options", "place", "words"),
    [
        (
            "parity",
            {"symbols": 4},
            "symbols",
            "4 has no effect: language 'parity' has the options every, train_length",
        ),
        ("copy", {"every": False}, "every", "False has no effect: language 'copy'"),
        ("modular_addition", {"train_length": 9}, "train_length", "has no effect"),
        ("anbn", {"depth": 3}, "depth", "has no effect: language 'anbn' has the options train_length"),
        ("dyck", {"brackets": 1}, "brackets", "1 must be from 2 to 4,096"),
        ("dyck", {"depth": 0}, "depth", "0 must be from 1"),
        ("dyck", {"train_length": 1}, "train_length", "1 must be from 2"),
        ("associative_recall", {"symbols": 8}, "symbols", "8 must be from 9"),
        ("modular_addition", {"modulus": 2}, "modulus", "2 must be from 3 to 512"),
        ("modular_addition", {"train_fraction": 0.99}, "train_fraction", "0.99 must be from 0.05 to 0.95"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        make_language(name, options)
    assert error.value.path == (place,) and words in error.value.problem


@pytest.mark.parametrize(
    ("language", "enough"), [(Parity(), 21), (Dyck(), 23), (AnBn(), 42), (Copy(), 43), (AssociativeRecall(), 27)]
)
def test_rows_must_hold_test_strings(language: Language, enough: int) -> None:
    language.check(enough)
    with pytest.raises(SpecError, match=f"need {enough} or more") as error:
        language.check(enough - 1)
    assert error.value.path == ("seq_len",)


def test_every_language_is_tested_here() -> None:
    assert {type(each) for each in ENDLESS} | {ModularAddition} == set(LANGUAGES.values())
