"""Numbers as a report prints them: every one with its n and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import cell_name
from analysis.transfer import FIRST, columns_of

SIGNS = {
    "better": "better",
    "worse": "worse",
    "equivalent": "equivalent",
    "indistinguishable": "≈ baseline",
    "unknown": "n too small",
}


VERDICT = {  # of the verdicts over all cells: a column's heading
    "verdict": ("verdict", "l"),
    "diff": ("difference, 95 %", ""),
    "n": ("seeds", ""),
    "p": ("p (Holm)", ""),
    "p_bh": ("p (BH)", ""),
    "noise": ("in seed noise", ""),
    "boot": ("bootstrap, 95 %", ""),
    "test": ("on test data", ""),
    "metric": ("metric", "l"),
    "over": ("over", "l"),
}


def status_words(facts: dict[str, Any]) -> dict[str, str]:
    """What the report calls the states of trials: a planner that has ended does not need what it left out."""
    names = {name: name for name in ("finished", "failed", "diverged", "stopped", "pending")}
    return names | {"pending": "not needed"} if facts.get("enough") else names


def planned_rows(facts: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """What was planned, by the labels of a row: stage, variant, size, axes, budget."""
    names = ("variant", "size", "axes", "budget")
    return {(row.get("stage", ""), *(row[name] for name in names)): row for row in facts["rows"]}


def cell_rows(
    cells: pd.DataFrame, planned: dict[tuple[str, ...], dict[str, Any]], states: dict[str, str]
) -> list[dict[str, Any]]:
    """The comparison table, row by row; `planned` are `planned_rows`, `states` are `status_words`."""
    rows = []
    for row in cells.to_dict("records"):
        plan = planned.get((row["stage"], row["variant"], row["size"], row["axes"], row["budget"]), {})
        others = [f"{row[name]} {word}" for name, word in states.items() if name != "finished" and row[name]]
        rows.append(
            {
                "cell": cell_name(row),
                "variant": row["variant"],
                "params": _integer(row["params_total"]),
                "residual": f"{plan['residuals']['params']:+.2%}" if plan else "",
                "flops": _integer(row["flops_per_token"]),
                "speed": _integer(row["tokens_per_s"]),
                "early": plus_minus(row["early_loss"], row["early_sd"]),
                "loss": plus_minus(row["loss"], row["loss_sd"]),
                "score": _score(row),
                "bits": "" if pd.isna(row["bits_per_byte"]) else f"{row['bits_per_byte']:.4f}",
                "n": f"{row['n']}" + (f" ({', '.join(others)})" if others else ""),
                "diff": interval(row["diff"], row["lo"], row["hi"]),
                "noise": "" if pd.isna(row["noise_units"]) else f"{row['noise_units']:+.2g}",
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
            "variant": f"{row['variant']} ({row['stage']})" if row["stage"] else row["variant"],
            "metric": row["metric"],
            "over": row["over"],
            "n": str(int(row["n"])),
            "diff": interval(row["diff"], row["lo"], row["hi"]),
            "noise": "" if pd.isna(row["noise_units"]) else f"{row['noise_units']:+.2g}",
            "boot": f"[{row['boot_lo']:+.4f}, {row['boot_hi']:+.4f}]" if pd.notna(row["boot_lo"]) else "",
            "p": "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}",
            "p_bh": "" if pd.isna(row["p_bh"]) else f"{row['p_bh']:.2g}",
            "verdict": SIGNS[row["verdict"]],
            "kind": row["verdict"],
            "test": _on_test(row),
            "otherwise": _on_test(row) if row["test_verdict"] != row["verdict"] else "",
        }
        for row in overall.to_dict("records")
    ]


def verdict_columns(rows: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    """Those of `VERDICT` that some row has a value for."""
    return {key: said for key, said in VERDICT.items() if any(row[key] for row in rows)}


def fit_rows(fits: pd.DataFrame, parameters: Sequence[str] = ("E", "A", "alpha")) -> list[dict[str, str]]:
    """The fitted laws, row by row."""
    rows = []
    for row in fits.to_dict("records"):
        name = f"{row['variant']} ({row['axes']})" if row.get("axes") else str(row["variant"])
        words = {"variant": name, "n": str(row["n"]), "points": str(row["points"]), "note": row["note"]}
        for parameter in parameters:
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
    """The answer in the terminal: the range of the results and what to compare them with, then a line a variant; of
    each stage."""
    lines = []
    for stage in dict.fromkeys(cells["stage"]):
        done = cells[(cells["n"] > 0) & (cells["stage"] == stage)]
        mine = overall[overall["stage"] == stage]
        where = f"{stage}: " if stage else ""
        if len(done):
            metric, scores = done["metric"].iloc[0], done["score"]
            what = "final losses" if metric == "loss" else metric
            what += " on test data" if facts["compared_on"] == "test" else ""
            text = f"{where}{what} {scores.min():.4f} to {scores.max():.4f}"
            if compared := baselines_of(facts, stage, metric):
                text += f"; {', '.join(compared)}"
            lines.append(text)
        width = max([len(str(name)) for name in mine["variant"]], default=0)
        if len(mine):
            lines.append(f"difference from {facts['baseline']}, {_over(mine)}, {_interval_of(facts)}:")
        several = mine["over"].nunique() > 1
        for row in mine.to_dict("records"):
            text, over = interval(row["diff"], row["lo"], row["hi"]), f" ({row['over']})" if several else ""
            lines.append(f"  {row['variant']:<{width}}  {text:<32} n={row['n']:<3} {SIGNS[row['verdict']]}{over}")
        tested = [(row["variant"], _on_test(row)) for row in mine.to_dict("records") if _on_test(row)]
        if tested:
            scores = done["test_score"].dropna()
            lines.append(f"on test data, {scores.min():.4f} to {scores.max():.4f}:")
            lines += [f"  {variant:<{width}}  {text}" for variant, text in tested]
    return lines


def rule_lines(facts: dict[str, Any]) -> dict[str, str]:
    """By what rules verdicts came about: the smallest effect of interest, the race."""
    found = {}
    if smallest := facts.get("smallest"):
        each = smallest.items() if isinstance(smallest, dict) else [("", smallest)]
        told = ", ".join(f"{number:g} {metric}".strip() for metric, number in each)
        found["smallest effect of interest"] = (
            f"{told}; equivalent: shown to be smaller by two one-sided tests, after Holm's correction"
        )
    if facts["compared_on"] == "test":
        found["compared on"] = "test data and seeds that no sweep has seen; losses below are those of test data"
    if race := facts.get("race"):
        found["race"] = (
            f"looks from {race['first']} to {race['most']} seeds, level {race['level']:g} over all rows and looks; "
            "p-values are sequential, and hold although rows ended at different looks; verdicts are by them, after "
            "Holm's correction. Intervals hold for all rows at once, without Holm's steps, and may contain 0 where "
            "the verdict excludes it"
        )
        found["over all cells"] = "better where a variant is better in one cell and worse in none"
    if facts.get("promote"):
        found["promotion"] = (
            "variants that passed the gates are compared at the largest scale, others at the smaller ones alone"
        )
    return found


def _over(overall: pd.DataFrame) -> str:
    over = set(overall["over"])
    return "paired by seed" + (f", the mean over {over.pop()}" if len(over) == 1 and "cells" in str(over) else "")


def _interval_of(facts: dict[str, Any]) -> str:
    if not facts.get("race"):
        return "with 95 % interval"
    return (
        "with 95 % interval, sequential at the largest scale" if facts.get("promote") else "with sequential interval"
    )


def _on_test(row: dict[str, Any]) -> str:
    """`+0.0123 [+0.0046, +0.0200] worse`; empty where nothing was tested."""
    if pd.isna(row["test_diff"]):
        return ""
    return f"{interval(row['test_diff'], row['test_lo'], row['test_hi'])}  {SIGNS[row['test_verdict']]}"


def baselines_of(facts: dict[str, Any], stage: str, metric: str, split: str = "valid") -> list[str]:
    """`unigram entropy 3.1530` and whatever else a stage's results in one metric are compared with, on one split."""
    known: dict[str, list[str]] = {}
    for each in facts["data"]["baselines"]:
        if (each["metric"], each.get("stage", ""), each.get("split", "valid")) == (metric, stage, split):
            known.setdefault(each["name"], []).append(f"{each['value']:.4f}")
    return [f"{name} {' | '.join(values)}" for name, values in known.items()]


