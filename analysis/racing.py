"""Racing: pairs of seeds are added only where the interval of a paired difference still straddles the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from analysis.columns import CELL
from analysis.effects import holm
from analysis.errors import AnalysisError
from analysis.tables import SIGN, metric_of

Array = np.ndarray
Row = tuple[str, ...]  # a cell and a variant
Noise = tuple[float, float]  # the variance of a paired difference, and its degrees of freedom

SPENDINGS = ("pocock", "obrien_fleming")
NOISES = ("own", "pooled")
STEP = 1.25  # a look has at least this many times the pairs of the one before
LEVELS = np.geomspace(1e-7, 0.5, 12)  # at which boundaries are computed; between them they are interpolated
DRAWS = 4096  # of what came before a look; the seed is fixed, so that boundaries are always the same
LEAST = 1e-100  # a nominal p-value below which nothing is told apart


class BadRace(AnalysisError):
    """A race that cannot be run as asked."""


@dataclass(frozen=True)
class RacePlan:
    """When to look at paired differences, and what the looks may conclude.

    `first` and `most` pairs at the first and the last look, those between at least a quarter apart; `level` the
    family-wise error over all rows and looks; `smallest` the smallest effect of interest, in the metric's units;
    `bounds` how the level is spent over the looks (`nominal_levels`): "obrien_fleming" late, which reaches nearly all
    verdicts of the full grid, "pocock" evenly, which takes a tenth to a quarter fewer and leaves more rows undecided;
    a row ends as futile where the predictive power to reach significance at the last look is below `futile` (0:
    never).

    `noise`: "own" measures each row's noise by its own pairs alone, as `analysis.effects.compare` does; "pooled"
    takes it to be the same in all variants of a cell (`pooled_noise`), which tells far more of 2 to 6 pairs and is
    wrong where it is not: of 40 rows raced from 2 to 8 pairs at level 0.05, the family-wise error was 0.03 where all
    were alike, 0.25 where the baseline's noise was twice the others', 0.20 where one variant's was three times it.
    Raises `BadRace` for values that make no race.
    """

    first: int = 3
    most: int = 12
    level: float = 0.05
    smallest: float = 0.0
    bounds: str = "obrien_fleming"
    futile: float = 0.1
    noise: str = "own"

    def __post_init__(self) -> None:
        checks = (
            ("first", self.first >= 2, "at least 2 pairs, for a spread"),
            ("most", self.most >= self.first, f"at least first = {self.first}"),
            ("level", LEVELS[0] < self.level < LEVELS[-1], f"between {LEVELS[0]:g} and {LEVELS[-1]:g}"),
            ("smallest", 0 <= self.smallest < np.inf, "0 or more"),
            ("bounds", self.bounds in SPENDINGS, " or ".join(SPENDINGS)),
            ("futile", 0 <= self.futile < 1, "from 0 (never) to below 1"),
            ("noise", self.noise in NOISES, " or ".join(NOISES)),
        )
        for name, good, wanted in checks:
            if not good:
                raise BadRace(f"{name} = {getattr(self, name)!r} must be {wanted}")

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Pairs at each look."""
        found = [self.first]
        while found[-1] < self.most:
            found.append(min(self.most, max(found[-1] + 1, int(np.ceil(STEP * found[-1])))))
        return tuple(found)


@dataclass(frozen=True)
class Decision:
    """What is known of one row: less is better.

    `status`: "better" or "worse" (by more than `smallest`), "equivalent" (the interval is within +- `smallest`),
    "futile" (more pairs will hardly decide it), "undecided". `pairs` that both have a value, `diff` their mean, [lo,
    hi] the repeated confidence interval, `p` the sequential p-value, `p_holm` that after Holm's correction over the
    rows, `power` the predictive power at the last look.
    """

    status: str
    pairs: int
    diff: float
    lo: float
    hi: float
    p: float
    p_holm: float
    power: float


