"""Which differences a study can show: the noise of seeds, and how many of them a given difference needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from analysis.columns import CELL, PAIR
from analysis.effects import LEVEL, paired_values
from analysis.errors import AnalysisError
from analysis.table import finished

POWER = 0.8
SEEDS = ("seeds", "seeds_hi")
APART = ("unpaired_sd", "correlation")
SCORES = ("score", "test_score")  # columns of the headline metric, which differs by stage
UPPER = 0.8  # of the sd's one-sided limit, beside which the seeds needed are told too
Source = tuple[str, float, float]  # of an sd: its name, the sd, its degrees of freedom
SHARED = 0.25  # squared correlation of two variants' differences from one baseline, all runs being as noisy


def power_of(delta: float, sd: float, n: int, tests: int = 1, level: float = LEVEL) -> float:
    """The probability that n pairs show a true mean difference `delta`, and its sign.

    P(T > t) with T noncentral t of n - 1 degrees of freedom and noncentrality delta sqrt(n) / sd (sd: standard
    deviation of the paired differences), t the upper (1 - level) / (2 tests) quantile of Student's t: Holm's first
    step over `tests` comparisons, the hardest one, so that a row's power in a table is at least this. 0 below two
    pairs. Raises `AnalysisError` for values that make no sense.
    """
    _check(delta=delta, sd=sd, tests=tests, level=level)
    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0
    return float(1 - special.nctdtr(n - 1, delta * n**0.5 / sd, _critical(n, tests, level)))


def minimum_detectable_effect(sd: float, n: int, tests: int = 1, level: float = LEVEL, power: float = POWER) -> float:
    """The true mean difference that n pairs show with probability `power` (`power_of`), in the units of `sd`.

    Missing below two pairs. Raises `AnalysisError` for values that make no sense.
    """
    _check(sd=sd, tests=tests, level=level, power=power)
    if n < 2:
        return np.nan
    return float(special.nctdtrinc(n - 1, 1 - power, _critical(n, tests, level)) * sd / np.sqrt(n))


def seeds_needed(delta: float, sd: float, tests: int = 1, level: float = LEVEL, power: float = POWER) -> int:
    """The least n, two or more, that shows a true mean difference `delta` with probability `power` (`power_of`).

    Raises `AnalysisError` for values that make no sense.
    """
    _check(power=power)
    below, n = 1, 2
    while power_of(delta, sd, n, tests, level) < power:
        below, n = n, 2 * n
    while n - below > 1:
        middle = (below + n) // 2
        if power_of(delta, sd, middle, tests, level) < power:
            below = middle
        else:
            n = middle
    return n


def sd_interval(sd: float, df: float, level: float = LEVEL) -> tuple[float, float]:
    """Of a normal standard deviation: sd sqrt(df / chi2), the two-sided interval; missing where df is 0."""
    if not df > 0:
        return np.nan, np.nan
    low, high = sd * np.sqrt(df / stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], df))
    return float(low), float(high)


def noise_floor(table: pd.DataFrame, baseline: str, metric: str = "loss", level: float = LEVEL) -> pd.DataFrame:
    """How the baseline's runs of one cell differ by seed alone: one row a cell, and one (`scope` "all") pooled.

    A cell is what the columns stage, size, axes and budget distinguish, those that the table has. n: finished runs;
    sd: their standard deviation (n - 1) in the metric's units, [lo, hi] its interval by chi-square, right for normal
    noise; pooled: sqrt(sum df sd^2 / sum df), as if all cells had the same noise. Where runs began from trained
    models of several seeds, the models are counted, each by the mean of its runs, as in `analysis.tables`.

    Raises `AnalysisError` for a baseline or a column that the table lacks, and for scores of several metrics.
    """
    rows = []
    for labels, values in _cells(table, baseline, metric):
        x = values[baseline].dropna().to_numpy()
        rows.append({"scope": "cell", **labels, **_spread(x, level)})
    out = pd.DataFrame(rows)
    return pd.concat([out, pd.DataFrame([_pooled(out, out["df"].sum(), level)])], ignore_index=True)


def paired_noise(table: pd.DataFrame, baseline: str, metric: str = "loss", level: float = LEVEL) -> pd.DataFrame:
    """How paired differences from the baseline vary with the seed: one row a cell and variant, and a last one
    (`scope` "all") pooled over them.

    n: pairs; sd, lo, hi as in `noise_floor`, of the differences; unpaired_sd = sqrt(s_b^2 + s_v^2), by the standard
    deviations of the pairs' two sides; correlation = 1 - sd^2 / unpaired_sd^2, the share of variance that pairing
    takes away. The pooled sd has df = sum over cells of (sum df_i)^2 / (sum df_i + sum over i != j of
    min(df_i, df_j) / 4): differences from one baseline have correlation 1/2 where all runs are as noisy.

    Raises `AnalysisError` as `noise_floor` does.
    """
    rows: list[dict[str, Any]] = []
    df = 0.0
    for labels, values in _cells(table, baseline, metric):
        others = [name for name in values if name != baseline]
        found = [_paired(values[baseline], values[name], level) for name in others]
        rows += [
            {"scope": "cell", **labels, "variant": str(name), **row} for name, row in zip(others, found, strict=True)
        ]
        df += _shared_df(np.array([row["df"] for row in found]))
    names = ["scope", *_cell_names(table), "variant", "n", "df", "sd", "lo", "hi", "level", *APART]
    out = pd.DataFrame(rows, columns=names)
    whole = _pooled(out, df, level)
    whole["unpaired_sd"] = pooled_sd(out["unpaired_sd"], out["df"])
    whole["correlation"] = _correlation(whole["sd"], whole["unpaired_sd"])
    return pd.DataFrame([*rows, whole], columns=names)


def power_table(
    table: pd.DataFrame,
    baseline: str,
    delta: float,
    power: float = POWER,
    level: float = LEVEL,
    metric: str = "loss",
    tests: int | None = None,
) -> pd.DataFrame:
    """What it takes to show a true difference `delta` from the baseline with probability `power`: one row a cell and
    variant, and a last one (`scope` "all") with the pooled sd and the fewest pairs that a row has.

    n: pairs now. sd: of paired differences, with df degrees of freedom, and its `source`: the row's own "pairs" where
    it has two; else the "cell's pairs", of its other variants; else the "cell's baseline", sqrt(2) times its seed
    noise, which is what pairs would have that share nothing; else "all pairs" or "all baselines" of the table.
    sd_hi: its one-sided upper 80 % limit. mde: `minimum_detectable_effect` at n; power_now: `power_of` at n; seeds:
    `seeds_needed`, and seeds_hi at sd_hi; missing where no sd is known. tests: comparisons that Holm's correction is
    over, by default the rows. delta, tests, level and power are as asked.

    Few pairs tell their sd badly: at 2 degrees of freedom sd_hi is 2.1 times the sd. With three pairs `seeds` is too
    few in six of ten studies, `seeds_hi` in two of ten.

    Raises `AnalysisError` as `noise_floor` does, and for values that make no sense.
    """
    _check(delta=delta, power=power, level=level)
    pairs, floor = paired_noise(table, baseline, metric), noise_floor(table, baseline, metric)
    names = ["scope", *_cell_names(table)]
    others = _other_sources(pairs, floor, names)
    if tests is None:
        tests = max(1, len(pairs) - 1)
    fewest = pairs["n"].iloc[:-1].min() if len(pairs) > 1 else 0
    rows = []
    for row in pairs.to_dict("records"):
        alone = row["scope"] == "cell"
        labels = {name: row[name] for name in (*names, "variant")}
        own = [("pairs", row["sd"], row["df"])] if alone else []
        sources = own + others[tuple(row[name] for name in names)]
        n = int(row["n"] if alone else fewest)
        rows.append(labels | {"n": n} | _needed(n, sources, delta, tests, level, power))
    return pd.DataFrame(rows).assign(delta=delta, tests=tests, level=level, power=power)


def power_lines(rows: pd.DataFrame, floor: pd.DataFrame, baseline: str) -> list[str]:
    """A `power_table` and its `noise_floor` in sentences for the terminal: the noise, what all rows need, what those
    that need least and most do, and how many have enough."""
    cells, whole = rows[rows["scope"] == "cell"], rows.iloc[-1]
    lines = [_floor_line(floor, baseline)]
    if pd.isna(whole["sd"]):
        return [*lines, f"what a difference needs is not known: run {baseline} with two seeds or more"]
    lines.append(
        f"to show a true difference of {whole['delta']:g} with probability {whole['power']:g}, at "
        f"{100 * whole['level']:g} % after Holm's correction over {_count(whole['tests'], 'comparison')}:"
    )
    lines.append(f"  all: {_needs(whole)}")
    if len(cells) > 1:
        ordered = cells.sort_values("seeds", kind="stable")
        lines.append(f"  least, {_place(ordered.iloc[0])}: {_needs(ordered.iloc[0])}")
        lines.append(f"  most, {_place(ordered.iloc[-1])}: {_needs(ordered.iloc[-1])}")
    enough, surely = ((cells["n"] >= cells[name]).sum() for name in SEEDS)
    lines.append(
        f"seeds enough in {enough} of {_count(len(cells), 'comparison')} if the sd is as measured, "
        f"in {surely} if it is at its upper {100 * UPPER:g} % limit"
    )
    return lines


def _critical(n: int, tests: int, level: float) -> float:
    """Of |t|, for the smallest p of `tests`."""
    return float(-special.stdtrit(n - 1, (1 - level) / (2 * tests)))


def _cell_names(table: pd.DataFrame) -> list[str]:
    return [name for name in CELL if name in table]


def _cells(table: pd.DataFrame, baseline: str, metric: str) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Every cell's labels, and its values: one row a seed, a column a variant, the baseline first."""
    _check_table(table, baseline, metric)
    names = _cell_names(table)
    groups = table.groupby(names, sort=False, dropna=False, observed=True) if names else [((), table)]
    for labels, part in groups:
        done = finished(part) if {"status", "loss"} <= set(part) else part
        several = "parent_seed" in part and part["parent_seed"].nunique() > 1
        keys = ["parent_seed"] if several else [name for name in PAIR if name in part]
        values, _ = paired_values(done, metric, keys)
        columns = dict.fromkeys([baseline, *part["variant"]])
        yield dict(zip(names, map(str, labels), strict=True)), values.reindex(columns=list(columns))


