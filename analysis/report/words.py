"""Numbers as a report prints them: every one with its n and its interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

SIGNS = {"better": "better", "worse": "worse", "indistinguishable": "≈ baseline", "unknown": "n too small"}


def cell_rows(cells: pd.DataFrame, planned: dict[tuple[str, ...], dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparison table, row by row."""
    rows = []
    for row in cells.to_dict("records"):
        plan = planned.get((row["variant"], row["size"], row["axes"], row["budget"]), {})
        others = [f"{row[name]} {name}" for name in ("failed", "diverged", "pending") if row[name]]
        rows.append(
            {
                "cell": ", ".join(row[name] for name in ("size", "axes", "budget") if row[name]),
                "variant": row["variant"],
                "params": _integer(row["params_total"]),
                "residual": f"{plan['residuals']['params']:+.2%}" if plan else "",
                "flops": _integer(row["flops_per_token"]),
                "speed": _integer(row["tokens_per_s"]),
                "early": plus_minus(row["early_loss"], row["early_sd"]),
                "loss": plus_minus(row["loss"], row["loss_sd"]),
                "bits": "" if pd.isna(row["bits_per_byte"]) else f"{row['bits_per_byte']:.4f}",
                "n": f"{row['n']}" + (f" ({', '.join(others)})" if others else ""),
                "diff": interval(row["diff"], row["lo"], row["hi"]),
                "verdict": SIGNS.get(row["verdict"], row["verdict"]),
                "kind": row["verdict"],
                "differs": ", ".join(plan.get("differs_in", [])),
                "confounded": bool(plan.get("confounded")),
                "trial_ids": row["trial_ids"].split(),
            }
        )
    return rows


def verdict_rows(overall: pd.DataFrame) -> list[dict[str, str]]:
    """The comparison over all cells, row by row."""
    return [
        {
            "variant": row["variant"],
            "n": str(int(row["n"])),
            "diff": interval(row["diff"], row["lo"], row["hi"]),
            "p": "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}",
            "verdict": SIGNS[row["verdict"]],
            "kind": row["verdict"],
        }
        for row in overall.to_dict("records")
    ]


def fit_rows(fits: pd.DataFrame) -> list[dict[str, str]]:
    """The fitted laws, row by row."""
    rows = []
    for row in fits.to_dict("records"):
        name = f"{row['variant']} ({row['axes']})" if row.get("axes") else str(row["variant"])
        words = {"variant": name, "n": str(row["n"]), "points": str(row["points"]), "note": row["note"]}
        for parameter in ("E", "A", "alpha"):
            value, lo, hi = (row.get(parameter + end, np.nan) for end in ("", "_lo", "_hi"))
            zero = 1e-3 * row["law"].lowest_ if parameter == "E" and row["law"] is not None else -np.inf
            words[parameter] = _estimate(value, lo, hi, zero)
        rows.append(words)
    return rows


def _estimate(value: float, lo: float, hi: float, zero: float) -> str:
    """`1.69 [1.61, 1.77]`. Below `zero` is 0: how far below is where the optimiser stopped, not what the data say."""
    if pd.isna(value):
        return ""
    value_, lo_, hi_ = ("0" if each < zero else f"{each:.4g}" for each in (value, lo, hi))
    text = value_ + ("" if pd.isna(lo) or hi_ == "0" else f" [{lo_}, {hi_}]")
    return text + (" (not identified)" if value < zero else "")


def summary_lines(facts: dict[str, Any], cells: pd.DataFrame, overall: pd.DataFrame) -> list[str]:
    """The answer in the terminal: a line a variant, and the losses beside the corpus' unigram entropy."""
    lines = []
    done = cells[cells["n"] > 0]
    if len(done):
        best, worst = done["loss"].min(), done["loss"].max()
        unigram = entropies(facts)
        lines.append(f"final losses {best:.4f} to {worst:.4f} nats/token; unigram entropy of the corpus {unigram}")
    width = max([len(str(name)) for name in overall["variant"]], default=0)
    if len(overall):
        lines.append(f"difference from {facts['baseline']}, paired over sizes and seeds, with 95 % interval:")
    for row in overall.to_dict("records"):
        text = interval(row["diff"], row["lo"], row["hi"])
        lines.append(f"  {row['variant']:<{width}}  {text:<32} n={row['n']:<3} {SIGNS[row['verdict']]}")
    return lines


def entropies(facts: dict[str, Any]) -> str:
    """The unigram entropy of the study's text, or those of each corpus and tokenizer in it."""
    baselines = facts["data"]["baselines"]
    return " | ".join(f"{each['value']:.4f}" for each in baselines if each["name"] == "unigram entropy")


def plus_minus(mean: float, sd: float) -> str:
    """`2.3012 ± 0.0031`, the standard deviation left out where there is one trial."""
    if pd.isna(mean):
        return ""
    return f"{mean:.4f}" + ("" if pd.isna(sd) else f" ± {sd:.4f}")


def interval(value: float, lo: float, hi: float) -> str:
    """`-0.0123 [-0.0200, -0.0046]`."""
    if pd.isna(value):
        return ""
    return f"{value:+.4f}" + ("" if pd.isna(lo) else f" [{lo:+.4f}, {hi:+.4f}]")


def _integer(value: float) -> str:
    return "" if pd.isna(value) else f"{value:,.0f}"
