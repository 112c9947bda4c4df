"""Comparisons of variants as papers print them: modifications, orders of sublayers, position encodings, base and rows
that differ from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.columns import CELL, cell_name
from analysis.layouts.layout import COUNT, Column, Layout, LayoutError, words
from analysis.layouts.rows import GROUP, HOLM, checked, grouped, results, told, unfinished
from analysis.transfer import FIRST

Groups = Mapping[str, str]
PRINTED = {  # Vaswani et al. 2017, table 3: its headings, in its order
    "arch.depth": "N",
    "arch.d_model": "d_model",
    "arch.d_ff": "d_ff",
    "arch.n_heads": "h",
    "arch.d_head": "d_k",
    "arch.sublayers.s.d_value": "d_v",
    "train.dropout": "P_drop",
    "train.label_smoothing": "ε_ls",
    "train.tokens": "train tokens",
}


def narang(
    first: pd.DataFrame,
    later: pd.DataFrame | None = None,
    compared: pd.DataFrame | None = None,
    groups: Groups | None = None,
) -> Layout:
    """Modifications of one model: parameters, operations, steps per second, early and final loss, downstream scores.

    `first` and `later` are `analysis.transfer.pretrained` and `downstream`; `compared` is
    `analysis.tables.comparison_table` of the same study, of which the rows of the stage of `first` (its first) give
    the verdicts and trials of the losses. `groups` says below which heading a variant stands. Layout: Narang et al.
    2021, arXiv:2102.11972, table 1. Raises `LayoutError`.

    Differs from the paper: operations are forward FLOPs per token, the final loss has a 95 % Student interval over
    seeds, and so has every downstream score.
    """
    costs = ("params_total", "flops_per_token", "steps_per_s", "n", "trials")
    wanted = (*FIRST, "variant", *costs, "early_loss", "early_sd", "loss", "loss_lo", "loss_hi")
    first = checked(first, wanted, "narang")
    verdict = ids = ""
    data, found = first, [unfinished(first)]
    if compared is not None and len(compared):
        stage = compared[compared["stage"] == compared["stage"].iloc[0]]
        data = data.merge(stage[[*FIRST, "variant", "verdict", "trial_ids"]], "left", on=[*FIRST, "variant"])
        verdict, ids = "verdict", "trial_ids"
    columns = [
        words("variant", "Variant"),
        Column("params_total", "Parameters", form=COUNT),
        Column("flops_per_token", "Operations", "FLOP/token", COUNT),
        Column("steps_per_s", "Steps", "1/s", COUNT, ids=ids),
        Column("early_loss", "Early loss", "nats/token", ".3f", sd="early_sd", ids=ids),
        Column("loss", "Final loss", "nats/token", ".3f", lo="loss_lo", hi="loss_hi", verdict=verdict, ids=ids),
    ]
    if later is not None and len(later):
        data, scores = _with_tasks(data, later, list(FIRST), interval=True)
        columns += scores
        found.append(unfinished(later))
    notes = (
        "Early loss: at 1/8 of the budget, ± its standard deviation over seeds. Brackets: 95 % interval of the mean.",
        *(note for notes in found for note in notes),
    )
    title, source = "Modifications of the baseline", "Narang et al. 2021, arXiv:2102.11972, table 1"
    return Layout("narang", title, source, tuple(columns), grouped(data, groups), GROUP, notes, HOLM)


def ordering(compared: pd.DataFrame, orders: Mapping[str, str]) -> Layout:
    """Orders of sublayers, the worst result first as in the paper: the string, how many sublayers of each letter, and
    the result.

    `compared` has the rows of `analysis.tables.comparison_table` of one stage; `orders` each variant's order over the
    whole depth, `sfsf...`. Layout: Press et al. 2020, arXiv:1911.03864, tables 1 and 2. Raises `LayoutError`.

    Differs from the paper: a row is a mean over seeds; theirs are single runs, of which five are the baseline's.
    """
    rows, columns, notes = results(compared, "ordering")
    if unknown := [name for name in rows["variant"] if name not in orders]:
        raise LayoutError(f"ordering: no order of variant {unknown[0]!r}; orders of: {', '.join(orders) or 'none'}")
    strings = rows["variant"].map(dict(orders)).astype("object")
    letters = sorted(set("".join(strings)), key=lambda letter: ("sfc".find(letter) % 4, letter))
    rows = rows.assign(order=strings)
    for letter in letters:
        rows[f"n_{letter}"] = [order.count(letter) for order in strings]
    signs = np.where(rows["better"] == "higher", -1.0, 1.0) if "better" in rows else 1.0
    rows = rows.iloc[(-signs * rows["score"]).argsort(kind="stable")]
    shown = (
        words("order", "Order", monospace=True),
        words("variant", "Variant"),
        *(Column(f"n_{each}", each, form=".0f") for each in letters),
        *columns,
    )
    title, source = "Orders of sublayers", "Press et al. 2020, arXiv:1911.03864, tables 1 and 2"
    return Layout("ordering", title, source, shown, grouped(rows, None), GROUP, notes, HOLM)


def by_cell(compared: pd.DataFrame) -> pd.DataFrame:
    """The rows of `analysis.tables.comparison_table` as `analysis.transfer.downstream` has them: each cell (stage,
    size, axes, budget) is a column of its own, for studies whose tasks do not begin from a common model."""
    compared = checked(compared, (*CELL, "variant", "metric", "score", "score_sd", "verdict"), "by_cell")
    labels = [cell_name(row) or row["metric"] for row in compared.to_dict("records")]
    return compared.assign(column=labels, mean=compared["score"], sd=compared["score_sd"])


def position(later: pd.DataFrame, groups: Groups | None = None) -> Layout:
    """Position encodings, or any variants, against tasks, with the mean over tasks.

    `later` is `analysis.transfer.downstream` or `by_cell`. The mean counts each task once; it is there where all are
    scored in one metric, or in metrics of which higher values are better as GLUE's are, and in rows that have every
    task. Layout: Wang et al. 2021, On Position Embeddings in BERT, table 3. Raises `LayoutError`.

    Differs from the paper: ± is the standard deviation over the runs of a task; theirs, of the mean alone.
    """
    wanted = ("variant", "column", "metric", "better", "mean", "sd", "verdict", "n", "trials", "trial_ids")
    later = checked(later, wanted, "position")
    keys = [name for name in FIRST if name in later] if "parents" in later else []
    data, scores = _with_tasks(
        later[[*keys, "variant"]].drop_duplicates(ignore_index=True), later, keys, interval=False
    )
    columns = [words("variant", "Variant"), *scores]
    if later["metric"].nunique() == 1 or set(later["better"]) == {"higher"}:
        data["task_mean"] = data[[each.key for each in scores]].astype(float).mean(axis=1, skipna=False)
        columns.append(Column("task_mean", "Mean", form=".4f"))
    notes = ("± is the standard deviation over the trials of a task.", *unfinished(later))
    title, source = "Variants against tasks", "Wang et al. 2021, On Position Embeddings in BERT, table 3"
    return Layout("position", title, source, tuple(columns), grouped(data, groups), GROUP, notes, HOLM)


def _with_tasks(
    rows: pd.DataFrame, later: pd.DataFrame, keys: list[str], interval: bool
) -> tuple[pd.DataFrame, list[Column]]:
    """Rows with every task's score beside them, and the columns of these."""
    columns, on = [], [*keys, "variant"]
    for (task, metric), mine in later.groupby(["column", "metric"], sort=False, observed=True):
        key = f"{task} {metric}"
        names = {end: f"{key} {end}" for end in ("lo", "hi", "sd", "verdict", "trial_ids") if end in mine}
        if mine.duplicated(on).any():
            raise LayoutError(f"variants have several rows of task {task!r}: pass those of one size and budget")
        rows = rows.merge(mine[[*on, "mean", *names]].rename(columns={"mean": key, **names}), "left", on=on)
        lo, hi, sd = (names["lo"], names["hi"], "") if interval else ("", "", names["sd"])
        verdict, ids = names["verdict"], names["trial_ids"]
        columns.append(
            Column(
                key,
                str(task),
                told(str(metric))[1] or str(metric),
                ".4f",
                lo=lo,
                hi=hi,
                sd=sd,
                verdict=verdict,
                ids=ids,
            )
        )
    return rows, columns


