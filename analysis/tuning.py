"""Sweeps of a setting: where the best value is, whether the sweep has seen it, and what each variant was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import comb

from analysis.columns import CELL, cell_name
from analysis.sensitivity import sensitivity

Array = np.ndarray
LEVEL = 0.95
REACH = 2  # values to either side of the best that a parabola goes through
TUNE = "tune"  # the stage of a sweep's trials
ENDS = {"low": "the smallest", "high": "the largest"}


@dataclass(frozen=True)
class Optimum:
    """Of one setting: `value` is the vertex of a parabola of the loss in log value through the best value tried and
    its neighbours, within one step of the best; the best itself where there is none. lo and hi are its 95 % interval
    by Fieller's theorem, missing where there are no more trials than three values, 0 or infinite where the parabola
    may be flat.

    `edge` is "low" or "high" where the best value is the smallest or largest tried: the optimum may be beyond.
    """

    value: float
    lo: float
    hi: float
    best: float
    edge: str


def optimum(values: Sequence[float] | Array, losses: Sequence[float] | Array) -> Optimum | None:
    """The best value of a positive setting: one value and one loss a trial, several trials a value (seeds) or one.

    A loss that is missing or infinite is that of a trial that diverged: its value was tried and is no good. A best
    value that has only diverged ones beyond it is at no edge. None where every trial diverged.
    """
    v, y = np.asarray(values, dtype=float), np.asarray(losses, dtype=float)
    tried = np.unique(v)
    means = np.array([_mean(y[v == each]) for each in tried])
    if not np.isfinite(means).any():
        return None
    at = int(np.argmin(means))
    edge = "low" if at == 0 else "high" if at == len(tried) - 1 else ""
    if edge and len(tried) == 1:
        return Optimum(float(tried[0]), np.nan, np.nan, float(tried[0]), edge)
    near = np.isin(v, tried[max(0, at - REACH) : at + REACH + 1]) & np.isfinite(y)
    vertex = _vertex(np.log(v[near] / tried[at]), y[near])
    if vertex is None:
        return Optimum(float(tried[at]), np.nan, np.nan, float(tried[at]), edge)
    middle, lo, hi = vertex
    below, above = (np.log(tried[min(max(k, 0), len(tried) - 1)] / tried[at]) for k in (at - 1, at + 1))
    with np.errstate(over="ignore"):
        inside, low, high = np.exp([np.clip(middle, below, above), lo, hi]) * tried[at]
    return Optimum(float(inside), float(low), float(high), float(tried[at]), edge)


def _mean(losses: Array) -> float:
    """Over seeds; infinite where one of them diverged: a value that may diverge is not to be chosen."""
    return float(losses.mean()) if np.isfinite(losses).all() else np.inf


def _vertex(x: Array, y: Array) -> tuple[float, float, float] | None:
    """-b / (2 c) of y = a + b x + c x^2 by least squares, with Fieller's interval; None unless it is convex."""
    if len(np.unique(x)) < 3:
        return None
    design = np.vander(x, 3, increasing=True)
    found, *_ = np.linalg.lstsq(design, y, rcond=None)
    _, b, c = found
    if c <= 1e-12 * max(1.0, float(np.abs(y).max())):
        return None
    middle, free = -b / (2 * c), len(x) - 3
    if free < 1:
        return middle, np.nan, np.nan
    covariance = ((y - design @ found) ** 2).sum() / free * np.linalg.inv(design.T @ design)
    t2 = float(stats.t.ppf((1 + LEVEL) / 2, free)) ** 2
    # the x at which b + 2 c x is not significantly different from 0: a quadratic inequality in x
    first = 4 * c * c - t2 * 4 * covariance[2, 2]
    second = 4 * b * c - t2 * 4 * covariance[1, 2]
    third = b * b - t2 * covariance[1, 1]
    inside = second * second - 4 * first * third
    if first <= 0 or inside < 0:
        return middle, -np.inf, np.inf
    reach = np.sqrt(inside) / (2 * first)
    centre = -second / (2 * first)
    return middle, centre - reach, centre + reach


