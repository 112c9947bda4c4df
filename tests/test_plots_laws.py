"""Figures of scaling laws: what is drawn is what the tables say, with intervals missing, few points, or none."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from analysis import plots_laws
from analysis.between import VariantLaws
from analysis.envelope import Envelope, envelope, race
from analysis.fit import ScalingLaw
from analysis.heldout import influence
from analysis.isoflop import IsoFlop, isoflop
from analysis.joint import SharedLaw
from analysis.optimal import frontier
from analysis.profiles import Profile, profile
from analysis.resampling import resampled
from analysis.tournament import Contestant, tournament

A, B, E, ALPHA, BETA = 406.4, 410.7, 1.69, 0.34, 0.28  # Hoffmann et al. 2022, equation 10
SMALLEST = 7  # points of text
Draw = Callable[[Axes], Axes]


def loss_of(n: Any, d: Any) -> Any:
    return E + A * n**-ALPHA + B * d**-BETA


def drawn(draw: Draw) -> Axes:
    """The axes after one figure, which must come to an SVG without a warning, with no text that is too small and with
    its legend beside the axes."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained", dpi=72)  # as an SVG has
    ax = figure.add_subplot()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(ax) is ax
        figure.savefig(io.BytesIO(), format="svg")
    seen = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert min(text.get_fontsize() for text in seen) >= SMALLEST
    legend = ax.get_legend()
    if legend is not None:
        frame, edges = legend.get_window_extent(), ax.get_window_extent()
        assert frame.x0 >= edges.x1 - 1 and frame.x1 <= figure.bbox.x1 + 1
        assert not legend.get_frame_on()
    return ax


def lines(ax: Axes, label: str) -> list[Line2D]:
    return [line for line in ax.get_lines() if line.get_label() == label]


def only(ax: Axes, label: str) -> Line2D:
    (line,) = lines(ax, label)
    return line


def xy(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.transpose(line.get_data())]


def known(*columns: Any) -> list[tuple[float, ...]]:
    return sorted(
        row for row in zip(*(map(float, column) for column in columns), strict=True) if np.isfinite(row).all()
    )


def names(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def bands(ax: Axes) -> list[PolyCollection]:
    return [each for each in ax.collections if isinstance(each, PolyCollection)]


def corners(band: PolyCollection) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for path in band.get_paths() for x, y in path.vertices}


def ends_of(ax: Axes) -> list[tuple[tuple[float, float], ...]]:
    """Of the lines that `hlines` and `vlines` draw."""
    found = [each.get_segments() for each in ax.collections if isinstance(each, LineCollection)]
    return [tuple((float(x), float(y)) for x, y in segment) for segments in found for segment in segments]


def spans(ax: Axes, label: str) -> list[Rectangle]:
    return [each for each in ax.patches if isinstance(each, Rectangle) and str(each.get_label()).startswith(label)]


def sides(span: Rectangle) -> tuple[float, float]:
    return span.get_x(), span.get_x() + span.get_width()


def looks(found: list[Line2D]) -> set[tuple[str, Any, str]]:
    return {(to_hex(each.get_color()), each.get_marker(), each.get_linestyle()) for each in found}