def lower_bounds(table: pd.DataFrame) -> list[str]:
    """Whose bits per byte are compared with others' and do not pay for the whole text."""
    lossy = table[(table["metric"] == "bits_per_byte") & ~table["restores_text"].fillna(True)]
    labels = zip(lossy["variant"], lossy["axes"], strict=True)
    names = ", ".join(dict.fromkeys(f"{variant} ({axes})" if axes else str(variant) for variant, axes in labels))
    return [f"bits per byte are a lower bound for {names}: spaces or capitals are not in the tokens"] if names else []


def data_words(data: dict[str, Any]) -> str:
    """`kjv, bytes, vocabulary 256, 3,954,658 training tokens`."""
    parts = [str(data[name]) for name in ("corpus", "tokenizer") if data.get(name)]
    if data.get("vocab"):
        parts.append(f"vocabulary {data['vocab']}")
    if data.get("train_tokens"):
        parts.append(f"{data['train_tokens']:,} training tokens")
    return ", ".join(parts)


def baseline_lines(facts: dict[str, Any]) -> list[str]:
    """What results are compared with: a line a stage and metric."""
    kinds = dict.fromkeys(
        (each.get("stage", ""), each["metric"], each.get("split", "valid")) for each in facts["data"]["baselines"]
    )
    lines = []
    for stage, metric, split in kinds:
        unit = metric if split == "valid" else f"{metric}, {split} data"
        words = ", ".join(baselines_of(facts, stage, metric, split))
        lines.append((f"{stage}: " if stage else "") + f"{words} ({unit})")
    return lines


