"""Variants compared by their laws: exponents, where one overtakes another, and how much compute that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline

from analysis.columns import CELL
from analysis.fit import BadPoints, ScalingLaw
from analysis.forms import law_of
from analysis.joint import SharedLaw, paired_resamples
from analysis.laws import Law, PowerSum
from analysis.optimal import lowest
from analysis.points import points
from analysis.table import TableError

Array = np.ndarray
LEVEL = 0.90
REACH = 1e3  # crossovers and gains are looked for to this factor beyond the sampled range
FINE, COARSE = 2001, 161  # steps of the logarithm of compute, direct and where each needs the best n
SAME = 1e-9  # of mean errors of log L: what rounding does to two fits that are one
SHAPES, WIDTH = 257, 8.0  # of n at one compute: steps, and how far the logarithm goes either way


@dataclass
class VariantLaws:
    """One law for every variant of a table, fitted together, and the same bootstrap resamples for all of them.

    `shared` parameters are the same in all variants (`analysis.joint`); with `()` each has a fit of its own. `form`
    reads one input, or n and d: then curves are along the compute-optimal n, with C = kappa n d and kappa the
    variant's mean of c / (n d) in the table.

    A resample draws cells (the columns `cell` that the table has: stage, size, axes, budget) with replacement, and in
    each drawn cell its seeds: the same for all variants, so that what two trials of a cell and seed share cancels in
    differences. Cells that different sets of variants have are drawn apart. Resamples in which a variant is left with
    fewer than one distinct x more than parameters are drawn again. Intervals are percentiles, of probability `level`.
    `seeds=False` takes all seeds of a drawn cell: of 120 made-up studies of 6 or 10 sizes and 3 seeds, 90 % intervals
    by `l2_log` held the truth in 75 to 95 %; with seeds drawn too it was 90 to 98 %, and 97 to 100 % by `huber`.

    After `fit`: `fit_` (the `ScalingLaw`), `points_`, `variants_`, `kappa_`, `warnings_`, `redrawn_` (the share of
    resamples that were drawn again), `left_out_` (trials without a final loss).
    """

    form: str | Law = "power_offset"
    shared: Sequence[str] = ("E",)
    objective: str | None = None
    delta: float | None = None
    resamples: int = 1000
    seed: int = 0
    seeds: bool = True
    level: float = LEVEL
    cell: Sequence[str] = CELL
    columns: Mapping[str, str] = field(default_factory=dict)
    reach: float = REACH

    def fit(self, table: pd.DataFrame) -> VariantLaws:
        """Fit to trials: columns `variant`, those of the law's inputs (`columns` says which; train_flops,
        params_non_embedding and tokens are known), loss, seed and those of `cell`.

        Raises `TableError` for missing columns, `BadPoints` for fewer than two variants, and `NotEnoughPoints`.
        """
        base = law_of(self.form) if isinstance(self.form, str) else self.form
        if len(base.inputs) > 1 and set(base.inputs) != {"n", "d"}:
            raise BadPoints(f"{base.name} reads {', '.join(base.inputs)}: curves need one input, or n and d")
        self.base_, self.points_ = base, self._points(table, base)
        self.left_out_ = len(table) - len(self.points_)
        self.variants_ = tuple(dict.fromkeys(self.points_["variant"]))
        if len(self.variants_) < 2:
            raise BadPoints(f"one variant, {''.join(self.variants_)!r}: nothing to compare it with")
        law = SharedLaw(base, self.variants_, self.shared)
        self.fit_ = ScalingLaw(law, self.objective, self.delta)
        self.fit_.fit(law.numbered(self.points_), self.points_["loss"])
        weights, self.redrawn_ = paired_resamples(
            self.points_, self.resamples, np.random.default_rng(self.seed), len(base.parameters) + 1, self.seeds
        )
        self.fit_.bootstrap(weights)
        self.kappa_, self.warnings_ = self._kappa(), self.fit_.warnings_ + self._doubts()
        self._drawn: dict[tuple[str, float, float], tuple[Array, Array]] = {}
        return self

    def _points(self, table: pd.DataFrame, base: Law) -> pd.DataFrame:
        """Rows with a loss: variant, cell, seed, the law's inputs, scale and loss."""
        keys = [name for name in self.cell if name in table]
        loss = self.columns.get("loss", "loss")
        missing = [name for name in ("variant", "seed", loss) if name not in table]
        if missing or not keys:
            name = missing[0] if missing else f"of a cell ({', '.join(self.cell)})"
            raise TableError(f"the table has no column {name}; its columns: {', '.join(map(str, table))}")
        done = pd.to_numeric(table[loss], errors="coerce").pipe(np.isfinite)
        if "status" in table:
            done &= table["status"] == "finished"
        rows = table[done].reset_index(drop=True)
        found = points(rows, self.columns, (*base.inputs, "loss"))
        scale = base.inputs[0] if len(base.inputs) == 1 else "c"
        groups = rows.groupby(keys, sort=False, dropna=False, observed=True).ngroup()
        kept = {name: found[name] for name in (*base.inputs, "loss")}
        labels = {"variant": rows["variant"].astype(str), "seed": rows["seed"], "cell": groups}
        return pd.DataFrame({**labels, **kept, "scale": found[scale]})

    def _kappa(self) -> dict[str, float]:
        if len(self.base_.inputs) == 1:
            return {}
        ratio = np.log(self.points_["scale"] / self.points_["n"] / self.points_["d"])
        means = ratio.groupby(self.points_["variant"]).mean()
        return {str(name): float(np.exp(each)) for name, each in means.items()}

    def _doubts(self) -> list[str]:
        """What the law doubts of each variant's parameters, by that variant's own losses."""
        law, found = self._law(), []
        for variant, part in self.points_.groupby("variant", sort=False):
            params = law.of_group(self.fit_.params_, str(variant))
            found += [f"{variant}: {doubt}" for doubt in self.base_.doubts(params, part["loss"].to_numpy())]
        return found

    def _law(self) -> SharedLaw:
        assert isinstance(self.fit_.law, SharedLaw)
        return self.fit_.law

    def differences(self, baseline: str, variant: str) -> pd.DataFrame:
        """One row a parameter that the two do not share: its values, variant - baseline, and the interval of that.

        Of sums of powers the exponents and the offset alone: coefficients speak of the units of x.
        """
        self._known(baseline, variant)
        law, rows = self._law(), []
        terms = self.base_.terms if isinstance(self.base_, PowerSum) else ()
        coefficients = {term.coefficient for term in terms if term.powers}
        for name in (each for each in law.own if each not in coefficients):
            a, b = f"{name}[{baseline}]", f"{name}[{variant}]"
            value = self.fit_.params_[b] - self.fit_.params_[a]
            lo, hi = self._interval((self.fit_.samples_[b] - self.fit_.samples_[a]).to_numpy())
            said = {"baseline": self.fit_.params_[a], "variant": self.fit_.params_[b]}
            rows.append({"parameter": name, **said, "difference": value, "lo": lo, "hi": hi})
        return pd.DataFrame(rows, columns=["parameter", "baseline", "variant", "difference", "lo", "hi"])

    def sampled(self, baseline: str, variant: str) -> tuple[float, float]:
        """The range of compute in which both have points. Raises `BadPoints` where there is none."""
        self._known(baseline, variant)
        ranges = [self.points_["scale"][self.points_["variant"] == name] for name in (baseline, variant)]
        low, high = max(each.min() for each in ranges), min(each.max() for each in ranges)
        if not low < high:
            raise BadPoints(f"{baseline} and {variant} have no range of compute in common")
        return float(low), float(high)

    def crossover(self, baseline: str, variant: str) -> dict[str, Any]:
        """Where the two curves meet, within `reach` of the range that both are sampled in.

        `status`: "overtakes" (the variant is behind before `at` and ahead after it), "falls behind", "ahead" or
        "behind" (everywhere), "equal". Of several crossovers it is the one nearest to the middle of the sampled
        range. `share` is the share of resamples that cross in that direction, or at all where the curves do not.
        `lo` and `hi` are percentiles over resamples, of which those that are ahead everywhere count as crossing at 0
        and those behind everywhere at infinity (the other way round for "falls behind"); those that cross in the
        other direction alone do not count. `distance` is the factor from the sampled range, 1 inside it.
        """
        low, high = self.sampled(baseline, variant)
        log_c, curves = self._curves(low, high, baseline)
        gap = curves - self._curves(low, high, variant)[1]  # above 0 where the variant is ahead
        roots = [_roots(log_c, each) for each in gap]
        at, direction = _nearest(*roots[0], (np.log(low) + np.log(high)) / 2)
        found = {"at": np.nan, "lo": np.nan, "hi": np.nan, "distance": np.nan}
        if direction == 0:
            status = "equal" if np.abs(gap[0]).max() < 1e-12 else "ahead" if gap[0, 0] > 0 else "behind"
            share = float(np.mean([len(where) > 0 for where, _ in roots[1:]]))
            return found | {"status": status, "share": share}
        first = gap[1:, 0]
        drawn = np.array([_matched(*each, at, direction, side) for each, side in zip(roots[1:], first, strict=True)])
        lo, hi = np.exp(self._interval(drawn))
        distance = np.exp(max(0.0, at - np.log(high), np.log(low) - at))
        return {
            "at": float(np.exp(at)),
            "lo": float(lo),
            "hi": float(hi),
            "distance": float(distance),
            "status": "overtakes" if direction > 0 else "falls behind",
            "share": float(np.isfinite(drawn).mean()),
        }

    def gain(self, baseline: str, variant: str, at: Sequence[float] | None = None) -> pd.DataFrame:
        """Compute-equivalent gain k(C), L_baseline(k C) = L_variant(C): how many times the variant's compute the
        baseline needs for the same loss. Above 1 the variant is ahead.

        One row a C of `at` (five over the sampled range unless given): c, gain, lo, hi, and whether C is within the
        range. Infinite where the baseline does not come to that loss within `reach` of the range, 0 where it is below
        it all the way.
        """
        low, high = self.sampled(baseline, variant)
        scales = np.geomspace(low, high, 5) if at is None else np.asarray(at, dtype=float)
        log_c, mine = self._curves(low, high, baseline)
        theirs = self._curves(low, high, variant)[1]
        if (np.log(scales) < log_c[0]).any() or (np.log(scales) > log_c[-1]).any():
            raise BadPoints(f"gains are known from {np.exp(log_c[0]):.3g} to {np.exp(log_c[-1]):.3g}")
        log_k = np.stack([_gains(log_c, a, b, np.log(scales)) for a, b in zip(mine, theirs, strict=True)])
        ends = np.exp([self._interval(each) for each in log_k[1:].T])
        inside = (scales >= low * (1 - 1e-9)) & (scales <= high * (1 + 1e-9))
        columns = {"c": scales, "gain": np.exp(log_k[0]), "lo": ends[:, 0], "hi": ends[:, 1], "sampled": inside}
        return pd.DataFrame(columns)

    def held_out(self) -> pd.DataFrame:
        """One row a cell and variant: the mean |log L - log loss| where the cell was left out of the fit."""
        cells = self.points_["cell"].to_numpy()
        known = np.unique(cells)
        theta, _ = self.fit_.refit((cells != known[:, None]).astype(float))
        said = self.fit_.law.log_value(theta, self.fit_.x_)[np.searchsorted(known, cells), np.arange(len(cells))]
        errors = self.points_[["cell", "variant"]].assign(error=np.abs(said - np.log(self.fit_.y_)))
        return errors.groupby(["cell", "variant"], sort=False, as_index=False)["error"].mean()

    def _known(self, *names: str) -> None:
        for name in names:
            if name not in self.variants_:
                raise BadPoints(f"no variant {name!r}; variants: {', '.join(self.variants_)}")

    def _interval(self, drawn: Array) -> tuple[float, float]:
        """Percentiles that are values which were drawn, so that they may be infinite."""
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn):
            return np.nan, np.nan
        ends = ((1 - self.level) / 2, (1 + self.level) / 2)
        lo, hi = np.quantile(drawn, ends, method="nearest")
        return float(lo), float(hi)

    def _curves(self, low: float, high: float, variant: str) -> tuple[Array, Array]:
        """log C, and log L of the fit and then of every resample, (1 + B, steps)."""
        key = (variant, low, high)
        if key not in self._drawn:
            theta = self._law().part(np.concatenate((self.fit_.theta_[None], self.fit_.thetas_)), variant)
            log_c = np.linspace(np.log(low / self.reach), np.log(high * self.reach), FINE)
            kappa = self.kappa_.get(variant, 1.0)
            self._drawn[key] = log_c, frontier(self.base_, theta, self.fit_.centre_[:-1], log_c, kappa)
        self._drawn[key] = found = self._drawn.pop(key)
        while len(self._drawn) > 2:  # those of one pair: they are large
            del self._drawn[next(iter(self._drawn))]
        return found