def said(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


# loss against compute


@cache
def points(sizes: int = 5, budgets: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n, ratio = map(np.ravel, np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(5, 500, budgets)))
    table = pd.DataFrame({"n": n, "d": ratio * n, "c": 6 * ratio * n**2})
    return table.assign(loss=loss_of(n, ratio * n) * np.exp(rng.normal(0, 0.005, len(n))))


@cache
def law() -> ScalingLaw:
    made = ScalingLaw("chinchilla").fit(points(), points()["loss"])
    made.bootstrap(resampled(len(points()), 40, least=6))
    return made


def test_points_go_by_size_and_the_frontier_has_its_band() -> None:
    table = frontier(law(), 1e18, 1e24, 9)
    beyond = table["extrapolated"].to_numpy(bool)
    assert 0 < beyond.sum() < 9
    ax = drawn(lambda ax: plots_laws.loss_and_frontier(points(), law(), table, ax))
    groups = [only(ax, label) for label in ("10M", "31.6M", "100M", "316M", "1B")]
    for line, (_, rows) in zip(groups, points().groupby("n"), strict=True):
        assert xy(line) == [*zip(rows["c"], rows["loss"], strict=True)]
    assert len({line.get_marker() for line in groups}) == len({to_hex(line.get_color()) for line in groups}) == 5
    inside, dashed = only(ax, "compute-optimal, chinchilla"), only(ax, "extrapolated")
    assert known(*inside.get_data()) == known(table["c"][~beyond], table["loss"][~beyond])
    assert xy(dashed) == known(table["c"], table["loss"]) and dashed.get_linestyle() == "--"
    (band,) = bands(ax)
    assert corners(band) >= {*known(table["c"], table["loss_lo"]), *known(table["c"], table["loss_hi"])}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training FLOPs", "loss (nats/token)")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_the_offset_is_a_line_where_it_is_near() -> None:
    table, far = frontier(law(), points=3), points().assign(loss=points()["loss"] + 3)
    near = drawn(lambda ax: plots_laws.loss_and_frontier(points(), law(), table, ax))
    (label,) = [name for name in names(near) if name.startswith("E = ")]
    assert only(near, label).get_ydata()[0] == law().params_["E"]
    assert "E = " not in " ".join(names(drawn(lambda ax: plots_laws.loss_and_frontier(far, law(), table, ax))))


def test_many_sizes_are_eight_bins() -> None:
    many = points(sizes=23, budgets=2)
    ax = drawn(lambda ax: plots_laws.loss_and_frontier(many, law(), pd.DataFrame(), ax))
    groups = [line for line in ax.get_lines() if line.get_marker() not in ("None", "")]
    assert len(groups) == 8 == len(looks(groups))
    assert sorted(each for line in groups for each in xy(line)) == known(many["c"], many["loss"])
    assert any(" to " in name for name in names(ax))


def test_without_an_interval_a_frontier_has_no_band_and_one_point_is_a_mark() -> None:
    bare = ScalingLaw("chinchilla").fit(points(), points()["loss"])
    ax = drawn(lambda ax: plots_laws.loss_and_frontier(points(), bare, frontier(bare, points=4), ax))
    assert bands(ax) == []
    one = frontier(law(), 1e19, 1e19, 1)
    ax = drawn(lambda ax: plots_laws.loss_and_frontier(points().iloc[:1], law(), one, ax))
    assert only(ax, "compute-optimal, chinchilla").get_marker() == "D"
    assert ends_of(ax) == [((1e19, one["loss_lo"][0]), (1e19, one["loss_hi"][0]))]


# isoFLOP


@cache
def runs(budgets: int = 4) -> pd.DataFrame:
    """Budgets of seven runs; those of the second lie all above its best size."""
    rng, parts = np.random.default_rng(1), []
    for index, c in enumerate(np.geomspace(1e18, 1e21, budgets)):
        best = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (c / 6) ** (BETA / (ALPHA + BETA))
        n = best * np.geomspace(1 / 4, 4, 7) * (9 if index == 1 else 1)
        loss = loss_of(n, c / 6 / n) * np.exp(rng.normal(0, 5e-4, 7))
        parts.append(pd.DataFrame({"n": n, "d": c / 6 / n, "c": c * np.exp(rng.normal(0, 0.01, 7)), "loss": loss}))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=0)


@cache
def made(budgets: int = 4, draws: int = 30) -> IsoFlop:
    return isoflop(runs(budgets), draws=draws)