def _spread(x: np.ndarray, level: float) -> dict[str, float]:
    df = max(0, len(x) - 1)
    sd = float(x.std(ddof=1)) if df else np.nan
    low, high = sd_interval(sd, df, level)
    return {"n": len(x), "df": df, "sd": sd, "lo": low, "hi": high, "level": level}


def _paired(reference: pd.Series, mine: pd.Series, level: float) -> dict[str, float]:
    both = np.column_stack([reference, mine])
    both = both[np.isfinite(both).all(axis=1)]
    found = _spread(both[:, 1] - both[:, 0], level)
    apart = float(np.sqrt(both.var(axis=0, ddof=1).sum())) if found["df"] else np.nan
    return found | {"unpaired_sd": apart, "correlation": _correlation(found["sd"], apart)}


def _correlation(sd: float, unpaired_sd: float) -> float:
    return 1 - (sd / unpaired_sd) ** 2 if unpaired_sd > 0 else np.nan


def pooled_sd(sd: pd.Series, df: pd.Series) -> float:
    """sqrt(sum df sd^2 / sum df); missing where nothing has degrees of freedom."""
    return float(np.sqrt((df * sd**2).sum() / df.sum())) if df.sum() else np.nan


def _pooled(rows: pd.DataFrame, df: float, level: float) -> dict[str, Any]:
    """The row for all: every label empty. `df` is what the pooled sd is worth."""
    labels = {name: "" for name in (*CELL, "variant") if name in rows}
    sd = pooled_sd(rows["sd"], rows["df"])
    low, high = sd_interval(sd, df, level)
    whole = {"scope": "all", **labels, "n": int(rows["n"].sum()), "df": df, "sd": sd}
    return whole | {"lo": low, "hi": high, "level": level}


