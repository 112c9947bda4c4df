"""Equal things in a row, said once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

LONGEST = 600  # of a sequence that is folded by patterns; longer ones only by runs of the same
WIDEST = 12  # of a pattern


@dataclass(frozen=True)
class Run:
    """The items from `start` to `stop`, `times` over."""

    start: int
    stop: int
    times: int


def folded(items: Sequence[Hashable]) -> list[Run]:
    """The runs that make up the sequence with the fewest items written: `sssfsfff` is 3 s, 1 fs, 3 f or as short.

    Of those that are equally short the one with the fewest runs, then the shortest patterns, then the fewest
    repetitions.
    """
    n, widest = len(items), WIDEST if len(items) <= LONGEST else 1
    best: list[tuple[tuple[int, ...], Run | None]] = [((0, 0, 0, 0), None)] * (n + 1)
    for start in range(n - 1, -1, -1):
        found: list[tuple[tuple[int, ...], Run]] = []
        for period in range(1, min(widest, n - start) + 1):
            times = 1
            while True:
                end = start + times * period
                rest = best[end][0]
                if not (times == 1 and period > 1):  # one by one
                    inside = _written(tuple(items[start : start + period]))
                    found.append(
                        (
                            (rest[0] + inside, rest[1] + 1, rest[2] + period, rest[3] + times),
                            Run(start, start + period, times),
                        )
                    )
                if items[end : end + period] != items[start : start + period]:
                    break
                times += 1
        best[start] = min(found, key=lambda each: each[0])
    runs, at = [], 0
    while at < n:
        run = best[at][1]
        assert run is not None
        runs.append(run)
        at = run.start + run.times * (run.stop - run.start)
    return runs


@lru_cache(maxsize=4096)
def _written(pattern: tuple[Hashable, ...]) -> int:
    """How many items the pattern is written with, when it is folded itself."""
    return len(pattern) if len(pattern) < 3 else sum(run.stop - run.start for run in folded(pattern))