def spent(share: Array, level: float, spending: str = "obrien_fleming") -> Array:
    """alpha*(t): the error that may be spent by a share t of the pairs (Lan and DeMets 1983, Biometrika 70:659).

    "pocock": alpha log(1 + (e - 1) t). "obrien_fleming": 2 - 2 Phi(z_{alpha/2} / sqrt(t)).
    """
    if spending == "pocock":
        return level * np.log1p((np.e - 1) * share)
    return np.asarray(2 * stats.norm.sf(stats.norm.isf(level / 2) / np.sqrt(share)))


@lru_cache(maxsize=256)
def nominal_levels(looks: tuple[int, ...], level: float, spending: str = "obrien_fleming") -> tuple[float, ...]:
    """The two-sided p-values that t-tests at looks of n_1 < ... < n_K pairs have to reach, so that differences that
    are normal with mean 0 reach one of them with probability `level`.

    With c_k the critical |t| at look k: P(|T_j| < c_j for j < k, |T_k| >= c_k) = alpha*(n_k / n_K) -
    alpha*(n_{k-1} / n_K), in the joint distribution of Student's t-statistics of one sequence of pairs, which does
    not depend on their noise. Given T_k the pairs are a point that is uniform on a sphere: what came before is drawn
    from that, for T_k in the tail, so that small levels are known as well as large ones (to 1 %).

    Differs from the paper: Lan and DeMets compute the boundaries of a normal walk, which are far too low at few
    pairs: at looks of 3, 4, 5, 7, 9 and 12 pairs 0.22 instead of 0.05 reach those of Pocock's kind.
    """
    increments = np.diff(spent(np.array(looks) / looks[-1], level, spending), prepend=0.0)
    found: list[float] = []
    for k, goal in enumerate(np.log(np.maximum(increments, LEAST))):
        found.append(float(np.exp(_paths(looks[: k + 1]).tail(goal, found) if k else goal)))
    return tuple(found)


def sequential_p(differences: Array, plan: RacePlan, noise: Sequence[Noise] | None = None) -> Array:
    """The smallest level at which one of the looks so far would have told the mean difference from 0 (from
    +- `smallest`, where that is above 0): (..., n) differences in the order of the pairs give (...) p-values.

    P(p <= a) <= a whenever one stops and for whatever reason, so that Holm's correction holds over rows that stop at
    different looks (sequential p-values: Liu and Anderson 2008, JASA 103:1621). A pair that is missing (NaN) counts
    for the look and not for the test, which has a degree of freedom less. 1 before the first look, and where
    differences have no spread: no noise has been measured. `noise` at each look is used instead of the row's own.
    """
    levels, table = _level_table(plan.looks, plan.bounds)
    best = np.ones(np.shape(differences)[:-1])
    for k, look in enumerate(plan.looks):
        if look > np.shape(differences)[-1]:
            break
        _, mean, error, df = _moments(np.asarray(differences, dtype=float)[..., :look], noise[k] if noise else None)
        with np.errstate(invalid="ignore", divide="ignore"):
            t = (np.abs(mean) - plan.smallest) / error
            p = np.where((t > 0) & np.isfinite(t), 2 * stdtr(df, -t), 1.0)
        best = np.minimum(best, np.exp(np.interp(np.log(np.maximum(p, LEAST)), table[k], levels, right=0.0)))
    return best


