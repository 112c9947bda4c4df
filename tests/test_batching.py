"""Rows: padded vocabularies, documents in rows of their own, batches of about the same length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import plan_of, spec, train

from ablate import registry
from ablate.build import build_model
from ablate.data.corpora import resolve
from ablate.data.documents import DocumentRows
from ablate.data.rows import RowOrder
from ablate.errors import SpecError, UserError
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, Component, TrialSpec, parse
from ablate.tasks.base import Batch, Task
from ablate.train.run import TrainingRun

CPU = torch.device("cpu")
V, T = 21, 6


# ---- vocabularies padded to a multiple


def pair(arch: dict[str, Any], multiple: int = 8) -> tuple[Any, Any]:
    """A model, and the same one with unused rows, its other weights equal, in float64."""
    made = parse(ArchSpec, {"d_model": 8, "n_heads": 2, "depth": 1, **arch})
    plain, padded = build_model(made, V, T), build_model(made, V, T, vocab_multiple=multiple)
    for ours, theirs in zip(padded.parameters(), plain.parameters(), strict=True):
        with torch.no_grad():
            ours.normal_(std=3.0)  # unused rows would win now and then
            ours[: len(theirs)].copy_(theirs) if theirs.ndim else ours.copy_(theirs)
    return plain.double(), padded.double()


HEADS = {
    "tied": {"head": "softmax"},
    "untied": {"head": {"name": "softmax", "tied": False, "bias": True}},
    "bert": {"head": "bert", "embedding": "bert"},
    "factorized": {"embedding": {"name": "factorized", "rank": 3}},
    "mixture": {"head": {"name": "mixture_of_softmaxes", "softmaxes": 2}},
    "pair": {"encoder": True},
}


@pytest.mark.parametrize("arch", HEADS.values(), ids=HEADS)
def test_unused_rows_take_no_part(arch: dict[str, Any]) -> None:
    plain, padded = pair(arch)
    sizes = [max(len(value) for value in model.parameters() if value.ndim == 2) for model in (plain, padded)]
    assert 24 in [len(value) for value in padded.parameters()] and sizes[1] >= 24
    tokens = torch.randint(0, V, (3, T))
    inputs = (tokens.roll(1, 0), tokens) if "encoder" in arch else (tokens,)
    targets = tokens.roll(-1, 1)
    torch.testing.assert_close(padded.log_probs(*inputs), plain.log_probs(*inputs))
    assert padded.log_probs(*inputs).shape[-1] == V
    z = 0.0 if "mixture" in str(arch) else 0.01
    for smoothing in (0.0, 0.1):
        found, expected = (model.objective(*inputs, targets, smoothing, z) for model in (padded, plain))
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
    found[0].mean().backward()
    for parameter in padded.parameters():
        if len(parameter) == 24:
            assert parameter.grad is not None and (parameter.grad[V:] == 0).all() and (parameter.grad[:V] != 0).any()


@pytest.mark.parametrize(
    "arch", [{"embedding": "adaptive"}, {"head": {"name": "adaptive_softmax"}}], ids=["embedding", "head"]
)
def test_components_with_clusters_refuse_unused_rows(arch: dict[str, Any]) -> None:
    made = parse(ArchSpec, {"d_model": 8, "n_heads": 2, "depth": 1, **arch})
    build_model(made, V, T, vocab_multiple=7)  # none are needed
    with pytest.raises(UserError, match=r"adaptive.* set data.vocab_multiple to 1"):
        build_model(made, V, T, vocab_multiple=8)


def test_a_trial_with_a_padded_vocabulary(ledger: Ledger) -> None:
    folder = train(ledger, spec({"data.vocab_multiple": 100}))
    record = folder.record()
    assert record is not None and record["status"] == "finished" and record["data"]["vocab"] == 256
    weights = torch.load(folder.weights)["model"]
    assert weights["embedding.table.weight"].shape[0] == 300
    plain = train(ledger, spec()).record()
    assert plain is not None and record["params_total"] - plain["params_total"] == 44 * 16
    with pytest.raises(SpecError, match=r"vocab_multiple: 0 must be at least 1"):
        spec({"data.vocab_multiple": 0})
    with pytest.raises(SpecError, match="model 'nnlm' has no unused rows"):
        spec({"data.vocab_multiple": 8, "arch.model": "nnlm"})


# ---- documents in rows of their own


def test_every_token_of_every_document_is_a_target_once() -> None:
    stream = np.array([5, 6, 0, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0], dtype=np.uint16)  # the last document is empty
    rows = DocumentRows(stream, 0, 4)
    assert [rows[row].tolist() for row in range(len(rows))] == [
        [0, 5, 6, 0],
        [0, 7, 0],
        [0, 1, 2, 3, 4],
        [4, 5, 6, 7, 0],
        [0, 0],
    ]
    assert np.concatenate([rows[row][1:] for row in range(len(rows))]).tolist() == stream.tolist()
    assert rows.lengths.tolist() == [3, 2, 4, 4, 1]


def documents_spec(folder: Path, rows: str, **settings: Any) -> TrialSpec:
    rng = np.random.default_rng(0)
    for split, count in {"train": 60, "valid": 12, "test": 12}.items():
        (folder / split).mkdir(exist_ok=True)
        for number in range(count):
            words = " ".join(rng.choice(["ab", "cde", "f", "gh"], size=rng.integers(0, 14)))
            (folder / split / f"{number}.txt").write_text(f"{words}.")
    made = spec({"data.task": {"name": "lm", "rows": rows}, **settings})
    path = tuple((split, str(folder / split)) for split in ("test", "train", "valid"))
    data = replace(made.data, corpus=None, path=path, content="")
    return replace(made, data=resolve(data, folder))


def test_padded_documents_are_what_single_ones_are(tmp_path: Path, token_cache: Path) -> None:
    trial = documents_spec(tmp_path, "documents")
    run = TrainingRun(trial, CPU, token_cache)
    model = run.model.double().eval()
    batches = [run.batches[step] for step in range(3)] + list(run.task.held_out("valid", 400, 4))
    padded = 0
    for batch in batches:
        assert batch.counts is not None
        nll = batch.nll(model)
        for row in range(len(batch)):
            n = int(batch.counts[row].sum())
            padded += n < batch.targets.shape[1]
            alone = model.nll(batch.inputs[0][row : row + 1, :n], batch.targets[row : row + 1, :n])
            torch.testing.assert_close(nll[row, :n], alone[0], rtol=0, atol=1e-9)
    assert padded > 5


def test_documents_begin_alone_and_packed_rows_do_not(tmp_path: Path, token_cache: Path) -> None:
    run = TrainingRun(documents_spec(tmp_path, "documents"), CPU, token_cache)
    batch: Batch = run.batches[0]
    assert len(batch) == 4 and batch.counts is not None
    ends = [(batch.targets[row][batch.counts[row]] == 0).nonzero().flatten().tolist() for row in range(4)]
    lengths = batch.counts.sum(1).tolist()
    assert all(end in ([], [length - 1]) for end, length in zip(ends, lengths, strict=True))
    task = run.task
    rows = sum(len(each) for each in task.held_out("valid", 10**6, 4))
    tokens = sum(each.n for each in task.held_out("valid", 10**6, 4))
    assert tokens == task.facts()["valid_tokens"] and rows >= 12
    assert task.train_tokens == task.facts()["rows"] * 16 and 0.3 < task.facts()["row_fill_frac"] < 1
    packed = TrainingRun(documents_spec(tmp_path, "packed"), CPU, token_cache)
    assert packed.batches[0].counts is None
    inside = [(packed.batches[step].targets[:, :-1] == 0).any() for step in range(5)]
    assert any(inside)  # a document ends in the middle of a row
    assert packed.spec.trial_id != run.spec.trial_id


def test_a_trial_of_documents_ends_with_bits_per_byte(tmp_path: Path, ledger: Ledger) -> None:
    trial = documents_spec(tmp_path, "documents", **{"train.accumulate": 2})
    record = train(ledger, trial).record()
    assert record is not None and record["status"] == "finished"
    metrics = record["metrics"]
    per_token = record["data"]["bytes_per_token"]
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / np.log(2) / per_token)


def test_documents_without_an_end_are_refused(token_cache: Path) -> None:
    task: Task = registry.make("task", Component("lm", (("rows", "documents"),)))
    data = spec({"data.tokenizer": "bytes"}).data
    task.open(data, token_cache)
    task.tokens = replace(task.tokens, eos=None)  # type: ignore[attr-defined]
    real = registry.load(registry.find("tokenizer", "bytes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ablate.tasks.lm.prepare", lambda data, cache: task.tokens)  # type: ignore[attr-defined]
        with pytest.raises(SpecError, match="'bytes' has no token that ends documents"):
            registry.make("task", Component("lm", (("rows", "documents"),))).open(data, token_cache)
    assert real.eos == 0


# ---- rows of about the same length


def test_every_row_is_read_once_an_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=960)
    for given in (None, lengths):
        order = RowOrder(960, 10, "key", given)
        for epoch in range(2):
            rows = np.concatenate([order[step] for step in range(epoch * 96, epoch * 96 + 96)])
            assert given is not None or sorted(rows) == list(range(960))
        both = np.concatenate([order[step] for step in range(64 * 15)])  # whole epochs in whole blocks
        assert (np.bincount(both, minlength=960) == 10).all()


def test_rows_of_a_batch_are_about_as_long_as_each_other() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=640)
    sorted_rows, plain = RowOrder(640, 10, "key", lengths), RowOrder(640, 10, "key")
    spreads = [[np.ptp(lengths[order[step]]) for step in range(64)] for order in (sorted_rows, plain)]
    assert max(spreads[0]) <= 4 and min(spreads[1]) > 20
    means = [lengths[sorted_rows[step]].mean() for step in range(64)]
    assert means != sorted(means) and means != sorted(means, reverse=True)


def test_the_rows_of_a_step_do_not_depend_on_what_was_read_before() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, size=333)
    one, two = RowOrder(333, 7, "key", lengths), RowOrder(333, 7, "key", lengths)
    forward = [one[step].tolist() for step in range(200)]
    assert [two[step].tolist() for step in reversed(range(200))] == forward[::-1]
    other = RowOrder(333, 7, "another key", lengths)
    assert [other[step].tolist() for step in range(200)] != forward


GRID = """\
study: padded
base:
  arch: {d_model: 16, n_heads: 2, depth: 1}
  data: {corpus: kjv, seq_len: 16}
  train: {tokens: 1024, batch_tokens: 256}
variants: {plain: {}}
match: none
axes:
  data.vocab_multiple: [1, 64, 300]
  data.task.rows: [packed, documents]
"""


def test_both_are_axes(tmp_path: Path, token_cache: Path) -> None:
    rows = plan_of(GRID, tmp_path, token_cache).rows
    assert len(rows) == 6
    params = {row.spec.data.vocab_multiple: row.cost.params_total for row in rows}
    assert params[1] == params[64] == params[300] - 44 * 16