def frontier(law: Law, theta: Array, centre: Array, log_c: Array, kappa: float) -> Array:
    """log L along one input, or the least along n d = C / kappa of a law in n and d: theta (B, k) -> (B, steps).

    The least is looked for within e^8 of the n at which tokens grow as parameters do, from the points' middle, and
    by a spline between coarse steps of C.
    """
    if len(law.inputs) == 1:
        return law.log_value(theta, log_c[:, None] - centre)
    n, d = law.inputs.index("n"), law.inputs.index("d")
    steps, shapes = np.linspace(log_c[0], log_c[-1], COARSE), np.linspace(-WIDTH, WIDTH, SHAPES)
    least = np.empty((len(theta), COARSE))
    for k, budget in enumerate(steps - np.log(kappa)):
        x = np.empty((SHAPES, 2))
        x[:, n] = (budget + centre[n] - centre[d]) / 2 + shapes
        x[:, d] = budget - x[:, n]
        logs = law.log_value(theta, x - centre)
        found = lowest(shapes, logs)[1]
        least[:, k] = np.where(np.isfinite(found), found, logs.min(-1))
    return np.asarray(CubicSpline(steps, least, axis=1)(log_c))


def _roots(log_c: Array, gap: Array) -> tuple[Array, Array]:
    """Where a curve changes its sign, and to which."""
    sign = np.where(gap < 0, -1, 1)
    k = np.flatnonzero(sign[:-1] * sign[1:] < 0)
    part = gap[k] / (gap[k] - gap[k + 1])
    return log_c[k] + part * (log_c[k + 1] - log_c[k]), sign[k + 1]


