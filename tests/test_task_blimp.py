"""Minimal pairs: which sentence of a pair a trained model holds more likely, and what is no pair."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import shared
from runs import new_results, plan_of, train
from torch import Tensor

from ablate import registry
from ablate.errors import UserError
from ablate.spec import DataSpec, TrialSpec, parse
from ablate.tasks.base import Batch
from ablate.tasks.minimal_pairs import MinimalPairs

PAIRS = [
    ("In the beginning God created the heaven.", "In the beginning God create the heaven.", "agreement"),
    ("And the earth was without form.", "And the earth were without form, and void.", "agreement"),
    ("He said that.", "Said he that?", "word order"),
    ("These men are here.", "These man are here.", "word order"),
    ("Let there be light.", "Let be there light.", "word order"),
]
GRID = """\
study: pairs
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: rope}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 48}
  train: {tokens: 5760, batch_tokens: 576, lr: 3e-3, precision: fp32, eval_points: 1, eval_tokens: 192}
stages:
  lm: {train.final_eval_tokens: 192}
  pairs: {data.task: minimal_pairs, data.corpus: null, data.path: pairs.jsonl, train.tokens: 0}
"""


def lines(rows: list[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def named(group: str = "linguistics_term") -> list[Mapping[str, Any]]:
    return [{"sentence_good": good, "sentence_bad": bad, group: term} for good, bad, term in PAIRS]


def opened(folder: Path, cache: Path, text: str, name: str = "pairs.jsonl", **settings: Any) -> MinimalPairs:
    """The task on a file of this text."""
    (folder / name).write_text(text, encoding="utf-8")
    return over(folder, cache, name, **settings)


def over(folder: Path, cache: Path, name: str, **settings: Any) -> MinimalPairs:
    """The task on a file that is there."""
    options = {key: settings.pop(key) for key in ("good", "bad", "group") if key in settings}
    tree = {"task": {"name": "minimal_pairs", **options}, "path": name, "seq_len": 64, **settings}
    data = MinimalPairs.resolve(parse(DataSpec, tree), folder)
    task: MinimalPairs = registry.make("task", data.task)
    task.open(data, cache)
    return task


def test_a_trained_model_is_measured_as_if_sentence_by_sentence(tmp_path: Path, token_cache: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(lines(named()))
    ledger = new_results(tmp_path / "results", token_cache)
    first, second = plan_of(GRID, tmp_path, token_cache).trials
    train(ledger, first.spec)
    folder = train(ledger, second.spec)
    record = folder.record()
    assert record is not None and record["status"] == "finished", record
    assert record["steps"] == 0 and record["tokens"] == 0 and record["parent"] == first.id

    task: Any = registry.make("task", second.spec.data.task)
    task.open(second.spec.data, ledger.cache)
    model = task.build(second.spec.arch, 0, 0.0)
    model.load_state_dict(
        torch.load(ledger.trial(first.id).weights, weights_only=True)["model"]
    )  # its own vocabulary
    model.double().eval()
    right, nats, count = [], 0.0, 0
    for good, bad, _ in PAIRS:
        totals = []
        for sentence in (good, bad):
            ids = torch.tensor([[0, *sentence.encode()]])  # byte 0 ends a document
            with torch.no_grad():
                totals.append(-model.log_probs(ids[:, :-1])[0].gather(1, ids[0, 1:, None]).sum().item())
        right.append(float(totals[0] < totals[1]))
        nats, count = nats + totals[0], count + len(good)
    metrics = record["metrics"]
    assert metrics["accuracy"] == pytest.approx(np.mean(right))
    assert metrics["accuracy_agreement"] == pytest.approx(np.mean(right[:2]))
    assert metrics["accuracy_word_order"] == pytest.approx(np.mean(right[2:]))
    assert metrics["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert not [row for row in folder.rows() if row["split"] != "test"]


class Likes:
    """A model for which a token costs its own number of nats; it looks at targets alone."""

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return targets_BT.double()


def test_totals_are_compared_and_a_tie_counts_half(tmp_path: Path, token_cache: Path) -> None:
    """ba and ab are a tie, b and b too; aa loses to b, though cheaper per token; a wins against b."""
    rows = [("ba", "ab", "x"), ("aa", "b", "y"), ("a", "b", "y"), ("b", "b", "z")]
    text = lines([{"sentence_good": good, "sentence_bad": bad, "linguistics_term": term} for good, bad, term in rows])
    task = opened(tmp_path, token_cache, text)
    for size in (2, 3, 100):
        meter = task.meter("test", True)
        for batch in task.held_out("test", 10_000, size):
            assert len(batch) % 2 == 0 and len(batch) <= max(2, size)
            meter.add(Likes(), batch)  # type: ignore[arg-type]
        assert meter.result() == {
            "loss": pytest.approx((98 + 97 + 97 + 97 + 97 + 98) / 6),
            "accuracy": pytest.approx((0.5 + 0 + 1 + 0.5) / 4),
            "accuracy_x": 0.5,
            "accuracy_y": 0.5,
            "accuracy_z": 0.5,
        }
    assert task.facts()["pairs_of_equal_tokens"] == 1
    on_the_way = task.meter("test", False)
    on_the_way.add(Likes(), next(iter(task.held_out("test", 10_000, 100))))  # type: ignore[arg-type]
    assert set(on_the_way.result()) == {"loss", "accuracy"}


def test_what_the_model_reads(tmp_path: Path, token_cache: Path) -> None:
    task = opened(tmp_path, token_cache, lines(named()))
    batch: Batch = next(iter(task.held_out("test", 10_000, 100)))
    good, bad, _ = PAIRS[2]  # the shortest
    assert batch.counts is not None and task.vocab == 256 and not batch.marks
    for row, sentence in enumerate((good, bad)):
        n = len(sentence)
        assert batch.inputs[0][row, :n].tolist() == [0, *sentence.encode()][:n]
        assert batch.targets[row, :n].tolist() == [*sentence.encode()]
        assert batch.counts[row].tolist() == [place < n for place in range(batch.targets.shape[1])]
    facts = task.facts()
    assert facts["pairs"] == 5 and facts["groups"] == {"agreement": 2, "word order": 3}
    fewer = [(len(good) < len(bad)) + (len(good) == len(bad)) / 2 for good, bad, _ in PAIRS]
    assert facts["baselines"][1]["value"] == pytest.approx(np.mean(fewer))
    some = torch.cat([each.targets[:, 0] for each in task.held_out("test", 60, 100)])
    assert len(some) == 2  # about 60 tokens are one pair


def test_without_an_end_of_document_the_first_token_is_given(tmp_path: Path, token_cache: Path) -> None:
    vocabulary = {"model": {"type": "WordLevel", "vocab": {"he": 0, "said": 1, "?": 2}, "unk_token": "?"}}
    saved = {"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": [], **vocabulary}
    (tmp_path / "words.json").write_text(json.dumps(saved))
    text = lines([{"sentence_good": "he said he", "sentence_bad": "he he"}])
    task = opened(tmp_path, token_cache, text, tokenizer={"name": "file", "path": "words.json"})
    batch = next(iter(task.held_out("test", 100, 2)))
    assert batch.inputs[0].tolist() == [[0, 1], [0, 0]] and batch.targets.tolist() == [[1, 0], [0, 0]]
    assert batch.counts is not None and batch.counts.tolist() == [[True, True], [True, False]]
    assert "groups" in task.facts() and task.facts()["groups"] == {}
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: a sentence of one token"):
        opened(
            tmp_path,
            token_cache,
            lines([{"sentence_good": "he", "sentence_bad": "he he"}]),
            tokenizer={"name": "file", "path": "words.json"},
        )


def test_an_archive_is_read_without_what_the_finder_leaves_in_it(tmp_path: Path, token_cache: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as archive:
        archive.writestr("data/b.jsonl", lines(named()[2:]))
        archive.writestr("data/a.jsonl", lines(named()[:2]))
        archive.writestr("__MACOSX/data/._a.jsonl", b"\x00\x05\x16\x07")
    task = over(tmp_path, token_cache, "pairs.zip")
    assert bytes(task.pairs.sentence(0).tolist()).decode() == PAIRS[0][0] and task.facts()["pairs"] == 5
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("data/a.jsonl", '{"sentence_good": "a"}\n')
    with pytest.raises(UserError, match=r"bad\.zip/data/a\.jsonl:1: unknown column 'sentence_bad'"):
        over(tmp_path, token_cache, "bad.zip")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence_good": "a", "sentence_bad": " "}, "column 'sentence_bad' is empty"),
        ({"sentence_good": "a", "sentence_bad": 3}, "column 'sentence_bad' is 3, must be text"),
        ({"good": "a"}, "unknown column 'sentence_good'"),
        ({"sentence_good": "a", "sentence_bad": "b" * 65}, "needs seq_len 65, and data.seq_len is 64"),
        ({"sentence_good": "a", "sentence_bad": "b\x00"}, "holds a zero byte"),
    ],
)
def test_what_is_no_pair(tmp_path: Path, token_cache: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path, token_cache, lines([*named(), row]))
    assert "pairs.jsonl:6: " in str(error.value)


def test_other_files(tmp_path: Path, token_cache: Path) -> None:
    text = "yes;no\nHe is.;He are.\nI am.;I is.\n".replace(";", ",")
    task = opened(tmp_path, token_cache, text, "pairs.csv", good="yes", bad="no", group=None)
    assert task.facts()["pairs"] == 2
    with pytest.raises(UserError, match="holds no pair"):
        opened(tmp_path, token_cache, "\n", "none.jsonl")
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"torn\.zip: cannot be read"):
        over(tmp_path, token_cache, "torn.zip")
    with pytest.raises(UserError, match="has one split: give one path"):
        MinimalPairs.resolve(
            parse(DataSpec, {"task": "minimal_pairs", "path": dict.fromkeys(("train", "valid", "test"), "a.jsonl")}),
            tmp_path,
        )
    with pytest.raises(UserError, match="'minimal_pairs' has no data of its own"):
        MinimalPairs.resolve(parse(DataSpec, {"task": "minimal_pairs"}), tmp_path)


@pytest.mark.parametrize("setting", ["train.tokens: 576", "train.epochs: 1"])
def test_it_trains_nothing(tmp_path: Path, token_cache: Path, setting: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(lines(named()))
    with pytest.raises(UserError, match=r"'minimal_pairs' measures a model and trains none: set train\.tokens to 0"):
        plan_of(GRID.replace("train.tokens: 0", setting), tmp_path, token_cache)
    assert parse(TrialSpec, {"train": {"tokens": 0}, "parent": "0" * 12}).train.steps == 0


def test_blimp_itself(token_cache: Path) -> None:
    file = shared("data", "blimp", "BLiMP.zip")
    task = over(file.parent, token_cache, file.name, seq_len=160)
    facts = task.facts()
    assert facts["pairs"] == 67_000 and facts["pairs_of_equal_tokens"] < 100 and len(facts["groups"]) == 13
    assert facts["groups"]["anaphor_agreement"] == 2000
    assert math.isclose(facts["baselines"][1]["value"], 0.5, abs_tol=0.1)
