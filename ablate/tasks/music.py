"""Polyphonic music: chord after chord."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate.data.chorales import (
    END_OF_STEP,
    HIGHEST,
    START,
    VOCAB,
    Piece,
    chord_of,
    chords_of,
    listed,
    piece_of,
    pieces_by_split,
)
from ablate.data.corpora import resolve
from ablate.data.corruption import generator
from ablate.data.rows import RowOrder, padded, spread
from ablate.decoding import Sample
from ablate.errors import SpecError, UserError
from ablate.registry import register
from ablate.sampling import SampleRequest
from ablate.spec import Component, DataSpec, TrainSpec
from ablate.tasks.base import Batch, Meter, Task

PIANO = 88  # keys


@register(
    "task", "music", paper="Boulanger-Lewandowski et al. 2012, arXiv:1206.6392; Huang et al. 2018, arXiv:1809.04281"
)
class Music(Task):
    """Which pitches sound in each time step, after all before: nll_per_step = -log p(chord_t | chord_<t) in nats.

    A step is the pitches that sound in it, each once, from the highest to the lowest, and an end of the step. Every
    set of pitches is spelled in one way, so that the product of its tokens' probabilities is that of the set; what a
    model still gives to spellings that do not occur makes nll_per_step larger, never smaller. It is the sum over all
    tokens of the split's sample by the number of its steps: to compare with the log-likelihoods of the paper's
    table 1 on the same time grid (theirs of these chorales: quarter notes). `loss` is per token. Where a piece ends
    is not predicted.

    `path:` is a JSON file of MIDI pitches by step, [[[pitches of step 1], [pitches of step 2], ...], piece 2, ...]:
    an object of train, valid and test, or one list, split by hash, or three files. Two voices on one pitch are one
    pitch, -1 is a rest, and an empty step is silence.

    Rows never cross pieces. A piece of more than data.seq_len tokens is cut at ends of steps where it is measured,
    and every row's first steps are then without what came before: only a seq_len from the longest piece on (in the
    facts) gives the exact likelihood. In training such a piece is read from a random step on, as often in an epoch
    as it has rows. `transpose`: in training each row by a random number of semitones, up to so many down or up.
    data.seq_len stands for a row in train.batch_tokens and train.tokens, however short it is.
    """

    corpora = ()
    metric = "nll_per_step"

    def __init__(self, *, transpose: int = 0):
        if not 0 <= transpose <= HIGHEST:
            raise SpecError(["transpose"], f"{transpose} must be from 0 to {HIGHEST} semitones")
        self.transpose = transpose

    @classmethod
    def resolve(cls, data: DataSpec, folder: Path) -> DataSpec:
        """As of any task. Raises `SpecError` for settings that have no effect."""
        try:
            cls(**dict(data.task.options))
        except SpecError as error:
            raise SpecError(["task", *error.path], error.problem) from None
        if data.tokenizer != Component("bytes"):
            raise SpecError(["tokenizer"], f"{data.tokenizer.name!r} has no effect: the tokens are MIDI pitches")
        if data.hub is not None:
            raise SpecError(["hub"], "task 'music' reads files: give data.path")
        if data.column != DataSpec.column:
            raise SpecError(["column"], f"{data.column!r} has no effect: the files have no columns")
        resolved = resolve(data, folder, cls.corpora, ("pitches",))
        paths = [resolved.path] if isinstance(resolved.path, str) else [file for _, file in resolved.path or ()]
        for path in paths:
            if Path(path).is_dir():
                raise SpecError(["path"], f"{path} is a folder: give a JSON file, or one for each split")
        return replace(resolved, column=data.column)

    @classmethod
    def specimen(cls, folder: Path) -> dict[str, Any]:
        scale = [60, 62, 64, 65, 67, 69, 71]
        pieces = [[[scale[(n * step) % 7], 48 + n % 5] for step in range(4 + n % 3)] for n in range(30)]
        (folder / "pieces.json").write_text(json.dumps(pieces))
        return {"path": "pieces.json", "seq_len": 16}

    def open(self, data: DataSpec, cache: Path) -> None:
        """The files are read anew each time: all chorales take less than a second."""
        self.data = data
        self.pieces: dict[str, list[Piece]] = pieces_by_split(data)
        longest = max(int(np.diff(piece.ends).max()) for pieces in self.pieces.values() for piece in pieces)
        if longest > data.seq_len:
            raise UserError(f"seq_len {data.seq_len} is less than the {longest} tokens of the largest step")

    @property
    def vocab(self) -> int:
        return VOCAB

    @property
    def train_tokens(self) -> int:
        return len(self.train_rows()) * self.data.seq_len

    def train_rows(self) -> list[int]:
        """The number of a piece for each row that an epoch reads."""
        size = self.data.seq_len
        return [number for number, piece in enumerate(self.pieces["train"]) for _ in piece.rows(size)]

    def facts(self) -> dict[str, Any]:
        sizes: dict[str, int] = {}
        for split in self.splits:
            pieces = self.pieces[split]
            sizes[f"{split}_pieces"] = len(pieces)
            sizes[f"{split}_steps"] = sum(piece.steps for piece in pieces)
            sizes[f"{split}_tokens"] = sum(len(piece.tokens) for piece in pieces)
        every = [len(piece.tokens) for pieces in self.pieces.values() for piece in pieces]
        simple = {
            f"uniform over {PIANO} keys": PIANO * math.log(2),
            "independent pitches": independent(self.pieces["train"], self.pieces["valid"]),
        }
        return {
            "corpus": str(self.data.path),
            "vocab": VOCAB,
            "fingerprint": self.data.content,
            **sizes,
            "longest_piece": max(every),
            "cut_pieces": sum(size > self.data.seq_len for size in every),
            "baselines": [{"name": name, "metric": "nll_per_step", "value": value} for name, value in simple.items()],
        }

    def batches(self, train: TrainSpec, seed: int) -> PieceBatches:
        return PieceBatches(self, train.batch_tokens // self.data.seq_len, f"{self.data.content}/{seed}")

    def stream(self, at_most: int) -> Tensor:
        parts = [part for piece in self.pieces["train"] for part in ([START], piece.tokens)]
        return torch.from_numpy(np.concatenate(parts)[:at_most].astype(np.int64))

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        """The whole split where `at_most` allows so many rows of seq_len tokens; else evenly spaced ones of them."""
        size = self.data.seq_len
        parts = [(piece, *part) for piece in self.pieces[split] for part in piece.rows(size)]
        chosen = [parts[number] for number in spread(len(parts), at_most // size)]
        for start in range(0, len(chosen), rows):
            yield batch_of([piece.read(first, stop) for piece, first, stop in chosen[start : start + rows]])

    def meter(self, split: str, final: bool) -> Meter:
        return StepMeter()

    def decode(self, ids: Iterable[int]) -> str:
        """The chords as JSON, in the form of the files: a list of the pitches of each step."""
        return json.dumps(chords_of(ids))

    def generate(self, model: nn.Module, request: SampleRequest) -> list[str]:
        """Steps as JSON, in the form of a piece in the files: those of the prompt, `[[60, 64], [67]]`, and what
        follows, up to `request.length` tokens or to where the model is full; pieces have no end of their own."""
        prompt = self.tokens_in(request.prompt)
        found = request.continuations(
            model, [START, *prompt], default=Sample(seed=request.seed), at_most=self.data.seq_len
        )
        return [self.decode([*prompt, *each]) for each in found]

    def tokens_in(self, text: str | None) -> list[int]:
        """The tokens of steps that a person gave as JSON. Raises `UserError`."""
        if not text:
            return []
        try:
            tree = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            raise UserError(
                f"the prompt {text!r:.40} is not JSON: give the pitches of each step, [[60, 64], [67]]"
            ) from None
        steps = enumerate(listed(tree, "the prompt", "a list of time steps"), 1)
        return piece_of([chord_of(step, f"the prompt, step {at}") for at, step in steps]).tokens.tolist()  # type: ignore[no-any-return]


class StepMeter(Meter):
    """Loss by tokens and by time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def add(self, model: nn.Module, batch: Batch) -> None:
        super().add(model, batch)
        assert batch.counts is not None
        self.steps += int(((batch.targets == END_OF_STEP) & batch.counts).sum())

    def result(self) -> dict[str, float]:
        return super().result() | {"nll_per_step": self.total.item() / max(1, self.steps)}