def pooled_noise(rows: Sequence[Array]) -> Noise:
    """2 s^2, the variance of a paired difference, and the degrees of freedom of s^2: the residual mean square of
    x_vs = mu_v + tau_s + e_vs over the baseline and all variants v of one cell and all seeds s that they have.

    Of one row it is that row's own variance. Rows may have different numbers of pairs.
    """
    x = np.full((len(rows) + 1, max((len(each) for each in rows), default=0)), np.nan)
    x[0] = 0.0  # x_vs - x_bs: tau_s takes the baseline's values
    for v, each in enumerate(rows, 1):
        x[v, : len(each)] = each
    there = np.isfinite(x)
    y, kept = np.where(there, x, 0.0), there.astype(float)
    df = int(there.sum() - there.any(1).sum() - there.any(0).sum() + 1)
    if df < 1:
        return np.nan, 0
    normal = np.block([[np.diag(kept.sum(1)), kept], [kept.T, np.diag(kept.sum(0))]])
    effects = np.linalg.lstsq(normal, np.concatenate((y.sum(1), y.sum(0))), rcond=None)[0]
    residual = kept * (y - effects[: len(x), None] - effects[len(x) :])
    return 2 * float((residual**2).sum()) / df, df


def decide(differences: Array, plan: RacePlan) -> Decision:
    """What one row's paired differences (variant - baseline, in the order of the pairs, NaN where one of the two has
    no value) say after the last look that they reach, where it is the only row."""
    return decide_all({("row",): differences}, plan)["row",]


def decide_all(rows: Mapping[Row, Array], plan: RacePlan) -> dict[Row, Decision]:
    """`decide` of many rows, named by their cell and, last, their variant: better or worse where Holm's correction of
    the sequential p-values over all of them is at most `level`: so is the probability of any false verdict.

    [lo, hi] = diff -+ c se is the repeated confidence interval (Jennison and Turnbull 1989, JRSS B 51:305) at
    level / rows: all of them hold their truths at all looks with probability 1 - level. A row is equivalent where
    that is within +- `smallest`. Futility is not binding: it stops rows and never enters a p-value, so that it cannot
    raise the error. The predictive power is that of the t-test at the last look given a flat prior, with the spread
    as it is: with n of N pairs, T_N = T_n sqrt(N/n) + sqrt((N-n)/n) t_df. A row with fewer than two values after a
    look ends as futile.
    """
    seen = {name: _to_look(np.asarray(each, dtype=float), plan) for name, each in rows.items()}
    noises = _noises(seen, plan)
    p = _sequential(seen, plan, noises)
    adjusted = holm(p)
    left = max(1, int((adjusted > plan.level).sum()))
    found = {}
    for (name, each), own, corrected in zip(seen.items(), p, adjusted, strict=True):
        at_look = noises[name[:-1]][plan.looks.index(len(each))] if noises and len(each) else None
        found[name] = _decision(each, plan, at_look, float(own), float(corrected), (len(seen), left))
    return found


@dataclass(frozen=True)
class Standing:
    """Where a race stands: every row's decision, the pairs that it has seen, and for the rows that go on the pairs
    that they are to have, the most promising first."""

    decisions: dict[Row, Decision]
    seen: dict[Row, int]
    wanted: dict[Row, int]


def standing(rows: Mapping[Row, Array], plan: RacePlan) -> Standing:
    """Where a race stands with the pairs that have ended, in their order.

    All rows that are undecided go to the next look together, and what a look decides is read from the pairs up to it
    alone: whenever one asks, and however many pairs there are already, the same rows go on. Of rows with all their
    pairs it is the race from its first look to its end.
    """
    active, seen = list(rows), dict.fromkeys(rows, 0)
    decisions = decide_all({name: rows[name][:0] for name in rows}, plan)
    for look in plan.looks:
        missing = [name for name in active if len(rows[name]) < look]
        order = sorted(missing, key=lambda name: -decisions[name].power)
        seen |= {name: look for name in active if len(rows[name]) >= look}
        decisions = decide_all({name: rows[name][: seen[name]] for name in rows}, plan)
        if missing:
            return Standing(decisions, seen, dict.fromkeys(order, look))
        active = [name for name in active if decisions[name].status == "undecided"]
        if not active:
            break
    return Standing(decisions, seen, {})


