"""The ramp of the batch size: how many tokens each step reads."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

Shape = Literal["linear", "doubling"]


class Ramp:
    """A run of `batches` batches of n = `parts` units each, its first steps smaller.

    `linear` goes through steps of 1, 2, 3, ..., n - 1 units, `doubling` through 1, 2, 4, ..., n/2, each for the same
    number of units, together `share` of the run; then n units a step. What is left to make the total that of the run
    without a ramp, less than a batch, is one more step at those sizes whose sum it is.
    """

    def __init__(self, batches: int, parts: int, share: float, shape: Shape):
        sizes = list(range(1, parts)) if shape == "linear" else [2**k for k in range(parts.bit_length() - 1)]
        each = share * batches * parts / max(1, len(sizes))
        counts = [int(each / size) for size in sizes]
        left = batches * parts - sum(count * size for count, size in zip(counts, sizes, strict=True))
        for index in reversed(range(len(sizes))):
            if sizes[index] <= left % parts:
                counts[index] += 1
                left -= sizes[index]
        self.runs = [*zip(counts, sizes, strict=True), (left // parts, parts)]  # (steps, units a step)
        self.steps = sum(count for count, _ in self.runs)

    def units_at(self, step: int) -> int:
        """Units read in the first `step` steps."""
        total = 0
        for count, size in self.runs:
            taken = min(step, count)
            total += taken * size
            step -= taken
        return total


@lru_cache(maxsize=64)
def ramp(batches: int, parts: int, share: float, shape: Shape) -> Ramp:
    return Ramp(batches, parts, share, shape)
