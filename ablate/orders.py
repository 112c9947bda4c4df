"""Orders of sublayers that are written as a rule: `sandwich(2)`, `random(7)`, `random_budget(7)`.

A rule stands for one string over all `depth` layers, which takes their place: what it makes has depth 1. So the
same rule serves every depth of a ladder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from ablate.errors import unknown

RULE = re.compile(r"(\w+)\((\d+)\)")


def expand(order: str, depth: int) -> tuple[str, int]:
    """The string and the depth that `order` at `depth` stands for; itself where it is no rule.

    Raises `ValueError` saying what is wrong with a rule.
    """
    if "(" not in order:
        return order, depth
    match = RULE.fullmatch(order.replace(" ", ""))
    if match is None:
        raise ValueError(f"{order!r} must be letters, or a rule with one number, as sandwich(2)")
    name, number = match[1], int(match[2])
    if name not in RULES:
        raise ValueError(unknown("order", name, RULES))
    return RULES[name](depth, number), 1


def sandwich(depth: int, k: int) -> str:
    """s^k (sf)^(n-k) f^k, n the depth: Press, Smith and Levy 2020, arXiv:1911.03864, section 4."""
    if not 0 <= k < depth:
        raise ValueError(f"sandwich({k}) of {depth} layers: k must be from 0 to {depth - 1}")
    return "s" * k + "sf" * (depth - k) + "f" * k


def random(depth: int, seed: int) -> str:
    """`depth` s and as many f in a random order: Press, Smith and Levy 2020, section 3.1, table 1."""
    letters = "sf" * depth
    return "".join(letters[i] for i in sorted(range(2 * depth), key=lambda i: _draw(seed, i)))


def random_budget(depth: int, seed: int) -> str:
    """s and f drawn one after the other until they have the parameters of `depth` pairs: section 3.2, table 2.

    An f of width 4 d_model has the parameters of two s, so that s + 2f = 3 depth; the draw that would go beyond
    is an s. Both kinds occur.
    """
    for attempt in range(1000):
        letters, left = "", 3 * depth
        while left:
            letter = "f" if left >= 2 and _draw(seed, 1_000_000 * attempt + len(letters)) % 2 else "s"
            letters += letter
            left -= 2 if letter == "f" else 1
        if len(set(letters)) == 2:
            return letters
    raise AssertionError("unreachable: a fair coin falls on both sides")


RULES: dict[str, Callable[[int, int], str]] = {"sandwich": sandwich, "random": random, "random_budget": random_budget}


def _draw(seed: int, index: int) -> int:
    """A number that depends on nothing but its arguments, in any version of anything."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest(), "big")
