"""Compute-optimal sizes from the lower envelope of training curves: approach 1 of Hoffmann et al. 2022,
arXiv:2203.15556, section 3.1; and which size or variant is ahead at each compute.

Curves are compared only where their learning rates allow it. A loss in the middle of a schedule that decays to its
end is above that of a run which ends there, so that only the ends of such runs count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from analysis.fit import BadPoints, NotEnoughPoints
from analysis.optimal import FEW, Allocation, power_laws, without_missing
from analysis.points import FLOPS

Array = np.ndarray
TO_THE_END = ("cosine", "linear", "one_cycle")  # decays that end with the run: its length is part of what is trained
ENDLESS = ("constant", "inverse_sqrt")  # the rate at a step does not depend on when the run ends
COOLDOWN = ("wsd",)  # endless before its cooldown
GRID = 400  # budgets of equal ratio that curves are read at
SAME = 9  # decimals of log c in which repeats agree


@dataclass
class Comparable:
    """Points of curves that may be compared at equal compute, and those left out, with a reason each.

    `ends` says that they are ends of runs, of cooled learning rates; otherwise none is cooled. `schedule` names them.
    """

    points: pd.DataFrame
    left_out: pd.DataFrame
    ends: bool
    schedule: str
    warnings: list[str] = field(default_factory=list)


@dataclass
class Envelope(Allocation):
    """Approach 1: `params`, `se`, `ci95`, `warnings` as of `Allocation`.

    `points` is the envelope, a row for each budget of a grid: c, n, d, loss, trial (whose curve it is), accepted,
    reason. `left_out` has the points of curves that do not count, with reasons; `schedule` names the learning rates
    of those that do.
    """

    points: pd.DataFrame = field(default_factory=pd.DataFrame)
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)
    schedule: str = ""


def comparable(curves: pd.DataFrame) -> Comparable:
    """Which points of training curves may be compared at equal compute.

    `curves` has trial, n (parameters), c (FLOPs so far) and loss, a row for each evaluation; and at least one of
    `schedule`, the name of the trial's learning-rate schedule, and `cooled`, whether the learning rate has come down
    to its end. Where `cooled` is missing, the last point of a trial is cooled unless its schedule never decays.

    Cooled points are the ends of runs and count, whatever the schedule. Where there are none, points of `constant`
    and `inverse_sqrt` schedules count, and of `wsd` before its cooldown, which a column `decaying` tells (whether the
    rate has begun to fall): they compare among themselves, with a warning. Raises `BadPoints`.
    """
    table = _checked(curves)
    schedule = table["schedule"] if "schedule" in table else pd.Series("", table.index)
    schedule = schedule.astype("string").fillna("")
    cooled = _cooled(table, schedule)
    endless = schedule.isin(ENDLESS) & ~cooled
    if "decaying" in table:
        endless |= schedule.isin(COOLDOWN) & ~cooled & ~table["decaying"].astype("boolean").fillna(True).astype(bool)
    wrong = ~np.isfinite(table["loss"]) | ~(table["loss"] > 0)
    ends = bool((cooled & ~wrong).any())
    kept = (cooled if ends else endless) & ~wrong
    reasons = [_reason(*each) for each in zip(wrong, endless, schedule, strict=True)]
    left_out = table.assign(reason=reasons)[~kept]
    names = ", ".join(sorted({name for name in schedule[kept] if name})) or "schedule not named"
    found = Comparable(table[kept], left_out, ends, f"{names} ({'ends of runs' if ends else 'not cooled'})")
    found.warnings = _doubts(found, schedule[kept])
    return found


def envelope(curves: pd.DataFrame, grid: int = GRID, k: float = FLOPS, draws: int = 1000, seed: int = 0) -> Envelope:
    """n_opt = n_coef c^n_exponent and d_opt = d_coef c^d_exponent, by least squares on the logarithms of the sizes
    with the lowest loss at each of `grid` budgets of equal ratio.

    `curves` as of `comparable`, with d (tokens so far) or without: then d = c / (k n). Of cooled points the curve of
    a size goes through the ends of all its runs, repeats averaged; of others each trial has its own, and those of one
    size are averaged. Between its points log loss is interpolated in log c (monotone, piecewise cubic), and nowhere
    beyond them; one point is no curve. A budget is refused where the smallest or the largest of the sizes that reach
    it leads: one beyond might be better.

    Intervals are from `draws` resamples of the sizes, and tell how much rests on which were trained; 0 leaves them
    out. Raises `BadPoints`, and `NotEnoughPoints` where fewer than two sizes lead.
    """
    chosen = comparable(curves)
    sizes = _curves(chosen, "n", grid, k)
    lead = _leaders(sizes.loss, np.ones((1, len(sizes.n)), dtype=bool), sizes.n)
    points = _envelope_table(sizes, lead.at[0], lead.accepted[0])
    used = points[points["accepted"]]
    if used["n"].nunique() < 2:
        led = f"{used['n'].nunique()} sizes lead between a smaller and a larger one"
        raise NotEnoughPoints(f"{led}, a power law needs at least 2")
    params = power_laws(np.log(sizes.c), *_sizes_at(sizes, lead), lead.accepted).iloc[0].to_dict()
    warnings = list(chosen.warnings)
    if used["n"].nunique() < FEW:
        warnings.append(f"only {used['n'].nunique()} sizes lead: an exponent through fewer than {FEW} rests on each")
    if len(sizes.alone):
        warnings.append(f"{len(sizes.alone)} points left out: each the only one of its curve")
    samples = pd.DataFrame()
    if draws:
        samples, lost = _resampled(sizes, draws, seed)
        warnings += lost
    left_out = pd.concat((chosen.left_out, sizes.alone.assign(reason="the only point of its curve")))
    return Envelope(params, samples, warnings, points, left_out, chosen.schedule)


def race(curves: pd.DataFrame, by: str = "n", grid: int = GRID) -> pd.DataFrame:
    """Who is ahead at each compute: a row for each interval of compute in which the first two stay the same.

    `by` is a column of `curves` (as of `comparable`): n, variant, ... Of several sizes of one value the best counts;
    where none of its sizes has ended at two budgets, its curve goes through the ends of all of them. Columns: c_from,
    c_to, leader, runner_up (missing where nobody else has been there), margin (the mean over the interval, in log c,
    of the runner-up's loss less the leader's), schedule. Where two change places c is interpolated. Sizes with one
    point have no curve and are not in the race.
    """
    chosen = comparable(curves)
    if by not in chosen.points or chosen.points[by].isna().any():
        raise BadPoints(f"no column {by} without gaps; columns: {', '.join(map(str, chosen.points))}")
    sizes = _curves(chosen, by, grid, FLOPS)
    names = list(dict.fromkeys(sizes.who))
    loss = np.stack([_filled(sizes.loss[[each == name for each in sizes.who]]).min(0) for name in names])
    order = np.argsort(loss, 0, kind="stable")
    first, second = order[0], order[1] if len(names) > 1 else order[0]
    columns = np.arange(len(sizes.c))
    reached = np.isfinite(loss[first, columns])
    alone = ~np.isfinite(loss[second, columns]) | (first == second)
    second = np.where(alone, -1, second)
    changes = np.flatnonzero((np.diff(first) != 0) | (np.diff(second) != 0) | np.diff(reached)) + 1
    rows = []
    for at, end in pairwise([0, *changes, len(sizes.c)]):
        if reached[at]:
            leader, other = int(first[at]), int(second[at])
            margin = np.nan if other < 0 else float((loss[other, at:end] - loss[leader, at:end]).mean())
            low = _changed(sizes.c, loss, first, second, at) if at and reached[at - 1] else sizes.c[at]
            further = end < len(sizes.c) and reached[end]
            high = _changed(sizes.c, loss, first, second, end) if further else sizes.c[end - 1]
            follower = None if other < 0 else names[other]
            rows.append((float(low), float(high), names[leader], follower, margin, chosen.schedule))
    return pd.DataFrame(rows, columns=["c_from", "c_to", "leader", "runner_up", "margin", "schedule"])


def _changed(c: Array, loss: Array, first: Array, second: Array, at: int) -> float:
    """The compute, between two budgets of the grid, at which one overtakes another."""
    before, after = (first, first) if first[at - 1] != first[at] else (second, second)
    old, new = int(before[at - 1]), int(after[at])
    if old < 0 or new < 0:
        return float(c[at])
    gaps = loss[new, at - 1 : at + 1] - loss[old, at - 1 : at + 1]
    if not np.isfinite(gaps).all() or not gaps[0] >= 0 >= gaps[1] or gaps[0] == gaps[1]:
        return float(c[at])
    return float(c[at - 1] * (c[at] / c[at - 1]) ** (gaps[0] / (gaps[0] - gaps[1])))


def _checked(curves: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in ("trial", "n", "c", "loss") if name not in curves]
    if missing:
        raise BadPoints(f"no column {missing[0]}; training curves have trial, n, c, loss and schedule or cooled")
    if "schedule" not in curves and "cooled" not in curves:
        raise BadPoints(
            "curves need a column schedule or cooled: losses before and after the learning rate has come down differ"
        )
    table = curves.copy()
    for name in ("n", "c", "loss", *(["d"] if "d" in curves else [])):
        table[name] = table[name].astype(float)
    sizes = table[[name for name in ("n", "c", "d") if name in table]]
    if not (np.isfinite(sizes).all(axis=None) and (sizes > 0).all(axis=None)):
        raise BadPoints("n, c and d must be positive and finite")
    return table


def _cooled(table: pd.DataFrame, schedule: pd.Series) -> pd.Series:
    """Whether the learning rate of each point has come down to its end."""
    last = table["c"] == table.groupby("trial")["c"].transform("max")
    if "cooled" in table:
        said = table["cooled"].astype("boolean")
    else:
        said = pd.Series(pd.NA, table.index, dtype="boolean")
    known = (*TO_THE_END, *ENDLESS, *COOLDOWN)
    strange = sorted({str(name) for name in schedule[said.isna()] if name not in known})
    if strange:
        others = f"known: {', '.join(known)}; or give a column cooled"
        raise BadPoints(f"schedule {strange[0]!r}: whether it decays is not known; {others}")
    return said.fillna(last & ~schedule.isin(ENDLESS)).astype(bool)


def _reason(wrong: bool, endless: bool, schedule: str) -> str:
    """Why a point would be left out."""
    if wrong:
        return "its loss is not positive and finite"
    if endless:
        return f"its learning rate has not come down ({schedule}): not comparable with ends of runs"
    if schedule in COOLDOWN:
        return f"before the end of {schedule}, in its cooldown or not known to be ahead of it"
    if schedule in ENDLESS or not schedule:
        return "not cooled"
    return f"before the end of a decaying learning rate ({schedule})"


def _doubts(chosen: Comparable, schedule: pd.Series) -> list[str]:
    found = []
    if len(chosen.left_out):
        counts = chosen.left_out["reason"].value_counts()
        told = "; ".join(f"{count} {reason}" for reason, count in counts.items())
        found.append(f"{len(chosen.left_out)} of {len(chosen.points) + len(chosen.left_out)} points left out: {told}")
    if not chosen.ends and len(chosen.points):
        found.append(
            "no learning rate has come down: losses are above those of cooled runs, and the best size may differ"
        )
    names = sorted(set(schedule) - {""})
    if len(names) > 1:
        found.append(f"several schedules are compared as one: {', '.join(names)}")
    return found


@dataclass(frozen=True)
class _Curves:
    """Losses of sizes (S,) at budgets c (G,): loss and log_d (S, G), missing where a curve does not reach.

    `runs` says from which c to which each is read from which trial; `alone` are points that make no curve.
    """

    c: Array
    n: Array
    who: list[Any]
    loss: Array
    log_d: Array
    runs: list[list[tuple[float, float, str]]]
    alone: pd.DataFrame


def _curves(chosen: Comparable, by: str, grid: int, k: float) -> _Curves:
    """A curve for each size of each value of `by`."""
    points = chosen.points
    if not len(points):
        raise NotEnoughPoints("no points of the curves can be compared: " + "; ".join(chosen.warnings))
    log_c = np.linspace(np.log(points["c"].min()), np.log(points["c"].max()), grid)
    who, n, loss, log_d, runs, alone = [], [], [], [], [], [points.iloc[:0]]
    for (name, size), rows in _groups(points, by, chosen.ends):
        parts = [rows] if chosen.ends else [part for _, part in rows.groupby("trial", sort=False)]
        read = np.stack([_read(part, log_c, k) for part in parts])
        alone += [part for part, curve in zip(parts, read, strict=True) if not np.isfinite(curve).any()]
        if np.isfinite(read).any():
            who.append(name)
            n.append(size)
            loss.append(np.exp(_mean(read[:, 0])))
            log_d.append(_mean(read[:, 1]))
            runs.append(_spans(rows, chosen.ends))
    if not n:
        raise NotEnoughPoints("every size has one point: points of equal compute are what isoflop is for")
    return _Curves(np.exp(log_c), np.array(n), who, np.stack(loss), np.stack(log_d), runs, pd.concat(alone))


def _groups(points: pd.DataFrame, by: str, ends: bool) -> Iterator[tuple[tuple[Any, float], pd.DataFrame]]:
    """The points of each curve, its value of `by` and its size: missing where it goes through a ladder of sizes."""
    for name, rows in points.groupby(by, sort=True):
        ladder = rows.groupby("n")["c"].agg(["min", "max"])
        steps = ladder["min"].iloc[1:].to_numpy() > ladder["max"].iloc[:-1].to_numpy() * (1 + 10.0**-SAME)
        if ends and by != "n" and steps.all() and (ladder["max"] <= ladder["min"] * (1 + 10.0**-SAME)).all():
            yield (name, np.nan), rows
        else:
            for size, part in rows.groupby("n", sort=True):
                yield (name, float(size)), part


def _read(rows: pd.DataFrame, log_c: Array, k: float) -> Array:
    """log loss and log d of one curve on the grid, (2, G); missing beyond its ends."""
    tokens = rows["d"] if "d" in rows else rows["c"] / k / rows["n"]
    logs = np.log(pd.DataFrame({"c": rows["c"], "loss": rows["loss"], "d": tokens}))
    logs = logs.groupby(logs["c"].round(SAME)).mean()
    if len(logs) < 2:
        return np.full((2, len(log_c)), np.nan)
    inside = np.clip(log_c, logs["c"].iloc[0], logs["c"].iloc[-1])
    found = PchipInterpolator(logs["c"], logs[["loss", "d"]])(inside).T
    return np.asarray(np.where(np.abs(log_c - inside) < 10.0**-SAME, found, np.nan))


def _mean(rows: Array) -> Array:
    """The mean over curves that reach there, (G,)."""
    there = np.isfinite(rows)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, rows, 0.0).sum(0) / there.sum(0))


def _filled(loss: Array) -> Array:
    return np.where(np.isfinite(loss), loss, np.inf)


@dataclass(frozen=True)
class _Leaders:
    """Of many choices of sizes, (B, G): which has the lowest loss, and whether smaller and larger ones were there."""

    at: Array
    accepted: Array


def _leaders(loss: Array, present: Array, n: Array) -> _Leaders:
    losses = np.where(present[:, :, None], _filled(loss), np.inf)
    at = losses.argmin(1)
    there = np.isfinite(losses)
    low = np.where(there, n[:, None], np.inf).min(1)
    high = np.where(there, n[:, None], -np.inf).max(1)
    return _Leaders(at, there.any(1) & (n[at] > low) & (n[at] < high))


def _sizes_at(sizes: _Curves, lead: _Leaders) -> tuple[Array, Array]:
    """log n and log d of the leaders, (B, G)."""
    return np.log(sizes.n)[lead.at], sizes.log_d[lead.at, np.arange(len(sizes.c))]


def _envelope_table(sizes: _Curves, at: Array, accepted: Array) -> pd.DataFrame:
    columns = np.arange(len(sizes.c))
    table = pd.DataFrame({"c": sizes.c, "n": sizes.n[at], "d": np.exp(sizes.log_d[at, columns])})
    table["loss"] = sizes.loss[at, columns]
    table["trial"] = [_trials(sizes.runs[row], c) for row, c in zip(at, sizes.c, strict=True)]
    table["accepted"] = accepted
    there = np.isfinite(sizes.loss)
    smallest = table["n"] <= np.where(there, sizes.n[:, None], np.inf).min(0)
    edge = np.where(smallest, "the smallest size there leads", "the largest size there leads")
    edge = np.where(there.sum(0) == 1, "no other size has been there", edge)
    table["reason"] = np.where(accepted, "", edge)
    return table[table["loss"].notna()].reset_index(drop=True)


def _spans(rows: pd.DataFrame, ends: bool) -> list[tuple[float, float, str]]:
    """From which c to which a curve of these points is read from which trial."""
    if not ends:
        found = rows.groupby("trial", sort=False)["c"].agg(["min", "max"])
        return [(low, high, str(trial)) for trial, low, high in found.itertuples()]
    steps = sorted(rows["c"].unique())
    reach = dict(zip(steps, zip([steps[0], *steps], [*steps[1:], steps[-1]], strict=False), strict=True))
    return [(*reach[c], str(trial)) for trial, c in zip(rows["trial"], rows["c"], strict=True)]


def _trials(spans: list[tuple[float, float, str]], c: float) -> str:
    """The trials that a curve is read from at c."""
    slack = 10.0**-SAME
    return " ".join(dict.fromkeys(name for low, high, name in spans if low * (1 - slack) <= c <= high * (1 + slack)))


def _resampled(sizes: _Curves, draws: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """Power laws of resamples of the sizes, without those that have none."""
    count = len(sizes.n)
    drawn = np.random.default_rng(seed).integers(count, size=(draws, count))
    present = np.zeros((draws, count), dtype=bool)
    present[np.arange(draws)[:, None], drawn] = True
    parts = []
    for rows in np.array_split(present, max(1, draws // 100)):
        lead = _leaders(sizes.loss, rows, sizes.n)
        led = np.where(lead.accepted, sizes.n[lead.at], np.nan)
        several = np.nanmin(led, 1, initial=np.inf) < np.nanmax(led, 1, initial=-np.inf)
        lead = _Leaders(lead.at, lead.accepted & several[:, None])
        parts.append(power_laws(np.log(sizes.c), *_sizes_at(sizes, lead), lead.accepted))
    return without_missing(pd.concat(parts, ignore_index=True))
