"""Formal languages: strings without end, drawn by rule, and longer ones to be tested on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ablate.data.corruption import generator
from ablate.data.languages import VERSION, ModularAddition, make_language, options_of
from ablate.data.rows import RowOrder, padded, spread
from ablate.data.strings import Language, String, symbols_of
from ablate.decoding import Greedy
from ablate.errors import SpecError, UserError, unknown
from ablate.registry import register
from ablate.sampling import SampleRequest
from ablate.spec import Component, DataSpec, TrainSpec, digest
from ablate.tasks.base import Batch, Batches, Meter, Task

EPOCH = 10_000  # strings that count as one where there is no end of them
SAMPLE = 1024  # validation strings that baselines are measured on
MOST_BINS = 8  # of lengths


@register("task", "formal", paper="Deletang et al. 2023, arXiv:2207.02098; the languages' own papers")
class Formal(Task):
    """Strings of a formal language: of those symbols that the ones before them determine, which are told right.

    `language`, and its options, null for its default; one that the language does not have is refused:
    parity (train_length 20, every true), dyck (train_length 20, brackets 2, depth without bound), anbn and anbncn
    (train_length 20), copy and reversal (train_length 20, symbols 8), induction (train_length 20, symbols 16),
    associative_recall (train_length 8, symbols 64), modular_addition (modulus 97, train_fraction 0.5).
    `ablate/data/languages.py` says what each scores and what its length counts.

    Training and validation strings have lengths from the shortest to `train_length`, test strings from there to
    what data.seq_len holds, every length equally often. Each is drawn anew by the seed and the step; a short one of
    the validation data may also be met in training. data.seq_len stands for a string in train.batch_tokens and
    train.tokens, however short it is, and 10,000 strings are an epoch. The splits of modular_addition are of its
    finitely many sums instead, all of one length (data.seq_len 4), without a sum in two of them.

    accuracy is the share of scored symbols for which the likeliest of all possible answers is right, exact_match
    that of strings without a mistake; accuracy_len_1_20 and so on, at the end, the accuracy on strings of these
    lengths, by multiples of `train_length`.
    """

    corpora = ()
    metric = "accuracy"
    higher_is_better = True

    def __init__(
        self,
        *,
        language: Literal[
            "parity",
            "dyck",
            "anbn",
            "anbncn",
            "modular_addition",
            "reversal",
            "copy",
            "induction",
            "associative_recall",
        ] = "parity",
        train_length: int | None = None,
        every: bool | None = None,
        brackets: int | None = None,
        depth: int | None = None,
        symbols: int | None = None,
        modulus: int | None = None,
        train_fraction: float | None = None,
    ):
        options = {
            "train_length": train_length,
            "every": every,
            "brackets": brackets,
            "depth": depth,
            "symbols": symbols,
            "modulus": modulus,
            "train_fraction": train_fraction,
        }
        self.name = language
        self.language = make_language(language, {name: each for name, each in options.items() if each is not None})

    @classmethod
    def resolve(cls, data: DataSpec, folder: Path) -> DataSpec:
        """The specification with options that are the language's defaults left out, and what its strings follow from.

        Raises `SpecError` for settings that have no effect and for strings that data.seq_len does not hold.
        """
        refuse_data(data)
        try:
            task = cls(**dict(data.task.options))
        except SpecError as error:
            raise SpecError(["task", *error.path], error.problem) from None
        language = task.language
        language.check(data.seq_len)
        defaults = options_of(type(language))
        options = {name: value for name, value in data.task.options if name == "language" or value != defaults[name]}
        values = {each.name: getattr(language, each.name) for each in fields(language)}
        component = replace(data.task, options=tuple(sorted(options.items())))
        return replace(data, task=component, content=digest(["formal", VERSION, task.name, values]))

    @classmethod
    def specimen(cls, folder: Path) -> dict[str, Any]:
        return {"seq_len": 32}

    def open(self, data: DataSpec, cache: Path) -> None:
        self.data = data

    @property
    def vocab(self) -> int:
        return len(self.language.names)

    @property
    def train_tokens(self) -> int:
        language = self.language
        rows = len(language.pairs("train")) if isinstance(language, ModularAddition) else EPOCH
        return rows * self.data.seq_len

    def facts(self) -> dict[str, Any]:
        language = self.language
        (sample,) = self.held_out("valid", SAMPLE * self.data.seq_len, SAMPLE)
        scored = self.scored(sample)
        truth = sample.targets[scored]
        simple = {
            "most frequent answer": int(truth.bincount().max()) / len(truth),
            "last symbol again": float((sample.inputs[0][scored] == truth).double().mean()),
        }
        best = max(simple, key=lambda name: simple[name])
        reached = {"chance": 1 / len(language.answers), best: simple[best]}
        sizes: dict[str, Any] = {}
        for split in self.splits:
            if isinstance(language, ModularAddition):
                sizes[f"{split}_strings"] = len(language.pairs(split))
            else:
                lengths = language.lengths(split, self.data.seq_len)
                sizes[f"{split}_lengths"] = [lengths[0], lengths[-1]]
        return {
            "corpus": f"strings of {self.name}",
            "vocab": self.vocab,
            "fingerprint": self.data.content,
            **sizes,
            "baselines": [{"name": name, "metric": "accuracy", "value": each} for name, each in reached.items()],
        }

    def batches(self, train: TrainSpec, seed: int) -> Batches:
        rows, key = train.batch_tokens // self.data.seq_len, f"{self.data.content}/{seed}"
        if isinstance(self.language, ModularAddition):
            return SumBatches(self.language, rows, key)
        return StringBatches(self.language, self.language.lengths("train", self.data.seq_len), rows, key)

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        language, count = self.language, max(1, at_most // self.data.seq_len)
        if isinstance(language, ModularAddition):
            pairs = language.pairs(split)
            strings = [language.string(a, b) for a, b in pairs[spread(len(pairs), count)].tolist()]
        else:
            lengths, key = language.lengths(split, self.data.seq_len), f"{self.data.content}/{split}"
            strings = [drawn(language, lengths, generator(f"{key}/{number}")) for number in range(count)]
        return [batch_of(strings[start : start + rows]) for start in range(0, len(strings), rows)]

    def scored(self, batch: Batch) -> Tensor:
        """Which targets are answers, (B, T)."""
        answers = self.language.answers
        assert batch.counts is not None
        if isinstance(self.language, ModularAddition) or len(answers) == self.vocab:
            return batch.counts
        return batch.counts & (batch.targets >= answers.start) & (batch.targets < answers.stop)

    def meter(self, split: str, final: bool) -> Meter:
        longest = 0 if isinstance(self.language, ModularAddition) else self.language.longest(self.data.seq_len)
        return FormalMeter(self, longest if final else 0)

    def decode(self, ids: Sequence[int]) -> str:
        """A string in the language's symbols, with spaces between them."""
        return symbols_of(ids, self.language.names)

    def generate(self, model: nn.Module, request: SampleRequest) -> list[str]:
        """`PROMPT -> what follows`, symbols with spaces between them: up to the end in languages that have one, the
        one symbol that is asked in the others. Without a prompt a validation string, up to what is scored first."""
        names = self.language.names
        end = names.index("<end>") if "<end>" in names else None
        if end is None and (request.length or 1) > 1:
            raise UserError(f"language {self.name!r} asks for one symbol after each: leave out --length")
        prompt = self._asked() if request.prompt is None else self._ids(request.prompt)
        at_most = 1 if end is None else self.data.seq_len
        found = request.continuations(model, prompt, default=Greedy(), at_most=at_most, stop=end)
        return [f"{self.decode(prompt)} -> {self.decode(each)}" for each in found]

    def _asked(self) -> list[int]:
        batch = next(iter(self.held_out("valid", 1, 1)))
        first = int(self.scored(batch)[0].int().argmax())
        return batch.inputs[0][0, : first + 1].tolist()  # type: ignore[no-any-return]

    def _ids(self, text: str) -> list[int]:
        names = self.language.names
        strange = next((each for each in text.split() if each not in names), None)
        if strange is not None or not text.split():
            raise UserError(f"the prompt: {unknown('symbol', strange or '', names[:20])}, with spaces between them")
        return [names.index(each) for each in text.split()]