def test_parabolas_go_through_their_vertices() -> None:
    table = made().vertices
    assert table["accepted"].tolist() == [True, False, True, True]
    ax = drawn(lambda ax: plots_laws.isoflop_curves(runs(), made(), ax))
    used = table[table["accepted"]]
    assert [xy(line)[0] for line in lines(ax, "_vertex")] == [*zip(used["n"], used["loss"], strict=True)]
    assert [tuple(line.get_xdata()) for line in lines(ax, "_interval")] == [*zip(used["lo"], used["hi"], strict=True)]
    assert sorted(each for line in lines(ax, "_runs") for each in xy(line)) == known(runs()["n"], runs()["loss"])
    for line, c in zip(lines(ax, "_parabola"), used["c"], strict=True):
        part = runs()[np.abs(np.log(runs()["c"] / c)) < 0.1]
        n, loss = line.get_data()
        assert np.polyval(np.polyfit(np.log(part["n"]), part["loss"], 2), np.log(n)) == pytest.approx(loss, rel=1e-9)
        assert (n[0], n[-1]) == pytest.approx((part["n"].min(), part["n"].max()))
    assert [*names(ax)[-2:]] == ["vertex, 95 % of n", "refused"]


def test_a_refused_vertex_is_hollow_with_a_cross_at_the_lowest_run() -> None:
    ax = drawn(lambda ax: plots_laws.isoflop_curves(runs(), made(), ax))
    part = runs()[np.abs(np.log(runs()["c"] / 1e19)) < 0.1]
    at = part.loc[part["loss"].idxmin()]
    circle = only(ax, "_refused")
    assert xy(circle) == [(at["n"], at["loss"])] and circle.get_markerfacecolor() == "white"
    assert [xy(line) for line in ax.get_lines() if line.get_marker() == "x"] == [xy(circle)]
    means = only(ax, "_means")
    assert xy(means) == known(part["n"], part["loss"]) and means.get_linestyle() == ":"


@pytest.mark.parametrize("budgets", [2, 20])
def test_budgets_look_different(budgets: int) -> None:
    found = isoflop(runs(20), draws=0) if budgets == 20 else isoflop(runs(4)[runs(4)["c"] > 5e19], draws=0)
    ax = drawn(lambda ax: plots_laws.isoflop_curves(runs(20) if budgets == 20 else runs(4), found, ax))
    proxies = [line for name in names(ax)[:budgets] for line in lines(ax, name)]
    assert len(looks(proxies)) == len(proxies) == budgets
    assert len({(line.get_marker(), line.get_linestyle()) for line in proxies}) == budgets  # without any colour


def test_akima_has_no_parabola_and_a_budget_may_have_a_name() -> None:
    named = runs().assign(name=np.where(runs()["c"] > 5e19, "large", "small"))
    found = isoflop(runs(), method="akima", draws=0)
    ax = drawn(lambda ax: plots_laws.isoflop_curves(runs(), found, ax))
    assert not lines(ax, "_parabola") and len(lines(ax, "_means")) == 4
    assert len(lines(ax, "_vertex")) == found.vertices["accepted"].sum()
    labels = replace(found, vertices=found.vertices.assign(budget=["a", "b", "c", "d"]))
    assert names(drawn(lambda ax: plots_laws.isoflop_curves(named, labels, ax)))[:4] == ["a", "b", "c", "d"]


def test_the_exponent_has_its_vertices_and_its_band() -> None:
    ax = drawn(lambda ax: plots_laws.isoflop_exponents(made(), ax))
    used = made().vertices[made().vertices["accepted"]]
    assert xy(only(ax, "vertices, parabola")) == known(used["c"], used["n"])
    whiskers = [((c, lo), (c, hi)) for c, lo, hi in zip(used["c"], used["lo"], used["hi"], strict=True)]
    assert ends_of(ax) == whiskers
    (line,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("n = ")]
    params, ends = made().params, made().ci95["n_exponent"]
    c, n = line.get_data()
    assert params["n_coef"] * c ** params["n_exponent"] == pytest.approx(n, rel=1e-9)
    assert f"c^{params['n_exponent']:.3f}\n95 %: {ends[0]:.3f} to {ends[1]:.3f}" in str(line.get_label())
    (band,), law = bands(ax), made().at(c)
    assert corners(band) >= {*known(law["c"], law["n_lo"]), *known(law["c"], law["n_hi"])}
    assert only(ax, "refused").get_xdata().tolist() == made().vertices["c"][[1]].tolist()


