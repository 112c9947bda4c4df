"""At which steps a trial is evaluated."""

from __future__ import annotations

import numpy as np


def evaluation_steps(steps: int, points: int) -> frozenset[int]:
    """The steps after which a trial is evaluated: 0, then about `points` spaced logarithmically up to the last."""
    first = max(1.0, steps / 100)
    if not steps:
        return frozenset({0})
    return frozenset({0, steps, *(round(each) for each in np.geomspace(min(first, steps), steps, points))})
