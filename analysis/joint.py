"""One law for several groups of points at once, with some parameters the same in all of them: above all E, the loss
that no size takes away, of variants that are trained on the same text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.fit import BadPoints, NotEnoughPoints
from analysis.laws import Law, Part
from analysis.minimise import Found, Problem, best_of, minimise
from analysis.objectives import OBJECTIVES

Array = np.ndarray
GROUP = "group"
STARTS = 2
ROUNDS, LEAST = 50, 100  # of drawing resamples that a law can be fitted to, and how many in one
Function = Callable[[Array, Array], Array]


class SharedLaw(Law):
    """L_g(x) = law(x; shared parameters, parameters of group g).

    Inputs are the law's own and `group`, an integer from 1 in the order of `groups`: `numbered` makes that column.
    theta holds the shared parameters, then the other ones of each group; they are named `E` and `alpha[rope]`.
    With `shared=()` the groups have nothing in common, which is every group's own fit, made together.

    Raises `BadPoints` where a parameter cannot be shared: one that the law does not have, or one whose value hangs on
    others that differ between groups, as A does on alpha.
    """

    def __init__(self, law: Law, groups: Sequence[str], shared: Sequence[str] = ("E",)):
        self.law, self.groups = law, tuple(map(str, groups))
        if len(set(self.groups)) != len(self.groups):
            raise BadPoints(f"groups must differ: {', '.join(self.groups)}")
        unknown = [name for name in shared if name not in law.parameters]
        if unknown:
            raise BadPoints(f"{law.name} has no parameter {unknown[0]!r} to share; its: {', '.join(law.parameters)}")
        self.shared = tuple(name for name in law.parameters if name in shared)
        self.own = tuple(name for name in law.parameters if name not in shared)
        self.name = f"{law.name} of {len(self.groups)} groups"
        self.equation = law.equation + (f", {', '.join(self.shared)} shared" if self.shared else "")
        self.inputs = (*law.inputs, GROUP)
        self.parameters = (*self.shared, *(f"{name}[{group}]" for group in self.groups for name in self.own))
        self.default_objective = law.default_objective
        self._at = np.stack([self._places(g) for g in range(len(self.groups))])
        self._refuse_entangled()

    def _places(self, g: int) -> Array:
        """Where the base law's parameters of a group stand in theta."""
        S, O = len(self.shared), len(self.own)
        return np.array(
            [
                self.shared.index(name) if name in self.shared else S + g * O + self.own.index(name)
                for name in self.law.parameters
            ]
        )

    def _refuse_entangled(self) -> None:
        """A shared parameter must have one value, whatever the groups' own are."""
        k, inputs = len(self.law.parameters), len(self.law.inputs)
        one = np.linspace(0.3, 0.7, k)
        other = one + np.array([name in self.own for name in self.law.parameters]) * 0.1
        said = [self.law.named(theta, np.ones(inputs)) for theta in (one, other)]
        for name in self.shared:
            if not np.isclose(said[0][name], said[1][name], rtol=1e-9):
                raise BadPoints(f"{name} of {self.law.name} cannot be shared while {', '.join(self.own)} are not")

    def numbered(self, table: pd.DataFrame, column: str = "variant") -> pd.DataFrame:
        """The law's inputs of a table, with the groups that `column` names as numbers."""
        if column not in table:
            raise BadPoints(f"no column {column!r} that says the group; columns: {', '.join(map(str, table))}")
        numbers = table[column].astype(str).map({name: g for g, name in enumerate(self.groups, 1)})
        if numbers.isna().any():
            unknown = table[column][numbers.isna()].iloc[0]
            raise BadPoints(f"{column} {str(unknown)!r} is no group; known: {', '.join(self.groups)}")
        return table[list(self.law.inputs)].assign(**{GROUP: numbers.astype(int)})

    def part(self, theta: Array, group: str) -> Array:
        """The base law's theta of one group, (..., k)."""
        return np.asarray(theta[..., self._at[self.groups.index(group)]])

    def _rows(self, x: Array) -> list[Array]:
        """Which rows are of which group. Raises `BadPoints`."""
        numbers = np.exp(x[:, -1])
        g = np.rint(numbers).astype(int)
        if not np.allclose(numbers, g) or g.min(initial=1) < 1 or g.max(initial=1) > len(self.groups):
            raise BadPoints(f"{GROUP} must be an integer from 1 to {len(self.groups)}")
        return [np.flatnonzero(g == each) for each in range(1, len(self.groups) + 1)]

    def centre(self, logs: Array) -> Array:
        self._rows(logs)
        return np.append(self.law.centre(logs[:, :-1]), 0.0)

    def parts(self, x: Array) -> list[Part]:
        places = zip(self._at, self._rows(x), strict=True)
        return [Part(self.law, x[rows, :-1], at, rows) for at, rows in places if len(rows)]

    def log_value(self, theta: Array, x: Array) -> Array:
        return self._gathered(self.law.log_value, theta, x)

    def value(self, theta: Array, x: Array) -> Array:
        return self._gathered(self.law.value, theta, x)

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        return self._scattered(self.law.log_jacobian, theta, x)

    def _gathered(self, said: Function, theta: Array, x: Array) -> Array:
        found = np.empty((*theta.shape[:-1], len(x)))
        for at, rows in zip(self._at, self._rows(x), strict=True):
            if len(rows):
                found[..., rows] = said(theta[..., at], x[rows, :-1])
        return found

    def _scattered(self, said: Function, theta: Array, x: Array) -> Array:
        found = np.zeros((*theta.shape[:-1], len(x), theta.shape[-1]))
        for at, rows in zip(self._at, self._rows(x), strict=True):
            if len(rows):
                found[..., rows[:, None], at] = said(theta[..., at], x[rows, :-1])
        return found

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        found = {}
        for g, group in enumerate(self.groups):
            for name, value in self.law.named(theta[..., self._at[g]], centre[:-1]).items():
                found[f"{name}[{group}]" if name in self.own else name] = value
        given = [name for name in found if name not in self.parameters]
        return {name: found[name] for name in (*self.parameters, *given)}

    def of_group(self, params: Mapping[str, float], group: str) -> dict[str, float]:
        """The parameters of one group, as the base law names them."""
        mine = {
            name.removesuffix(f"[{group}]"): value for name, value in params.items() if name.endswith(f"[{group}]")
        }
        return {name: value for name, value in params.items() if "[" not in name} | mine

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        found = np.empty(len(self.parameters))
        for at, group in zip(self._at, self.groups, strict=True):
            found[at] = self.law.theta(self.of_group(params, group), centre[:-1])
        return found

    def starts(self, x: Array, y: Array) -> Array:
        """From every group's own fit by least squares: shared parameters in and between those of the groups, the
        best own ones of each group to them, and of these the `STARTS` that leave the least."""
        problems, apart = [], np.empty((len(self.groups), len(self.law.parameters)))
        for g, (group, rows) in enumerate(zip(self.groups, self._rows(x), strict=True)):
            distinct = len(np.unique(x[rows], axis=0))
            if distinct < len(self.own):
                raise NotEnoughPoints(f"{group}: {distinct} distinct x for {len(self.own)} parameters of its own")
            squares = OBJECTIVES["l2_log" if OBJECTIVES[self.default_objective].log else "l2"]
            problems.append(Problem(self.law, x[rows, :-1], y[rows], np.ones((1, len(rows))), squares))
            apart[g] = best_of(problems[g], self.law.starts(x[rows, :-1], y[rows])[None]).theta[0]
        if not self.shared:
            return self._joined(apart)[None]
        held = [k for k, name in enumerate(self.law.parameters) if name in self.shared]
        theirs = apart[:, held]
        tried = np.unique(np.stack((theirs.mean(0), *np.quantile(theirs, (0.0, 0.25, 0.5, 1.0), axis=0))), axis=0)
        found = sorted((self._around(shared, held, apart, problems) for shared in tried), key=lambda each: each[1])
        return np.stack([theta for theta, _ in found[:STARTS]])

    def _joined(self, apart: Array) -> Array:
        """theta of the base law's in each group, (G, k); shared ones are those of the last."""
        theta = np.empty(len(self.parameters))
        for at, own in zip(self._at, apart, strict=True):
            theta[at] = own
        return theta

    def _around(
        self, shared: Array, held: Sequence[int], apart: Array, problems: Sequence[Problem]
    ) -> tuple[Array, float]:
        """theta with these shared parameters and every group's own ones fitted to them, and what that leaves."""
        groups, left = [], 0.0
        for own, each in zip(apart, problems, strict=True):
            given = _Given(self.law, held, shared)
            try:
                found = minimise(each.by(given), own[None, given.free])
            except np.linalg.LinAlgError:  # a term that vanishes, as where E is above all of a group's losses
                found = Found(own[None, given.free], np.array([np.inf]), np.array([False]))
            groups.append(given.whole(found.theta[0]))
            left += float(found.value[0])
        return self._joined(np.stack(groups)), left

    def derived(self, params: Mapping[str, float]) -> dict[str, float]:
        found = {}
        for group in self.groups:
            for name, value in self.law.derived(self.of_group(params, group)).items():
                found[f"{name}[{group}]"] = value
        return found