def test_an_exponent_without_resamples_has_no_interval() -> None:
    ax = drawn(lambda ax: plots_laws.isoflop_exponents(made(draws=0), ax))
    assert bands(ax) == [] and ends_of(ax) == [] and "95 %" not in " ".join(names(ax))


def test_all_budgets_may_be_refused() -> None:
    refused = IsoFlop({}, vertices=made().vertices.assign(accepted=False, n=np.nan, loss=np.nan))
    assert len(lines(drawn(lambda ax: plots_laws.isoflop_curves(runs(), refused, ax)), "_refused")) == 4
    assert said(drawn(lambda ax: plots_laws.isoflop_exponents(refused, ax))) == ["no budget has a vertex"]


# residuals and profiles


def test_residuals_are_the_law_less_the_points() -> None:
    c, table = points()["c"].to_numpy(), influence(law())
    ax = drawn(lambda ax: plots_laws.residuals(law(), c, ax, 0.004, table))
    percent = 100 * (law().predict(points()) / points()["loss"].to_numpy() - 1)
    x, y = only(ax, "points").get_data()
    assert x.tolist() == c.tolist() and y == pytest.approx(percent, abs=1e-9)
    (noise,) = spans(ax, "noise")
    assert (noise.get_y(), noise.get_y() + noise.get_height()) == pytest.approx((-0.4, 0.4))
    numbers = table["point"].tolist()[:5]
    assert sorted(said(ax)) == sorted(map(str, numbers))
    assert only(ax, "most influence,\nby row").get_xdata().tolist() == c[numbers].tolist()
    order = np.argsort(c, kind="stable")
    x, middle = only(ax, "median of 5").get_data()
    wanted = [np.median(percent[order][k - 2 : k + 3]) for k in range(2, len(c) - 2)]
    assert x.tolist() == c[order].tolist() and middle[2:-2] == pytest.approx(np.array(wanted), abs=1e-9)
    assert np.isnan(middle[[0, 1, -2, -1]]).all()


def test_residuals_need_neither_noise_nor_influence() -> None:
    ax = drawn(lambda ax: plots_laws.residuals(law(), points()["c"], ax))
    assert spans(ax, "noise") == [] and said(ax) == [] and names(ax) == ["points", "median of 5"]
    few = ScalingLaw("power").fit([1e18, 1e19, 1e20], [4.0, 3.5, 3.1])
    ax = drawn(lambda ax: plots_laws.residuals(few, [1e18, 1e19, 1e20], ax, np.nan, influence(few).iloc[:0]))
    assert names(ax) == ["points"] and len(xy(only(ax, "points"))) == 3


@cache
def held() -> Profile:
    return profile(law(), "E")


def test_a_profile_has_its_threshold_its_interval_and_the_lowest_loss() -> None:
    found = held()
    ax = drawn(lambda ax: plots_laws.profile_curve(found, ax, law().lowest_))
    assert xy(only(ax, "profile")) == known(found.values, found.rises)
    assert set(only(ax, "threshold").get_ydata()) == {found.threshold}
    (interval,) = [each for each in ax.patches if isinstance(each, Rectangle)]
    assert sides(interval) == pytest.approx(found.interval)
    assert not interval.get_hatch() and found.identified
    (lowest,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("lowest loss")]
    assert set(lowest.get_xdata()) == {law().lowest_}
    (best,) = [line for line in ax.get_lines() if line.get_marker() == "D"]
    assert xy(best) == [(law().params_["E"], 0.0)]
    assert ax.get_xlabel() == "E, held"