def beyond(values: Sequence[float] | Array, edge: str) -> float:
    """The next value of a sweep on that side: one more step of the ratio of its last two."""
    tried = np.unique(np.asarray(values, dtype=float))
    return float(tried[0] ** 2 / tried[1] if edge == "low" else tried[-1] ** 2 / tried[-2])


def sweep_table(table: pd.DataFrame, paths: Sequence[str]) -> pd.DataFrame:
    """One row a sweep and setting: variant, cell, path, value (chosen by the sweep), lo, hi, best, edge, low and high
    (tried), tried (values), trials, seeds, diverged, flops.

    `table` has the trials of the stage "tune", with a column for each path. Of several settings crossed, each is
    looked at with the others at the best combination's values.
    """
    found = []
    for (variant, *cell), part in _sweeps(table):
        labels = {"variant": str(variant), **dict(zip(CELL[1:], map(str, cell), strict=True))}
        for path in paths:
            mine = _slice(part, path, paths)
            best = optimum(mine[path].to_numpy(float), mine["loss"].fillna(np.inf).to_numpy(float))
            told = vars(best) if best is not None else dict.fromkeys(("value", "lo", "hi", "best"), np.nan)
            found.append(
                labels
                | {"path": path, **told, "low": mine[path].min(), "high": mine[path].max()}
                | {"tried": mine[path].nunique(), "trials": len(part), "seeds": part["seed"].nunique()}
                | {"diverged": int((part["status"] == "diverged").sum()), "flops": part["train_flops"].sum()}
            )
    return pd.DataFrame(found)