def _shared_df(df: np.ndarray) -> float:
    """Degrees of freedom of a pooled variance whose parts share the baseline."""
    if not df.sum():
        return 0.0
    common = np.minimum.outer(df, df).sum() - df.sum()
    return float(df.sum() ** 2 / (df.sum() + SHARED * common))


def _other_sources(pairs: pd.DataFrame, floor: pd.DataFrame, names: list[str]) -> dict[tuple[str, ...], list[Source]]:
    """By cell, and for all: where the sd of a paired difference may be from, beside the pairs themselves."""
    root2 = 2**0.5
    last = [
        ("all pairs", pairs["sd"].iloc[-1], pairs["df"].iloc[-1]),
        ("all baselines", root2 * floor["sd"].iloc[-1], floor["df"].iloc[-1]),
    ]
    found = {tuple(row[name] for name in names): last for row in floor.iloc[-1:].to_dict("records")}
    mates = dict(iter(pairs.groupby(names, sort=False)))
    for row in floor.iloc[:-1].to_dict("records"):
        key = tuple(row[name] for name in names)
        sd, df = (mates[key][name] if key in mates else pd.Series(dtype=float) for name in ("sd", "df"))
        inside = [("cell's pairs", pooled_sd(sd, df), _shared_df(df.to_numpy()))]
        found[key] = [*inside, ("cell's baseline", root2 * row["sd"], row["df"]), *last]
    return found