def _nearest(roots: Array, signs: Array, middle: float) -> tuple[float, int]:
    if not len(roots):
        return np.nan, 0
    k = int(np.abs(roots - middle).argmin())
    return float(roots[k]), int(signs[k])


def _matched(roots: Array, signs: Array, at: float, direction: int, first: float) -> float:
    """A resample's crossover in that direction nearest to `at`; one that is ahead or behind all the way crosses
    before the range or after it."""
    if not len(roots):
        return -np.inf if first * direction > 0 else np.inf
    alike = roots[signs == direction]
    return float(alike[np.abs(alike - at).argmin()]) if len(alike) else np.nan


def _gains(log_c: Array, mine: Array, theirs: Array, scales: Array) -> Array:
    """log k at each log C: the least compute at which the first curve has come down to the second."""
    wanted = np.interp(scales, log_c, theirs)
    reached = -np.minimum.accumulate(mine)
    return np.asarray(np.interp(-wanted, reached, log_c, left=-np.inf, right=np.inf) - scales)


def preferred(separate: pd.DataFrame, shared: pd.DataFrame, variants: Sequence[str]) -> tuple[str, float, float]:
    """Which of two fits of the same points to believe of these variants, "separate" or "shared", by their `held_out`.

    With d = separate - shared, the difference of the mean error in a cell that was left out, separate fits must be
    better by one standard error of the mean of d; otherwise the shared fit is preferred, which has fewer parameters.
    Also returns that mean and its standard error.
    """
    errors = [each[each["variant"].isin(variants)].groupby("cell")["error"].mean() for each in (separate, shared)]
    d = errors[0] - errors[1]
    mean, error = float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))
    return ("separate" if mean < -error - SAME else "shared"), mean, error