def refuse_data(data: DataSpec) -> None:
    """Raise `SpecError` for settings of data that are read, in a task that draws its own."""
    given = [name for name in ("corpus", "path", "hub", "hub_config") if getattr(data, name) is not None]
    given += [name for name in ("column", "valid", "test") if getattr(data, name) != getattr(DataSpec, name)]
    if data.tokenizer != Component("bytes"):
        raise SpecError(["tokenizer"], f"{data.tokenizer.name!r} has no effect: the symbols are the language's own")
    if given:
        problem = f"{getattr(data, given[0])!r} has no effect: task {data.task.name!r} draws its strings by rule"
        raise SpecError([given[0]], problem)


class FormalMeter(Meter):
    """Loss of all targets that count; accuracy of answers, of whole strings, and by their lengths up to `longest`."""

    def __init__(self, task: Formal, longest: int):
        super().__init__()
        self.task, self.longest = task, longest
        self.right = self.answers = self.whole = self.strings = 0
        self.by_bin = np.zeros((MOST_BINS, 2), dtype=np.int64)  # answers that are right, answers

    def add(self, model: nn.Module, batch: Batch) -> None:
        log_p_BTV: Tensor = model.log_probs(*batch.inputs, **batch.marks)  # type: ignore[operator]
        self.add_loss(-log_p_BTV.gather(-1, batch.targets[..., None])[..., 0], batch)
        answers, scored_BT = self.task.language.answers, self.task.scored(batch)
        answer_BT = log_p_BTV[..., answers.start : answers.stop].argmax(-1) + answers.start
        right_BT = (answer_BT == batch.targets) & scored_BT
        right_B, answers_B = right_BT.sum(1).cpu().numpy(), scored_BT.sum(1).cpu().numpy()
        self.right += int(right_B.sum())
        self.answers += int(answers_B.sum())
        self.whole += int((right_B == answers_B).sum())
        self.strings += len(batch)
        if self.longest:
            np.add.at(self.by_bin, self.bins(batch), np.stack((right_B, answers_B), 1))

    def bins(self, batch: Batch) -> np.ndarray:
        """Which of the bins each string belongs to; the last target of a string always counts."""
        assert batch.counts is not None
        T = batch.counts.shape[1]
        rows = (batch.counts * torch.arange(1, T + 1, device=batch.counts.device)).amax(1).tolist()
        language = self.task.language
        lengths = np.array([language.length(row) for row in rows])
        return ((lengths - 1) // language.train_length).clip(max=MOST_BINS - 1)  # type: ignore[no-any-return]

    def result(self) -> dict[str, float]:
        found = super().result() | {
            "accuracy": self.right / max(1, self.answers),
            "exact_match": self.whole / max(1, self.strings),
        }
        width = self.task.language.train_length
        for index, (right, answers) in enumerate(self.by_bin.tolist()):
            if answers:
                last = self.longest if index == MOST_BINS - 1 else min((index + 1) * width, self.longest)
                found[f"accuracy_len_{index * width + 1}_{last}"] = right / answers
        return found


class StringBatches:
    """Strings of each step, drawn by the language, the seed and the step."""

    def __init__(self, language: Language, lengths: range, rows: int, key: str):
        self.language, self.lengths, self.rows, self.key = language, lengths, rows, key

    def __getitem__(self, step: int) -> Batch:
        draw = generator(f"{self.key}/{step}")
        return batch_of([drawn(self.language, self.lengths, draw) for _ in range(self.rows)])


class SumBatches:
    """Sums of the training split, each once an epoch."""

    def __init__(self, language: ModularAddition, rows: int, key: str):
        self.language, self.pairs = language, language.pairs("train")
        self.order = RowOrder(len(self.pairs), rows, key)

    def __getitem__(self, step: int) -> Batch:
        return batch_of([self.language.string(a, b) for a, b in self.pairs[self.order[step]].tolist()])


def drawn(language: Language, lengths: range, draw: np.random.Generator) -> String:
    """A string of one of these lengths, all equally likely."""
    return language.draw(lengths[int(draw.integers(len(lengths)))], draw)


def batch_of(strings: Sequence[String]) -> Batch:
    """Strings as rows, shorter ones filled up at the end, where a causal model that looks back sees nothing of it."""
    inputs, targets, counts = (
        padded([getattr(string, name) for string in strings], 0)[0] for name in ("inputs", "targets", "counts")
    )
    return Batch((inputs,), targets, counts.bool())
