"""Speed-up: how many times a variant's tokens, FLOPs or seconds the baseline needs for the same loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.interpolate import PchipInterpolator

from analysis.columns import CELL, PAIR
from analysis.envelope import comparable
from analysis.errors import AnalysisError
from analysis.family_laws import FamilyLaws
from analysis.fit import BadPoints, NotEnoughPoints, ScalingLaw
from analysis.table import finished

Array = np.ndarray
LEVEL = 0.90
AXES = {"tokens": "tokens", "flops": "train_flops", "seconds": "seconds"}  # what is counted: its column
FORMS = {"power_offset": 5, "power": 4}  # laws of one input, and how many scales each needs: two above its parameters
FLAT = 0.05  # of the slope: a gain that changes by less than 12 % for ten times the compute
LADDER = "sizes"  # the family of a study with one budget for each size
UNEVEN = 1.5  # the most that throughputs of one model may differ by and pass without a word
FURTHER = 1.05  # times the largest run of the baseline, beyond which its law is told to reach
SAME = 1e-9  # in ratio, of scales that are one
READ = ("trial_id", *CELL, "variant", "seed", "hardware", "tokens", "train_flops", "tokens_per_s", "loss")
COLUMNS = ("variant", "stage", "axes", "family", "axis", "at", "gain", "lo", "hi", "method", "n", "trend", "trend_lo",
           "trend_hi", "verdict", "reason")  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How gains are computed: see `speedups`."""

    form: str = "power_offset"
    resamples: int = 400
    level: float = LEVEL
    flat: float = FLAT
    seed: int = 0


def speedups(
    table: pd.DataFrame, baseline: str, curves: pd.DataFrame | None = None, options: Options | None = None
) -> pd.DataFrame:
    """The compute-equivalent gain of every variant on three axes, at each scale, and its trend with scale.

    gain(x) = k with L_baseline(k x) = L_variant(x): the baseline needs k times the variant's tokens, FLOPs or seconds
    for the variant's final loss. Above 1 the variant is faster. Scales that are compared are a `family`: the budgets
    of one size, or, where every size has one budget, the sizes. `method` says how:

    - `law`: both losses by their laws, `options.form`, each fitted to its own final losses over the family
      (`analysis.family_laws`). It needs five scales of both (four for `power`).
    - `curve`: with fewer, one size at a time, the baseline's points that may be compared with the variant's
      (`analysis.envelope.comparable`): ends of its runs at several budgets, or, where no learning rate has come down,
      its training curves. `curves` are those of `analysis.curves.compute_curves`. Nothing is extrapolated: of a loss
      that the baseline does not reach, the gain is at its own lowest instead, `at` what the variant needs for that.

    [lo, hi] has probability `options.level`: percentiles over resamples of cells and seeds, the same for both, for
    laws; Student over seeds in log k for curves. n is the number of pairs that both have, or of seeds. Seconds are
    tokens by the median throughput of a variant and size; they are compared on one kind of hardware alone.

    `trend` is the slope of log gain on log `at` over a family; `verdict` "flat" where its interval lies within
    +-`options.flat`, else "grows" or "shrinks" where it excludes 0, else "unknown". `reason` says why a number is
    missing, or what speaks against it. One row a variant, family, axis and scale, and one with the reason where there
    is none.

    Raises `AnalysisError` for an unknown form or baseline, and without the columns of the table of trials.
    """
    options = options or Options()
    if options.form not in FORMS:
        raise AnalysisError(f"form {options.form!r}: speed-ups are of one of {', '.join(FORMS)}")
    names = list(dict.fromkeys(table["variant"].astype(str)))
    if baseline not in names:
        raise AnalysisError(f"no baseline {baseline!r} in the table; variants: {', '.join(sorted(names))}")
    done, rows = _with_seconds(finished(table)), []
    for (stage, axes), part in done.groupby(["stage", "axes"], sort=False, dropna=False, observed=True):
        labels, laws = {"stage": str(stage), "axes": str(axes)}, _Laws(part, options)
        for variant in (name for name in names if name != baseline):
            pair = part[part["variant"].isin([baseline, variant])]
            for family, mine in _families(pair):
                found = _of_family(_Pair(mine, baseline, variant, family), curves, options, laws)
                rows += [labels | {"variant": variant, "family": family} | row for row in found]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _with_seconds(done: pd.DataFrame) -> pd.DataFrame:
    """What is read of the trials, and their seconds at the median throughput of the variant and size."""
    done = done[list(READ)]
    one_model = done.groupby(["stage", "axes", "variant", "size"], sort=False, dropna=False, observed=True)
    return done.assign(
        variant=done["variant"].astype(str), seconds=done["tokens"] / one_model["tokens_per_s"].transform("median")
    )


