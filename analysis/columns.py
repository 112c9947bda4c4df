"""The one definition of the table of trials: the name, type, unit and meaning of every column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """`where` is the path of the value in a trial's record; empty for labels, which the study gives."""

    name: str
    dtype: str
    unit: str
    meaning: str
    where: str = ""


PHASES = ("data", "forward", "backward", "optimizer", "evaluation", "logging", "checkpoint")  # of a trial's time

COLUMNS = (
    Column("trial_id", "string", "", "hash of what was asked"),
    Column("group_id", "string", "", "the same without the seed: replicates share it"),
    Column("stage", "string", "", "which of the study's stages; empty where it has none"),
    Column("variant", "string", "", "row of the comparison"),
    Column("size", "string", "", "label of the size"),
    Column("axes", "string", "", "label of the other settings that are crossed"),
    Column("budget", "string", "", "label of the training budget"),
    Column("seed", "Int64", "", "of initialisation, data order and dropout"),
    Column("parent", "string", "", "trial whose trained weights this one began from", "parent"),
    Column("parent_seed", "Int64", "", "that trial's seed"),
    Column("forked_from", "string", "", "longer trial whose first steps this one went on from", "forked.trial"),
    Column("forked_step", "float64", "", "how many of them", "forked.step"),
    Column("forked_s", "float64", "s", "the part of wall_s that they took there", "forked.wall_s"),
    Column("cohort", "float64", "", "trials in the one program that trained it; missing where alone", "cohort.size"),
    Column("compiled", "boolean", "", "whether torch.compile made its steps", "compiled"),
    Column("status", "string", "", "finished | diverged | failed | stopped; pending when there is no record yet"),
    Column("loss", "float64", "nats/token", "final validation loss; missing unless finished", "metrics.loss"),
    Column("early_loss", "float64", "nats/token", "validation loss near 1/8 of the budget", "metrics.early_loss"),
    Column("bits_per_byte", "float64", "bits", "loss and spelling by the bytes of raw text", "metrics.bits_per_byte"),
    Column("perplexity", "float64", "", "exp(loss)", "metrics.perplexity"),
    Column("train_loss", "float64", "nats/token", "on a fixed training sample, at the end", "metrics.train_loss"),
    Column("test_loss", "float64", "nats/token", "on the test split, at the end", "metrics.test_loss"),
    Column("curve_loss", "float64", "nats/token", "loss, on the curve's data", "diagnostics.train_curve.final.valid"),
    Column("curve_train_loss", "float64", "nats/token", "train_loss likewise", "diagnostics.train_curve.final.train"),
    Column("generalisation_gap", "float64", "nats/token", "loss - train_loss", "metrics.generalisation_gap"),
    Column("metric", "string", "", "the task's headline metric", "metric.name"),
    Column("better", "string", "", "lower | higher: which values of it are better", "metric.better"),
    Column("score", "float64", "", "the headline metric on validation data, at the end"),
    Column("test_score", "float64", "", "the headline metric on test data, at the end"),
    Column("params_total", "float64", "", "all parameters", "params_total"),
    Column("params_non_embedding", "float64", "", "without embedding, position and head", "params_non_embedding"),
    Column("flops_per_token", "float64", "FLOP", "forward, executed, per token", "flops_per_token"),
    Column("train_flops", "float64", "FLOP", "forward and backward over all tokens", "train_flops"),
    Column("train_flops_6nd", "float64", "FLOP", "6 N D, N non-embedding", "train_flops_6nd"),
    Column("tokens", "float64", "tokens", "trained on", "tokens"),
    Column("steps", "float64", "", "optimizer steps", "steps"),
    Column("lr", "float64", "", "highest learning rate", "spec.train.lr"),
    Column("schedule", "string", "", "of the learning rate", "spec.train.schedule.name"),
    Column("cooled_steps", "float64", "", "of a falling learning rate at the end", "cooled_steps"),
    Column("epochs", "float64", "", "how often the training split was seen", "epochs"),
    Column("steps_per_s", "float64", "1/s", "training steps, evaluation not counted"),
    Column("tokens_per_s", "float64", "tokens/s", "training throughput, evaluation not counted", "tokens_per_s"),
    Column("wall_s", "float64", "s", "from start to end, all attempts", "wall_s"),
    *(Column(f"{each}_s", "float64", "s", f"in {each}, with `--profile`", f"profile.{each}") for each in PHASES),
    Column("peak_memory_bytes", "float64", "bytes", "most memory used", "peak_memory_bytes"),
    Column("tokens_of", "string", "", "fingerprint of the text, its splits and the tokenizer", "data.fingerprint"),
    Column("restores_text", "boolean", "", "whether the tokenizer gives its text back", "data.restores_text"),
    Column("precision", "string", "", "fp32 | bf16", "spec.train.precision"),
    Column("device", "string", "", "cpu | cuda", "environment.device"),
    Column("hardware", "string", "", "model of the GPU, else of the CPU"),
    Column("torch", "string", "", "version", "environment.torch"),
    Column("python", "string", "", "version", "environment.python"),
    Column("platform", "string", "", "operating system, kernel and machine", "environment.platform"),
    Column("git_commit", "string", "", "of the harness", "environment.git_commit"),
    Column("error", "string", "", "why a trial failed or diverged", "error"),
)
BY_NAME = {column.name: column for column in COLUMNS}
LABELS = ("stage", "variant", "size", "axes", "budget")
CELL = ("stage", "size", "axes", "budget")  # what a variant is compared within
PAIR = ("seed", "parent_seed")  # what two trials of a cell have in common, so that they are compared
EARLY = 1 / 8  # of the budget, as the early loss of Narang et al. 2021, section 3.2


def cell_name(labels: Mapping[str, Any]) -> str:
    """The labels of a cell that are not empty: `s, tokens=60000`."""
    return ", ".join(str(labels[name]) for name in CELL if labels.get(name))
