"""Minimal pairs: which of two sentences a language model holds more likely."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ablate.data.corpora import resolve
from ablate.data.pairs import PairTokens, prepare_pairs, read_pairs
from ablate.data.rows import padded, spread
from ablate.errors import SpecError, UserError
from ablate.registry import register
from ablate.spec import DataSpec, TrainSpec
from ablate.tasks.base import Batch, Batches, Meter, Task


@register("task", "minimal_pairs", paper="Warstadt et al. 2020 (BLiMP), arXiv:1912.00582, section 4")
class MinimalPairs(Task):
    """Measure a trained causal model: accuracy is the share of pairs whose good sentence is the more likely one.

    log p(sentence) = sum_t log p(w_t | w_<t), total over its tokens, after the end of a document where the tokenizer
    has one; where it has none the first token is given, and not scored. A tie counts half, and so does a pair of
    equal sentences, of which BLiMP has some. Nothing is trained: `train.tokens: 0`, in a stage that begins from a
    language model. `train.final_eval_tokens` says how many tokens of pairs, evenly spaced, are read.
    Columns `good` and `bad` have the sentences; accuracy is also reported for each value of column `group`, where it
    is there. `loss` is in nats per token of the good sentences.
    The data are JSON lines, CSV, or an archive of JSON lines as BLiMP's.
    """

    rows_together = 2
    splits = ("test",)
    corpora: ClassVar[tuple[str, ...]] = ()
    metric = "accuracy"
    higher_is_better = True

    def __init__(
        self, *, good: str = "sentence_good", bad: str = "sentence_bad", group: str | None = "linguistics_term"
    ):
        self.columns = (good, bad, group)

    @classmethod
    def resolve(cls, data: DataSpec, folder: Path) -> DataSpec:
        if isinstance(data.path, tuple):
            raise SpecError(["path"], "task 'minimal_pairs' has one split: give one path, not train, valid and test")
        good, bad = data.task.get("good", "sentence_good"), data.task.get("bad", "sentence_bad")
        return resolve(data, folder, cls.corpora, (good, bad))

    @classmethod
    def specimen(cls, folder: Path) -> dict[str, Any]:
        with open(folder / "pairs.jsonl", "w", encoding="utf-8") as stream:
            for number in range(12):
                pair = (f"{number} cats sit", f"{number} cats sits")
                stream.write(json.dumps(dict(zip(("sentence_good", "sentence_bad"), pair, strict=True))) + "\n")
        return {"seq_len": 16, "path": "pairs.jsonl"}

    def open(self, data: DataSpec, cache: Path) -> None:
        self.data = data
        self.pairs: PairTokens = prepare_pairs(data, cache, lambda: read_pairs(data, *self.columns), self.columns)
        self.eos = self.pairs.tokenizer.eos
        given = self.pairs.lengths - (self.eos is None)  # what the model reads of a sentence, the last token apart
        if given.min() < 1:
            place = self.place(int(given.argmin()))
            raise UserError(f"{place}: a sentence of one token says nothing without an end of document before it")
        if given.max() > data.seq_len:
            place = self.place(int(given.argmax()))
            raise UserError(f"{place}: a sentence needs seq_len {given.max()}, and data.seq_len is {data.seq_len}")

    @property
    def equal(self) -> int:
        """How many pairs are twice the same tokens."""
        pairs = self.pairs
        alike = np.flatnonzero(pairs.lengths[::2] == pairs.lengths[1::2])
        return sum(np.array_equal(pairs.sentence(2 * pair), pairs.sentence(2 * pair + 1)) for pair in alike.tolist())

    def place(self, sentence: int) -> str:
        """Where a sentence stands in the data."""
        return next(pair.place for n, pair in enumerate(read_pairs(self.data, *self.columns)) if n == sentence // 2)

    @property
    def vocab(self) -> int:
        return self.pairs.tokenizer.vocab  # that of a language model's task: other tokens would take probability

    @property
    def vocabulary(self) -> str:
        return self.pairs.fingerprint

    @property
    def train_tokens(self) -> int:
        """There is nothing to train on: the tokens that there are."""
        return len(self.pairs.ids)

    def facts(self) -> dict[str, Any]:
        good, bad = self.pairs.lengths[::2], self.pairs.lengths[1::2]
        shorter = float((good < bad).mean() + (good == bad).mean() / 2)
        return {
            "corpus": str(self.data.hub or self.data.path),
            "tokenizer": self.data.tokenizer.name,
            "vocab": self.vocab,
            "fingerprint": self.pairs.fingerprint,
            "pairs": len(good),
            "pairs_of_equal_tokens": self.equal,
            "test_tokens": len(self.pairs.ids),
            "groups": {
                name: int((self.pairs.group_of == n).sum()) for n, name in enumerate(self.pairs.groups) if name
            },
            "baselines": [
                {"name": "chance", "metric": "accuracy", "value": 0.5},
                {"name": "fewer tokens", "metric": "accuracy", "value": shorter},
            ],
        }

    def batches(self, train: TrainSpec, seed: int) -> Batches:
        if train.steps:
            raise UserError("task 'minimal_pairs' trains nothing: set train.tokens to 0")
        return ()  # type: ignore[return-value]

    def chosen(self, count: int) -> np.ndarray:
        """The numbers of so many pairs, evenly spaced, those with short sentences first."""
        pairs = spread(len(self.pairs.group_of), count)
        longest = self.pairs.lengths.reshape(-1, 2).max(1)[pairs]
        return pairs[longest.argsort(kind="stable")]

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        per_pair = len(self.pairs.ids) / len(self.pairs.group_of)
        pairs = self.chosen(max(1, int(at_most / per_pair)))
        step = max(1, rows // 2)
        for start in range(0, len(pairs), step):
            yield self.batch(pairs[start : start + step])

    def batch(self, pairs: np.ndarray) -> Batch:
        """The good and the bad sentence of each pair, one after the other."""
        sentences = [self.pairs.sentence(2 * pair + side) for pair in pairs.tolist() for side in (0, 1)]
        if self.eos is not None:
            sentences = [np.concatenate(([self.eos], sentence)) for sentence in sentences]
        given_BT, _ = padded([sentence[:-1] for sentence in sentences], 0)
        targets_BT, counts_BT = padded([sentence[1:] for sentence in sentences], 0)
        return Batch((given_BT,), targets_BT, counts_BT)

    def meter(self, split: str, final: bool) -> Meter:
        return PairMeter(self, by_group=final)


class PairMeter(Meter):
    """Accuracy over the pairs, and the loss on their good sentences."""

    def __init__(self, task: MinimalPairs, by_group: bool):
        super().__init__()
        self.task, self.by_group = task, by_group
        self.scores: list[Tensor] = []  # of each pair, in the order that the task chose: 1, 0, or 1/2 for a tie

    def add(self, model: nn.Module, batch: Batch) -> None:
        assert batch.counts is not None
        nll_B = (batch.nll(model).double() * batch.counts).sum(1)
        good_N, bad_N = nll_B.unflatten(0, (-1, 2)).unbind(1)
        self.scores.append(((bad_N - good_N).sign() / 2 + 0.5).cpu())
        self.total = self.total.to(nll_B.device) + good_N.sum()
        self.count += int(batch.counts[::2].sum())

    def result(self) -> dict[str, float]:
        score_N = torch.cat(self.scores).numpy()
        found = {**super().result(), "accuracy": float(score_N.mean())}
        if self.by_group:
            pairs = self.task.pairs
            group_N = pairs.group_of[self.task.chosen(len(score_N))]
            for group in np.unique(group_N):
                if name := pairs.groups[group]:
                    found[f"accuracy_{_word(name)}"] = float(score_N[group_N == group].mean())
        return found


def _word(name: str) -> str:
    """As a name of a metric: letters, digits and underscores."""
    return re.sub(r"\W+", "_", name).strip("_").lower()
