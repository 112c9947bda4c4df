"""Tables that papers have published: facts, each with its source, its doubtful cells, and which variant of ours a row
is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from analysis.columns import Column
from analysis.errors import AnalysisError
from analysis.typed import did_you_mean

FOLDER = Path(__file__).parent
LEVEL = 0.95


@dataclass(frozen=True)
class Source:
    """Where a table is from, and how it is read.

    `scores`: which values of a column are better, lower or higher; the first is the one that is compared by default.
    `baseline`: the row that the others modify; where it stands several times, these are runs of it with other seeds.
    `spread`: of a score, the column of its standard deviation over runs and how many runs its value is the mean of.
    """

    paper: str
    table: str
    where: str
    baseline: str
    scores: Mapping[str, str]
    notes: str
    spread: Mapping[str, tuple[str, int]] = field(default_factory=dict)


_NARANG = "Narang et al. 2021, Do Transformer Modifications Transfer Across Implementations and Applications?"
_NARANG_SCORES = {"final_loss": "lower", "early_loss": "lower", "sglue": "higher", "xsum": "higher", "webq": "higher"}
_GLUE = ("cola", "sst2", "mnli", "mrpc", "qnli", "qqp", "rte", "stsb", "wnli")
SOURCES = {
    "narang_table1": Source(
        _NARANG,
        "table 1",
        "arXiv:2102.11972",
        "Vanilla Transformer",
        {**_NARANG_SCORES, "wmt_ende": "higher"},
        "Encoder-decoder of 12 + 12 layers with shared relative biases, pre-trained on C4; WMT without pre-training. "
        "Groups are sections 2.1 to 2.7. Early losses are means of 5 runs; no other spread is printed. The text has "
        "70.97 for the baseline's SuperGLUE.",
        {"early_loss": ("early_loss_std", 5)},
    ),
    "narang_table2_learned_pe": Source(
        _NARANG,
        "table 2",
        "arXiv:2102.11972",
        "Vanilla Transformer",
        _NARANG_SCORES,
        "The rows of table 1 with learned absolute positions, and positions as a group of their own (appendix A). "
        "What table 1 does not confirm rests on one reading. Funnel Transformer's webq is no multiple of 1 in 378.",
        {"early_loss": ("early_loss_std", 5)},
    ),
    "sandwich_table": Source(
        "Press, Smith and Levy 2020, Improving Transformer Models by Reordering their Sublayers",
        "tables 1 and 2, and section 4",
        "arXiv:1911.03864",
        "sf" * 16,
        {"ppl": "lower"},
        "A variant is its order of sublayers, s self-attention and f feed-forward. Perplexity on the WikiText-103 "
        "development set. The five interleaved rows are five seeds, and stand in both tables.",
    ),
    "pe_table": Source(
        "Wang et al. 2021, On Position Embeddings in BERT",
        "table 3",
        "openreview.net/forum?id=onxoVA9FxMw",
        "fully learnable (BERT-style) APE",
        {"mean": "higher", **dict.fromkeys(_GLUE, "higher")},
        "An encoder, fine-tuned on GLUE. The mean leaves WNLI out; the means agree with the tasks, WNLI and std rest "
        "on one reading. How many runs a value is the mean of is not known: taken as one.",
        {"mean": ("std", 1)},
    ),
    "vaswani_table3": Source(
        "Vaswani et al. 2017, Attention Is All You Need",
        "table 3",
        "arXiv:1706.03762",
        "base",
        {"ppl_dev": "lower", "bleu_dev": "higher"},
        "Encoder-decoder, newstest2013. The paper prints only what differs from base; sizes are written out here. "
        "Perplexities are per wordpiece. Row E has learned positions. No spread is printed.",
    ),
}
COLUMNS = (
    Column("variant", "string", "", "the row, in the paper's words"),
    Column("group", "string", "", "the paper's section or block of rows"),
    Column("overlay", "string", "", "our variants that are this row, the first at the paper's size; empty: none"),
    Column("params_M", "float64", "millions", "parameters; missing where the paper prints none"),
    Column("ops_T", "float64", "10^12", "floating point operations, as the paper counts them"),
    Column("step_per_s", "float64", "1/s", "training steps"),
    Column("early_loss", "float64", "nats/token", "validation loss at 65,536 of 524,288 steps, mean of 5 runs"),
    Column("early_loss_std", "float64", "nats/token", "its standard deviation over those runs"),
    Column("final_loss", "float64", "nats/token", "validation loss at the end, one run"),
    Column("sglue", "float64", "%", "SuperGLUE, mean of its tasks, validation"),
    Column("xsum", "float64", "ROUGE-2", "XSum, validation"),
    Column("webq", "float64", "%", "WebQuestions, accuracy, validation"),
    Column("wmt_ende", "float64", "BLEU", "WMT 2014 English to German, validation"),
    Column("table", "string", "", "which of the paper's tables has the row"),
    Column("ppl", "float64", "", "perplexity"),
    Column("n_s", "Int64", "", "sublayers of self-attention"),
    Column("n_f", "Int64", "", "feed-forward sublayers"),
    *(Column(name, "float64", "%", f"GLUE: {name}") for name in _GLUE),
    Column("mean", "float64", "%", "of the GLUE tasks but WNLI"),
    Column("std", "float64", "%", "standard deviation of the mean, as printed"),
    Column("N", "Int64", "", "layers of the encoder, and of the decoder"),
    *(Column(name, "Int64", "", f"{name} of the paper") for name in ("d_model", "d_ff", "h", "d_k", "d_v")),
    Column("p_drop", "float64", "", "dropout"),
    Column("eps_ls", "float64", "", "label smoothing"),
    Column("train_steps", "Int64", "steps", "trained for"),
    Column("ppl_dev", "float64", "", "perplexity per wordpiece, newstest2013"),
    Column("bleu_dev", "float64", "BLEU", "newstest2013"),
    Column("doubtful", "string", "", "columns whose value here rests on one reading of the page, by a space"),
)
BY_NAME = {column.name: column for column in COLUMNS}


def load(name: str) -> pd.DataFrame:
    """A published table: one row a printed row, in the paper's order, with the types of `COLUMNS`.

    Text that is missing is "". Raises `AnalysisError` for an unknown name.
    """
    source_of(name)
    file = FOLDER / f"{name}.csv"
    header = pd.read_csv(file, nrows=0).columns
    table = pd.read_csv(file, dtype={column: BY_NAME[column].dtype for column in header})
    text = [column for column in header if BY_NAME[column].dtype == "string"]
    return table.fillna(dict.fromkeys(text, ""))


def source_of(name: str) -> Source:
    """Where a table is from. Raises `AnalysisError` for an unknown name."""
    if name not in SOURCES:
        raise AnalysisError(f"no published table {name!r};{did_you_mean(name, SOURCES)} known: {', '.join(SOURCES)}")
    return SOURCES[name]


def score_of(name: str, score: str | None = None) -> str:
    """`score`, or the table's first. Raises `AnalysisError` where it is none of the table's."""
    scores = source_of(name).scores
    if score is not None and score not in scores:
        raise AnalysisError(f"{name} has no score {score!r}; its scores: {', '.join(scores)}")
    return score or next(iter(scores))


def noise(name: str, score: str | None = None, level: float = LEVEL) -> pd.Series:
    """How far from the baseline each row of `load(name)` may be by chance: t sd of the difference, in the score's
    units.

    With standard deviations s of means of r runs: t_{2 (r - 1)} sqrt((s^2 + s_base^2) / r), the normal quantile for
    one run. Where the baseline stands r times: t_{r - 1} s_base sqrt(1 + 1 / r) for single runs like its own, 0 for
    the baseline. 0 where the paper tells no spread: then every difference counts.
    """
    table, source, score = load(name), source_of(name), score_of(name, score)
    is_base = table["variant"] == source.baseline
    if score in source.spread:
        column, r = source.spread[score]
        sd = table[column]
        t = stats.t.ppf((1 + level) / 2, 2 * (r - 1)) if r > 1 else stats.norm.ppf((1 + level) / 2)
        half = t * np.sqrt((sd**2 + sd[is_base].mean() ** 2) / r)
    else:
        base = table.loc[is_base, score].drop_duplicates()  # a run that stands in two tables is one
        half = pd.Series(0.0, index=table.index)
        if len(base) > 1:
            r = len(base)
            half += stats.t.ppf((1 + level) / 2, r - 1) * base.std(ddof=1) * np.sqrt(1 + 1 / r)
    return half.where(~is_base, 0.0)