def pairs(table: pd.DataFrame, baseline: str) -> dict[Row, Array]:
    """Paired differences of every row - (stage, size, axes, budget, variant) - of a table of trials from the
    baseline of its cell, in the table's order of seeds, up to the first pair that has not ended; NaN where one of
    the two ended without a score. Less is better: scores of which more is better are turned round.

    Trials that begin from another's weights are left out. Raises `BadRace` where there is no baseline.
    """
    table = table[table["parent"].isna()] if "parent" in table else table
    if not (table["variant"] == baseline).any():
        known = ", ".join(dict.fromkeys(map(str, table["variant"])))
        raise BadRace(f"no baseline {baseline!r} in the table; variants: {known}")
    found: dict[Row, Array] = {}
    for cell, part in table.groupby(list(CELL), sort=False, dropna=False, observed=True):
        sign, seeds = SIGN[metric_of(part)["better"]], dict.fromkeys(part["seed"])
        scores = part["score"].astype(float).where(part["status"] == "finished")
        trials = {
            str(name): dict(zip(rows["seed"], zip(rows["status"], scores[rows.index], strict=True), strict=True))
            for name, rows in part.groupby("variant", sort=False, observed=True)
        }
        theirs = trials.get(baseline, {})
        for variant, mine in trials.items():
            if variant != baseline:
                both = [(mine[seed], theirs[seed]) for seed in seeds if seed in mine and seed in theirs]
                found[(*map(str, cell), variant)] = sign * _ended(both)
    return found


def _ended(trials: list[tuple[tuple[str, float], tuple[str, float]]]) -> Array:
    """Differences of pairs of (status, score), up to the first that has not ended."""
    found = []
    for (status, mine), (other, theirs) in trials:
        if "pending" in (status, other):
            break
        found.append(mine - theirs)
    return np.array(found, dtype=float)


def _to_look(differences: Array, plan: RacePlan) -> Array:
    """The pairs up to the last look that they reach."""
    return differences[: max((look for look in plan.looks if look <= len(differences)), default=0)]


def _noises(rows: Mapping[Row, Array], plan: RacePlan) -> dict[Row, list[Noise]]:
    """The pooled noise of every cell at every look; empty where rows have their own."""
    if plan.noise == "own":
        return {}
    cells: dict[Row, list[Array]] = {}
    for name, each in rows.items():
        cells.setdefault(name[:-1], []).append(each)
    most = max((len(each) for each in rows.values()), default=0)
    looks = [look for look in plan.looks if look <= most]
    return {cell: [pooled_noise([x[:look] for x in parts]) for look in looks] for cell, parts in cells.items()}


def _sequential(rows: Mapping[Row, Array], plan: RacePlan, noises: Mapping[Row, Sequence[Noise]]) -> Array:
    """The sequential p-values of rows; those of one cell with as many pairs at once."""
    alike: dict[tuple[Row, int], list[int]] = {}
    for place, (name, each) in enumerate(rows.items()):
        alike.setdefault((name[:-1], len(each)), []).append(place)
    values, found = list(rows.values()), np.ones(len(rows))
    for (cell, _), places in alike.items():
        found[places] = sequential_p(np.stack([values[place] for place in places]), plan, noises.get(cell))
    return found


def _moments(differences: Array, noise: Noise | None) -> tuple[Array, Array, Array, Array]:
    """How many values, their mean, its standard error (0 where values do not differ) and its degrees of freedom."""
    there = np.isfinite(differences)
    n, values = there.sum(-1), np.where(there, differences, 0.0)
    mean = values.sum(-1) / np.maximum(n, 1)
    if noise is not None:
        return n, mean, np.where(n > 1, np.sqrt(noise[0] / np.maximum(n, 1)), np.nan), np.full_like(mean, noise[1])
    squares = np.where(there, (differences - mean[..., None]) ** 2, 0.0).sum(-1)
    return n, mean, np.sqrt(squares / np.maximum(n - 1, 1) / np.maximum(n, 1)), np.maximum(n - 1.0, 1.0)


