"""Resamples of points, of whole groups, within groups, and in pairs: how often each point is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit import NotEnoughPoints

Array = np.ndarray


def resampled(n: int, B: int = 1000, seed: int = 0, *, least: int = 1, legacy: bool = False) -> Array:
    """B resamples of n points with replacement, as counts (B, n).

    Those with fewer than `least` different points are drawn again. With `legacy` they are drawn one by one as
    `np.random.RandomState(seed).choice(n, n)`, which repeats bootstraps that were published with numpy's global seed.
    """
    if legacy:
        rng = np.random.RandomState(seed)
        return np.stack([np.bincount(rng.choice(n, n), minlength=n) for _ in range(B)]).astype(float)
    return _drawn(n, B, np.random.default_rng(seed), least)


def resampled_groups(groups: Any, B: int = 1000, seed: int = 0, *, least: int = 1) -> Array:
    """B resamples of whole groups, as counts of their points (B, n): clusters, as trials with all their seeds.

    `groups` has a label for each point, or a table has columns of which each different row is a group.
    """
    codes = _codes(groups)
    return _drawn(int(codes.max()) + 1, B, np.random.default_rng(seed), least)[:, codes]


def resampled_within(groups: Any, B: int = 1000, seed: int = 0) -> Array:
    """B resamples of the members of every group, as seeds within a point: counts (B, n), each group's size kept."""
    codes, rng = _codes(groups), np.random.default_rng(seed)
    counts = np.empty((B, len(codes)))
    for code in range(int(codes.max()) + 1):
        members = np.flatnonzero(codes == code)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), B)
    return counts


def resampled_pairs(keys: Mapping[str, Any], B: int = 1000, seed: int = 0, *, least: int = 1) -> dict[str, Array]:
    """The same resamples for every variant, so that what pairs share cancels in their differences: counts (B, n_v).

    `keys` has the labels of each variant's points, as for `resampled_groups`: equal ones are pairs and count alike.
    """
    frames = [pd.DataFrame(each).reset_index(drop=True) for each in keys.values()]
    counts = resampled_groups(pd.concat(frames, ignore_index=True), B, seed, least=least)
    ends = np.cumsum([len(frame) for frame in frames])[:-1]
    return dict(zip(keys, np.split(counts, ends, axis=1), strict=True))


def _codes(groups: Any) -> Array:
    frame = pd.DataFrame(groups)
    return np.asarray(frame.groupby(list(frame.columns), sort=False, dropna=False).ngroup())


def _drawn(n: int, B: int, rng: np.random.Generator, least: int) -> Array:
    if least > n:
        raise NotEnoughPoints(f"{n} points or groups to resample, and each resample needs {least} different ones")
    counts = rng.multinomial(n, np.full(n, 1 / n), B)
    while (few := (counts > 0).sum(1) < least).any():
        counts[few] = rng.multinomial(n, np.full(n, 1 / n), int(few.sum()))
    return counts.astype(float)
