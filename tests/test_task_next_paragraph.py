"""Pairs of paragraphs made of running text: neighbours, and others from elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import train

from ablate import registry
from ablate.data.corpora import corpus_of, resolve
from ablate.errors import UserError
from ablate.run.ledger import Ledger
from ablate.spec import DataSpec, TrialSpec, parse
from ablate.tasks.next_paragraph import KJV_REFERENCE, pairs_of, paragraphs

DOCUMENTS = [[f"document {d} paragraph {p}" for p in range(2 + d % 4)] for d in range(8)]


def task_of(**options: Any) -> Any:
    return registry.make("task", parse(DataSpec, {"task": {"name": "next_paragraph", **options}}).task)


def test_half_of_the_pairs_are_neighbours_and_half_come_from_other_documents() -> None:
    found = list(pairs_of(DOCUMENTS, "train", "here", "key"))
    neighbours = {(document[p], document[p + 1]) for document in DOCUMENTS for p in range(len(document) - 1)}
    follows = {each.texts for each in found if each.label == "follows"}
    others = [each.texts for each in found if each.label == "random"]
    assert len(found) == len(neighbours) and len(others) == len(neighbours) // 2
    assert {first for first, _ in others} | {first for first, _ in follows} == {first for first, _ in neighbours}
    assert follows < neighbours
    assert all(first.split()[1] != second.split()[1] for first, second in others)
    assert found == list(pairs_of(DOCUMENTS, "train", "here", "key"))
    assert found != list(pairs_of(DOCUMENTS, "train", "here", "other"))


def test_one_document_gives_others_of_its_own() -> None:
    document = [f"paragraph {p}" for p in range(20)]
    for each in pairs_of([document], "train", "here", "key"):
        after = int(each.texts[1].split()[1]) - int(each.texts[0].split()[1])
        assert (after == 1) == (each.label == "follows") and after != 0


def test_text_without_pairs_or_variety_is_refused() -> None:
    with pytest.raises(UserError, match="here: the valid split has 1 pairs of paragraphs"):
        list(pairs_of([["a b c", "d e f"]], "valid", "here", "key"))
    with pytest.raises(UserError, match="the text repeats itself"):
        list(pairs_of([["same words here"] * 9], "valid", "here", "key"))


def test_what_a_paragraph_is() -> None:
    text = "one two three\nfour five six\n\n \nseven  eight nine\nten\n"
    assert paragraphs(text, "lines", 3) == ["one two three", "four five six", "seven eight nine"]
    assert paragraphs(text, "lines", 1)[-1] == "ten"
    assert paragraphs(text, "blocks", 1) == ["one two three four five six", "seven eight nine ten"]


def test_no_verse_keeps_its_reference() -> None:
    data = resolve(DataSpec(corpus="kjv"), Path())
    verses = 0
    for _, text in corpus_of(data).documents():
        assert len(KJV_REFERENCE.findall(text)) == text.count("\n")
        assert not any(":" in line[:9] and line[0].isdigit() for line in KJV_REFERENCE.sub("", text).splitlines())
        verses += text.count("\n")
    assert verses == 31_102


def test_a_trial_trains_on_the_users_text(tmp_path: Path, ledger: Ledger) -> None:
    rows = [
        {"text": "\n\n".join(f"t{d % 8} u{d // 8} word{p} t{d % 8} u{d // 8}" for p in range(5))} for d in range(60)
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"task": {"name": "next_paragraph", "unit": "blocks"}, "path": str(tmp_path / "text.jsonl"), "seq_len": 64}
    recipe = {"batch_tokens": 512, "tokens": 10240, "precision": "fp32", "eval_points": 2, "final_eval_tokens": 2048}
    arch = {"d_model": 16, "n_heads": 2, "depth": 1, "head": "classify"}
    trial = parse(TrialSpec, {"arch": arch, "data": {**data, "valid": 0.1, "test": 0.1}, "train": recipe})
    kind = type(task_of())
    trial = replace(trial, data=kind.resolve(trial.data, Path()))
    record = train(ledger, trial).record()
    assert record is not None and record["status"] == "finished", record
    assert record["data"]["derived"] == "pairs of neighbouring blocks of running text, half of them replaced"
    assert record["data"]["train_rows"] == 48 * 4
    majority = {"name": "majority class", "metric": "accuracy", "value": 0.5, "split": "valid"}
    assert record["data"]["baselines"][0] == majority
    words = [row for row in record["data"]["baselines"] if row["name"].startswith("bag of words")]
    assert words[0]["value"] > 0.9  # the cosine of the two texts tells
    assert all(0 <= record["metrics"][name] <= 1 for name in ("accuracy", "f1_macro", "test_accuracy"))


def test_a_padded_batch_is_its_single_rows(token_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"a line of {'very ' * (n % 7)}many words {n}\n" for n in range(200)))
    task = task_of()
    data = parse(DataSpec, {"path": str(tmp_path / "text.txt"), "seq_len": 50, "task": "next_paragraph"})
    task.open(type(task).resolve(data, Path()), token_cache)
    assert task.facts()["train_rows_truncated"] > 0
    arch = parse(TrialSpec, {"arch": {"d_model": 16, "n_heads": 2, "head": "classify"}}).arch
    model = task.build(arch, 0, 0.0).double().eval()
    together = task.batch("train", range(16))
    assert not together.marks["valid_BT"].all() or together.inputs[0].shape[1] == 50
    alone = torch.cat([task.batch("train", [row]).nll(model) for row in range(16)])
    assert torch.allclose(together.nll(model), alone, rtol=0, atol=1e-9)
