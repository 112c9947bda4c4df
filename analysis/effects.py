"""What a difference means: paired comparisons with a baseline, their intervals, and many of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


def compare(
    table: pd.DataFrame,
    baseline: str,
    metric: str = "loss",
    pair_on: Sequence[str] = ("seed", "size"),
    level: float = LEVEL,
) -> pd.DataFrame:
    """Each variant's mean difference from the baseline, over pairs that agree in the columns `pair_on`.

    Two runs of one pair share their seed, and so their data order and, where shapes allow, their
    initialisation: their difference has less noise than either. With d the n paired differences, diff = mean(d)
    and [lo, hi] = diff -+ t sd(d) / sqrt(n), the two-sided Student interval; p tests diff = 0; p_holm is Holm's
    correction over the variants compared here. Lower is taken as better: the verdict is "better" or "worse"
    where p_holm < 1 - level, "indistinguishable" otherwise, "unknown" where there are fewer than two pairs.

    >>> table = pd.DataFrame({
    ...     "variant": ["base", "base", "base", "rope", "rope", "rope"], "size": ["s"] * 6,
    ...     "seed": [0, 1, 2, 0, 1, 2], "loss": [2.0, 2.1, 2.2, 1.9, 2.0, 2.11]})
    >>> compare(table, "base")[["variant", "n", "diff", "verdict"]].round(3).to_dict("records")
    [{'variant': 'rope', 'n': 3, 'diff': -0.097, 'verdict': 'better'}]
    """
    keys = list(pair_on)
    known = set(table["variant"])
    if baseline not in known:
        raise ValueError(f"no baseline {baseline!r} in the table; variants: {', '.join(sorted(map(str, known)))}")
    values = table.dropna(subset=[metric]).groupby(["variant", *keys], dropna=False, observed=True)[metric].mean()
    reference = values.xs(baseline, level="variant")
    rows = []
    for variant in dict.fromkeys(table["variant"]):
        if variant == baseline:
            continue
        has_any = variant in values.index.get_level_values("variant")
        mine = values.xs(variant, level="variant") if has_any else reference.iloc[:0]
        d = (mine - reference).dropna().to_numpy(dtype=float)
        rows.append({"variant": str(variant), **paired_difference(d, level)})
    out = pd.DataFrame(rows, columns=["variant", "n", "diff", "lo", "hi", "p"])
    out["p_holm"] = holm(out["p"].to_numpy(dtype=float))
    out["verdict"] = [
        verdict(diff, p, n, level) for diff, p, n in zip(out["diff"], out["p_holm"], out["n"], strict=True)
    ]
    return out


def paired_difference(d: np.ndarray, level: float = LEVEL) -> dict[str, float]:
    """Mean, Student interval and p-value of paired differences; missing where n does not allow them."""
    n = len(d)
    diff = float(d.mean()) if n else np.nan
    if n < 2:
        return {"n": n, "diff": diff, "lo": np.nan, "hi": np.nan, "p": np.nan}
    error = d.std(ddof=1) / np.sqrt(n)
    reach = stats.t.ppf((1 + level) / 2, n - 1) * error
    p = float(2 * stats.t.sf(abs(diff) / error, n - 1)) if error > 0 else float(diff == 0)
    return {"n": n, "diff": diff, "lo": diff - reach, "hi": diff + reach, "p": p}


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (Holm 1979); missing ones stay missing and are not counted."""
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known])]
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[index]))
        out[index] = running
    return out


def verdict(diff: float, p: float, n: int, level: float = LEVEL) -> str:
    """better | worse | indistinguishable | unknown."""
    if n < 2 or not np.isfinite(p):
        return "unknown"
    if p + level >= 1:
        return "indistinguishable"
    return "better" if diff < 0 else "worse"