def _families(pair: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The scales that go together: the budgets of each size, or the sizes where each has one budget."""
    budgets = pair.groupby("size", sort=False, observed=True)["budget"].nunique()
    if len(budgets) > 1 and (budgets == 1).all():
        yield LADDER, pair
        return
    for size, mine in pair.groupby("size", sort=False, observed=True):
        yield str(size), mine


class _Laws:
    """The laws of the variants of one stage and axis setting, by family and by what is counted."""

    def __init__(self, trials: pd.DataFrame, options: Options):
        self.trials, self.options = trials, options
        self._made: dict[tuple[str, str], FamilyLaws] = {}

    def over(self, family: str, column: str) -> FamilyLaws:
        if (family, column) not in self._made:
            mine = self.trials if family == LADDER else self.trials[self.trials["size"] == family]
            made = FamilyLaws(mine, column, self.options.form, self.options.resamples, self.options.seed)
            self._made[family, column] = made
        return self._made[family, column]


@dataclass(frozen=True)
class _Pair:
    """Finished trials of a baseline and a variant over one family of scales."""

    trials: pd.DataFrame
    baseline: str
    variant: str
    family: str

    @property
    def ladder(self) -> bool:
        """Of sizes."""
        return self.family == LADDER

    @cached_property
    def _apart(self) -> dict[str, pd.DataFrame]:
        return {name: self.trials[self.trials["variant"] == name] for name in self.names}

    def of(self, name: str) -> pd.DataFrame:
        return self._apart[name]

    @property
    def names(self) -> tuple[str, str]:
        return self.baseline, self.variant

    def rates(self, column: str) -> tuple[float, float]:
        """What a token costs the baseline and the variant: constants where all trials are of one size."""
        a, b = (float((self.of(name)[column] / self.of(name)["tokens"]).mean()) for name in self.names)
        return a, b


def _of_family(pair: _Pair, curves: pd.DataFrame | None, options: Options, laws: _Laws) -> list[dict[str, Any]]:
    """The rows of one variant and family: of one size all axes follow from tokens, by what a token costs."""
    missing = [name for name in pair.names if not len(pair.of(name))]
    if missing:
        return [{"axis": axis, "reason": f"no finished trial of {missing[0]}"} for axis in AXES]
    rows: list[dict[str, Any]] = []
    in_tokens: list[dict[str, Any]] | None = None
    for axis, column in AXES.items():
        doubt, refused = _on_one_clock(pair) if axis == "seconds" else ("", "")
        if refused:
            rows.append({"axis": axis, "reason": refused})
            continue
        theirs, mine = pair.rates(column)
        if 0 in (theirs, mine):
            counted = pair.names[0 if theirs == 0 else 1]
            rows.append({"axis": axis, "reason": f"{counted} is fitted by counting, without any"})
            continue
        if pair.ladder:
            found = _gains(pair, column, curves, options, laws)
        else:
            in_tokens = _gains(pair, "tokens", curves, options, laws) if in_tokens is None else in_tokens
            times = {"at": mine, "gain": theirs / mine, "lo": theirs / mine, "hi": theirs / mine}
            found = [{key: value * times.get(key, 1) for key, value in row.items()} for row in in_tokens]
        for row in found:
            said = "; ".join(each for each in (doubt if "gain" in row else "", row["reason"]) if each)
            rows.append(row | {"axis": axis, "reason": said})
    return rows


def _gains(
    pair: _Pair, column: str, curves: pd.DataFrame | None, options: Options, laws: _Laws
) -> list[dict[str, Any]]:
    """A row for each scale, or one that says why there is none."""
    scales = min(_scales(pair.of(name)[column]) for name in pair.names)
    enough = scales >= FORMS[options.form]
    few = f"scales that both have: {scales}, a law ({options.form}) needs {FORMS[options.form]}; "
    try:
        return (
            _by_law(pair, column, options, laws.over(pair.family, column))
            if enough
            else _by_curve(pair, column, curves, options)
        )
    except (BadPoints, NotEnoughPoints) as error:
        return [{"reason": ("" if enough else few) + str(error)}]


def _scales(costs: pd.Series) -> int:
    values = np.sort(np.log(costs.dropna().to_numpy(dtype=float)))
    return int((np.diff(values, prepend=-np.inf) > SAME).sum())


def _on_one_clock(pair: _Pair) -> tuple[str, str]:
    """What speaks against comparing seconds, and why they cannot be compared; empty where nothing does."""
    speed = pair.trials["tokens_per_s"].astype(float)
    unmeasured = [name for name in pair.names if not pair.of(name)["tokens_per_s"].notna().all()]
    if unmeasured:
        return "", f"no tokens_per_s of {' and '.join(unmeasured)}"
    places = sorted({"not known" if pd.isna(each) else str(each) for each in pair.trials["hardware"]})
    if len(places) > 1 or places == ["not known"]:
        return "", f"throughput was not measured on one kind of hardware: {', '.join(places)}"
    by_model = speed.groupby([pair.trials["variant"], pair.trials["size"]])
    spread = float((by_model.max() / by_model.min()).max())
    return (f"throughputs of one model differ up to {spread:.1f} times" if spread > UNEVEN else ""), ""


def _by_law(pair: _Pair, column: str, options: Options, laws: FamilyLaws) -> list[dict[str, Any]]:
    theirs, own = (laws.of(name) for name in pair.names)
    mine = pair.of(pair.variant).groupby(["size", "budget"], observed=True)[column]
    at = np.sort(mine.mean().to_numpy(dtype=float))
    log_k = _log_gains(_every(theirs), _every(own), at)
    slopes = _slopes(np.log(at), log_k)
    known = slopes[1:][np.isfinite(slopes[1:])]
    ends = ((1 - options.level) / 2, (1 + options.level) / 2)
    lo, hi = np.quantile(known, ends) if len(known) > options.level * (len(slopes) - 1) else (np.nan, np.nan)
    both = pair.trials.groupby(["size", "budget", "seed"], dropna=False, observed=True)["variant"].nunique()
    told = {"method": "law", "n": int((both == 2).sum())} | _trend(slopes[0], float(lo), float(hi), options.flat)
    doubts = [
        f"{name}: {each}" for name, law in zip(pair.names, (theirs, own), strict=True) for each in law.warnings_
    ]
    gains = np.exp(log_k[0])
    low, high = np.exp(np.quantile(log_k[1:], ends, axis=0, method="nearest"))
    largest, rows = float(pair.of(pair.baseline)[column].max()), []
    for x, gain, gain_lo, gain_hi in zip(at, gains, low, high, strict=True):
        further = gain * x / largest
        beyond = f"the baseline would need {further:.2g} times its largest run" if further > FURTHER else ""
        numbers = {"at": float(x), "gain": float(gain), "lo": float(gain_lo), "hi": float(gain_hi)}
        rows.append(numbers | told | {"reason": "; ".join(each for each in (beyond, *doubts) if each)})
    return rows


def _every(law: ScalingLaw) -> dict[str, Array]:
    """E, A and alpha of the fit and then of every resample, (1 + B, 1); E is 0 in a law without an offset."""
    found = {name: np.append(law.params_[name], law.samples_[name])[:, None] for name in law.params_}
    return {"E": np.zeros((len(law.samples_) + 1, 1)), **found}


def _log_gains(baseline: dict[str, Array], variant: dict[str, Array], at: Array) -> Array:
    """log k of L_baseline(k x) = L_variant(x) for parameters in rows and scales x, (rows, scales), in closed form:
    k = ((E' + A' x^-alpha' - E) / A)^(-1/alpha) / x; infinite where the variant is below the baseline's offset E."""
    loss = variant["E"] + variant["A"] * at ** -variant["alpha"]
    above = np.maximum(loss - baseline["E"], 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(above / baseline["A"]) / baseline["alpha"] - np.log(at))


def _by_curve(pair: _Pair, column: str, curves: pd.DataFrame | None, options: Options) -> list[dict[str, Any]]:
    """Gains for each scale of one family by interpolation, seed for seed. Raises `BadPoints`."""
    if curves is None:
        raise BadPoints("training curves were not given")
    mine = curves[curves["trial"].isin(pair.trials["trial_id"])]
    if not len(mine):
        raise BadPoints("there are no training curves of these trials")
    chosen = comparable(mine)
    points = _costed(chosen.points, pair.trials, column)
    sizes = [_of_size(part, *pair.names) for _, part in points.groupby("size", sort=False, observed=True)]
    found = pd.concat(sizes) if sizes else pd.DataFrame()
    if not len(found):
        told = "of one size and seed there is no loss that both come to"
        ended = "; before the end of such a learning rate losses do not compare" if chosen.ends else ""
        raise BadPoints(f"{chosen.schedule}: {told}{ended}")
    by_seed = [part[["log_at", "log_k"]].to_numpy(dtype=float).T for _, part in found.groupby("seed")]
    slopes = np.array([_slopes(x, y[None])[0] for x, y in by_seed])
    slope, slope_lo, slope_hi, _ = _student(slopes, options.level)
    told_of_all = {"method": "curve"} | _trend(slope, slope_lo, slope_hi, options.flat)
    rows = []
    for _, part in found.groupby("scale", sort=False):
        mean, lo, hi, n = _student(part["log_k"].to_numpy(dtype=float), options.level)
        few = "" if n > 1 else "one seed: no interval"
        numbers = {"at": np.exp(part["log_at"].mean()), "gain": np.exp(mean), "lo": np.exp(lo), "hi": np.exp(hi)}
        doubts = [
            each for each in chosen.warnings if "left out" not in each
        ]  # of every run all points but its end are
        said = "; ".join(each for each in (few, *doubts) if each)
        rows.append(numbers | {"n": n, "reason": said} | told_of_all)
    return sorted(rows, key=lambda row: float(row["at"]))


def _costed(points: pd.DataFrame, pair: pd.DataFrame, column: str) -> pd.DataFrame:
    """Points with their logarithms of loss and of what they cost, by their trials' cost a token."""
    rate = (pair[column] / pair["tokens"]).to_numpy(dtype=float)
    rates = dict(zip(pair["trial_id"], rate, strict=True))
    cost = points["d"].astype(float) * points["trial"].map(rates).astype(float)
    return points.assign(log_cost=np.log(cost), log_loss=np.log(points["loss"].astype(float)))


def _of_size(points: pd.DataFrame, baseline: str, variant: str) -> pd.DataFrame:
    """log k of every end of the variant's runs, seed by seed: seed, scale (size and budget), log_at, log_k."""
    pair_on = [name for name in PAIR if name in points]
    rows = []
    for seed, part in points.groupby(pair_on, dropna=False, observed=True):
        (a, b) = (part[part["variant"] == name] for name in (baseline, variant))
        if len(a) < 2 or not len(b):
            continue
        lowest = a["log_loss"].min()
        ends = b.loc[b.groupby("budget", sort=False, observed=True)["log_cost"].idxmax()]
        beaten = ends[ends["log_loss"] < lowest]
        for _, end in ends.drop(beaten.index).iterrows():
            rows.append((seed, str(end["budget"]), end["log_cost"], _reached(a, end["log_loss"])))
        if len(beaten):  # what lies below all that the baseline reached is no loss to compare at
            rows.append((seed, "lowest of the baseline", _reached(b, lowest), _reached(a, lowest)))
    size = str(points["size"].iloc[0])
    made = [
        {"seed": str(seed), "scale": (size, scale), "log_at": mine, "log_k": theirs - mine}
        for seed, scale, mine, theirs in rows
    ]
    return pd.DataFrame(made, columns=["seed", "scale", "log_at", "log_k"]).dropna()


def _reached(points: pd.DataFrame, log_loss: float) -> float:
    """The least log cost at which a curve has come down to a loss; missing where that is not between its points."""
    means = points.groupby("log_cost")["log_loss"].mean()
    x, y = means.index.to_numpy(dtype=float), np.minimum.accumulate(means.to_numpy(dtype=float))
    first = int(np.argmax(y <= log_loss + SAME))
    if y[first] > log_loss + SAME or (first == 0 and y[0] < log_loss - SAME):
        return np.nan
    if first == 0:
        return float(x[0])
    keep = np.concatenate(([True], np.diff(y) < 0))  # each loss at the first cost that reached it
    roots = PchipInterpolator(x[keep], y[keep]).solve(log_loss, extrapolate=False)
    return float(roots.min()) if len(roots) else float(x[first])


def _slopes(x: Array, y: Array) -> Array:
    """The least-squares slope of each row of y on x; missing with one scale, or where a gain is infinite."""
    if len(x) < 2 or np.ptp(x) < SAME:
        return np.full(len(y), np.nan)
    away = x - x.mean()
    finite = np.isfinite(y).all(axis=1)
    return np.where(finite, np.where(finite[:, None], y, 0.0) @ away / (away @ away), np.nan)


def _student(values: Array, level: float) -> tuple[float, float, float, int]:
    """Mean, Student interval and count of what is not missing."""
    known = values[np.isfinite(values)]
    n = len(known)
    if not n:
        return np.nan, np.nan, np.nan, 0
    mean = float(known.mean())
    reach = float(stats.t.ppf((1 + level) / 2, n - 1) * known.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return mean, mean - reach, mean + reach, n


def _trend(slope: float, lo: float, hi: float, flat: float) -> dict[str, Any]:
    words = "unknown"
    if np.isfinite([slope, lo, hi]).all():
        words = "flat" if -flat < lo and hi < flat else "grows" if lo > 0 else "shrinks" if hi < 0 else "unknown"
    return {"trend": slope, "trend_lo": lo, "trend_hi": hi, "verdict": words}
