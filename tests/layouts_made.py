"""Layouts, and the frames that they are made from, with values of the tests' choosing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fabricate
import numpy as np
import pandas as pd

from analysis import layouts
from analysis.isoflop import isoflop
from analysis.layouts import COUNT, Column, Layout, words
from analysis.scaling import Comparison, Optimum
from analysis.table import study_table
from analysis.tables import comparison_table
from analysis.transfer import pretrained

HOSTILE = (
    "a|b \\| c", "x & y % $z$ #1 _u_ {b} ~t^ \\cmd", "<script>alert(1)</script>", "*[x](http://e.x)* **b** __c__",
    "名前 ñ é ß Ω ∞ 😀 ①", "n" * 200, "=1+1", "-", "--", "---", "[0pt]", "*", "`code` ``", "'single' \"double\" ''",
    "1. one", "2) two", "+ plus", "www.example.org", "a@b.cd", "&amp; &#60;", "\\", "![x](y)", "# head", "~~s~~",
    "10³⁻²", "http://e.x/y", "<!-- c -->", "a  b\tc\nd", "\x07bell\x00", "|", "]]>", "</table>", "% comment",
    "\\\\[2cm]", "^^41",
)  # fmt: skip


def small(**changes: Any) -> Layout:
    """Five rows in two groups: every verdict, an infinite end, a missing number, a missing interval."""
    data = pd.DataFrame(
        {
            "name": ["base", "rope", "alibi", "none", "new"],
            "kind": ["", "positions", "positions", "others", "positions"],
            "loss": [2.5, 2.25, 2.75, np.nan, 2.5],
            "from": [2.25, 2.0, -np.inf, np.nan, np.nan],
            "to": [2.75, 2.5, np.inf, np.nan, 3.0],
            "spread": [0.125, 0.25, 0.5, np.nan, np.nan],
            "verdict": ["baseline", "better", "worse", "unknown", "indistinguishable"],
            "trials": ["a1 a2", "b1", "c1", None, ""],
            "params": [234240, 1.45e12, 999.6, 12, 3e18],
        }
    )
    columns = (
        words("name", "Variant"),
        Column("loss", "Loss", "nats", ".3f", lo="from", hi="to", sd="spread", verdict="verdict", ids="trials"),
        Column("params", "Parameters", form=COUNT),
    )
    given = {"group": "kind", "notes": ("A note.",), "tested": "t-tests"} | changes
    return Layout("small", "A small table", "Nobody 2020, table 1", columns, data, **given)


def hostile() -> Layout:
    """Texts of HOSTILE wherever data may come from."""
    rows = [{"name": each, "kind": each, "value": 1.5, "verdict": "better", "ids": each} for each in HOSTILE]
    odd = "<b>&|_$%# \\ \" ' `"
    columns = (
        words("name", odd),
        Column("value", odd, unit=odd, verdict="verdict", ids="ids"),
        Column("kind", "Kind", align="left", monospace=True),
    )
    return Layout("hostile", odd, odd, columns, pd.DataFrame(rows), "kind", HOSTILE, odd)


SIZES = ("s", "l")


def study(folder: Path) -> pd.DataFrame:
    """Three variants of two sizes: rope is better by 0.1, glu is the same, and one of its trials diverged."""

    def loss(label: dict[str, Any]) -> float | str:
        if (label["variant"], label["size"], label["seed"]) == ("glu", "l", 2):
            return "diverged"
        shift = {"base": 0.0, "rope": -0.1, "glu": (0.01, -0.01, 0.0)[label["seed"]]}[label["variant"]]
        return 2.0 + shift + 0.02 * label["seed"] - 0.5 * (label["size"] == "l")

    fabricate.study(folder, loss, ("base", "rope", "glu"), SIZES)
    return study_table(folder, "made")


def later() -> pd.DataFrame:
    """Downstream scores as `analysis.transfer.downstream` has them."""
    rows = [
        {"size": size, "axes": "", "budget": "tokens=100000", "variant": variant, "column": column,
         "metric": "accuracy", "better": "higher", "n": 2 if variant == "glu" else 3, "trials": 3, "parents": 3,
         "mean": mean, "sd": 0.02, "lo": mean - 0.05, "hi": mean + 0.05, "diff": 0.0, "p": 0.5, "p_holm": 1.0,
         "trial_ids": f"{variant}1 {variant}2",
         "verdict": {"base": "baseline", "rope": "better", "glu": "indistinguishable"}[variant]}
        for column, means in (("cola", (0.5, 0.6, 0.5)), ("sst", (0.8, 0.9, np.nan)))
        for variant, mean in zip(("base", "rope", "glu"), means, strict=True)
        for size in SIZES
    ]  # fmt: skip
    return pd.DataFrame(rows)


def shown_tree(name: str, length: int, depth: int) -> dict[str, Any]:
    """As `ablate show --json`: an embedding and a head of 700, a layer of 30 n + 1000, FLOPs per token."""
    return {
        "name": name, "seq_len": length, "arch": {"depth": depth},
        "flops_per_token": 700 + depth * (30 * length + 1000),
    }  # fmt: skip


def points() -> pd.DataFrame:
    """E + A n^-alpha + B d^-beta on six budgets: the optimum is n = (c / 6)^0.5 where the two terms are alike."""
    rows = [(c, n) for c in np.geomspace(6e14, 6e19, 6) for n in np.sqrt(c / 6) * np.geomspace(1 / 3, 3, 7)]
    c, n = np.array(rows).T
    return pd.DataFrame({"c": c, "n": n, "d": c / 6 / n, "loss": 1.5 + 300 * n**-0.3 + 300 * (c / 6 / n) ** -0.3})


def comparisons() -> list[Comparison]:
    """As `analysis.scaling.compare`: one setting with a law, whose gain is without an upper end, and one without."""
    row = {
        "variant": "rope", "alpha_diff": 0.05, "alpha_lo": -0.01, "alpha_hi": 0.1, "status": "overtakes",
        "at": 2e12, "lo": 0.0, "hi": np.inf, "share": 0.95, "distance": 1.0,
        "c_low": 1e10, "gain_low": 0.5, "gain_low_lo": 0.4, "gain_low_hi": 0.9,
        "c_high": 1e12, "gain_high": np.inf, "gain_high_lo": 1.1, "gain_high_hi": np.inf,
    }  # fmt: skip
    return [Comparison("lr=1", pd.DataFrame([row])), Comparison("lr=2", note="too few points")]


def compared_laws() -> pd.DataFrame:
    """As `analysis.between.compare_laws`, with one of its rows."""
    row = {
        "baseline": "base", "variant": "rope", "fit": "shared", "preferred": True, "quantity": "gain", "at": 1e12,
        "value": 2.0, "lo": 1.5, "hi": np.inf, "status": np.nan, "points": 80, "pairs": 40,
    }  # fmt: skip
    compared = pd.DataFrame([row])
    compared.attrs["warnings"] = {"shared": ["few points"]}
    return compared


def of_papers(folder: Path) -> list[Layout]:
    """One of every builder."""
    trials = study(folder)
    compared = comparison_table(trials, "base")
    told = compared[["stage", "size", "axes", "budget", "variant"]].assign(**{"arch.depth": [2, 3] * 3})
    vertices = isoflop(points(), draws=20)
    costs = layouts.layer_costs(shown_tree("attention", length, depth) for length in (8, 16) for depth in (1, 2))
    orders = {"base": "sf" * 16, "rope": "s" * 16 + "f" * 16, "glu": "sffcsf"}
    return [
        layouts.narang(pretrained(trials, ""), later(), compared, {"rope": "Positions"}),
        layouts.ordering(compared[compared["size"] == "s"], orders),
        layouts.position(later()),
        layouts.vaswani3(compared, told, "base", {"rope": "(A)"}),
        layouts.complexity(costs, {"attention": "self_attention"}),
        layouts.isoflop(vertices.vertices, vertices.warnings),
        layouts.optima([Optimum("2", vertices), Optimum("1", note="no curves")], 6e20),
        layouts.scaling(comparisons()),
        layouts.laws(compared_laws()),
    ]