def test_a_profile_that_is_open_or_has_gaps() -> None:
    found = replace(held(), name="B")
    wide = replace(found, values=np.array([1.0, 50.0, 4000.0]), rises=np.array([0.1, 0.0, np.nan]), identified=False)
    ax = drawn(lambda ax: plots_laws.profile_curve(replace(wide, threshold=1e-9), ax))
    assert ax.get_xscale() == "log" and ax.get_ylim()[1] < 1e-8  # the threshold is seen, not all of the rise
    (interval,) = [each for each in ax.patches if isinstance(each, Rectangle)]
    assert interval.get_hatch() and "an end was not reached" in str(interval.get_label())
    none = replace(wide, interval=(np.nan, np.nan))
    assert not drawn(lambda ax: plots_laws.profile_curve(none, ax)).patches
    one = replace(found, values=np.array([2.0]), rises=np.array([0.0]))
    assert xy(only(drawn(lambda ax: plots_laws.profile_curve(one, ax)), "profile")) == [(2.0, 0.0)]


# tournaments


@cache
def contest() -> pd.DataFrame:
    contestants = [Contestant(form, by) for form in ("chinchilla_tied", "power") for by in ("huber", "l2_log")]
    columns = {name: points()[name] for name in ("n", "d")}
    many = [*contestants, Contestant("routing")]
    return tournament(columns, points()["loss"], points()["c"], many, splits=(0.3,)).table


def test_contestants_are_in_order_with_their_mean_and_largest_error() -> None:
    table = contest()
    ax = drawn(lambda ax: plots_laws.tournament_bars(table, ax))
    rows = table[table["failed"] == ""]
    ticks = [tick.get_text() for tick in ax.get_yticklabels()]
    assert [tick.split(" (")[0] for tick in ticks] == [*(table["form"] + ", " + table["objective"])]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    dots = [only(ax, by) for by in ("huber", "l2_log")]
    assert sorted(each for line in dots for each in xy(line)) == known(rows["mean"], rows.index)
    assert len({line.get_marker() for line in dots}) == 2 == len({line.get_color() for line in dots})
    whiskers = [((row["mean"], y), (row["largest"], y)) for y, row in rows.iterrows()]
    assert sorted(ends_of(ax)) == sorted(whiskers)


def test_contestants_that_failed_say_why() -> None:
    table = contest()
    (why,) = table["failed"][table["failed"] != ""]
    ax = drawn(lambda ax: plots_laws.tournament_bars(table, ax))
    (told,) = ax.texts
    assert told.get_text().startswith("failed " + why[:40]) and told.get_position()[1] == len(table) - 1
    long = table.assign(failed="without the top 50 %: " + "a word " * 90, mean=np.nan, largest=np.nan)
    ax = drawn(lambda ax: plots_laws.tournament_bars(long, ax))
    assert len(ax.texts) == len(table) and max(map(len, said(ax))) <= 80 and len(ax.get_xticks()) == 0


@pytest.mark.parametrize(("spread", "scale"), [(3.0, "linear"), (300.0, "log")])
def test_far_apart_errors_are_on_a_logarithmic_axis(spread: float, scale: str) -> None:
    one = contest().iloc[:1]
    table = pd.concat([one, one.assign(mean=one["mean"] * spread, largest=one["mean"] * spread)])
    assert drawn(lambda ax: plots_laws.tournament_bars(table, ax)).get_xscale() == scale


# variants


@cache
def variants(cross: float = 3e18) -> VariantLaws:
    """`rope` meets `base` at `cross`, `half` is `base` at twice the compute, and `far` is sampled elsewhere."""
    rng, rows = np.random.default_rng(3), []
    shapes = {"base": (1.0, 0.2), "rope": ((cross / 1e18) ** 0.06, 0.26), "half": (2**-0.2, 0.2), "far": (1.0, 0.2)}
    for k, c in enumerate(np.geomspace(1e17, 1e20, 6)):
        for seed in range(2):
            same = rng.normal(0, 0.005)
            for variant, (scale, alpha) in shapes.items():
                at = c * (1e6 if variant == "far" else 1)
                loss = (1.7 + scale * (at / 1e18) ** -alpha) * np.exp(same + rng.normal(0, 0.003))
                rows.append({"variant": variant, "size": f"d{k}", "seed": seed, "train_flops": at, "loss": loss})
    return VariantLaws(objective="l2_log", resamples=40).fit(pd.DataFrame(rows))


