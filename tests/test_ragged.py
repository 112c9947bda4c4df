"""Rows of ids of different lengths in the token cache, and the tokenizer whose symbols the text sets apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate import registry
from ablate.data.ragged import TOGETHER, RaggedSplits, RaggedWriter, prepare_ragged
from ablate.spec import Component

SPLITS = ("train", "valid")


def row_of(n: int) -> dict[str, list[int]]:
    return {"text": [n * 7 % 1000 + k for k in range(n % 5)], "label": [n % 3]}


def prepared(cache: Path, rows: int = 10, made: list[int] | None = None) -> RaggedSplits:
    def make(folder: Path, writer: RaggedWriter) -> dict[str, Any]:
        (folder / "notes.txt").write_text("kept")
        for n in range(rows):
            writer.add("train" if n % 4 else "valid", **row_of(n))
        if made is not None:
            made.append(rows)
        return {"rows": rows}

    return prepare_ragged(cache, f"rows{rows}", SPLITS, ("text", "label"), make)


@pytest.mark.parametrize("rows", [1, 10, 3 * TOGETHER])
def test_what_is_written_is_read(rows: int, tmp_path: Path) -> None:
    """Empty rows, an empty split, and more rows than are written at once."""
    kept = prepared(tmp_path, rows)
    assert kept.meta == {"rows": rows} and (kept.folder / "notes.txt").read_text() == "kept"
    for split in SPLITS:
        numbers = [n for n in range(rows) if (split == "train") == bool(n % 4)]
        text, label = kept.splits[split]["text"], kept.splits[split]["label"]
        assert len(text) == len(label) == len(numbers)
        assert [text[row].tolist() for row in range(len(text))] == [row_of(n)["text"] for n in numbers]
        assert text.lengths.tolist() == [n % 5 for n in numbers]
        assert label.ids.tolist() == [n % 3 for n in numbers]
        assert not text.ids.flags.writeable or not len(text.ids)


@pytest.mark.parametrize("damage", ["torn ids", "no offsets", "no notes", "no meta", "torn meta"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path) -> None:
    made: list[int] = []
    folder = prepared(tmp_path, made=made).folder
    prepared(tmp_path, made=made)
    assert made == [10]
    match damage:
        case "torn ids":
            (folder / "train.text.ids").write_bytes((folder / "train.text.ids").read_bytes()[:-4])
        case "no offsets":
            (folder / "valid.label.offsets").unlink()
        case "no notes":
            (folder / "notes.txt").unlink()
        case "no meta":
            (folder / "meta.json").unlink()
        case "torn meta":
            (folder / "meta.json").write_text('{"meta": ')
    assert prepared(tmp_path, made=made).splits["train"]["text"][0].tolist() == row_of(1)["text"]
    assert made == [10, 10]


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path, writer: RaggedWriter) -> dict[str, Any]:
        writer.add("train", **row_of(1))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        prepare_ragged(tmp_path, "broken", SPLITS, ("text", "label"), make)
    assert [file.name for file in (tmp_path / "tokens").iterdir()] == ["broken.lock"]


def test_ids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for wrong in (-1, 1 << 32):

        def make(folder: Path, writer: RaggedWriter, wrong: int = wrong) -> dict[str, Any]:
            writer.add("train", text=[wrong], label=[0])
            return {}

        with pytest.raises(AssertionError, match="does not fit"):
            prepare_ragged(tmp_path, "wrong", SPLITS, ("text", "label"), make)


def test_symbols_are_what_white_space_sets_apart() -> None:
    tokenizer = registry.make("tokenizer", Component("symbols"))
    tokenizer.train(["HH AH0 L  OW1", "h e\tl l o\n", "don't x-ray"])
    assert tokenizer.state() == sorted(["HH", "AH0", "L", "OW1", "h", "e", "l", "o", "don't", "x-ray"])
    assert tokenizer.vocab == 12 and (tokenizer.eos, tokenizer.unk) == (0, 1)
    ids = tokenizer.encode(" h  zz don't\n")
    assert ids.tolist()[1] == 1 and tokenizer.decode([*ids, 0]) == "h <unk> don't"
    assert tokenizer.encode("  ").tolist() == [] and tokenizer.decode([]) == ""


def test_the_most_frequent_symbols_are_kept() -> None:
    """Of equally frequent ones those that sort first."""
    tokenizer = registry.make("tokenizer", Component("symbols", (("vocab", 4),)))
    tokenizer.train(["c c b", "d a c"])
    assert tokenizer.state() == ["a", "c"] and tokenizer.vocab == 4
    assert np.array_equal(tokenizer.encode("a b c d"), [2, 1, 3, 1])
