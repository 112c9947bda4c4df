"""Does bfloat16 change what an ablation finds? The study `experiments/precision.yaml`, fp32 against bf16.

`python -m benchmarks.precision RESULTS` prints the tables of benchmarks/precision.md.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from analysis.effects import compare, holm, paired_difference
from analysis.table import finished, study_table

STUDY, AXIS, BASELINE = "precision", "train.precision", "gpt"
LABELS = ["variant", "size", "seed"]


def main(results: str) -> None:
    table = finished(study_table(Path(results), STUDY))
    sides = {name: part.set_index(LABELS)["loss"].astype(float) for name, part in table.groupby(AXIS, observed=True)}
    both = pd.DataFrame(sides).dropna()
    told = [f"{both.index.unique(name).size} {name}s" for name in LABELS]
    print(f"{len(both)} pairs, of {', '.join(told)}; {len(table) - 2 * len(both)} trials without a pair\n")
    show(losses(both), "Losses: bf16 - fp32, pairs of one variant, size and seed")
    show(orders(both), "Order of the variants: Kendall's tau of their mean losses")
    show(verdicts(table), "Verdicts against gpt, over seeds of a size")
    show(effects(both), "Effects on the difference from gpt: bf16 - fp32, a value for each seed, mean over sizes")
    show(exponents(both, table), "Exponent a of L ~ N^-a over the sizes: bf16 - fp32")


def losses(both: pd.DataFrame) -> pd.DataFrame:
    """How far the losses are apart, beside the noise of the seeds."""
    rows = []
    for size, part in both.groupby("size", sort=False):
        found = paired_difference((part["bf16"] - part["fp32"]).to_numpy())
        noise = np.sqrt(part["fp32"].groupby("variant").var(ddof=1).mean())
        apart = (part["bf16"] - part["fp32"]).abs()
        rows.append({"size": size, "pairs": len(part), "mean": _interval(found), "largest": f"{apart.max():.4f}",
                     "root mean square": f"{np.sqrt((apart**2).mean()):.4f}",
                     "seed noise": f"{noise:.4f}"})  # fmt: skip
    return pd.DataFrame(rows)


def orders(both: pd.DataFrame) -> pd.DataFrame:
    """Between the precisions, and, for what the seeds alone do, between pairs of seeds in fp32."""
    rows = []
    for size, part in both.groupby("size", sort=False):
        means = part.groupby("variant").mean()
        by_seed = part["fp32"].unstack("seed")
        within = [_tau(by_seed[a], by_seed[b]) for a, b in combinations(by_seed.columns, 2)]
        across = [_tau(by_seed[seed], part["bf16"].unstack("seed")[seed]) for seed in by_seed.columns]
        rows.append({"size": size, "variants": len(means), "fp32 and bf16, means": f"{_tau(*means.T.to_numpy()):.3f}",
                     "fp32 and bf16 of one seed": f"{np.mean(across):.3f}",
                     "two seeds of fp32": f"{np.mean(within):.3f}"})  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """How many are the same, by Holm's correction within each comparison."""
    rows = []
    for size, part in table.groupby("size", sort=False, observed=True):
        words = {
            name: compare(side, BASELINE, pair_on=("seed",)).set_index("variant")["verdict"]
            for name, side in part.groupby(AXIS, observed=True)
        }
        same = words["fp32"] == words["bf16"]
        opposite = [set(pair) == {"better", "worse"} for pair in zip(words["fp32"], words["bf16"], strict=True)]
        differ = ", ".join(f"{name} ({words['fp32'][name]}, {words['bf16'][name]})" for name in same.index[~same])
        rows.append({"size": size, "the same": f"{same.sum()} of {len(same)}", "opposite": int(np.sum(opposite)),
                     "differ (fp32, bf16)": differ})  # fmt: skip
    return pd.DataFrame(rows)


def effects(both: pd.DataFrame) -> pd.DataFrame:
    """Of each variant; p by Holm over the variants."""
    change = both["bf16"] - both["fp32"]
    by_seed = change.groupby(["variant", "seed"]).mean().unstack("seed")
    moved = by_seed.sub(by_seed.loc[BASELINE]).drop(index=BASELINE)
    found = {name: paired_difference(row.to_numpy()) for name, row in moved.iterrows()}
    adjusted = holm(np.array([each["p"] for each in found.values()]))
    rows = [
        {"variant": name, "moved by": _interval(each), "p, Holm": f"{p:.2f}"}
        for (name, each), p in zip(found.items(), adjusted, strict=True)
    ]
    return pd.DataFrame(rows)


def exponents(both: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """A line through (log N, log L) for each variant and seed; the difference over all of them, a seed one value."""
    n = table.groupby(["variant", "size"], observed=True)["params_non_embedding"].first().astype(float)
    slopes = []
    for (variant, seed), part in both.groupby(["variant", "seed"]):
        x = np.log([n[variant, size] for size in part.index.get_level_values("size")])
        fitted = {name: -np.polyfit(x, np.log(part[name]), 1)[0] for name in ("fp32", "bf16")}
        slopes.append({"variant": variant, "seed": seed, **fitted})
    made = pd.DataFrame(slopes).set_index(["variant", "seed"])
    by_seed = (made["bf16"] - made["fp32"]).groupby("seed").mean()
    noise = np.sqrt(made["fp32"].groupby("variant").var(ddof=1).mean())
    return pd.DataFrame(
        [
            {
                "mean a in fp32": f"{made['fp32'].mean():.4f}",
                "bf16 - fp32": _interval(paired_difference(by_seed.to_numpy())),
                "largest of a variant": f"{(made['bf16'] - made['fp32']).groupby('variant').mean().abs().max():.4f}",
                "seed noise of one fit": f"{noise:.4f}",
            }
        ]
    )


def _tau(a: object, b: object) -> float:
    return float(stats.kendalltau(a, b).statistic)


def _interval(found: dict[str, float]) -> str:
    return f"{found['diff']:+.4f} [{found['lo']:+.4f}, {found['hi']:+.4f}]"


def show(rows: pd.DataFrame, title: str) -> None:
    print(f"**{title}**\n\n| " + " | ".join(rows.columns) + " |\n|" + "---|" * len(rows.columns))
    for row in rows.itertuples(index=False):
        print("| " + " | ".join(map(str, row)) + " |")
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