def _needed(n: int, sources: list[Source], delta: float, tests: int, level: float, power: float) -> dict[str, Any]:
    """By the first sd that is known."""
    source, sd, df = next((each for each in sources if each[2] > 0), ("", np.nan, 0.0))
    if not source:
        return {"sd": sd, "df": df, "source": source} | dict.fromkeys(("sd_hi", "mde", "power_now", *SEEDS), np.nan)
    high = sd_interval(sd, df, 2 * UPPER - 1)[1]
    return {
        "sd": sd,
        "df": df,
        "source": source,
        "sd_hi": high,
        "mde": minimum_detectable_effect(sd, n, tests, level, power),
        "power_now": power_of(delta, sd, n, tests, level),
        SEEDS[0]: seeds_needed(delta, sd, tests, level, power),
        SEEDS[1]: seeds_needed(delta, high, tests, level, power),
    }


def _floor_line(floor: pd.DataFrame, baseline: str) -> str:
    whole, cells = floor.iloc[-1], _count(len(floor) - 1, "cell")
    runs = _count(whole["n"], "run")
    if not whole["df"]:
        return f"the noise of {baseline}'s seeds is not known: {runs} in {cells}"
    interval = f"{100 * whole['level']:g} % interval {whole['lo']:.2g} to {whole['hi']:.2g}"
    return f"{baseline}'s runs of one cell vary by {whole['sd']:.2g} with the seed (sd; {runs}, {cells}; {interval})"


def _needs(row: pd.Series) -> str:
    now = "nothing" if pd.isna(row["mde"]) else f"{row['mde']:.2g}"
    return (
        f"{row['seeds']:,.0f} seeds at sd {row['sd']:.2g} ({row['source']}), {row['seeds_hi']:,.0f} at "
        f"{row['sd_hi']:.2g}, its upper {100 * UPPER:g} % limit; {_count(row['n'], 'pair')} now, enough for {now}"
    )


def _place(row: pd.Series) -> str:
    return ", ".join(str(row[name]) for name in ("variant", *CELL) if row.get(name))


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def _check(**values: float) -> None:
    """Refuse what makes no sense, by name."""
    legal = {
        "delta": (lambda x: 0 < x < np.inf, "above 0, in the metric's units"),
        "sd": (lambda x: 0 <= x < np.inf, "0 or above, and known"),
        "tests": (lambda x: x >= 1, "1 or more"),
        "level": (lambda x: 0 < x < 1, "between 0 and 1"),
        "power": (lambda x: 0.5 <= x < 1, "at least 0.5 and below 1"),
    }
    for name, value in values.items():
        holds, words = legal[name]
        if not holds(value):
            raise AnalysisError(f"{name}: {value!r}; it must be {words}")


def _check_table(table: pd.DataFrame, baseline: str, metric: str) -> None:
    for name in ("variant", "seed", metric):
        if name not in table:
            raise AnalysisError(f"no column {name} in the table; its columns: {', '.join(map(str, table.columns))}")
    known = sorted(set(map(str, table["variant"])))
    if baseline not in known:
        raise AnalysisError(f"no baseline {baseline!r} in the table; variants: {', '.join(known)}")
    metrics = sorted(set(table["metric"].dropna())) if metric in SCORES and "metric" in table else []
    if len(metrics) > 1:
        raise AnalysisError(f"{metric} is of several metrics ({', '.join(metrics)}): choose the rows of one stage")
