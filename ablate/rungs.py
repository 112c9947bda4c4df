"""Start many, stop early, continue some (Dodge et al. 2020, arXiv:2002.06305, section 5).

rungs: {at: [0.3], keep: 0.5}

At each of these shares of the training, the trials of one row of the study - one variant in one cell, which differ
in their seeds alone - are compared by the task's metric on validation data, and the best `keep` of them go on. Rows
never compete with each other. In a study with stages, trials compete in those that begin from a trained model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ablate.choices import block
from ablate.yamlfile import Document


@dataclass(frozen=True)
class Rungs:
    """`at` are shares of the training's steps, rising; `keep` is the part that goes on at each."""

    at: tuple[float, ...]
    keep: float

    def kept(self, started: int, rung: int) -> int:
        """How many of those that were started go on after rung number `rung` (from 0)."""
        return max(1, math.ceil(started * self.keep ** (rung + 1) - 1e-9))


def rungs(document: Document) -> Rungs | None:
    """The rungs of a grid, None where it has none. Raises `UserError`."""
    tree = block(document, "rungs", ("at", "keep"), ", as {at: [0.3], keep: 0.5}")
    if tree is None:
        return None
    shares = tree.get("at", [0.3])
    shares = shares if isinstance(shares, list) else [shares]
    if not shares or not all(_is_share(each) for each in shares) or sorted(set(shares)) != shares:
        raise document.error(("rungs", "at"), f"{tree.get('at')!r} must be rising shares between 0 and 1")
    keep = tree.get("keep", 0.5)
    if not _is_share(keep):
        raise document.error(("rungs", "keep"), f"{keep!r} must be a share between 0 and 1")
    return Rungs(tuple(map(float, shares)), float(keep))


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1
