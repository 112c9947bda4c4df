"""Span corruption: counts as T5's, texts that can be put together again, padding that does not leak."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import spec, train
from test_task_mlm import opened, small

from ablate.build import build_model
from ablate.data.corruption import Spans, corrupt_spans, generator, longest, segments
from ablate.data.tokenizers import Specials
from ablate.errors import UserError
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, parse
from ablate.tasks.base import Batch
from ablate.tasks.span import SpanCorruption, pair_batch


def restored(source: list[int], target: list[int], first: int) -> list[int]:
    """The text, read off as a person would: every sentinel of the source stands for what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token >= first:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    return [word for token in source for word in (spans[token] if token >= first else [token])]


def t5_sizes(raw: int, noise: float, mean: float) -> tuple[int, int]:
    """Input and target lengths of T5's own preparation, each with an end token."""
    noise_tokens = int(np.round(raw * noise))
    noise_spans = int(np.round(noise_tokens / mean))
    return raw - noise_tokens + noise_spans + 1, noise_tokens + noise_spans + 1


@pytest.mark.parametrize(("at_most", "noise", "mean"), [(511, 0.15, 3.0), (127, 0.15, 3.0), (63, 0.3, 3.0)])
def test_lengths_are_those_of_t5(at_most: int, noise: float, mean: float) -> None:
    """Our sources have no end token, and our targets a last sentinel where T5's have the end token."""
    raw = at_most
    while t5_sizes(raw + 1, noise, mean)[0] <= at_most + 1:
        raw += 1
    spans = longest(at_most, noise, mean)
    assert spans is not None and spans.length == raw
    assert (spans.source + 1, spans.target) == t5_sizes(raw, noise, mean)


def test_the_published_lengths() -> None:
    """512 tokens with the end token are 568 of the text, and 114 of a target."""
    spans = longest(511, 0.15, 3.0)
    assert spans == Spans(568, 85, 28) and (spans.source, spans.target) == (511, 114)


def test_source_and_target_both_fit() -> None:
    for at_most in range(3, 40):
        for noise in (0.05, 0.15, 0.5, 0.9):
            spans = longest(at_most, noise, 2.0)
            assert spans is not None and max(spans.source, spans.target) <= at_most
            assert 1 <= spans.spans <= min(spans.noise, spans.length - spans.noise)
    assert longest(2, 0.15, 3.0) is None


def test_segments_are_drawn_evenly_from_all_sums() -> None:
    draw = generator("segments")
    found = Counter(tuple(segments(draw, 5, 3).tolist()) for _ in range(6000))
    assert set(found) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert max(abs(count - 1000) for count in found.values()) < 4.5 * math.sqrt(1000 * 5 / 6)
    assert segments(draw, 4, 1).tolist() == [4] and segments(draw, 3, 3).tolist() == [1, 1, 1]


def test_a_text_can_be_put_together_again() -> None:
    draw, window = generator("text"), np.random.default_rng(0).integers(0, 90, 60)
    spans = Spans.of(60, 0.15, 3.0)
    assert (spans.noise, spans.spans) == (9, 3)
    for _ in range(200):
        source, target = (each.tolist() for each in corrupt_spans(draw, window, spans, 100))
        assert restored(source, target, 100) == window.tolist()
        assert (len(source), len(target)) == (spans.source, spans.target)
        assert [token for token in source if token >= 100] == [100, 101, 102]
        assert [token for token in target if token >= 100] == [100, 101, 102, 103]
        assert source[0] < 100 and source[-1] == 102 and target[0] == 100 and target[-1] == 103
        assert all(b < 100 for a, b in pairwise(target) if a >= 100)  # spans are not empty