def compare_laws(
    table: pd.DataFrame, baseline: str, laws: VariantLaws | None = None, at: Sequence[float] | None = None
) -> pd.DataFrame:
    """Every variant of a table against a baseline, as `laws` fits them and with nothing shared, in one tidy table.

    One row a variant, fit ("separate" or "shared") and quantity: exponents and offsets by name (variant - baseline),
    "crossover", and "gain" at each C of `at`. Columns: baseline, variant, fit, preferred (whether `preferred` chose
    this fit), quantity, at (the C of a gain), value, lo, hi, status, share and distance (of a crossover; 1 is
    within the sampled range), points, pairs (cells and seeds that both have). What speaks against each fit is in
    `attrs["warnings"]`. Raises as `VariantLaws.fit`.
    """
    together = replace(laws or VariantLaws()).fit(table)
    apart = replace(together, shared=()).fit(table)
    errors, rows = (apart.held_out(), together.held_out()), []
    for variant in (name for name in together.variants_ if name != baseline):
        best = preferred(*errors, (baseline, variant))[0]
        told = {"baseline": baseline, "variant": variant} | _counts(together.points_, baseline, variant)
        for name, each in (("separate", apart), ("shared", together)):
            fit = {"fit": name, "preferred": name == best}
            rows += [told | fit | row for row in _quantities(each, baseline, variant, at)]
    columns = ("baseline", "variant", "fit", "preferred", "quantity", "at", "value", "lo", "hi", "status", "share")
    found = pd.DataFrame(rows, columns=[*columns, "distance", "points", "pairs"])
    found.attrs["warnings"] = {"separate": apart.warnings_, "shared": together.warnings_}
    return found


