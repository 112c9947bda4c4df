"""Cost against length: what a layer's definition says, and what was counted or measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.layouts.layout import COUNT, Column, Layout, LayoutError, words
from analysis.layouts.rows import GROUP, checked

BOUNDS = {  # Vaswani et al. 2017, table 1: complexity per layer, sequential operations, maximum path length
    "self_attention": ("O(n²·d)", "O(1)", "O(1)"),
    "recurrent": ("O(n·d²)", "O(n)", "O(n)"),
    "convolutional": ("O(k·n·d²)", "O(1)", "O(log_k n)"),
    "restricted_self_attention": ("O(r·n·d)", "O(1)", "O(n/r)"),
}
MEASURED = {"flops": ("FLOPs", "FLOP", COUNT), "seconds": ("time", "s", "#.3g")}


def layer_costs(shown: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """variant, seq_len, flops: forward FLOPs of one layer over a whole sequence, from the trees of `ablate show NAME
    --set seq_len=N --set depth=L --json` at two depths or more.

    The slope of the model's FLOPs in its depth, so that embedding and head do not count. A layer is one period of the
    order. Raises `LayoutError` where a variant has one depth at a length.
    """
    trees = [
        {
            "variant": tree["name"],
            "seq_len": tree["seq_len"],
            "depth": tree["arch"]["depth"],
            "flops": tree["flops_per_token"] * tree["seq_len"],
        }
        for tree in shown
    ]
    table, rows = pd.DataFrame(trees, columns=["variant", "seq_len", "depth", "flops"]), []
    for (variant, length), part in table.groupby(["variant", "seq_len"], sort=False):
        if part["depth"].nunique() < 2:
            raise LayoutError(f"layer_costs: {variant} at length {length} has one depth; a layer's cost needs two")
        slope = float(np.polyfit(part["depth"].astype(float), part["flops"].astype(float), 1)[0])
        rows.append({"variant": variant, "seq_len": length, "flops": slope})
    return pd.DataFrame(rows, columns=["variant", "seq_len", "flops"])


def complexity(
    costs: pd.DataFrame,
    kinds: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    notes: Sequence[str] = ("n: length of the sequence; costs are of one layer on one sequence.",),
    heading: str = "Layer",
) -> Layout:
    """Cost of a layer on a sequence of length n: its bounds, and its FLOPs and seconds at each length.

    `costs` has variant, seq_len, and `flops` or `seconds` or both, as of `layer_costs`; repeats are averaged. It may
    have `trial_ids`, of the trials that a cost was measured on. `kinds` says which of the paper's layers a variant is
    (`BOUNDS`): n length, d width, k kernel, r neighbourhood. The growth p of the first measure is
    log(y2 / y1) / log(n2 / n1) between the two longest lengths, y ~ n^p; missing where nothing is spent. `notes` and
    `heading` say what the costs are of, where it is not a layer. Layout: Vaswani et al. 2017, arXiv:1706.03762,
    table 1. Raises `LayoutError`.

    Differs from the paper: the measured columns and the growth.
    """
    costs = checked(costs, ("variant", "seq_len"), "complexity")
    measures = [name for name in MEASURED if name in costs]
    if not measures:
        raise LayoutError(f"complexity: the table has no column of a cost; known: {', '.join(MEASURED)}")
    if unknown := [kind for kind in (kinds or {}).values() if kind not in BOUNDS]:
        raise LayoutError(f"complexity: unknown kind of layer {unknown[0]!r}; known: {', '.join(BOUNDS)}")
    data = costs[["variant"]].drop_duplicates(ignore_index=True)
    bounds = [BOUNDS.get((kinds or {}).get(name, ""), ("", "", "")) for name in data["variant"]]
    columns = [words("variant", heading)]
    if kinds:
        headings = ("Complexity per layer", "Sequential operations", "Maximum path length")
        for place, title in enumerate(headings):
            key = title.lower().replace(" ", "_")
            data[key] = pd.Series([each[place] for each in bounds], dtype="object")
            columns.append(words(key, title))
    lengths = sorted(costs["seq_len"].unique())
    ids = _trials(costs, data)
    for measure in measures:
        at = costs.pivot_table(measure, "variant", "seq_len").reindex(columns=lengths)
        what, unit, form = MEASURED[measure]
        for length in lengths:
            data[f"{measure}_{length}"] = data["variant"].map(at[length])
            columns.append(Column(f"{measure}_{length}", f"n = {length}", unit, form, ids=ids.get(length, "")))
        if measure == measures[0] and len(lengths) > 1:
            n1, n2 = lengths[-2:]
            data["growth"] = data["variant"].map(np.log(at[n2] / at[n1]) / np.log(n2 / n1))
            columns.append(Column("growth", "p", f"{what} ~ n^p", ".2f"))
    data = data.assign(**{GROUP: [(groups or {}).get(name, "") for name in data["variant"]]})
    title, source = "Cost against length", "Vaswani et al. 2017, arXiv:1706.03762, table 1"
    return Layout("complexity", title, source, tuple(columns), data, GROUP, tuple(notes))


def _trials(costs: pd.DataFrame, data: pd.DataFrame) -> dict[Any, str]:
    """Columns of `data` with the trials of each length, by length; none where `costs` does not say them."""
    if "trial_ids" not in costs:
        return {}
    found = {}
    for length, part in costs.groupby("seq_len"):
        found[length] = f"trial_ids_{length}"
        data[found[length]] = data["variant"].map(part.groupby("variant")["trial_ids"].agg(" ".join))
    return found