def test_variants_have_their_curves_bands_and_points() -> None:
    laws = variants()
    ax = drawn(lambda ax: plots_laws.crossover_curves(laws, "base", "rope", ax))
    assert isinstance(laws.fit_.law, SharedLaw)
    parts = zip(("base", "rope"), lines(ax, "_law"), bands(ax), lines(ax, "_points"), strict=True)
    for variant, curve, band, dots in parts:
        c, loss = curve.get_data()
        x = laws.fit_.law.numbered(pd.DataFrame({"variant": variant, "c": c}))
        assert loss == pytest.approx(laws.fit_.predict(x), rel=1e-9)
        lo, hi = np.quantile(laws.fit_.predict_samples(x), [0.05, 0.95], axis=0)
        edges = np.array([(x, y) for x, y in sorted(corners(band)) if x < c[1]])
        assert (edges[:, 1].min(), edges[:, 1].max()) == pytest.approx((lo[0], hi[0]), rel=1e-9)
        mine = laws.points_[laws.points_["variant"] == variant]
        assert xy(dots) == [*zip(mine["scale"], mine["loss"], strict=True)]
    assert len(looks([only(ax, "base"), only(ax, "rope")])) == 2
    assert only(ax, "base").get_marker() != only(ax, "rope").get_marker()
    assert only(ax, "base").get_linestyle() != only(ax, "rope").get_linestyle()


def test_a_crossover_is_a_line_with_its_interval() -> None:
    found = variants().crossover("base", "rope")
    ax = drawn(lambda ax: plots_laws.crossover_curves(variants(), "base", "rope", ax))
    assert set(only(ax, "rope overtakes").get_xdata()) == {found["at"]}
    assert sides(spans(ax, "90% interval")[0]) == pytest.approx((found["lo"], found["hi"]))
    assert sides(spans(ax, "both are sampled")[0]) == pytest.approx(variants().sampled("base", "rope"))
    assert ax.get_title("left").startswith("rope overtakes base at ")


def test_a_crossover_outside_of_the_range_is_in_view_and_its_open_interval_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laws = variants(3e21)
    found = laws.crossover("base", "rope") | {"hi": np.inf}
    monkeypatch.setattr(laws, "crossover", lambda *_: found)
    ax = drawn(lambda ax: plots_laws.crossover_curves(laws, "base", "rope", ax))
    assert found["distance"] > 1 and ax.get_xlim()[1] > found["at"]
    assert sides(spans(ax, "90% interval")[0])[1] == pytest.approx(ax.get_xlim()[1])
    assert lines(ax, "_law")[0].get_xdata()[-1] == pytest.approx(3 * found["at"])


def test_variants_that_do_not_cross_have_no_crossover() -> None:
    ax = drawn(lambda ax: plots_laws.crossover_curves(variants(), "base", "half", ax))
    assert names(ax) == ["both are sampled", "base", "half"] and spans(ax, "90%") == []
    assert ax.get_title("left").startswith("half is ahead of base everywhere")


def test_variants_with_no_range_in_common_are_a_sentence() -> None:
    ax = drawn(lambda ax: plots_laws.crossover_curves(variants(), "base", "far", ax))
    assert said(ax) == ["base and far have no range of compute in common"]