def transfer_rows(first: pd.DataFrame, later: pd.DataFrame) -> dict[str, Any]:
    """The transfer table, row by row: its downstream columns, and the cells of every variant."""
    rows = []
    columns = columns_of(later) if len(later) else []
    for row in first.to_dict("records"):
        place = [row[name] for name in (*FIRST, "variant")]
        cells = {
            each["column"]: each
            for each in later.to_dict("records")
            if [each[name] for name in (*FIRST, "variant")] == place
        }
        rows.append(
            {
                "variant": row["variant"],
                "cell": ", ".join(row[name] for name in FIRST if row[name]),
                "params": _integer(row["params_total"]),
                "flops": _integer(row["flops_per_token"]),
                "speed": "" if pd.isna(row["steps_per_s"]) else f"{row['steps_per_s']:.3g}",
                "early": plus_minus(row["early_loss"], row["early_sd"]),
                "loss": plus_minus(row["loss"], row["loss_sd"]),
                "n": f"{row['n']}" + ("" if row["n"] == row["trials"] else f" of {row['trials']}"),
                "scores": [_downstream(cells.get(name)) for name, _ in columns],
            }
        )
    return {"columns": [{"name": name, "metric": metric} for name, metric in columns], "rows": rows}


def transfer_lines(first: pd.DataFrame, later: pd.DataFrame) -> list[str]:
    """Downstream means in the terminal, a line a variant and cell."""
    lines = []
    for row in transfer_rows(first, later)["rows"] if len(later) else ():
        cell = f" ({row['cell']})" if row["cell"] else ""
        scores = ", ".join(each["text"] for each in row["scores"])
        lines.append(f"  {row['variant']}{cell}: loss {row['loss']}, {scores}")
    names = [f"{name} ({metric})" for name, metric in columns_of(later)] if len(later) else []
    return [f"pre-training loss, then {', '.join(names)}:", *lines] if lines else []


def _downstream(cell: dict[str, Any] | None) -> dict[str, str]:
    """One downstream cell: the mean with its interval, n where not all trials finished, the verdict."""
    if cell is None or pd.isna(cell["mean"]):
        return {"text": "", "kind": "unknown"}
    half = (cell["hi"] - cell["lo"]) / 2
    text = f"{cell['mean']:.4g}" + ("" if pd.isna(half) else f" ± {half:.2g}")
    if cell["n"] < cell["trials"]:
        text += f" ({cell['n']} of {cell['trials']})"
    return {"text": text, "kind": str(cell["verdict"])}


def _score(row: dict[str, Any]) -> str:
    """The headline metric where it is not the loss: `accuracy 0.7812 ± 0.0031 (test 0.7790)`."""
    if row["metric"] == "loss" or pd.isna(row["score"]):
        return ""
    test = "" if pd.isna(row["test_score"]) else f" (test {row['test_score']:.4f})"
    return f"{row['metric']} {plus_minus(row['score'], row['score_sd'])}{test}"


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
