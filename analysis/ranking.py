"""Whether two studies put variants in the same order: ours and a published one, a small scale and the largest.

Kendall's tau-b is of the measured scores: noise brings it toward 0. Its interval is of the agreement that would be
seen without our noise: each set of rows is taken as a sample from a bivariate normal (after any monotone change of
either score) of correlation rho, of which Kendall's tau is (2 / pi) asin(rho) and Spearman's (6 / pi) asin(rho / 2)
(Kruskal 1958, J. Am. Stat. Assoc. 53). Orders are simulated for every rho, with the measured spread of the scores and
the noise of their seeds; the interval has those that what was measured does not contradict. The ceiling is the mean
simulated tau at rho = 1, what the same order would measure (0.25 too much where all is noise). Resampling seeds would
give intervals about what noise has left of tau, which miss the truth where noise is as large as the differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis import published
from analysis.columns import CELL, PAIR, cell_name
from analysis.effects import compare
from analysis.errors import AnalysisError
from analysis.table import finished
from analysis.tables import SIGN, metric_of, score_effects

Array = np.ndarray
LEVEL = 0.95
TRUSTED = 0.5  # of tau: three of four pairs in the same order
GRID = np.linspace(-1, 1, 41)  # of Kendall's tau
DRAWS = 1000


def rank_agreement(
    ours: pd.DataFrame | pd.Series,
    theirs: pd.Series,
    groups: Mapping[str, str] | pd.Series | None = None,
    baseline: str | None = None,
    noise: pd.Series | float = 0.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Kendall's tau-b and Spearman's rho between two columns of scores, and how many differences have the same sign.

    `ours` has a row for each name of `theirs` and a column for each seed; the same values are better in both. One row
    over all names, then one for each of `groups`: rows, tau, tau_lo, tau_hi, rho, rho_lo, rho_hi (the intervals of
    this module), ceiling (missing for one seed, whose values count as they are). Theirs count as printed.

    With a baseline, signs of differences from it: `counted` are outside the noise in both, ours by the verdict of
    `compare` (Holm over all names; never with one seed), theirs by more than `noise`; `inside` are not, and neither
    agree nor disagree. `share` is agree / counted with the exact binomial interval (Clopper and Pearson 1934,
    Biometrika 26). Raises `AnalysisError` where fewer than two names are in both, or the baseline is not.
    """
    wide, told = pd.DataFrame(ours).astype(float).dropna(how="all"), theirs.dropna().index
    names = [name for name in wide.index if name in told]
    if len(names) < 2 or (baseline is not None and baseline not in names):
        what = f"no baseline {baseline!r}" if len(names) > 1 else "fewer than two names"
        raise AnalysisError(f"{what} in both; ours: {_listed(wide.index)}; theirs: {_listed(told)}")
    wide, printed = wide.loc[names], theirs.loc[names].astype(float)
    signs = pd.Series("", index=names) if baseline is None else _signs(wide, printed, baseline, noise)["sign"]
    of = pd.Series("", index=names) if groups is None else pd.Series(groups).reindex(names).fillna("")
    rows = []
    for group in ("all", *dict.fromkeys(each for each in of if each)):
        chosen = np.array([group == "all" or each == group for each in of])
        if chosen.sum() > 1:
            a, b = _measured(wide[chosen]), _Measured(printed[chosen].to_numpy(), 0.0, 0)
            found = _agreement(a, b, draws, seed)
            rows.append({"group": group, "rows": int(chosen.sum()), **found, **_shares(signs[chosen])})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class AgainstPublished:
    """`rows`, one a variant: variant, published (their row), group, n (pairs), ours, ours_lo, ours_hi (difference
    from the baseline, 95 % Student interval), theirs, theirs_noise, sign (agrees | disagrees | inside our noise |
    inside their noise; empty for the baseline), rank_ours, rank_theirs (1 is best), doubtful. `summary` is
    `rank_agreement`'s. `unmatched` are variants that the table does not have."""

    rows: pd.DataFrame
    summary: pd.DataFrame
    unmatched: Sequence[str]