def _decision(
    d: Array, plan: RacePlan, noise: Noise | None, p: float, p_holm: float, rows: tuple[int, int]
) -> Decision:
    n, mean, error, df = (float(each) for each in _moments(d, noise))
    if n < 2:
        status, power = ("futile", 0.0) if len(d) else ("undecided", 1.0)
        return Decision(status, int(n), mean if n else np.nan, np.nan, np.nan, p, p_holm, power)
    every, left = rows
    reach = _critical(plan, plan.level / every, len(d), df) * error
    power = 1.0
    if error > 0 and n < plan.most:
        needed = _critical(plan, plan.level / left, plan.most, max(df, plan.most - 1))
        sides = (np.array([mean, -mean]) - plan.smallest) / error
        ahead = (sides * np.sqrt(plan.most / n) - needed) / np.sqrt((plan.most - n) / n)
        power = float(stdtr(df, ahead).sum())
    if p_holm <= plan.level:
        status = "better" if mean < 0 else "worse"
    elif error > 0 and -plan.smallest < mean - reach and mean + reach < plan.smallest:
        status = "equivalent"
    else:
        status = "futile" if power < plan.futile else "undecided"
    return Decision(status, int(n), mean, mean - reach, mean + reach, p, p_holm, power)


def _critical(plan: RacePlan, level: float, look: int, df: float) -> float:
    """|t| with `df` degrees of freedom that a look has to reach at a level."""
    levels, table = _level_table(plan.looks, plan.bounds)
    log_p = np.interp(np.log(level), levels, table[plan.looks.index(look)])
    return float(-stdtrit(df, np.exp(log_p) / 2))


@lru_cache(maxsize=64)
def _level_table(looks: tuple[int, ...], spending: str) -> tuple[Array, Array]:
    """Logarithms of levels, and of the nominal p-values of every look at them, (K, levels)."""
    nominal = np.array([nominal_levels(looks, float(level), spending) for level in LEVELS])
    return np.log(LEVELS), np.maximum.accumulate(np.log(nominal), 0).T


class _Paths:
    """Pairs up to a look: directions that are uniform on the sphere, for whatever t-statistic they end in."""

    def __init__(self, looks: tuple[int, ...]):
        z = np.random.default_rng(looks[-1]).standard_normal((DRAWS, looks[-1]))
        z -= z.mean(1, keepdims=True)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        self.n, self.before = looks[-1], np.array(looks[:-1])
        self.sums = z.cumsum(1)[:, self.before - 1]
        self.squares = (z**2).cumsum(1)[:, self.before - 1]

    def tail(self, goal: float, nominal: Sequence[float]) -> float:
        """The log p-value at this look that is reached, by paths that were within before, with log probability
        `goal`."""
        bounds = -stdtrit(self.before - 1, np.array(nominal) / 2)

        def excess(log_p: float) -> float:
            return log_p + float(np.log(self.uncrossed(np.exp(log_p), bounds))) - goal

        return float(brentq(excess, goal - 0.01, 0.0, xtol=1e-4))

    def uncrossed(self, p: float, bounds: Array) -> float:
        """The share of the paths ending in |t| beyond the two-sided `p` whose |t| was within the bounds before."""
        ends = -stdtrit(self.n - 1, p * (np.arange(DRAWS) + 0.5) / DRAWS / 2)
        mean = (ends / np.sqrt(self.n * (self.n - 1)))[:, None]  # in units of the direction's length
        total = self.before * mean + self.sums
        squares = self.before * mean**2 + 2 * mean * self.sums + self.squares
        spread = np.maximum(squares - total**2 / self.before, 1e-300)
        t = np.abs(total) / np.sqrt(self.before * spread / (self.before - 1))
        return float(max((t < bounds).all(1).mean(), 1 / DRAWS))


@lru_cache(maxsize=64)
def _paths(looks: tuple[int, ...]) -> _Paths:
    return _Paths(looks)