def sweep_sensitivity(table: pd.DataFrame, paths: Sequence[str], rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """`analysis.sensitivity.sensitivity` of every sweep and setting, others at the best combination's values: its
    columns, and path."""
    found = []
    for path in paths:
        slices = [_slice(part, path, paths) for _, part in _sweeps(table)]
        found.append(sensitivity(pd.concat(slices), rows, path).assign(path=path))
    return pd.concat(found, ignore_index=True)


def _sweeps(table: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The trials of each sweep, with the loss of those that finished alone."""
    swept = table[table["stage"] == TUNE]
    swept = swept.assign(loss=swept["loss"].where(swept["status"] == "finished").astype(float))
    yield from swept.groupby(["variant", *CELL[1:]], sort=False, dropna=False, observed=True)


def _slice(part: pd.DataFrame, path: str, paths: Sequence[str]) -> pd.DataFrame:
    """The trials that differ from the best combination in one setting alone."""
    others = [each for each in paths if each != path]
    if not others:
        return part
    means = part.groupby(list(paths))["loss"].mean()
    best = dict(zip(paths, means.idxmin() if means.notna().any() else means.index[0], strict=True))
    return part[np.logical_and.reduce([part[each] == best[each] for each in others])]


def expected_best(losses: Sequence[float] | Array, level: float = 0.8) -> pd.DataFrame:
    """What the best of k of these trials would be, k = 1, ..., n: a tuning curve. Columns k, mean, lo, hi.

    The mean and quantiles over all subsets of size k, drawn without replacement (Dodge et al. 2019, arXiv:1909.03004,
    draw with replacement, which is biased: Tang et al. 2020): P(min > l_(i)) = C(n - i, k) / C(n, k).
    """
    ordered = np.sort(np.asarray(losses, dtype=float))
    ordered = np.where(np.isfinite(ordered), ordered, np.nan)
    known = ordered[np.isfinite(ordered)]
    n, rows = len(ordered), []
    for k in range(1, n + 1):
        above = comb(n - np.arange(1, n + 1), k) / comb(n, k)  # P(the best of k is above the i-th)
        mass = np.append(1.0, above[:-1]) - above
        finite = mass[: len(known)]
        if not len(known) or finite.sum() < 1 - 1e-12:
            rows.append({"k": k, "mean": np.nan, "lo": np.nan, "hi": np.nan})  # all k may have diverged
            continue
        below = np.cumsum(finite)
        ends = [known[int(np.searchsorted(below, share - 1e-12))] for share in ((1 - level) / 2, (1 + level) / 2)]
        rows.append({"k": k, "mean": float(finite @ known), "lo": float(ends[0]), "hi": float(ends[1])})
    return pd.DataFrame(rows)


def certificate(table: pd.DataFrame, paths: Sequence[str]) -> pd.DataFrame:
    """What each variant was given, a row each: sweeps, the fewest and most values tried in one, tuning trials, their
    FLOPs and seeds, interior (sweeps whose best value is inside), at_edge, and the trials and seeds reported."""
    sweeps = sweep_table(table, paths) if len(paths) else pd.DataFrame()
    reported, rows = table[table["stage"] != TUNE], []
    for variant in dict.fromkeys(table["variant"]):
        mine = sweeps[sweeps["variant"] == variant] if len(sweeps) else sweeps
        trials, own = table[(table["variant"] == variant) & (table["stage"] == TUNE)], reported["variant"] == variant
        edge = mine["edge"].fillna("unknown") if len(mine) else pd.Series(dtype=str)
        rows.append(
            {"variant": str(variant), "sweeps": len(mine)}
            | {name: int(getattr(mine["tried"], name)()) if len(mine) else 0 for name in ("min", "max")}
            | {"tuning_trials": len(trials), "tuning_flops": float(trials["train_flops"].astype(float).sum())}
            | {"tuning_seeds": int(trials["seed"].nunique()), "interior": int((edge == "").sum())}
            | {"at_edge": int((edge != "").sum()), "trials": int(own.sum())}
            | {"seeds": int(reported.loc[own, "seed"].nunique())}
        )
    return pd.DataFrame(rows).rename(columns={"min": "fewest_values", "max": "most_values"})


def unfair(table: pd.DataFrame, paths: Sequence[str], baseline: str) -> list[str]:
    """What in a study's tuning speaks against its verdicts, in words; empty where nothing does.

    A best value at the end of its sweep; a study in which nothing was tuned, or some variants have several learning
    rates and others one.
    """
    if not len(paths):
        return _untuned(table, baseline)
    sweeps, found = sweep_table(table, paths), []
    for row in sweeps[sweeps["edge"].fillna("") != ""].to_dict("records"):
        cell = cell_name(row)
        where = f" ({cell})" if cell else ""
        told = f"the best {row['path']}, {row['best']:.3g}, is {ENDS[str(row['edge'])]} that was tried"
        found.append(f"{row['variant']}{where} is under-tuned: {told}")
    return found


def _untuned(table: pd.DataFrame, baseline: str) -> list[str]:
    if "lr" not in table or table["lr"].isna().all():
        return []
    rates = (
        table.dropna(subset=["lr"]).groupby(["variant", "size", "budget"])["lr"].nunique().groupby("variant").max()
    )
    if rates.max() > 1 and rates.min() < rates.max():
        few = ", ".join(str(name) for name in rates.index[rates == rates.min()])
        return [
            f"{few}: fewer learning rates were tried than of {rates.idxmax()} ({rates.min()} against {rates.max()})"
        ]
    if rates.max() > 1:
        return []
    values = table["lr"].dropna().unique()
    at = f"at learning rate {values[0]:.3g}" if len(values) == 1 else "at a learning rate each"
    return [f"nothing was tuned: every variant was trained {at}, which may suit {baseline} and not others, or none"]


def compared_on(table: pd.DataFrame, tune: Mapping[str, object] | None) -> str:
    """The split that variants are compared on: test where a study was tuned and has that, else validation."""
    return "test" if tune and table["test_loss"].notna().any() else "validation"


def reported(table: pd.DataFrame, tune: Mapping[str, object] | None) -> pd.DataFrame:
    """The trials that are compared. Those of a tuned study are compared on test data, where it has some: sweeps were
    judged by validation data, and `loss` and `score` are then those of test data, of which nothing else is said."""
    if not tune:
        return table
    rows = table[table["stage"] != TUNE].copy()
    on_test = rows["test_loss"].notna()
    rows.loc[on_test, "loss"] = rows.loc[on_test, "test_loss"]
    on_test = rows["test_score"].notna()
    rows.loc[on_test, "score"] = rows.loc[on_test, "test_score"]
    rows["test_score"] = np.nan
    return rows