def vaswani3(compared: pd.DataFrame, settings: pd.DataFrame, baseline: str, groups: Groups | None = None) -> Layout:
    """Variations on a base model: the baseline's row has every setting, the others those that differ from it.

    `compared` has the rows of `analysis.tables.comparison_table` of one stage, `settings` those of
    `analysis.layouts.settings`; a row is compared with the baseline in its own cell. Shown are the settings that the
    paper prints, and every other that differs somewhere. `groups` says below which heading, "(A)", a variant stands.
    Layout: Vaswani et al. 2017, arXiv:1706.03762, table 3. Raises `LayoutError`.
    """
    rows, results_, notes = results(compared, "vaswani3")
    settings = checked(settings, (*CELL, "variant"), "vaswani3")
    keys = [name for name in CELL if name in rows]
    rows = rows.merge(settings.drop_duplicates([*keys, "variant"]), "left", on=[*keys, "variant"])
    names = [str(name) for name in settings if name not in (*CELL, "variant")]
    rows[names] = rows[names].astype("object")
    differs = dict.fromkeys(names, False)
    for _, cell in rows.groupby(keys, sort=False, dropna=False, observed=True):
        base = cell[cell["variant"] == baseline]
        if not len(base):
            known = ", ".join(dict.fromkeys(map(str, cell["variant"])))
            raise LayoutError(f"vaswani3: no baseline {baseline!r} in a cell of {known}")
        for name in names:
            same = [_same(value, base[name].iloc[0]) for value in cell[name]]
            differs[name] |= not all(same)
            rows.loc[cell.index[np.array(same) & (cell["variant"] != baseline)], name] = None
    shown = [name for name in PRINTED if name in names] + [
        name for name in names if differs[name] and name not in PRINTED
    ]
    columns = (
        words("variant", "Variant"),
        *(Column(name, PRINTED.get(name, name), form=COUNT if name == "train.tokens" else ".6g") for name in shown),
        *results_,
        Column("params_total", "Parameters", form=COUNT),
    )
    title, source = "Variations on the base model", "Vaswani et al. 2017, arXiv:1706.03762, table 3"
    blank = "Settings that are left blank are the base model's."
    return Layout("vaswani3", title, source, columns, grouped(rows, groups), GROUP, (blank, *notes), HOLM)


def _same(value: object, base: object) -> bool:
    return bool(pd.isna(value) and pd.isna(base)) or bool(value == base)
