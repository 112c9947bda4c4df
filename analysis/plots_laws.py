"""Figures of scaling laws: one function each, `(data, ax) -> ax`, of results that are computed elsewhere.

Ordered groups (sizes, budgets) go from dark to light, named ones have the colours of `analysis.plots`; markers or
line styles tell the same. Legends stand right of the axes, where a figure with a constrained layout makes room for
them. Without data the axes say so.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from analysis import between
from analysis.between import VariantLaws
from analysis.envelope import Envelope
from analysis.fit import BadPoints, ScalingLaw
from analysis.isoflop import IsoFlop
from analysis.joint import SharedLaw
from analysis.plots import GREY, MARKERS, NAMES, style
from analysis.profiles import Profile

Array = np.ndarray
Look = dict[str, Any]
BLUE, RED = "#0072B2", "#D55E00"  # of Okabe and Ito 2008
BINS, MARKED = 8, 5  # of sizes, a marker each; points that are numbered
STEPS, MARGIN = 200, 3.0  # of a smooth curve; how far curves go on behind a crossover, in ratio
FLOPS, LOSS = "training FLOPs", NAMES["loss"]


def loss_and_frontier(points: pd.DataFrame, law: ScalingLaw, frontier: pd.DataFrame, ax: Axes) -> Axes:
    """Loss against compute of every point (n, c, loss), by bins of n, and the `analysis.optimal.frontier` of a law.

    It is dashed where it is extrapolated, its interval a band. The law's E is a line unless it is far below them all.
    """
    if not len(points) and not len(frontier):
        return _nothing(ax, "no points")
    bins = list(_bins(points["n"])) if len(points) else []
    for index, (label, rows) in enumerate(bins):
        look = _ordered(index, len(bins)) | {"linestyle": "none"}
        ax.plot(points["c"][rows], points["loss"][rows], **look, ms=4, alpha=0.8, label=label)
    if len(frontier):
        _band(ax, frontier, "loss_", "black", label="95 % interval")
        beyond = frontier["extrapolated"].astype(bool)
        look = {"color": "black", "ms": 4, "marker": "D" if len(frontier) == 1 else ""}
        inside = frontier["loss"].where(~beyond)
        ax.plot(frontier["c"], inside, **look, lw=1.8, label=f"compute-optimal, {law.law.name}")
        if beyond.any():
            ax.plot(frontier["c"], frontier["loss"], **look, ls="--", lw=1, label="extrapolated")
    if len(points) and (E := law.params_.get("E", 0.0)) > 0.7 * points["loss"].min():
        ax.axhline(E, color=GREY, lw=0.8, ls=":", label=f"E = {E:.4g}")
    ax.set(xscale="log", yscale="log", xlabel=FLOPS, ylabel=LOSS)
    _round(ax.yaxis)
    return _legend(ax, "parameters n")


def isoflop_curves(points: pd.DataFrame, made: IsoFlop, ax: Axes) -> Axes:
    """Loss against n, a curve a budget: the runs (n, c, loss), the parabolas, and their vertices with 95 % of n.

    A run belongs to the budget of the nearest compute. Where there is no parabola, dotted lines join the runs. A
    refused vertex has no place: a hollow mark with a cross is at the lowest of its runs.
    """
    table = made.vertices.reset_index(drop=True)
    if not len(points) or not len(table):
        return _nothing(ax, "no budgets")
    away = np.abs(np.subtract.outer(np.log(points["c"].to_numpy(float)), np.log(table["c"].to_numpy(float))))
    for index, row in table.iterrows():
        runs, look = points[away.argmin(1) == index].sort_values("n"), _ordered(int(index), len(table))
        color = look["color"]
        ax.plot([], [], **look, ms=3.5, lw=1, label=_short(row["budget"]))
        ax.plot(runs["n"], runs["loss"], **look | {"linestyle": "none"}, ms=3.5, label="_runs")
        if row["accepted"] and np.isfinite(row["curvature"]):
            n = np.geomspace(row["n_min"], row["n_max"], STEPS)
            curve = row["loss"] + row["curvature"] / 2 * np.log(n / row["n"]) ** 2
            ax.plot(n, curve, color=color, ls=look["linestyle"], lw=1, label="_parabola")
        else:
            means = runs.groupby("n")["loss"].mean()
            ax.plot(means.index, means, color=color, ls=":", lw=0.8, label="_means")
        if row["accepted"]:
            ends = [row.get("lo", np.nan), row.get("hi", np.nan)]
            ax.plot(ends, [row["loss"]] * 2, color=color, lw=3, alpha=0.5, label="_interval")
            ax.plot(row["n"], row["loss"], color=color, marker=look["marker"], ms=8, mec="black", label="_vertex")
        elif len(runs):
            at = runs.loc[runs["loss"].idxmin()]
            ax.plot(at["n"], at["loss"], "o", mfc="white", mec=color, ms=9, label="_refused")
            ax.plot(at["n"], at["loss"], "x", color=color, ms=5)
    ax.set(xscale="log", yscale="log", xlabel="parameters n", ylabel=LOSS)
    _round(ax.yaxis)
    mark = partial(Line2D, [], [], ls="none", color=GREY)
    more: Look = {"vertex, 95 % of n": mark(marker="o", ms=8, mec="black")}
    if not table["accepted"].all():
        more["refused"] = (mark(marker="o", ms=9, mfc="white"), mark(marker="x", ms=5))
    return _legend(ax, f"budget (FLOPs), {made.method}", more)


def isoflop_exponents(made: IsoFlop, ax: Axes) -> Axes:
    """The accepted vertices n of each budget with 95 % of n, and n_opt = n_coef c^n_exponent with its interval.
    Crosses at the bottom are budgets whose vertex was refused."""
    table = made.vertices
    if not any(table.get("accepted", ())):
        return _nothing(ax, "no budget has a vertex")
    used, refused = table[table["accepted"]], table[~table["accepted"]]
    if "n_exponent" in made.params:
        law = made.at(np.geomspace(table["c"].min(), table["c"].max(), STEPS))
        _band(ax, law, "n_", BLUE, label="95 % interval")
        ends = made.ci95.get("n_exponent", (np.nan, np.nan))
        told = f"\n95 %: {ends[0]:.3f} to {ends[1]:.3f}" if np.isfinite(ends).all() else ""
        equation = f"n = {_short(made.params['n_coef'])} c^{made.params['n_exponent']:.3f}"
        ax.plot(law["c"], law["n"], color=BLUE, lw=1.2, label=equation + told)
    if {"lo", "hi"} <= set(used):
        ax.vlines(used["c"], used["lo"], used["hi"], color="black", lw=1)
    ax.plot(used["c"], used["n"], "o", color="black", ms=5, label=f"vertices, {made.method}")
    if len(refused):
        place = ax.get_xaxis_transform()
        ax.plot(refused["c"], np.full(len(refused), 0.02), "x", color=RED, label="refused", transform=place)
    ax.set(xscale="log", yscale="log", xlabel=FLOPS, ylabel="compute-optimal parameters n")
    return _legend(ax)


def residuals(
    law: ScalingLaw, c: Any, ax: Axes, noise: float | None = None, influence: pd.DataFrame | None = None
) -> Axes:
    """Residuals in % of the loss against the compute c of every point, positive where the law lies above it.

    The line is their median over a tenth of the points (five at least) in order of compute. `noise`, a standard
    deviation of log loss, is a band; the points of the first rows of `influence` have their numbers.
    """
    compute = np.asarray(c, dtype=float)
    if not len(compute):
        return _nothing(ax, "no points")
    percent = 100 * np.expm1(law.residuals_)
    if noise is not None and np.isfinite(noise):
        part = 100 * noise
        ax.axhspan(-part, part, color=GREY, alpha=0.2, lw=0, label=f"noise, ±{part:.2g} %")
    ax.axhline(0, color="black", lw=0.8)
    ax.plot(compute, percent, "o", color=BLUE, ms=4, mew=0, alpha=0.6, label="points")
    window = max(5, len(compute) // 10)
    if len(compute) > window:
        middle = pd.Series(percent, compute).sort_index(kind="stable").rolling(window, center=True).median()
        ax.plot(middle.index, middle, color="black", lw=1.5, label=f"median of {window}")
    if influence is not None and len(influence):
        numbers = influence["point"].to_numpy(int)[:MARKED]
        ax.plot(compute[numbers], percent[numbers], "s", mfc="none", mec=RED, ms=7, label="most influence,\nby row")
        for index, number in enumerate(numbers[np.argsort(compute[numbers], kind="stable")]):
            away = (6, 3) if index % 2 else (6, -8)
            ax.annotate(str(number), (compute[number], percent[number]), away, textcoords="offset points", fontsize=7)
    ax.set(xscale="log", xlabel=FLOPS, ylabel="law above the point (% of the loss)")
    return _legend(ax)


def profile_curve(profile: Profile, ax: Axes, lowest: float | None = None) -> Axes:
    """The least rise of the objective with a parameter held, against its value, with the threshold and the interval.
    Of the profile of E, `lowest` is the lowest loss of the points, which no E can be above."""
    values, rises = profile.values, profile.rises
    known = np.isfinite(values) & np.isfinite(rises)
    if not known.any():
        return _nothing(ax, f"no profile of {profile.name}")
    low, high = profile.interval
    if np.isfinite([low, high]).all():
        told, hatch = ("interval", "") if profile.identified else ("an end was not reached", "///")
        ax.axvspan(low, high, color=BLUE, alpha=0.15, lw=0, hatch=hatch, label=f"{low:.4g} to {high:.4g},\n{told}")
    ax.plot(values, rises, "o-", color=BLUE, ms=3, lw=1.2, label="profile")
    best = values[known][np.abs(rises[known]).argmin()]
    ax.plot(best, 0, "D", color="black", ms=6, label=f"estimate, {best:.4g}", zorder=3)
    ax.axhline(profile.threshold, color="black", lw=0.8, ls="--", label="threshold")
    if lowest is not None:
        ax.axvline(lowest, color=RED, lw=1, ls=":", label=f"lowest loss, {lowest:.4g}")
    top = max(min(rises[known].max(), 4 * profile.threshold), 1.2 * profile.threshold)
    ax.set_ylim(min(0.0, rises[known].min()) - 0.05 * top, 1.05 * top)
    if profile.name != "E" and values[known].min() > 0 and values[known].max() > 10 * values[known].min():
        ax.set_xscale("log")
    ax.set(xlabel=f"{profile.name}, held", ylabel="rise of the objective")
    return _legend(ax)


def tournament_bars(table: pd.DataFrame, ax: Axes) -> Axes:
    """Errors on held-out points of each contestant of a tournament's table, the best on top: the mean as a mark, from
    there a line to the largest. Contestants that failed have their reason instead."""
    if not len(table):
        return _nothing(ax, "no contestants")
    rows = table.reset_index(drop=True)
    names = [f"{row['form']}, {row['objective']} ({row['k']} parameters)" for _, row in rows.iterrows()]
    ax.set_yticks(range(len(rows)), names, fontsize=7)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    for index, objective in enumerate(dict.fromkeys(rows["objective"])):
        look, mine = style(index), rows[(rows["objective"] == objective) & rows["mean"].notna()]
        ax.hlines(mine.index, mine["mean"], mine["largest"], color=look["color"], lw=1.2)
        ax.plot(mine["largest"], mine.index, "|", color=look["color"], ms=6, label="_largest")
        ax.plot(mine["mean"], mine.index, **look | {"linestyle": "none"}, ms=5, label=str(objective))
    for y, row in rows[rows["mean"].isna()].iterrows():
        told = textwrap.shorten(f"failed {row['failed']}", 80, placeholder=" ...")
        ax.text(0.01, y, told, transform=ax.get_yaxis_transform(), fontsize=7, color=RED, va="center")
    known = rows["mean"].dropna()
    if not len(known):
        ax.set_xticks([])
    elif known.min() > 0 and rows["largest"].max() > 20 * known.min():
        ax.set_xscale("log")
        _round(ax.xaxis)
    ax.set_xlabel("error on held-out points (% of the loss), mean to largest")
    return _legend(ax, "objective")


def crossover_curves(laws: VariantLaws, baseline: str, variant: str, ax: Axes) -> Axes:
    """The laws of two variants with their bands and points, the range that both are sampled in, and where they cross.

    Bands are of probability `laws.level`; the interval of the crossover runs out of the figure where it is open.
    """
    try:
        low, high = laws.sampled(baseline, variant)
    except BadPoints as error:
        return _nothing(ax, str(error))
    found = laws.crossover(baseline, variant)
    seen = laws.points_[laws.points_["variant"].isin((baseline, variant))]
    beyond = [found["at"] / MARGIN, found["at"] * MARGIN] if found["distance"] > 1 else []
    log_c = np.log([*seen["scale"], *beyond])
    log_c = np.linspace(log_c.min(), log_c.max(), STEPS)
    left, right = np.exp(log_c[0]) / 1.2, np.exp(log_c[-1]) * 1.2
    ax.axvspan(low, high, color=GREY, alpha=0.12, lw=0, label="both are sampled")
    for index, (name, line) in enumerate(((baseline, "-"), (variant, "--"))):
        look, mine = style(index) | {"linestyle": line}, seen[seen["variant"] == name]
        curve = _variant_curve(laws, name, log_c)
        _band(ax, curve, "", look["color"])
        ax.plot(mine["scale"], mine["loss"], **look | {"linestyle": "none"}, ms=4, alpha=0.75, label="_points")
        ax.plot(curve["c"], curve["loss"], color=look["color"], ls=line, lw=1.4, label="_law")
        ax.plot([], [], **look, ms=4, label=name)
    if np.isfinite(found["at"]):
        ax.axvline(found["at"], color=RED, lw=1.2, ls="-.", label=f"{variant} {found['status']}")
    if not np.isnan([found["lo"], found["hi"]]).any():
        sides = np.clip([found["lo"], found["hi"]], left, right)
        ax.axvspan(*sides, fc="none", ec=RED, hatch="//", alpha=0.4, lw=0.5, label=f"{laws.level:.0%} interval")
    ax.set(xscale="log", yscale="log", xlim=(left, right), xlabel=FLOPS, ylabel=LOSS)
    _round(ax.yaxis)
    said = between.crossover_words(found, baseline, variant, laws.level).replace("; ", "\n", 1)
    ax.set_title(said, fontsize=8, loc="left")
    return _legend(ax)


def gain_curve(gain: pd.DataFrame, ax: Axes) -> Axes:
    """Compute-equivalent gain against compute with its interval, hollow outside of the sampled range.

    `gain` is that of `VariantLaws.gain`; a column `variant` makes a curve each. Gains of 0 and infinity are triangles
    at the edges, and bands that are open run out of the figure.
    """
    if not len(gain) or gain["gain"].isna().all():
        return _nothing(ax, "no gains")
    bottom, top = _gain_limits(gain)
    groups = list(gain.groupby("variant", sort=False)) if "variant" in gain else [("gain", gain)]
    for index, (name, part) in enumerate(groups):
        look, part = style(index + 2), part.sort_values("c")
        ends = part[["lo", "hi"]].clip(bottom / 1e3, top * 1e3)
        _band(ax, part.assign(**ends), "", look["color"], 0.18 if len(groups) < 5 else 0.05)
        values = part["gain"].where(np.isfinite(part["gain"]) & (part["gain"] > 0))
        ax.plot(part["c"], values, **look, lw=1.2, ms=5, label=str(name))
        hollow = ~part["sampled"].astype(bool)
        look |= {"linestyle": "none", "ms": 5, "label": "_outside"}
        ax.plot(part["c"][hollow], values[hollow], **look, mfc="white")
        for height, marker, gone in ((0.98, "^", np.isinf(part["gain"])), (0.02, "v", part["gain"] == 0)):
            look |= {"marker": marker, "transform": ax.get_xaxis_transform(), "label": "_gone"}
            ax.plot(part["c"][gone], np.full(int(gone.sum()), height), **look)
    ax.axhline(1, color="black", lw=0.8)
    ax.set(xscale="log", yscale="log", ylim=(bottom, top), xlabel=FLOPS, ylabel="compute-equivalent gain")
    _round(ax.yaxis)
    return _legend(ax) if "variant" in gain else ax


def race(table: pd.DataFrame, ax: Axes) -> Axes:
    """Who is ahead at each compute, of the table of `analysis.envelope.race`: a filled bar for the first and a thin
    hollow one for the second, a row each."""
    if not len(table):
        return _nothing(ax, "nobody is ahead")
    names = list(dict.fromkeys([*table["leader"], *table["runner_up"].dropna()]))
    if not any(isinstance(name, str) for name in names):
        names.sort()
    looks: dict[str, Look] = {
        "leader": {"height": 0.7, "facecolor": BLUE, "edgecolor": BLUE, "label": "ahead"},
        "runner_up": {"height": 0.3, "facecolor": "white", "edgecolor": GREY, "hatch": "////", "label": "second"},
    }
    for place, look in looks.items():
        rows = table[table[place].notna()]
        at = [names.index(name) for name in rows[place]]
        ax.barh(at, rows["c_to"] - rows["c_from"], left=rows["c_from"], lw=0.8, **look)
    ax.set_yticks(range(len(names)), [_size(name) for name in names], fontsize=7)
    ends = (table["c_from"].min() / 1.3, table["c_to"].max() * 1.3)
    ax.set(xscale="log", xlim=ends, xlabel=FLOPS, ylim=(-0.6, len(names) - 0.4))
    return _legend(ax, textwrap.fill("; ".join(dict.fromkeys(table["schedule"].astype(str))), 24))


def envelope_curves(curves: pd.DataFrame, made: Envelope, ax: Axes) -> Axes:
    """Training curves (trial, c, loss) in grey, a dot at each end, and on top their envelope, a line for each size
    that leads: dotted where the budget is refused."""
    if not len(curves) or curves["loss"].isna().all():
        return _nothing(ax, "no training curves")
    for index, (_, rows) in enumerate(curves.sort_values("c").groupby("trial", sort=False)):
        look: Look = {"color": GREY, "lw": 0.6, "alpha": 0.7, "marker": ".", "ms": 3, "markevery": [-1]}
        ax.plot(rows["c"], rows["loss"], **look, label="_trial" if index else "training curves")
    points = made.points
    sizes = sorted(points["n"].unique()) if len(points) else []
    for index, size in enumerate(sizes):
        look = _ordered(index, len(sizes)) | {"lw": 2.2, "ms": 5, "zorder": 3, "label": _size(size)}
        mine = points["n"] == size
        for rows, line in ((mine & points["accepted"], "-"), (mine & ~points["accepted"], ":")):
            if rows.any():
                middle = int(np.flatnonzero(rows)[int(rows.sum()) // 2])
                ax.plot(points["c"], points["loss"].where(rows), **look | {"linestyle": line}, markevery=[middle])
                look |= {"label": "_refused", "marker": ""}
    ax.set(xscale="log", yscale="log", xlabel=FLOPS, ylabel=LOSS)
    _round(ax.yaxis)
    more = {} if all(points.get("accepted", ())) else {"refused": Line2D([], [], color=GREY, ls=":", lw=2)}
    return _legend(ax, f"envelope, by n\n{textwrap.fill(made.schedule, 24)}".strip(), more)


def _nothing(ax: Axes, sentence: str) -> Axes:
    ax.text(0.5, 0.5, textwrap.fill(sentence, 80), transform=ax.transAxes, ha="center", fontsize=8, color=GREY)
    ax.set(xticks=[], yticks=[])
    return ax


def _legend(ax: Axes, title: str = "", more: Mapping[str, Any] | None = None) -> Axes:
    """Right of the axes, in columns of at most sixteen, whatever the data are."""
    handles, labels = ax.get_legend_handles_labels()
    handles, labels = [*handles, *(more or {}).values()], [*labels, *(more or {})]
    if handles:
        look: Look = {"fontsize": 7, "title_fontsize": 7, "frameon": False, "alignment": "left"}
        look |= {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "ncols": 1 + (len(handles) - 1) // 16}
        ax.legend(handles, labels, title=title, **look)
    return ax


def _ordered(index: int, count: int) -> Look:
    """Colour, marker and line of one of several sizes or budgets, smallest first."""
    color = colormaps["viridis"](0.78 * index / max(count - 1, 1))
    return {"color": color, "marker": MARKERS[index % len(MARKERS)], "linestyle": style(index)["linestyle"]}


def _bins(n: pd.Series) -> Iterator[tuple[str, Array]]:
    """Which points are of which size; of sizes in equal ratios where there are more than there are markers."""
    sizes = np.unique(n)
    edges = sizes[1:] if len(sizes) <= BINS else np.geomspace(sizes[0], sizes[-1], BINS + 1)[1:-1]
    which = np.searchsorted(edges, n, side="right")
    for number in np.unique(which):
        ends = (_size(n[which == number].min()), _size(n[which == number].max()))
        yield " to ".join(dict.fromkeys(ends)), which == number


def _band(ax: Axes, table: pd.DataFrame, of: str, color: str, alpha: float = 0.18, label: str = "_band") -> None:
    """Between the columns lo and hi over c, where both are known; a line where that is one point."""
    c, lo, hi = table["c"], table[f"{of}lo"], table[f"{of}hi"]
    if (known := lo.notna() & hi.notna()).sum() == 1:
        ax.vlines(c[known], lo[known], hi[known], color=color, lw=3, alpha=2 * alpha, label=label)
    elif known.any():
        ax.fill_between(c, lo, hi, color=color, alpha=alpha, lw=0, label=label)


def _variant_curve(laws: VariantLaws, variant: str, log_c: Array) -> pd.DataFrame:
    """c, loss, lo and hi of one variant's law."""
    fit, law, tail = laws.fit_, laws.fit_.law, (1 - laws.level) / 2
    assert isinstance(law, SharedLaw)
    theta = law.part(np.concatenate((fit.theta_[None], fit.thetas_)), variant)
    losses = np.exp(between.frontier(laws.base_, theta, fit.centre_[:-1], log_c, laws.kappa_.get(variant, 1.0)))
    lo, hi = np.nanquantile(losses[1:], [tail, 1 - tail], axis=0)
    return pd.DataFrame({"c": np.exp(log_c), "loss": losses[0], "lo": lo, "hi": hi})


def _gain_limits(gain: pd.DataFrame) -> tuple[float, float]:
    """Gains and 1 are in view, and intervals up to ten times beyond them."""
    values = gain[["gain", "lo", "hi"]].to_numpy(dtype=float)
    values = np.where(np.isfinite(values) & (values > 0), values, 1.0)
    low, high = max(values[:, 0].min() / 10, values.min()), min(values[:, 0].max() * 10, values.max())
    return float(min(low, 0.9) / 1.15), float(max(high, 1.1) * 1.15)


def _round(axis: Axis) -> None:
    """Round numbers on a logarithmic axis, also where it spans less than a decade."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(MaxNLocator(6) if high < 6 * low else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _size(value: Any) -> str:
    """Parameters in short; names as they are."""
    if isinstance(value, str):
        return value
    units = (each for each in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= each[0])
    unit, name = next(units, (1.0, ""))
    return f"{value / unit:.3g}{name}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}".replace("e+", "e")