def test_a_gain_has_its_interval_and_is_hollow_where_nothing_was_sampled() -> None:
    gain = variants().gain("base", "rope", np.geomspace(1e16, 1e21, 6))
    assert 0 < gain["sampled"].sum() < 6
    ax = drawn(lambda ax: plots_laws.gain_curve(gain, ax))
    assert xy(only(ax, "gain")) == known(gain["c"], gain["gain"])
    (band,) = bands(ax)
    assert corners(band) >= {*known(gain["c"], gain["lo"]), *known(gain["c"], gain["hi"])}
    hollow = only(ax, "_outside")
    assert hollow.get_xdata().tolist() == gain["c"][~gain["sampled"]].tolist()
    assert hollow.get_markerfacecolor() == "white"
    assert any(set(line.get_ydata()) == {1} for line in ax.get_lines())  # no gain
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training FLOPs", "compute-equivalent gain")


def test_gains_without_end_are_at_the_edges() -> None:
    gain = variants().gain("base", "half").assign(gain=[0, 1.5, 2, np.nan, np.inf], lo=[0, 1, 1, np.nan, 2])
    gain["hi"] = [0.5, 2, 1e9, np.nan, np.inf]
    ax = drawn(lambda ax: plots_laws.gain_curve(gain, ax))
    assert known(*only(ax, "gain").get_data()) == known(gain["c"][1:3], gain["gain"][1:3])
    up, down = (next(line for line in lines(ax, "_gone") if line.get_marker() == each) for each in "^v")
    assert (up.get_xdata().tolist(), down.get_xdata().tolist()) == ([gain["c"][4]], [gain["c"][0]])
    assert 2 < ax.get_ylim()[1] < 30  # the gains are in view, an interval runs out
    one = gain.iloc[1:2].assign(lo=np.nan, hi=np.nan)
    ax = drawn(lambda ax: plots_laws.gain_curve(one, ax))
    assert bands(ax) == [] and len(xy(only(ax, "gain"))) == 1


@pytest.mark.parametrize("count", [1, 20])
def test_gains_of_many_variants_look_different(count: int) -> None:
    gain = variants().gain("base", "half")
    many = pd.concat([gain.assign(variant=f"v{k}", gain=gain["gain"] * (1 + k / 10)) for k in range(count)])
    ax = drawn(lambda ax: plots_laws.gain_curve(many, ax))
    assert names(ax) == [f"v{k}" for k in range(count)]
    assert len(looks([only(ax, name) for name in names(ax)])) == count == len(bands(ax))


# races and envelopes


@cache
def curves(sizes: int = 6) -> pd.DataFrame:
    parts = []
    for index, n in enumerate(np.geomspace(1e7, 1e9, sizes)):
        d = np.geomspace(n / 2, 300 * n, 30)
        part = pd.DataFrame({"n": n, "d": d, "c": 6 * n * d, "loss": loss_of(n, d), "schedule": "constant"})
        parts.append(part.assign(trial=f"t{index}"))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("sizes", [4, 20])
def test_a_race_has_a_bar_for_each_interval(sizes: int) -> None:
    table = race(curves(sizes))
    ax = drawn(lambda ax: plots_laws.race(table, ax))
    ticks = [tick.get_text() for tick in ax.get_yticklabels()]
    sizes_seen = sorted({*table["leader"], *table["runner_up"].dropna()})
    assert len(ticks) == len(sizes_seen) and ticks[0] == "10M"
    for bars, place in zip(ax.containers, ("leader", "runner_up"), strict=True):
        rows = table[table[place].notna()]
        found = [(*sides(bar), round(bar.get_y() + bar.get_height() / 2)) for bar in bars]
        wanted = [(row["c_from"], row["c_to"], sizes_seen.index(row[place])) for _, row in rows.iterrows()]
        assert np.array(found) == pytest.approx(np.array(wanted))
    first, second = (bars[0] for bars in ax.containers)
    assert second.get_hatch() and not first.get_hatch()
    assert ax.get_xlim()[0] < table["c_from"].min() and ax.get_xlim()[1] > table["c_to"].max()
    assert names(ax) == ["ahead", "second"]


