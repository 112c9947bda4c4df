"""Causal language modelling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ablate.data.batches import TrainBatches, eval_windows
from ablate.data.documents import DocumentRows
from ablate.data.rows import RowOrder, padded, spread
from ablate.data.tokens import Tokens, prepare
from ablate.decoding import Sample
from ablate.errors import SpecError, UserError
from ablate.registry import register
from ablate.sampling import SampleRequest, known
from ablate.spec import DataSpec, TrainSpec
from ablate.tasks.base import Batch, Meter, Task

GENERATED = 200  # tokens, where nothing else is said


class TextStream(Task):
    """A task on windows of running text. Subclasses say what is made of a window."""

    def open(self, data: DataSpec, cache: Path) -> None:
        self.data = data
        self.tokens: Tokens = prepare(data, cache)

    @property
    def vocab(self) -> int:
        return self.tokens.vocab

    @property
    def vocabulary(self) -> str:
        return self.tokens.fingerprint

    @property
    def train_tokens(self) -> int:
        return len(self.tokens.splits["train"])

    def facts(self) -> dict[str, Any]:
        tokens = self.tokens
        return {
            "corpus": str(self.data.corpus or self.data.hub or self.data.path),
            "tokenizer": self.data.tokenizer.name,
            "vocab": tokens.vocab,
            "fingerprint": tokens.fingerprint,
            **{f"{split}_tokens": len(tokens.splits[split]) for split in self.splits},
            "bytes_per_token": tokens.bytes_per_token["valid"],
            "unigram_entropy": tokens.unigram_entropy,
            "unknown_frac": tokens.unknown_frac,
            "restores_text": tokens.restores_text,
            **{f"{split}_unknown_frac": tokens.unknown_in(split) for split in self.splits if split != "train"},
            "baselines": [{"name": "unigram entropy", "metric": "loss", "value": tokens.unigram_entropy}],
        }

    def windows(self, train: TrainSpec, seed: int) -> TrainBatches:
        """Windows of seq_len + 1 tokens for every step."""
        tokens, size = self.tokens, train.batch_tokens // self.data.seq_len
        return TrainBatches(tokens.splits["train"], self.data.seq_len, size, tokens.fingerprint, seed)

    def stream(self, at_most: int) -> Tensor:
        return torch.from_numpy(self.tokens.splits["train"][:at_most].astype(np.int64))

    def prompt(self, text: str | None) -> list[int]:
        """The ids of a text to go on from; without one, the end of a document or of a line. Raises `UserError`."""
        if not text and self.tokens.eos is not None:
            return [self.tokens.eos]
        ids: list[int] = known(self.tokens.tokenizer, text or "\n").tolist()
        if not ids:
            raise UserError("the prompt has no tokens: give --prompt a text that has some")
        return ids


@register("task", "lm", paper="Bengio et al. 2003; Radford et al. 2018")
class LanguageModelling(TextStream):
    """Predict every token from those before it: loss = -log p(w_t | w_<t) in nats per token.

    A window of seq_len + 1 tokens gives seq_len predictions. Perplexity is e^loss; for bits per byte see
    `Tokens.bits_per_byte`.

    `rows: packed` reads windows of the documents one after the other, wherever they begin; `documents` reads each
    document from the beginning of a row, alone, with padding behind it that is not scored: see `DocumentRows`.
    Rows of about the same length are read together, and a batch is as long as its longest row; the budget counts
    seq_len tokens for every row, however short.
    """

    cuts: ClassVar[bool] = True

    def __init__(self, *, rows: Literal["packed", "documents"] = "packed"):
        self.rows = rows

    def open(self, data: DataSpec, cache: Path) -> None:
        super().open(data, cache)
        if self.rows == "documents" and self.tokens.eos is None:
            problem = "has no token that ends documents: set data.task.rows to packed"
            raise SpecError([], f"tokenizer {data.tokenizer.name!r} {problem}")
        self._documents: dict[str, DocumentRows] = {}

    def documents(self, split: str) -> DocumentRows:
        """The rows of a split."""
        if split not in self._documents:
            assert self.tokens.eos is not None
            self._documents[split] = DocumentRows(self.tokens.splits[split], self.tokens.eos, self.data.seq_len)
        return self._documents[split]

    @property
    def train_tokens(self) -> int:
        return super().train_tokens if self.rows == "packed" else len(self.documents("train")) * self.data.seq_len

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        if self.rows == "documents":
            rows = self.documents("train")
            facts |= {"rows": len(rows), "row_fill_frac": float(rows.lengths.mean()) / self.data.seq_len}
        return facts

    def batches(self, train: TrainSpec, seed: int) -> LanguageBatches | DocumentBatches:
        if self.rows == "packed":
            return LanguageBatches(self.windows(train, seed))
        rows = self.documents("train")
        key = f"{self.tokens.fingerprint}/{seed}/documents"
        size = train.batch_tokens // self.data.seq_len
        return DocumentBatches(rows, RowOrder(len(rows), size, key, rows.lengths))

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        if self.rows == "documents":
            return self._held_out_documents(split, at_most, rows)
        windows = torch.from_numpy(eval_windows(self.tokens.splits[split], self.data.seq_len, at_most))
        return next_token(windows).split(rows)

    def _held_out_documents(self, split: str, at_most: int, rows: int) -> Iterator[Batch]:
        found = self.documents(split)
        chosen = spread(len(found), max(1, round(at_most / found.lengths.mean())))
        for at in range(0, len(chosen), rows):
            yield padded_rows([found[row] for row in chosen[at : at + rows]])

    def meter(self, split: str, final: bool) -> Meter:
        return TextMeter(self.tokens, split)

    def generate(self, model: nn.Module, request: SampleRequest) -> list[str]:
        """The prompt's text, or the beginning of a document, and what follows: up to the document's end, or
        `request.length` tokens (200). Where the model is full it goes on from the later half of what it has read."""
        ids = self.prompt(request.prompt)
        prompt = ids if self.rows == "packed" or not request.prompt else [*self.prompt(None), *ids]
        found = request.continuations(
            model,
            prompt,
            default=Sample(seed=request.seed),
            at_most=GENERATED,
            stop=self.tokens.eos,
            slide=True,
        )
        return [self.tokens.tokenizer.decode([*(ids if request.prompt else []), *each]) for each in found]


class TextMeter(Meter):
    """Loss, and what follows from it: bits per byte of the split's raw text, perplexity."""

    def __init__(self, tokens: Tokens, split: str):
        super().__init__()
        self.tokens, self.split = tokens, split

    def result(self) -> dict[str, float]:
        loss = super().result()["loss"]
        return {
            "loss": loss,
            "bits_per_byte": self.tokens.bits_per_byte(loss, self.split),
            "perplexity": math.exp(min(loss, 700.0)),
        }


class LanguageBatches:
    """Windows as batches."""

    def __init__(self, windows: TrainBatches):
        self.windows = windows

    def __getitem__(self, step: int) -> Batch:
        return next_token(torch.from_numpy(self.windows[step]))


def next_token(windows: Tensor) -> Batch:
    """Every token of a window but the last, and what follows each."""
    return Batch((windows[:, :-1],), windows[:, 1:])


class DocumentBatches:
    """Rows of documents as batches."""

    def __init__(self, rows: DocumentRows, order: RowOrder):
        self.rows, self.order = rows, order

    def __getitem__(self, step: int) -> Batch:
        return padded_rows([self.rows[row] for row in self.order[step]])


def padded_rows(rows: list[np.ndarray]) -> Batch:
    """`next_token` of rows of different lengths: what is behind a row's end is not scored, and nothing sees it."""
    ids, valid = padded(rows, 0)
    return Batch((ids[:, :-1],), ids[:, 1:], valid[:, 1:])
