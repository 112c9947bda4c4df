"""The figures of the pages, of recorded trials or of data made up for them: `python docs/generate/figures.py`.

They are kept in docs/figures/, so that they are seen in the repository too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from analysis import plots, plots_laws
from analysis.effects import compare
from analysis.figure import svg
from analysis.fit import ScalingLaw
from analysis.isoflop import isoflop
from analysis.table import validated
from analysis.tables import comparison_table
from analysis.tuning import reported

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "figures"
BLUE, RED, GREY = "#0072B2", "#D55E00", plots.GREY
WORDS = ("trial_id", "group_id", "variant", "stage", "axes", "budget", "size")  # columns
KNOWN = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}  # of the made-up law, after Hoffmann et al.


def records(name: str) -> pd.DataFrame:
    """A study's trials as they were recorded, without those of its sweeps."""
    table = pd.read_csv(ROOT / "experiments" / "records" / f"{name}.csv.gz", dtype=dict.fromkeys(WORDS, str))
    return table[(table["status"] == "finished") & (table["stage"] != "tune")]


def modifications() -> pd.DataFrame:
    """The rows of `experiments/modifications_transfer.yaml` at d64 against its baseline, the best first, as its
    report has them: Holm's correction is over both sizes."""
    table = validated(records("modifications_transfer"), "modifications_transfer")
    found = comparison_table(reported(table, {"train.lr": 1}), "vanilla")
    found = found[(found["size"] == "d64") & found["diff"].notna()]
    return found.sort_values("diff").reset_index(drop=True)


def modifications_table() -> list[str]:
    """The best and the worst of them, as Markdown."""
    found = modifications()
    lines = [
        "| variant | difference, nats/token | 95 % interval | p, after Holm | verdict |",
        "|---|---:|---|---:|---|",
    ]
    for _, row in pd.concat((found.head(4), found.tail(3))).iterrows():
        ends = f"{row['lo']:+.3f} to {row['hi']:+.3f}"
        p = f"{row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else "below 0.001"
        lines.append(f"| `{row['variant']}` | {row['diff']:+.3f} | {ends} | {p} | {row['verdict']} |")
    return lines


def draw_modifications(ax: Axes) -> None:
    _rows(modifications(), ax)


def draw_seeds(ax: Axes) -> None:
    """Six variants of `experiments/racing.yaml` by their first three seeds and by all twelve."""
    table = records("racing")
    chosen = ["vanilla", "gelu", "swish", "softplus", "rmsnorm", "geglu", "elu"]
    table = table[table["variant"].isin(chosen)]
    for offset, seeds, color in ((0.16, 3, GREY), (-0.16, 12, BLUE)):
        found = compare(table[table["seed"] < seeds], "vanilla").set_index("variant").loc[chosen[:0:-1]]
        for y, (_, row) in enumerate(found.iterrows()):
            ax.plot([row["lo"], row["hi"]], [y + offset] * 2, color=color, lw=1.5)
            sure = row["verdict"] in ("better", "worse")
            label = f"{seeds} seeds" if y == 0 else "_"
            ax.plot(row["diff"], y + offset, "o", color=color, mfc=color if sure else "white", ms=5, label=label)
    ax.set_yticks(range(len(chosen) - 1), chosen[:0:-1], fontsize=8)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlabel("difference of the loss from vanilla (nats/token), 95 % interval; left is better")
    ax.legend(frameon=False, fontsize=8)


def draw_pairs(ax: Axes) -> None:
    """The loss of twelve seeds of two variants of `experiments/racing.yaml`, joined where the seed is the same."""
    table = records("racing").pivot_table(index="seed", columns="variant", values="loss")
    for index, name in enumerate(("vanilla", "geglu")):
        ax.plot(table.index, table[name], **plots.style(index) | {"linestyle": "none"}, ms=6, label=name)
    ax.vlines(table.index, table["geglu"], table["vanilla"], color=GREY, lw=1)
    ax.set(xlabel="seed", ylabel="loss (nats/token)", xticks=table.index)
    ax.legend(frameon=False, fontsize=8)


def draw_verdicts(ax: Axes) -> None:
    """Made up: the four verdicts, with 0.05 as the smallest effect of interest."""
    cases = [
        ("better", -0.12, 0.05),
        ("equivalent", 0.01, 0.025),
        ("indistinguishable", -0.06, 0.09),
        ("worse", 0.11, 0.06),
    ]
    ax.axvspan(-0.05, 0.05, color=GREY, alpha=0.18, lw=0, label="smaller than `smallest`")
    for y, (verdict, diff, half) in enumerate(reversed(cases)):
        color = {"better": BLUE, "worse": RED}.get(verdict, GREY)
        ax.plot([diff - half, diff + half], [y, y], color=color, lw=2)
        ax.plot(diff, y, "o", color=color, mfc=color if verdict in ("better", "worse") else "white", ms=6)
    ax.set_yticks(range(4), [verdict for verdict, *_ in reversed(cases)])
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlabel("difference of the loss from the baseline, interval (made up)")
    ax.set_ylim(-0.6, 3.6)
    ax.legend(frameon=False, fontsize=8, loc="upper right")