def _quantities(laws: VariantLaws, baseline: str, variant: str, at: Sequence[float] | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"quantity": row["parameter"], "value": row["difference"], "lo": row["lo"], "hi": row["hi"]}
        for row in laws.differences(baseline, variant).to_dict("records")
    ]
    met = laws.crossover(baseline, variant)
    rows.append({"quantity": "crossover", "value": met.pop("at"), **met})
    for row in laws.gain(baseline, variant, at).to_dict("records"):
        rows.append({"quantity": "gain", "at": row["c"], "value": row["gain"], "lo": row["lo"], "hi": row["hi"]})
    return rows


def _counts(points: pd.DataFrame, *names: str) -> dict[str, int]:
    mine = points[points["variant"].isin(names)]
    both = mine.groupby(["cell", "seed"], dropna=False)["variant"].nunique()
    return {"points": len(mine), "pairs": int((both == len(names)).sum())}


def crossover_words(found: Mapping[str, Any], baseline: str, variant: str, level: float = LEVEL) -> str:
    """One sentence of what `VariantLaws.crossover` found."""
    if found["status"] == "equal":
        return f"{variant} and {baseline} are the same"
    share = f"{found['share']:.0%} of resamples"
    if found["status"] in ("ahead", "behind"):
        side = "ahead of" if found["status"] == "ahead" else "behind"
        return f"{variant} is {side} {baseline} everywhere; {share} cross"
    lo = "before the range searched" if found["lo"] == 0 else f"{found['lo']:.2g}"
    hi = "never" if np.isinf(found["hi"]) else f"{found['hi']:.2g}"
    interval = f"{level:.0%} interval {lo} to {hi}"
    said = f"{variant} {found['status']} {baseline} at {found['at']:.2g}, {interval}; {share} cross so"
    return said + (f"; {found['distance']:.2g} times outside the sampled range" if found["distance"] > 1 else "")
