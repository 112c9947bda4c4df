"""Compute-optimal sizes from runs of equal compute: approach 2 of Hoffmann et al. 2022, arXiv:2203.15556, 3.2.

Of each budget c the number of parameters n with the lowest loss is taken from the budget's own points, and power laws
go through these vertices. No law of the loss is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd
from scipy.interpolate import Akima1DInterpolator

from analysis.fit import BadPoints, NotEnoughPoints
from analysis.laws import Law
from analysis.minimise import Problem, minimise
from analysis.objectives import OBJECTIVES
from analysis.optimal import ENDS, FEW, Allocation, power_laws, without_missing

Array = np.ndarray
METHODS = ("parabola", "akima")
TOLERANCE = 0.1  # of budgets, relative
PER_GAP = 25  # points of an Akima curve between two neighbouring n, as Porian et al. 2024 take
FLAT = 1e-9  # a parabola that rises by less than this part of the loss is flat
WIDE = 4.0  # half-width of the sampled n in ratio, beyond which a parabola is biased by more than 1.4 %
OFF_CENTRE = 0.5  # of the half-width, in logarithms
SHAKY = 0.5  # a vertex that fewer resamples than this part accept


@dataclass
class IsoFlop(Allocation):
    """Approach 2: `params`, `se`, `ci95`, `warnings` as of `Allocation`, and `vertices` as of `vertices`."""

    vertices: pd.DataFrame = field(default_factory=pd.DataFrame)
    method: str = "parabola"


class How(TypedDict, total=False):
    """How vertices are found: see `vertices`."""

    method: str
    budget: str | None
    tolerance: float
    delta: float | None
    around: int | None


def isoflop(points: pd.DataFrame, draws: int = 1000, seed: int = 0, **how: Unpack[How]) -> IsoFlop:
    """n_opt = n_coef c^n_exponent and d_opt = d_coef c^d_exponent, by least squares on the logarithms of the accepted
    `vertices`.

    `points` has n (parameters), d (tokens), c (FLOPs) and loss, a row for each run; the other options are those of
    `vertices`. Intervals are from `draws` resamples of the runs within their budgets, n, d and loss of a run
    together; 0 leaves them out. With few runs in a budget they are too wide: by a third with twelve. Raises
    `NotEnoughPoints` unless two budgets have an accepted vertex.
    """
    parts, plain, table = _found(points, **how)
    accepted = table["accepted"].to_numpy()
    if accepted.sum() < 2:
        refused = table[~accepted].groupby("reason", sort=False)
        reasons = "; ".join(f"{_named(rows)}: {reason}" for reason, rows in refused)
        raise NotEnoughPoints(f"{accepted.sum()} budgets have a vertex, a power law needs at least 2 ({reasons})")
    params = _laws(parts, plain).iloc[0].to_dict()
    method = how.get("method", METHODS[0])
    found = IsoFlop(params, warnings=_beware(table, method), vertices=table, method=method)
    return _resampled(found, parts, how.get("delta"), draws, seed) if draws else found


def vertices(points: pd.DataFrame, **how: Unpack[How]) -> pd.DataFrame:
    """The n of the lowest loss of each budget, a row each: budget, c (the geometric mean of its runs'), n, d, loss,
    points (runs), sizes (different n), n_min and n_max, accepted, reason (of a refusal), curvature (d^2 loss /
    d (log n)^2 of a parabola). n, d and loss are missing where a vertex is refused.

    `method` "parabola" fits loss = quadratic in log n, by least squares, or by the Huber loss of width `delta` in
    nats. A vertex is refused with fewer than 3 sizes, where the parabola is concave or flat, and where its minimum is
    outside the sampled n. `method` "akima" (Porian et al. 2024, arXiv:2406.19146) takes the lowest of 25 points per
    gap of an Akima interpolation of log loss in log n, repeats of a size averaged; it is refused at either end.

    `around` keeps that many sizes on either side of the size of the lowest loss, where the sampling is wider than a
    parabola is good for. d follows from n by c / (n d), interpolated in logarithms between the budget's runs: 6 where
    c = 6 n d.
    Budgets are those of the column `budget`, else `group_budgets` of c. Raises `BadPoints`.
    """
    return _found(points, **how)[2]


def _found(
    points: pd.DataFrame,
    method: str = METHODS[0],
    budget: str | None = None,
    tolerance: float = TOLERANCE,
    delta: float | None = None,
    around: int | None = None,
) -> tuple[list[_Part], list[_Vertex], pd.DataFrame]:
    """The budgets, the vertex of each, and these as a table."""
    parts = _parts(points, method, budget, tolerance, around)
    plain = [_vertex(part, np.ones((1, len(part.loss))), method, delta) for part in parts]
    return parts, plain, _table(parts, plain, method)


def group_budgets(c: Array, tolerance: float = TOLERANCE) -> Array:
    """The budget of each run that hit one approximately: the geometric mean of its group, (n,).

    A group ends where the next larger c is further than `tolerance`, relative. Raises `BadPoints` where groups run
    into each other: where a c is further than that from its group's mean.
    """
    logs, reach = np.log(np.asarray(c, dtype=float)), np.log1p(tolerance)
    order = np.argsort(logs, kind="stable")
    labels = np.empty(len(logs), dtype=int)
    labels[order] = np.cumsum(np.diff(logs[order], prepend=logs[order][:1]) > reach)
    means = np.bincount(labels, logs) / np.bincount(labels)
    away = np.abs(logs - means[labels])
    if (away > reach).any():
        inside = np.exp(logs[labels == labels[away.argmax()]])
        raise BadPoints(
            f"budgets from {inside.min():.4g} to {inside.max():.4g} FLOPs run into each other: no gap above "
            f"{tolerance:.0%} between them; name the budgets in a column"
        )
    return np.asarray(np.exp(means)[labels])


@dataclass(frozen=True)
class _Part:
    """The runs of one budget: logarithms of n and of c / (n d), in the order of n."""

    label: object
    log_c: float
    log_n: Array
    log_k: Array
    loss: Array

    def log_d(self, log_n: Array) -> Array:
        """The tokens that the budget leaves for n."""
        sizes = np.unique(self.log_n)
        means = np.array([self.log_k[self.log_n == each].mean() for each in sizes])
        return np.asarray(self.log_c - np.interp(log_n, sizes, means) - log_n)


@dataclass(frozen=True)
class _Vertex:
    """Of one budget, for many weights of its runs: each is (B,). `refused` is "" where there is a vertex."""

    log_n: Array
    loss: Array
    curvature: Array
    refused: Array

    @property
    def accepted(self) -> Array:
        return np.asarray(self.refused == "")


def _parts(
    points: pd.DataFrame, method: str, budget: str | None, tolerance: float, around: int | None
) -> list[_Part]:
    if method not in METHODS:
        raise BadPoints(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    needed = ["n", "d", "c", "loss", *([budget] if budget else [])]
    missing = [name for name in needed if name not in points]
    if missing:
        raise BadPoints(f"no column {missing[0]}; isoFLOP points have {', '.join(needed)}")
    table = points[["n", "d", "c", "loss"]].astype(float)
    if not (np.isfinite(table).all(axis=None) and (table > 0).all(axis=None)):
        raise BadPoints("n, d, c and loss must be positive and finite")
    keys = points[budget] if budget else pd.Series(group_budgets(table["c"].to_numpy(), tolerance), table.index)
    if keys.isna().any():
        raise BadPoints(f"column {budget}: {int(keys.isna().sum())} points have no budget")
    found = []
    for label, rows in table.groupby(keys.to_numpy(), sort=True):
        chosen = rows if around is None else _around_lowest(rows, around)
        logs = np.log(chosen.sort_values(["n", "loss"]))
        log_k = logs["c"] - logs["n"] - logs["d"]
        found.append(
            _Part(label, logs["c"].mean(), logs["n"].to_numpy(), log_k.to_numpy(), np.exp(logs["loss"].to_numpy()))
        )
    return sorted(found, key=lambda part: part.log_c)


def _around_lowest(rows: pd.DataFrame, around: int) -> pd.DataFrame:
    means = rows.groupby("n")["loss"].mean()
    at = int(means.to_numpy().argmin())
    return rows[rows["n"].isin(means.index[max(0, at - around) : at + around + 1])]


def _vertex(part: _Part, weights: Array, method: str, delta: float | None) -> _Vertex:
    """The vertices of one budget for weights (B, runs)."""
    of_size = part.log_n[:, None] == np.unique(part.log_n)
    enough = (weights @ of_size > 0).sum(-1) >= 3
    log_n, loss, curvature = (np.full(len(weights), np.nan) for _ in range(3))
    refused = np.full(len(weights), "few", dtype="<U7")
    if enough.any():
        found = _akima(part, weights[enough]) if method == "akima" else _parabola(part, weights[enough], delta)
        refused[enough], curvature[enough] = found.refused, found.curvature
        log_n[enough] = np.where(found.accepted, found.log_n, np.nan)
        loss[enough] = np.where(found.accepted, found.loss, np.nan)
    return _Vertex(log_n, loss, curvature, refused)


class _Quadratic(Law):
    """loss = t0 + t1 z + t2 z^2, linear in theta = (t0, t1, t2)."""

    name, equation = "quadratic", "loss = t0 + t1 z + t2 z^2"
    inputs, parameters = ("n",), ("t0", "t1", "t2")

    def value(self, theta: Array, x: Array) -> Array:
        return np.asarray(theta @ np.vander(x[:, 0], 3, increasing=True).T)

    def jacobian(self, theta: Array, x: Array) -> Array:
        design = np.vander(x[:, 0], 3, increasing=True)
        return np.broadcast_to(design, (*theta.shape[:-1], *design.shape))


def _parabola(part: _Part, weights: Array, delta: float | None) -> _Vertex:
    """z = (log n - middle) / half-width is in [-1, 1], so that theta_2 is how far the loss rises to the ends."""
    low, high = part.log_n.min(), part.log_n.max()
    middle, half = (low + high) / 2, (high - low) / 2
    z = (part.log_n - middle) / half
    design = np.vander(z, 3, increasing=True)
    gram = np.einsum("bn,ni,nj->bij", weights, design, design)
    right = np.einsum("bn,ni,n->bi", weights, design, part.loss)
    theta = np.linalg.solve(gram, right[..., None])[..., 0]
    if delta is not None:
        objective = replace(OBJECTIVES["huber"], delta=delta, log=False)
        theta = minimise(Problem(_Quadratic(), z[:, None], part.loss, weights, objective), theta).theta
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -theta[:, 1] / (2 * theta[:, 2])
    sampled = weights > 0
    first, last = np.where(sampled, z, np.inf).min(-1), np.where(sampled, z, -np.inf).max(-1)
    small = FLAT * np.abs(theta[:, 0])
    refused = np.where((at < first) | (at > last), "outside", "")
    refused = np.where(theta[:, 2] <= small, "flat", refused)
    refused = np.where(theta[:, 2] < -small, "concave", refused)
    loss = theta[:, 0] + at * theta[:, 1] / 2
    return _Vertex(middle + half * at, loss, 2 * theta[:, 2] / half**2, refused)


def _akima(part: _Part, weights: Array) -> _Vertex:
    repeats = len(np.unique(part.log_n)) < len(part.log_n)
    different, which = np.unique(weights if repeats else weights > 0, axis=0, return_inverse=True)
    rows = [_lowest_of_akima(part, row.astype(float)) for row in different]
    log_n, loss, refused = (np.array(column)[which.reshape(-1)] for column in zip(*rows, strict=True))
    return _Vertex(log_n, loss, np.full(len(weights), np.nan), refused)


def _lowest_of_akima(part: _Part, weights: Array) -> tuple[float, float, str]:
    sizes, which = np.unique(part.log_n[weights > 0], return_inverse=True)
    kept, loss = weights[weights > 0], part.loss[weights > 0]
    means = np.bincount(which, kept * loss) / np.bincount(which, kept)
    parts = np.linspace(sizes[:-1], sizes[1:], PER_GAP, endpoint=False, axis=1)
    grid = np.append(parts.reshape(-1), sizes[-1])
    curve = Akima1DInterpolator(sizes, np.log(means))(grid)
    at = int(curve.argmin())
    return float(grid[at]), float(np.exp(curve[at])), "end" if at in (0, len(grid) - 1) else ""


def _laws(parts: Sequence[_Part], found: Sequence[_Vertex]) -> pd.DataFrame:
    log_c = np.array([part.log_c for part in parts])
    log_n = np.stack([each.log_n for each in found], -1)
    log_d = np.stack([part.log_d(each.log_n) for part, each in zip(parts, found, strict=True)], -1)
    return power_laws(log_c, log_n, log_d, np.isfinite(log_n))


def _table(parts: Sequence[_Part], found: Sequence[_Vertex], method: str) -> pd.DataFrame:
    rows = []
    for part, each in zip(parts, found, strict=True):
        n_min, n_max = np.exp(part.log_n.min()), np.exp(part.log_n.max())
        sizes = len(np.unique(part.log_n))
        reasons = {
            "": "",
            "few": f"{sizes} different n, {method} needs at least 3",
            "concave": "the parabola is concave",
            "flat": "the parabola is flat",
            "outside": f"the minimum is outside the sampled n, {n_min:.4g} to {n_max:.4g}",
            "end": f"the lowest loss is at an end of the sampled n, {n_min:.4g} to {n_max:.4g}",
        }
        row = {"budget": part.label, "c": np.exp(part.log_c), "n": np.exp(each.log_n[0])}
        row |= {"d": np.exp(part.log_d(each.log_n)[0]), "loss": each.loss[0]}
        row |= {"points": len(part.loss), "sizes": sizes}
        row |= {"n_min": n_min, "n_max": n_max, "accepted": bool(each.accepted[0])}
        rows.append(row | {"reason": reasons[str(each.refused[0])], "curvature": each.curvature[0]})
    return pd.DataFrame(rows)


def _resampled(found: IsoFlop, parts: Sequence[_Part], delta: float | None, draws: int, seed: int) -> IsoFlop:
    """The same with resamples of runs within budgets; `vertices` gets lo and hi, 95 % of n, and kept, how many of the
    resamples accept the vertex."""
    rng = np.random.default_rng(seed)
    many = []
    for part in parts:
        runs = len(part.loss)
        weights = rng.multinomial(runs, np.full(runs, 1 / runs), draws).astype(float)
        many.append(_vertex(part, weights, found.method, delta))
    samples, lost = without_missing(_laws(parts, many))
    table = found.vertices
    for row, each in enumerate(many):
        known = np.exp(each.log_n[each.accepted])
        if len(known) and table.loc[row, "accepted"]:
            table.loc[row, ["lo", "hi"]] = np.quantile(known, ENDS)
        table.loc[row, "kept"] = each.accepted.mean()
    shaky = table[table["accepted"] & (table["kept"] < SHAKY)]
    if len(shaky):
        lost.append(f"most resamples refuse the vertex of {_named(shaky)}")
    return replace(found, samples=samples, warnings=found.warnings + lost)


def _beware(table: pd.DataFrame, method: str) -> list[str]:
    """What the vertices give reason to doubt."""
    used, refused = table[table["accepted"]], table[~table["accepted"]]
    found = [f"refused {_named(refused)}: {'; '.join(dict.fromkeys(refused['reason']))}"] if len(refused) else []
    if len(used) < FEW:
        found.append(f"only {len(used)} budgets: an exponent through fewer than {FEW} rests on each of them")
    if method != "parabola":
        return found
    bare = used[used["sizes"] == 3]
    if len(bare):
        found.append(f"{_named(bare)}: 3 different n, through which every parabola goes: at least 4 are recommended")
    half = np.log(used["n_max"] / used["n_min"]) / 2
    away = np.abs(np.log(used["n"] ** 2 / (used["n_min"] * used["n_max"]))) / 2
    wide, aside = used[half > np.log(WIDE) + 1e-9], used[away > OFF_CENTRE * half]
    biased = "a parabola is biased there even without noise, so beware of n_coef and d_coef"
    if len(wide):
        found.append(f"sampling is wider than {WIDE:g}x to either side of its middle in {_named(wide)}: {biased}")
    if len(aside):
        found.append(
            f"the minimum is off the centre of the sampled n in {_named(aside)}: {biased}, "
            "and of the exponents where this changes with c"
        )
    return found


def _named(table: pd.DataFrame) -> str:
    """Budgets in words."""
    labels = [f"{each:.4g}" if isinstance(each, float) else str(each) for each in table["budget"]]
    shown = ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
    return f"budget{'s' if len(labels) > 1 else ''} {shown}"