def draw_law(ax: Axes) -> None:
    """Made up: points of a known law with noise, what is fitted to them, and what the fit does not know."""
    rng = np.random.default_rng(3)
    c = np.geomspace(1e15, 1e18, 14)
    loss = _truth(c) * np.exp(0.01 * rng.standard_normal(len(c)))
    law = ScalingLaw("power_offset").fit(c, loss)
    law.bootstrap(rng.multinomial(len(c), np.full(len(c), 1 / len(c)), size=1000).astype(float))
    wide = np.geomspace(1e15, 1e22, 200)
    low, high = np.nanquantile(law.predict_samples(wide), [0.05, 0.95], axis=0)
    ax.axvspan(c[0], c[-1], color=GREY, alpha=0.12, lw=0, label="where there are points")
    ax.fill_between(wide, low, high, color=BLUE, alpha=0.18, lw=0, label="90 % of the resampled fits")
    ax.plot(wide, law.predict(wide), color=BLUE, lw=1.5, label="fitted law")
    ax.plot(wide, _truth(wide), color="black", lw=1, ls="--", label="the law that made the points")
    ax.plot(c, loss, "o", color="black", ms=4, label="trials (made up)")
    ax.set(xscale="log", xlabel="training FLOPs", ylabel="loss")
    ax.legend(frameon=False, fontsize=8)


def draw_isoflop(ax: Axes) -> None:
    """Made up: runs of four budgets at several sizes; the last budget has no size beyond its best."""
    rng, rows = np.random.default_rng(0), []
    for c in (1e18, 1e19, 1e20, 1e21):
        best = _best(c)
        for ratio in np.geomspace(1 / 4, 4, 7) if c < 1e21 else np.geomspace(1 / 20, 1 / 2.5, 7):
            n = best * ratio
            rows.append(
                {
                    "n": n,
                    "d": c / (6 * n),
                    "c": c,
                    "loss": _loss(n, c / (6 * n)) * np.exp(0.001 * rng.standard_normal()),
                }
            )
    points = pd.DataFrame(rows)
    plots_laws.isoflop_curves(points, isoflop(points, draws=200), ax)


def _loss(n: Any, d: Any) -> Any:
    return KNOWN["E"] + KNOWN["A"] * n ** -KNOWN["alpha"] + KNOWN["B"] * d ** -KNOWN["beta"]


def _best(c: Any) -> Any:
    """The n of the lowest loss at c = 6 n d."""
    a, b = KNOWN["alpha"], KNOWN["beta"]
    return (a * KNOWN["A"] / (b * KNOWN["B"])) ** (1 / (a + b)) * (c / 6) ** (b / (a + b))


def _truth(c: Any) -> Any:
    n = _best(c)
    return _loss(n, c / (6 * n))


def _rows(found: pd.DataFrame, ax: Axes) -> None:
    """Differences with their intervals, a row each, filled where the verdict is better or worse."""
    for y, (_, row) in enumerate(found.iloc[::-1].iterrows()):
        color = {"better": BLUE, "worse": RED}.get(row["verdict"], GREY)
        ax.plot([row["lo"], row["hi"]], [y, y], color=color, lw=1.5)
        sure = row["verdict"] in ("better", "worse")
        ax.plot(row["diff"], y, "o", color=color, mfc=color if sure else "white", ms=4.5)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(found)), list(found["variant"])[::-1], fontsize=7)
    ax.set_ylim(-0.6, len(found) - 0.4)
    ax.set_xlabel("difference of the test loss from vanilla (nats/token), 95 % interval; left is better")


FIGURES = {
    "modifications": (draw_modifications, 5.4),
    "pairs": (draw_pairs, 3.0),
    "seeds": (draw_seeds, 3.2),
    "verdicts": (draw_verdicts, 2.6),
    "law": (draw_law, 3.6),
    "isoflop": (draw_isoflop, 3.8),
}


def drawn(name: str) -> bytes:
    """A figure as SVG; its letters are text."""
    draw, height_in = FIGURES[name]
    with rc_context({"svg.fonttype": "none"}):
        return svg(draw, height_in)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in FIGURES:
        (FOLDER / f"{name}.svg").write_bytes(drawn(name))
    print("\n".join(modifications_table()))