def test_a_race_of_names_at_one_compute() -> None:
    table = pd.DataFrame({"c_from": [1e18, 1e18], "c_to": [1e18, 1e18], "leader": ["rope", "alibi"]})
    table = table.assign(runner_up=[None, "rope"], margin=np.nan, schedule="cosine (ends of runs)")
    ax = drawn(lambda ax: plots_laws.race(table, ax))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["rope", "alibi"]
    assert [len(bars) for bars in ax.containers] == [2, 1]


@pytest.mark.parametrize("sizes", [6, 20])
def test_an_envelope_is_on_top_of_its_curves(sizes: int) -> None:
    found = envelope(curves(sizes), grid=60, draws=0)
    ax = drawn(lambda ax: plots_laws.envelope_curves(curves(sizes), found, ax))
    trials = lines(ax, "training curves") + lines(ax, "_trial")
    assert sorted(each for line in trials for each in xy(line)) == known(curves(sizes)["c"], curves(sizes)["loss"])
    pieces = [line for line in ax.get_lines() if line not in trials]
    assert min(line.get_zorder() for line in pieces) > max(line.get_zorder() for line in trials)
    for accepted, style in ((True, "-"), (False, ":")):
        rows = found.points[found.points["accepted"] == accepted]
        drawn_so = [line for line in pieces if line.get_linestyle() == style]
        assert sorted(each for line in drawn_so for each in known(*line.get_data())) == known(rows["c"], rows["loss"])
        assert len(rows) > 0
    leaders = [line for line in pieces if line.get_label() != "_refused"]
    assert len(leaders) == found.points["n"].nunique() == len(looks(leaders))
    assert names(ax)[-1] == "refused" and names(ax)[0] == "training curves"


def test_curves_without_an_envelope_are_drawn() -> None:
    one = curves().iloc[:1]
    ax = drawn(lambda ax: plots_laws.envelope_curves(one, Envelope({}), ax))
    assert xy(only(ax, "training curves")) == known(one["c"], one["loss"])
    assert names(ax) == ["training curves"]
    holes = curves().assign(loss=curves()["loss"].where(curves().index % 3 > 0))
    drawn(lambda ax: plots_laws.envelope_curves(holes, Envelope({}), ax))


NOTHING: dict[str, tuple[Draw, str]] = {
    "points": (lambda ax: plots_laws.loss_and_frontier(pd.DataFrame(), law(), pd.DataFrame(), ax), "no points"),
    "isoflop": (lambda ax: plots_laws.isoflop_curves(runs(), IsoFlop({}), ax), "no budgets"),
    "runs": (lambda ax: plots_laws.isoflop_curves(runs().iloc[:0], made(), ax), "no budgets"),
    "exponents": (lambda ax: plots_laws.isoflop_exponents(IsoFlop({}), ax), "no budget has a vertex"),
    "residuals": (lambda ax: plots_laws.residuals(law(), [], ax), "no points"),
    "profile": (
        lambda ax: plots_laws.profile_curve(replace(held(), rises=np.full(3, np.nan), values=np.ones(3)), ax),
        "no profile of E",
    ),
    "tournament": (lambda ax: plots_laws.tournament_bars(pd.DataFrame(), ax), "no contestants"),
    "gain": (lambda ax: plots_laws.gain_curve(pd.DataFrame(), ax), "no gains"),
    "gains": (lambda ax: plots_laws.gain_curve(pd.DataFrame({"c": [1e18], "gain": [np.nan]}), ax), "no gains"),
    "race": (lambda ax: plots_laws.race(pd.DataFrame(), ax), "nobody is ahead"),
    "diverged": (
        lambda ax: plots_laws.envelope_curves(curves().assign(loss=np.nan), Envelope({}), ax),
        "no training curves",
    ),
    "curves": (lambda ax: plots_laws.envelope_curves(pd.DataFrame(), Envelope({}), ax), "no training curves"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_without_data_there_is_a_sentence(name: str) -> None:
    draw, sentence = NOTHING[name]
    ax = drawn(draw)
    assert said(ax) == [sentence]
    assert not ax.get_lines() and len(ax.get_xticks()) == 0