class _Given(Law):
    """A law with some of its theta given."""

    def __init__(self, law: Law, held: Sequence[int], values: Array):
        self.law, self.held, self.values = law, list(held), values
        self.free = [k for k in range(len(law.parameters)) if k not in held]

    def whole(self, theta: Array) -> Array:
        found = np.empty((*theta.shape[:-1], len(self.law.parameters)))
        found[..., self.held], found[..., self.free] = self.values, theta
        return found

    def log_value(self, theta: Array, x: Array) -> Array:
        return self.law.log_value(self.whole(theta), x)

    def log_jacobian(self, theta: Array, x: Array) -> Array:
        return self.law.log_jacobian(self.whole(theta), x)[..., self.free]

    def curvature(self, theta: Array, x: Array, by: Array) -> Array:
        return self.law.curvature(self.whole(theta), x, by)[..., self.free, :][..., self.free]

    def value(self, theta: Array, x: Array) -> Array:
        return self.law.value(self.whole(theta), x)

    def jacobian(self, theta: Array, x: Array) -> Array:
        return self.law.jacobian(self.whole(theta), x)[..., self.free]


def paired_resamples(
    points: pd.DataFrame, count: int, rng: np.random.Generator, needed: int, seeds: bool = True
) -> tuple[Array, float]:
    """How often each row is in each resample, (count, n), and the share of resamples that were drawn again.

    Columns variant, cell, seed, and `scale` and others as x: cells are drawn with replacement among those that the
    same variants have, then the seeds of each drawn cell with replacement; every variant takes part in the draw.
    Raises `NotEnoughPoints` where hardly any resample leaves every variant `needed` distinct x.
    """
    kept: list[Array] = []
    drawn, several = 0, max(count, LEAST)
    while sum(map(len, kept)) < count:
        if drawn >= ROUNDS * several:
            raise NotEnoughPoints(f"too few cells: resamples seldom have {needed} distinct x of each variant")
        weights = _draw(points, several, rng, seeds)
        kept.append(weights[_enough(points, weights, needed)])
        drawn += several
    every = np.concatenate(kept)
    return every[:count], 1 - len(every) / drawn


def _draw(points: pd.DataFrame, count: int, rng: np.random.Generator, seeds: bool) -> Array:
    weights = np.zeros((count, len(points)))
    who = points.groupby("cell")["variant"].agg(lambda each: tuple(sorted(set(each))))
    for cells in who.groupby(who).groups.values():
        times = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), count)
        for k, cell in enumerate(cells):
            rows = np.flatnonzero(points["cell"] == cell)
            which, known = pd.factorize(points["seed"].iloc[rows], use_na_sentinel=False)
            m = len(known)
            drawn = rng.multinomial(times[:, k] * m, np.full(m, 1 / m)) if seeds else np.tile(times[:, [k]], m)
            weights[:, rows] = drawn[:, which]
    return weights


def _enough(points: pd.DataFrame, weights: Array, needed: int) -> Array:
    """Which resamples leave every variant that many distinct x."""
    inputs = [name for name in points if name not in ("variant", "cell", "seed", "loss")]
    found = np.ones(len(weights), dtype=bool)
    for _, part in points.groupby("variant"):
        which = part.groupby(inputs).ngroup().to_numpy()
        there = (weights[:, part.index] > 0).astype(float) @ np.eye(which.max() + 1)[which] > 0
        found &= there.sum(1) >= needed
    return found