def against_published(
    table: pd.DataFrame,
    name: str,
    baseline: str,
    score: str | None = None,
    metric: str = "score",
    names: Mapping[str, str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> AgainstPublished:
    """A study's trials in one cell beside a published table, by differences from the baseline.

    A variant is the row that has it among its overlays, or that `names` says (variant -> overlay or row); the
    baseline, where neither tells, is the table's own. Several such rows (runs of a baseline) are averaged. `score` is
    a column of the table (its first by default), `metric` one of ours: `score`, `test_score`, or a loss. Differences
    are in the units of each. Raises `AnalysisError` for trials of several cells, and fewer than two such variants.
    """
    done = finished(table).dropna(subset=[metric])
    cells = done[list(CELL)].drop_duplicates()
    if len(cells) != 1:
        told = "; ".join(map(cell_words, cells.to_numpy())) or f"none with {metric}"
        raise AnalysisError(f"a published table is compared with the finished trials of one cell, not of: {told}")
    score = published.score_of(name, score)
    better = metric_of(done)["better"] if metric in ("score", "test_score") else "lower"
    ours_sign, their_sign = SIGN[better], SIGN[published.source_of(name).scores[score]]
    wide = ours_sign * _by_seed(done, metric)
    known = _published_rows(name, score, list(wide.index), baseline, names or {})
    theirs = their_sign * known["value"]
    summary = rank_agreement(wide, theirs, known["group"], baseline, known["noise"], draws, seed)
    wide = wide.loc[known.index]
    rows = _signs(wide, theirs, baseline, known["noise"])
    ends = (ours_sign * rows[["lo", "hi"]]).to_numpy()
    columns = {
        "variant": rows.index,
        "published": known["published"],
        "group": known["group"],
        "n": rows["n"],
        "ours": ours_sign * rows["diff"],
        "ours_lo": ends.min(1),
        "ours_hi": ends.max(1),
        "theirs": their_sign * rows["theirs"],
        "theirs_noise": known["noise"],
        "sign": rows["sign"],
        "rank_ours": stats.rankdata(_measured(wide).values),
        "rank_theirs": stats.rankdata(theirs),
        "doubtful": known["doubtful"],
    }
    lacking = [variant for variant in dict.fromkeys(done["variant"]) if variant not in known.index]
    return AgainstPublished(pd.DataFrame(columns).reset_index(drop=True), summary, lacking)


def proxies(
    table: pd.DataFrame,
    baseline: str,
    largest: Mapping[str, str] | None = None,
    trusted: float = TRUSTED,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """How well every cell (stage, size, axes, budget) puts the variants in the order of the largest.

    The largest is that of the most training FLOPs, or the one whose labels `largest` gives, as {"stage": "lm"}. One
    row for each other cell, the cheapest first: its labels, `against` (the largest), metric, train_flops and
    flops_share (the cell's own; what its trials began from is not in them), variants and seeds in both, tau, lo, hi,
    ceiling (this module's, with the noise of both cells' seeds), agree, disagree, inside (variants better or worse
    than the baseline in both cells alike, in both but opposite, and the rest), `trusted`: lo > the threshold.

    Intervals speak of variants like these, and are not corrected for there being several cells. Where a cell has one
    seed its noise is not known: no interval, and no trust. Trials that began from several models are averaged for
    each, as in `score_effects`. Raises `AnalysisError` where `largest` fits no cell or several, or there is one cell.
    """
    parts = finished(table).dropna(subset=["score"]).groupby(list(CELL), dropna=False, observed=True)
    cells = {tuple(map(str, labels)): part for labels, part in parts}
    flops = {labels: _flops(part, baseline) for labels, part in cells.items()}
    target = _largest(flops, largest or {})
    rows = []
    for labels in sorted(set(cells) - {target}, key=flops.__getitem__):
        row: dict[str, object] = dict(zip(CELL, labels, strict=True))
        row |= {"against": cell_words(target), "metric": metric_of(cells[labels])["metric"]}
        row |= {"train_flops": flops[labels], "flops_share": flops[labels] / flops[target]}
        rows.append(row | _proxy(cells[labels], cells[target], baseline, draws, seed))
    found = pd.DataFrame(rows)
    return found.assign(threshold=trusted, trusted=(found["lo"] > trusted).to_numpy(bool))


def proxy_lines(found: pd.DataFrame) -> list[str]:
    """What `proxies` found, a sentence for each cell, and which is the cheapest that can be trusted."""
    target, threshold = found["against"].iloc[0], found["threshold"].iloc[0]
    lines = [f"Order of the variants against {target}, Kendall's tau with its 95 % interval:"]
    for _, row in found.iterrows():
        name = cell_words([row[label] for label in CELL])
        ends = "no interval, one seed" if np.isnan(row["lo"]) else f"[{row['lo']:.2f}, {row['hi']:.2f}]"
        most = "" if np.isnan(row["ceiling"]) else f"; the same order would give {row['ceiling']:.2f} in this noise"
        lines.append(
            f"  {name}: {row['tau']:.2f} {ends}, {row['variants']} variants, {100 * row['flops_share']:.3g} % of the "
            f"FLOPs{most}"
        )
    good = found[found["trusted"]]
    if len(good):
        name = cell_words([good[label].iloc[0] for label in CELL])
        said = f"{name} is the cheapest proxy to trust: its interval lies above {threshold:g}"
        return [*lines, f"{said}, at {100 * good['flops_share'].iloc[0]:.3g} % of the FLOPs."]
    return [*lines, f"No other cell is a proxy to trust: no interval lies above {threshold:g}."]


def agreement_lines(found: AgainstPublished) -> list[str]:
    """What `against_published` found, a sentence for all rows and one for each group."""
    lines = []
    for _, row in found.summary.iterrows():
        most = "" if np.isnan(row["ceiling"]) else f", at most {row['ceiling']:.2f} in our noise"
        tau = f"tau {row['tau']:.2f} [{row['tau_lo']:.2f}, {row['tau_hi']:.2f}]{most}"
        share = f"{row['agree']} of {row['counted']} signs agree"
        ends = f" [{row['share_lo']:.2f}, {row['share_hi']:.2f}]" if row["counted"] else ""
        lines.append(f"{row['group']}, {row['rows']} rows: {tau}; {share}{ends}, {row['inside']} inside the noise")
    doubtful = int(found.rows["doubtful"].sum())
    return [*lines, f"{doubtful} published values rest on one reading."] if doubtful else lines


def cell_words(labels: Sequence[str]) -> str:
    """The labels of a cell that are not empty."""
    return cell_name(dict(zip(CELL, labels, strict=True))) or "the only cell"


@dataclass(frozen=True)
class _Measured:
    """A score of each row, the mean squared standard error of one, and that error's degrees of freedom: 0 where the
    noise is not known, and the values count as they are."""

    values: Array
    noise: float
    df: int

    def reliability(self, draws: int, rng: np.random.Generator) -> Array:
        """Draws of the share of the values' variance that is not noise: 1 - F / (variance / noise), F its own ratio
        where all rows are alike."""
        spread = self.values.var(ddof=1)
        if not self.df or self.noise == 0:
            return np.full(draws, float(spread > 0))
        drawn = rng.f(len(self.values) - 1, self.df, draws)
        return np.clip(1 - drawn * self.noise / max(spread, np.finfo(float).tiny), 0, 1)

    def seen(self, z: Array, share: Array, error: Array) -> Array:
        """Scores of rows whose true order is that of z (draws, rows), at these values' spread and in their noise."""
        spread = self.values.std(ddof=1)
        pattern = np.sort(self.values - self.values.mean()) / (spread or 1.0)
        true = pattern[z.argsort(1).argsort(1)]
        return np.sqrt(share)[:, None] * true + np.sqrt(1 - share)[:, None] * error


def _measured(wide: pd.DataFrame) -> _Measured:
    """Least squares of value = row + seed: what a seed gives to all rows alike is no noise of their order."""
    values = wide.to_numpy(float)
    i, j = np.nonzero(np.isfinite(values))
    X = np.zeros((len(i), sum(values.shape)))
    X[np.arange(len(i)), i] = X[np.arange(len(i)), len(values) + j] = 1
    y = values[i, j]
    solution, _, rank, _ = np.linalg.lstsq(X, y, rcond=None)
    df = int(len(y) - rank)
    mean_square = float(((y - X @ solution) ** 2).sum() / df) if df else 0.0
    noise = mean_square * float((1 / np.bincount(i)).mean())
    scale = float(np.abs(y).max()) or 1.0
    values = np.round(solution[: len(values)] / scale, 12) * scale  # what differs by rounding alone is a tie
    return _Measured(values, noise if noise > (1e-12 * scale) ** 2 else 0.0, df)


def _agreement(a: _Measured, b: _Measured, draws: int, seed: int) -> dict[str, float]:
    """tau, rho, their intervals and the ceiling: by simulation at every tau of `GRID`."""
    rng, n = np.random.default_rng(seed), len(a.values)
    z, other, error_a, error_b = rng.standard_normal((4, draws, n))
    share_a, share_b = a.reliability(draws, rng), b.reliability(draws, rng)
    correlations = np.sin(np.pi / 2 * GRID)
    x = a.seen(z, share_a, error_a)
    signs, ranks = _pair_signs(x), stats.rankdata(x, axis=1)
    tau = _tau(_pair_signs(a.values[None]), _pair_signs(b.values[None]))[0]
    rho = _pearson(stats.rankdata(a.values)[None], stats.rankdata(b.values)[None])[0]
    tails, ceiling = [], np.nan
    for r in correlations:
        y = b.seen(r * z + np.sqrt(1 - r**2) * other, share_b, error_b)
        taus, rhos = _tau(signs, _pair_signs(y)), _pearson(ranks, stats.rankdata(y, axis=1))
        tails.append([np.mean(each) for each in (taus >= tau, taus <= tau, rhos >= rho, rhos <= rho)])
        ceiling = float(taus.mean())
    at_least, at_most, at_least_rho, at_most_rho = np.array(tails).T
    spearman = 6 / np.pi * np.arcsin(correlations / 2)
    return {
        "tau": float(tau),
        "tau_lo": _lowest(at_least, GRID),
        "tau_hi": -_lowest(at_most[::-1], -GRID[::-1]),
        "rho": float(rho),
        "rho_lo": _lowest(at_least_rho, spearman),
        "rho_hi": -_lowest(at_most_rho[::-1], -spearman[::-1]),
        "ceiling": ceiling if a.df or b.df else np.nan,
    }


def _lowest(tail: Array, grid: Array) -> float:
    """The lowest of the grid under which what was measured, or more, is not too rare; -1 where it is under all, since
    then the noise is not what it seemed."""
    rises = np.maximum.accumulate(tail)
    rare = (1 - LEVEL) / 2
    return float(np.interp(rare, rises, grid)) if rises[-1] > rare else -1.0


def _pair_signs(x: Array) -> Array:
    """Of all pairs' differences: (draws, rows) to (pairs, draws)."""
    rows = np.ascontiguousarray(x.T)
    return np.concatenate([(row > rows[k:]).view(np.int8) - (row < rows[k:]) for k, row in enumerate(rows[:-1], 1)])


def _tau(a: Array, b: Array) -> Array:
    """Kendall's tau-b of each draw from the signs of its pairs; 0 where one side is tied throughout."""
    untied = np.sqrt(np.abs(a).sum(0, dtype=float) * np.abs(b).sum(0, dtype=float))
    return np.asarray((a * b).sum(0, dtype=float) / np.maximum(untied, 1))


def _pearson(a: Array, b: Array) -> Array:
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.asarray(((a * b).sum(1) / np.where(scale > 0, scale, 1.0)).round(9))  # equal orders are equal


def _signs(wide: pd.DataFrame, printed: pd.Series, baseline: str, noise: pd.Series | float) -> pd.DataFrame:
    """Of each name the difference from the baseline: diff, lo, hi, n (ours), theirs, and whether the signs agree."""
    long = wide.rename_axis("variant").reset_index().melt("variant", var_name="seed", value_name="value")
    found = compare(long, baseline, "value", ["seed"]).set_index("variant").reindex(wide.index)
    found.loc[baseline, ["n", "diff", "lo", "hi"]] = wide.loc[baseline].notna().sum(), 0.0, 0.0, 0.0
    found["theirs"] = printed - printed[baseline]
    least = noise.reindex(wide.index).fillna(0.0) if isinstance(noise, pd.Series) else noise
    same = np.sign(found["diff"]) == np.sign(found["theirs"])
    sign = np.where(same, "agrees", "disagrees")
    sign = np.where(found["theirs"].abs() <= least, "inside their noise", sign)
    sign = np.where(found["verdict"].isin(("better", "worse")), sign, "inside our noise")
    return found.assign(sign=np.where(found.index == baseline, "", sign), n=found["n"].astype(int))


def _shares(signs: pd.Series) -> dict[str, float]:
    agree, counted = int((signs == "agrees").sum()), int(signs.isin(("agrees", "disagrees")).sum())
    inside = int(signs.str.startswith("inside").sum())
    out = {"counted": counted, "agree": agree, "inside": inside, "share": np.nan, "share_lo": 0.0, "share_hi": 1.0}
    if counted:
        ends = stats.binomtest(agree, counted).proportion_ci(LEVEL, "exact")
        out |= {"share": agree / counted, "share_lo": float(ends.low), "share_hi": float(ends.high)}
    return out


def _by_seed(done: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Variants by seeds; trials that began from several models, by these models' seeds."""
    key = "parent_seed" if done["parent_seed"].nunique() > 1 else "seed"
    wide = done.assign(_seed=done[key].fillna(0)).pivot_table(metric, "variant", "_seed", "mean", sort=False)
    return wide.astype(float)


def _published_rows(
    name: str, score: str, variants: Sequence[str], baseline: str, names: Mapping[str, str]
) -> pd.DataFrame:
    """The published row of each variant: published, group, value, noise, doubtful."""
    table = published.load(name).assign(noise=published.noise(name, score)).dropna(subset=[score])
    overlays = table["overlay"].str.split()
    found = {}
    for variant in variants:
        key = names.get(variant, variant)
        mine = table[(table["variant"] == key) | overlays.map(lambda each, key=key: key in each)]
        if not len(mine) and variant in names:
            raise AnalysisError(f"{name} has no row and no overlay {key!r}; its rows: {_listed(table['variant'])}")
        if not len(mine) and variant == baseline:
            mine = table[table["variant"] == published.source_of(name).baseline]
        if len(mine):
            found[variant] = {
                "published": mine["variant"].iloc[0],
                "group": mine["group"].iloc[0],
                "value": mine[score].drop_duplicates().mean(),
                "noise": mine["noise"].mean(),
                "doubtful": any(score in each.split() for each in mine["doubtful"]),
            }
    if len(found) < 2:
        known = _listed(each for names_ in overlays for each in names_)
        raise AnalysisError(f"{name} has fewer than two of {_listed(variants)}; it has {known}: say in `names` which")
    return pd.DataFrame.from_dict(found, orient="index")


def _largest(flops: Mapping[tuple[str, ...], float], wanted: Mapping[str, str]) -> tuple[str, ...]:
    told = "; ".join(map(cell_words, flops))
    if len(flops) < 2:
        raise AnalysisError(f"proxies need two cells with finished trials; there are: {told or 'none'}")
    fitting = [labels for labels in flops if wanted.items() <= dict(zip(CELL, labels, strict=True)).items()]
    if not fitting or (wanted and len(fitting) > 1):
        raise AnalysisError(f"{dict(wanted)} is not one of the cells, by {', '.join(CELL)}: {told}")
    return max(fitting, key=flops.__getitem__)


def _flops(part: pd.DataFrame, baseline: str) -> float:
    mine = part[part["variant"] == baseline]
    return float((mine if len(mine) else part)["train_flops"].astype(float).median())


def _proxy(part: pd.DataFrame, other: pd.DataFrame, baseline: str, draws: int, seed: int) -> dict[str, object]:
    wides = [SIGN[metric_of(each)["better"]] * _by_seed(each, "score") for each in (part, other)]
    both = [variant for variant in wides[0].index if variant in wides[1].index]
    a, b = (_measured(wide.loc[both]) for wide in wides)
    row = {"variants": len(both), "seeds": min(wide.shape[1] for wide in wides)}
    row |= dict.fromkeys(("tau", "lo", "hi", "ceiling"), np.nan)
    if len(both) > 1:
        found = _agreement(a, b, draws, seed)
        row["tau"] = found["tau"]
        if a.df and b.df:
            row |= {"lo": found["tau_lo"], "hi": found["tau_hi"], "ceiling": found["ceiling"]}
    effects = [score_effects(each, baseline, PAIR).set_index("variant") for each in (part, other)]
    here, there = (each["verdict"].reindex([name for name in both if name != baseline]) for each in effects)
    known = here.isin(("better", "worse")) & there.isin(("better", "worse"))
    agree = int((known & (here == there)).sum())
    disagree = int(known.sum()) - agree
    return row | {"agree": agree, "disagree": disagree, "inside": len(known) - agree - disagree}


def _listed(names: object) -> str:
    return ", ".join(dict.fromkeys(map(str, names)))  # type: ignore[call-overload]