def test_15_percent_are_taken_out_in_spans_of_3(token_cache: Path) -> None:
    task = opened(token_cache, "span", seq_len=128)
    assert isinstance(task, SpanCorruption)
    batch = task.batches(spec({"train.batch_tokens": 12800, "train.tokens": 12800, "data.seq_len": 128}).train, 0)[0]
    first = Specials(256).sentinel(0)
    source, target = batch.inputs[0], batch.targets
    taken, spans = (target < first).sum(1), (source >= first).sum(1)
    assert len(batch) == 100 and source.shape[1] <= 128
    assert set(taken.tolist()) == {task.spans.noise} and set(spans.tolist()) == {task.spans.spans}
    assert task.spans.noise / task.spans.length == pytest.approx(0.15, abs=0.5 / task.spans.length)
    assert task.spans.noise / task.spans.spans == pytest.approx(3, abs=0.3)
    assert ((target >= first).sum(1) == spans + 1).all()
    assert target.max() == task.vocab - 1 and task.spans.spans + 1 == task.vocab - Specials(256).vocab


def test_the_decoder_is_given_its_target_one_late(token_cache: Path) -> None:
    task = opened(token_cache, "span")
    batch = task.batches(small(), 0)[2]
    _, given = batch.inputs
    assert (given[:, 0] == Specials(256).start).all() and torch.equal(given[:, 1:], batch.targets[:, :-1])
    assert batch.counts is None and not batch.marks  # all rows are of one length
    again = opened(token_cache, "span").batches(small(), 0)[2]
    assert torch.equal(again.inputs[0], batch.inputs[0])
    other = task.batches(small(), 0)[3]
    assert not torch.equal(other.inputs[0], batch.inputs[0])


def test_windows_of_the_text_are_restored(token_cache: Path) -> None:
    task = opened(token_cache, "span")
    assert isinstance(task, SpanCorruption)
    windows = task.windows(small(), 0)[0][:, :-1]
    batch = task.batches(small(), 0)[0]
    for source, target, window in zip(
        batch.inputs[0].tolist(), batch.targets.tolist(), windows.tolist(), strict=True
    ):
        assert restored(source, target, Specials(256).sentinel(0)) == window


def test_an_epoch_is_counted_in_rows(token_cache: Path) -> None:
    """A row counts as seq_len tokens and holds a longer window."""
    task, plain = opened(token_cache, "span"), opened(token_cache, "lm")
    assert isinstance(task, SpanCorruption)
    assert task.train_tokens == plain.train_tokens * 32 // task.spans.length < plain.train_tokens


@pytest.mark.parametrize("position", ["learned", "t5"])
def test_a_padded_batch_gives_the_same_as_single_rows(position: str) -> None:
    specials, draw = Specials(256), generator("rows")
    pairs = [
        corrupt_spans(draw, np.arange(length), Spans.of(length, 0.3, 2.0), specials.sentinel(0))
        for length in (30, 7, 18)
    ]
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 2, "position": position, "encoder": True})
    model = build_model(arch, 300, 32).double().eval()
    batch = pair_batch(*zip(*pairs, strict=True), specials)
    assert set(batch.marks) == {"valid_BS"} and batch.counts is not None
    with torch.no_grad():
        padded = batch.nll(model) * batch.counts
        for row, (source, target) in enumerate(pairs):
            alone = pair_batch([source], [target], specials)
            assert not alone.marks and alone.counts is None
            assert (padded[row, : len(target)] - alone.nll(model)[0]).abs().max() < 1e-9
        filled = batch.inputs[0].masked_fill(~batch.marks["valid_BS"], 5)
        changed = Batch((filled, batch.inputs[1]), batch.targets, batch.counts, batch.marks)
        assert (changed.nll(model) * batch.counts - padded).abs().max() < 1e-9


def test_it_trains(ledger: Ledger) -> None:
    record = train(ledger, spec({"data.task": "span", "arch.encoder": True, "data.seq_len": 32})).record()
    assert record is not None and record["status"] == "finished", record
    assert {"loss", "accuracy", "test_accuracy"} <= set(record["metrics"])
    assert record["data"]["window_per_row"] > record["data"]["source_per_row"] <= 32


def test_a_row_that_is_too_short(token_cache: Path) -> None:
    with pytest.raises(UserError, match="no corrupted window fits into seq_len 2"):
        opened(token_cache, "span", seq_len=2)
