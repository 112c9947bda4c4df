"""Do gains stack? Factors added alone, taken out of the full stack, and crossed: main effects and pair interactions.

The two-level designs of Box, Hunter and Hunter 2005, Statistics for Experimenters, chapters 5 and 6.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.columns import CELL, PAIR
from analysis.effects import LEVEL, holm, paired_difference, verdict
from analysis.errors import AnalysisError
from analysis.table import finished
from analysis.tables import SIGN, metric_of

Array = np.ndarray
On = Mapping[str, Mapping[str, bool]]  # of every variant of a design, which of its factors are on
ORDER = 3  # aliases are named up to interactions of so many factors
SUM, AGAINST_SUM = "sum_of_effects", "stack_against_sum"
COLUMNS = ("effect", "kind", "n", "estimate", "lo", "hi", "p", "p_holm", "aliases", "verdict", "reason")


def stacking(table: pd.DataFrame, on: On, level: float = LEVEL) -> pd.DataFrame:
    """Each factor's effect alone and in the full stack, and the full stack against the sum of them.

    `on` says of every variant of a design which factors are on. With y(S) the headline metric of the variant whose
    factors are S, and F all factors, the rows of a cell (stage, size, axes, budget) are of these kinds:

    - `add_one_in`: y({f}) - y({}), of each factor f alone
    - `leave_one_out`: y(F) - y(F without f), of each as the last that is added
    - `stack`: y(F) - y({}), of all together
    - `sum_of_effects`: the sum of the effects alone, and of those of leaving out (`effect` says which)
    - `stack_against_sum`: the stack less that sum; 0 where gains add up

    Estimates are in the metric's units. An effect is a contrast for each seed, so that what variants of a seed share
    cancels; n is the seeds that have all its variants, [lo, hi] the Student interval over them, p_holm after Holm's
    correction over the table. Verdicts are better | worse | indistinguishable | unknown; of `stack_against_sum` "more
    than the sum", "less than the sum", "indistinguishable" or "unknown"; a sum has none and is not tested. `reason`
    says why an effect is unknown. Raises `AnalysisError` for variants that are not in the table or alike, and where
    the design has none of these effects.
    """
    factors, _ = _design(table, on)
    contrasts = list(_single(on, factors))
    if not contrasts:
        raise AnalysisError("no variant has none or all of the factors on: main effects are what such a design tells")
    return _effects(table, contrasts, level)


def factorial(table: pd.DataFrame, on: On, level: float = LEVEL) -> pd.DataFrame:
    """Main effects and pair interactions of a full factorial, or of a regular fraction of one.

    With x_f = +1 where factor f is on and -1 where it is off, the main effect of f is mean(y | x_f = 1) -
    mean(y | x_f = -1), and the interaction f:g the same of x_f x_g: half the difference of f's effect with g on and
    with g off. Rows, intervals and corrections as of `stacking`; the verdict of an interaction is "more than the sum"
    where both together are better than the sum of their effects, "less than the sum" where they are worse.

    `aliases` names the effects, of up to three factors, that have the same contrast in this fraction, with a minus
    where it is the opposite: an estimate is of the sum of them all. Interactions that are aliases of a main effect,
    or of another, have no row of their own. Raises `AnalysisError` for variants that are no such design.
    """
    factors, design = _design(table, on)
    return _effects(table, list(_crossed(list(on), factors, design)), level)


class _Contrast(NamedTuple):
    """What an effect is called, its kind, the weight of every variant in it, and its aliases."""

    effect: str
    kind: str
    weights: Mapping[str, float]
    aliases: str = ""


def _design(table: pd.DataFrame, on: On) -> tuple[list[str], Array]:
    """The factors, and of every variant which are on: (variants, factors), +1 and -1."""
    known = set(map(str, table["variant"]))
    missing = [name for name in on if name not in known]
    if missing:
        raise AnalysisError(f"no variant {missing[0]!r} in the table; variants: {', '.join(sorted(known))}")
    factors = list(next(iter(on.values()))) if on else []
    seen: dict[tuple[bool, ...], str] = {}
    for name, mine in on.items():
        if set(mine) != set(factors):
            raise AnalysisError(
                f"variant {name!r} is of the factors {', '.join(mine)}, others of {', '.join(factors)}"
            )
        run = tuple(bool(mine[factor]) for factor in factors)
        if run in seen:
            raise AnalysisError(f"variants {seen[run]!r} and {name!r} have the same factors on: name one of them")
        seen[run] = name
    if len(factors) < 2:
        raise AnalysisError(f"{len(factors)} factors: a design has at least 2, and its variants one row each in `on`")
    return factors, np.where(np.array(list(seen), dtype=bool), 1, -1)


def _single(on: On, factors: Sequence[str]) -> Iterator[_Contrast]:
    by_run = {frozenset(f for f in factors if mine[f]): name for name, mine in on.items()}
    none, full = by_run.get(frozenset()), by_run.get(frozenset(factors))
    stack = None if none is None or full is None else {full: 1.0, none: -1.0}
    found: dict[str, list[dict[str, float]]] = {"add_one_in": [], "leave_one_out": []}
    for factor in factors:
        alone, without = by_run.get(frozenset({factor})), by_run.get(frozenset(factors) - {factor})
        if none is not None and alone is not None:
            found["add_one_in"].append({alone: 1.0, none: -1.0})
            yield _Contrast(factor, "add_one_in", found["add_one_in"][-1])
        if full is not None and without is not None:
            found["leave_one_out"].append({full: 1.0, without: -1.0})
            yield _Contrast(factor, "leave_one_out", found["leave_one_out"][-1])
    if stack is not None:
        yield _Contrast("+".join(factors), "stack", stack)
    for kind, each in found.items():
        told_apart = kind == "add_one_in" or len(factors) > 2  # of two factors both sums say the same
        if stack is not None and len(each) == len(factors) and told_apart:
            total = _sum(each)
            yield _Contrast(kind, SUM, total)
            yield _Contrast(kind, AGAINST_SUM, _sum([stack, {name: -w for name, w in total.items()}]))


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, weight in part.items():
            total[name] = total.get(name, 0.0) + weight
    return total


def _crossed(variants: Sequence[str], factors: Sequence[str], design: Array) -> Iterator[_Contrast]:
    """Every contrast of main effects and pairs once, with the names of those that are the same."""
    columns = {
        ":".join(np.array(factors)[list(which)]): design[:, list(which)].prod(1)
        for order in range(1, min(ORDER, len(factors)) + 1)
        for which in itertools.combinations(range(len(factors)), order)
    }
    mains_and_pairs = {name: column for name, column in columns.items() if name.count(":") < 2}
    _check_regular(mains_and_pairs, len(factors))
    runs, told = len(variants), set[str]()
    for name, column in mains_and_pairs.items():
        if name in told:
            continue
        same = {other: int(column @ each) // runs for other, each in columns.items() if abs(column @ each) == runs}
        told |= set(same)
        aliases = ", ".join(f"{'-' if sign < 0 else ''}{other}" for other, sign in same.items() if other != name)
        weights = dict(zip(variants, 2.0 * column / runs, strict=True))
        yield _Contrast(name, "interaction" if ":" in name else "main", weights, aliases)


def _check_regular(columns: Mapping[str, Array], factors: int) -> None:
    """Refuse variants whose effects are neither orthogonal nor aliases, or whose main effects are aliases."""
    legal = "these effects need a full factorial, or a regular fraction of resolution 3 or more"
    names = list(columns)
    matrix = np.stack(list(columns.values()))
    runs = matrix.shape[1]
    inner = np.abs(matrix @ matrix.T)
    for i, j in itertools.combinations(range(factors), 2):
        if inner[i, j] == runs:
            raise AnalysisError(f"{runs} variants: {names[i]} and {names[j]} cannot be told apart; {legal}")
    for name, total in zip(names, matrix.sum(1), strict=True):
        if total:
            raise AnalysisError(f"{runs} variants: {name} is not balanced over them; {legal}")
    for i, j in itertools.combinations(range(len(names)), 2):
        if inner[i, j] not in (0, runs):
            raise AnalysisError(f"{runs} variants: {names[i]} and {names[j]} are aliases in part; {legal}")


def _effects(table: pd.DataFrame, contrasts: Sequence[_Contrast], level: float) -> pd.DataFrame:
    """One row a cell and contrast."""
    used = {name for _, _, weights, _ in contrasts for name in weights}
    mine = table[table["variant"].astype(str).isin(used)]
    rows, signs = [], []
    for cell, part in mine.groupby(list(CELL), sort=False, dropna=False, observed=True):
        scores = _scores(part)
        for effect, kind, weights, aliases in contrasts:
            needed = {name: weight for name, weight in weights.items() if weight}
            d, reason = _contrasted(scores, needed)
            found = paired_difference(d, level)
            told = {"effect": effect, "kind": kind, "aliases": aliases, "reason": reason}
            numbers = {name: found[name] for name in ("n", "lo", "hi", "p")} | {"estimate": found["diff"]}
            tested = {"p": np.nan} if kind == SUM else {}
            rows.append({**dict(zip(CELL, map(str, cell), strict=True)), **told, **numbers, **tested})
            signs.append(SIGN[metric_of(part)["better"]])
    out = pd.DataFrame(rows)
    out["p_holm"] = holm(out["p"].to_numpy(dtype=float))
    out["verdict"] = [
        _verdict(kind, sign * value, p, n, level)
        for kind, sign, value, p, n in zip(out["kind"], signs, out["estimate"], out["p_holm"], out["n"], strict=True)
    ]
    return out[[*CELL, *COLUMNS]]


def _scores(part: pd.DataFrame) -> pd.DataFrame:
    """The headline metric of one cell, a row for each seed and a column for each variant.

    Trials that began from one model share its luck: with several such models each is one value, as in
    `analysis.tables.score_effects`.
    """
    done = finished(part)
    done = done[done["score"].notna()]
    pair = [key for key in PAIR if key != "seed"] if part["parent_seed"].nunique() > 1 else list(PAIR)
    means = done.assign(variant=done["variant"].astype(str), score=done["score"].astype(float))
    return means.pivot_table(index=pair, columns="variant", values="score", dropna=False).dropna(how="all")


def _contrasted(scores: pd.DataFrame, weights: Mapping[str, float]) -> tuple[Array, str]:
    """A contrast for each seed that has all its variants, and why there are fewer than two."""
    values = scores.reindex(columns=list(weights))
    whole = values.dropna()
    d = whole.to_numpy(dtype=float) @ np.array(list(weights.values()))
    if len(d) > 1:
        return d, ""
    never = [name for name in weights if not values[name].notna().any()]
    told = f"no finished trial of {', '.join(never)}" if never else f"{len(d)} seeds have all {len(weights)} variants"
    return d, told


def _verdict(kind: str, gain: float, p: float, n: int, level: float) -> str:
    if kind == SUM:
        return ""
    words = verdict(gain, p, n, level)
    if kind in ("interaction", AGAINST_SUM):
        return {"better": "more than the sum", "worse": "less than the sum"}.get(words, words)
    return words