class PieceBatches:
    """Rows of each step: which pieces by the order, from where and how high by the seed and the step."""

    def __init__(self, task: Music, rows: int, key: str):
        self.pieces, self.size, self.transpose = task.pieces["train"], task.data.seq_len, task.transpose
        self.numbers, self.key = task.train_rows(), key
        lengths = np.array([min(self.size, len(self.pieces[number].tokens)) for number in self.numbers])
        self.order = RowOrder(len(self.numbers), rows, key, lengths)

    def __getitem__(self, step: int) -> Batch:
        draw = generator(f"{self.key}/{step}")
        rows = []
        for row in self.order[step]:
            piece = self.pieces[self.numbers[row]]
            first = int(draw.integers(piece.last_start(self.size) + 1))
            low, high = piece.shifts(self.transpose)
            rows.append(piece.read(first, piece.reach(first, self.size), int(draw.integers(low, high + 1))))
        return batch_of(rows)


def batch_of(rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Rows of inputs and targets, filled up at the end: no token of a causal model looks ahead at it."""
    inputs, counts = padded([each for each, _ in rows], START)
    targets, _ = padded([each for _, each in rows], START)
    return Batch((inputs,), targets, counts)


def independent(train: list[Piece], valid: list[Piece]) -> float:
    """-log p in nats per step where each pitch sounds or not by itself, as often as in training (plus one each)."""
    steps = sum(piece.steps for piece in train)
    chance = (sounding(train) + 1) / (steps + 2)
    counts, of = sounding(valid), sum(piece.steps for piece in valid)
    return float(-(counts * np.log(chance) + (of - counts) * np.log1p(-chance)).sum() / of)


def sounding(pieces: list[Piece]) -> np.ndarray:
    """In how many steps each pitch sounds."""
    return np.bincount(np.concatenate([piece.tokens for piece in pieces]), minlength=VOCAB)[: HIGHEST + 1]
