"""Data: files become documents, documents splits, splits tokens, tokens batches; each the same on every machine."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from conftest import shared
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ablate.data.batches import TrainBatches, eval_windows, permute
from ablate.data.corpora import KJV, corpus_of, kjv_chapters, resolve
from ablate.data.readers import read_documents
from ablate.data.tokens import Tokens, fingerprint_of, prepare
from ablate.errors import SpecError, UserError
from ablate.spec import Component, DataSpec, TrainSpec, parse
from ablate.tasks.lm import LanguageModelling

# --- readers

DOCUMENTS = ["first line\nsecond line", 'quotes " and, commas', "ünïcode — 統計 😀", "  spaces  ", "last\n"]


def as_jsonl() -> bytes:
    rows = [json.dumps({"text": text, "id": index}) for index, text in enumerate(DOCUMENTS)]
    rows[1] = json.dumps(DOCUMENTS[1], ensure_ascii=False)  # a row may be the text itself
    return "\n".join([*rows[:3], "", *rows[3:]]).encode()


def as_csv() -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerows([("id", "text"), *enumerate(DOCUMENTS)])
    return stream.getvalue().encode()


FORMATS: dict[str, Callable[[], bytes]] = {"jsonl": as_jsonl, "csv": as_csv}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", FORMATS)
def test_rows(tmp_path: Path, kind: str, packed: str) -> None:
    file = tmp_path / f"data.v1.{kind}{packed}"
    file.write_bytes(PACKERS[packed](FORMATS[kind]()))
    assert list(read_documents(file, "text")) == DOCUMENTS
    if kind == "csv":
        assert list(read_documents(file, "id")) == list("01234")


@pytest.mark.parametrize("packed", PACKERS)
def test_text(tmp_path: Path, packed: str) -> None:
    """One document; line ends of Windows and a byte order mark are no part of it."""
    file = tmp_path / f"a.TXT{packed}"
    file.write_bytes(PACKERS[packed](b"\xef\xbb\xbf" + "één\r\ntwo\n\n\tthree".encode()))
    assert list(read_documents(file, "text")) == ["één\ntwo\n\n\tthree"]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1] * 5, "text": DOCUMENTS}), tmp_path / "a.parquet", row_group_size=2)
    assert list(read_documents(tmp_path / "a.parquet", "text")) == DOCUMENTS


@pytest.mark.parametrize("packed", PACKERS)
def test_parts_one_after_another(tmp_path: Path, packed: str) -> None:
    """`cat a.gz b.gz` is a file of both, and parallel compressors write many parts."""
    file = tmp_path / f"a.txt{packed}"
    file.write_bytes(PACKERS[packed](b"one\n" * 50_000) + PACKERS[packed](b"two\n"))
    (text,) = read_documents(file, "text")
    assert text == "one\n" * 50_000 + "two\n"


# --- splits


def resolved(folder: Path, **fields: object) -> DataSpec:
    return resolve(parse(DataSpec, fields), folder)


def splits(data: DataSpec) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for split, text in corpus_of(data).documents():
        found[split].append(text)
    return found


def write_jsonl(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    count=st.integers(20, 300),
    copies=st.integers(1, 4),
    valid=st.sampled_from((0.05, 0.1, 0.3, 0.49)),
    test=st.sampled_from((0.05, 0.2, 0.49)),
)
def test_equal_documents_are_never_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, count: int, copies: int, valid: float, test: float
) -> None:
    texts = [f"document {index % count} says {'x' * (index % count)}" for index in range(count * copies)]
    file = write_jsonl(tmp_path_factory.getbasetemp() / "copies.jsonl", texts)
    found = splits(resolved(file.parent, path=file.name, valid=valid, test=test))
    assert not set(found["train"]) & set(found["valid"]) and not set(found["train"]) & set(found["test"])
    assert not set(found["valid"]) & set(found["test"])
    assert Counter(text for texts in found.values() for text in texts) == Counter(texts)
    for split, share in (("valid", valid), ("test", test)):
        assert abs(len(found[split]) - share * len(texts)) <= copies + 1


def test_a_split_does_not_depend_on_order_or_neighbours(tmp_path: Path) -> None:
    """A document's side is decided by its hash and the thresholds: shuffling the file moves nothing."""
    texts = [f"document {index}" for index in range(200)]
    one = splits(resolved(tmp_path, path=write_jsonl(tmp_path / "a.jsonl", texts).name))
    two = splits(resolved(tmp_path, path=write_jsonl(tmp_path / "b.jsonl", texts[::-1]).name))
    assert {split: set(texts) for split, texts in one.items()} == {split: set(texts) for split, texts in two.items()}
    assert one["train"] == two["train"][::-1] != []


def test_few_documents_are_cut_inside(tmp_path: Path) -> None:
    """Fewer than 20: each is cut after a line into a training, a validation and a test part, in this order."""
    texts = ["".join(f"line {index} of {name}\n" for index in range(100)) for name in "abc"]
    data = resolved(tmp_path, path=write_jsonl(tmp_path / "a.jsonl", texts).name, valid=0.1, test=0.2)
    found = splits(data)
    assert [len(each) for each in found.values()] == [3, 3, 3]
    for text, *parts in zip(texts, *found.values(), strict=True):
        assert "".join(parts) == text and all(part.endswith("\n") for part in parts)
        shares = [len(part) / len(text) for part in parts]
        assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_a_text_without_line_ends_is_cut_at_spaces(tmp_path: Path) -> None:
    text = "word " * 400
    (tmp_path / "a.txt").write_text(text)
    parts = [part for texts in splits(resolved(tmp_path, path="a.txt")).values() for part in texts]
    assert len(parts) == 3 and "".join(parts) == text and all(part.endswith("word ") for part in parts)


def test_a_folder(tmp_path: Path) -> None:
    """Its readable files in order of name, those of folders in it too; others are notes."""
    for name in ("b.txt", "a.txt", "deep/c.txt.gz", "README.md", "image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(b"deep\n") if name.endswith("gz") else f"{name}\n".encode())
    data = resolved(tmp_path.parent, path=tmp_path.name)
    assert [text for _, text in corpus_of(data).documents()] == ["a.txt\n", "b.txt\n", "deep\n"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
        ("Train.csv", "dev.csv", "TEST_1.csv"),
    ],
)
def test_a_folder_that_is_split_keeps_its_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    """By the usual names; what is neither is left out."""
    for name in (*names, "notes.txt"):
        text = f'"text of {name}"\n'
        (tmp_path / name).write_text("text\n" + text if name.endswith("csv") else text)
    found = splits(resolved(tmp_path, path="."))
    assert [[text.strip('"\n') for text in texts] for texts in found.values()] == [
        [f"text of {name}"] for name in names
    ]


def test_a_mapping_of_splits(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.txt", "b.txt", "more/c.txt", "more/d.txt"):
        (tmp_path / name).write_text(name)
    data = resolved(tmp_path, path={"train": "more", "valid": "a.txt", "test": "b.txt"})
    assert splits(data) == {"train": ["more/c.txt", "more/d.txt"], "valid": ["a.txt"], "test": ["b.txt"]}


# --- the embedded corpus


def test_the_embedded_corpus() -> None:
    text = lzma.decompress(KJV.read_bytes())
    assert hashlib.sha256(text).hexdigest().startswith("cd45f0c9")
    chapters = list(kjv_chapters())
    assert len(text.decode()) == len(text) == 4_404_412 == sum(map(len, chapters))
    assert "".join(chapters) == text.decode()
    assert len(chapters) == 1189
    assert chapters[0].startswith("Ge1:1 In the beginning") and chapters[-1].startswith("Rev22:1 ")
    found = splits(resolve(DataSpec(), Path()))
    assert [len(found[split]) for split in ("valid", "test")] == [59, 59] and len(found["train"]) == 1189 - 118


# --- fingerprints


def test_a_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """Not of the path, the time, or how the path is written; a byte more, another column or split is another text."""
    text = "".join(f"line {index}\n" for index in range(100))
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "deep/b.txt"):
        (tmp_path / name).write_text(text)
    os.utime(tmp_path / "deep/b.txt", (0, 0))
    here = resolved(tmp_path, path="a.txt")
    for same in ("deep/b.txt", "./deep/../a.txt", str(tmp_path / "a.txt"), "deep"):
        assert resolved(tmp_path, path=same).content == here.content
    assert resolved(tmp_path / "deep", path="../a.txt") == here
    others = [resolved(tmp_path, path="a.txt", column="body").content]
    others.append(resolved(tmp_path, path=dict.fromkeys(("train", "valid", "test"), "a.txt")).content)
    (tmp_path / "a.txt").write_text(text + "!")
    others.append(resolved(tmp_path, path="a.txt").content)
    assert len({here.content, *others}) == 4


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    assert resolved(Path("/"), path="~/a.txt").path == str(tmp_path / "a.txt")


def test_what_a_token_cache_depends_on(tmp_path: Path) -> None:
    """The text, how it is split and the tokenizer; not the window, which only cuts it."""
    (tmp_path / "a.txt").write_text("text")
    data = resolved(tmp_path, path="a.txt")
    changes = [
        {"valid": 0.1},
        {"tokenizer": Component("characters")},
        {"tokenizer": Component("bpe", (("vocab", 300),))},
        {"content": "other"},
    ]
    prints = [fingerprint_of(replace(data, **change)) for change in changes]
    assert len({fingerprint_of(data), *prints}) == 5
    assert fingerprint_of(replace(data, seq_len=7, path="/elsewhere")) == fingerprint_of(data)


# --- tokenizers

WORDS = "the quick brown fox jumps over a lazy dog while winter nights grow cold and long".split()


def sentences(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=30)) + ". Ünïcode — 統計 😀\n" for _ in range(count)]


TOKENIZERS = {
    "bytes": {"name": "bytes"},
    "characters": {"name": "characters"},
    "bpe": {"name": "bpe", "vocab": 300},
    "words": {"name": "words", "vocab": 40},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("text") / "text.jsonl", sentences(0, 400))


def tokens_of(text: Path, cache: Path, tokenizer: object, **fields: object) -> Tokens:
    return prepare(resolved(text.parent, path=text.name, tokenizer=tokenizer, **fields), cache)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens(text: Path, token_cache: Path, name: str) -> None:
    """What lies in the cache is the documents' tokens, and says back the documents."""
    tokens = tokens_of(text, token_cache, TOKENIZERS[name])
    found = splits(resolved(text.parent, path=text.name))
    assert tokens.vocab == {"bytes": 256, "bpe": 300}.get(name, tokens.tokenizer.vocab)
    for split, texts in found.items():
        ids = tokens.splits[split]
        assert isinstance(ids, np.memmap) and not ids.flags.writeable and ids.max() < tokens.vocab
        assert tokens.documents[split] == len(texts)
        per_token = sum(len(text.encode()) for text in texts) / len(ids)
        assert tokens.bytes_per_token[split] == pytest.approx(per_token, rel=1e-12)
        ends = np.flatnonzero(ids == tokens.eos)
        assert len(ends) == len(texts) and ends[-1] == len(ids) - 1
        documents = [tokens.tokenizer.decode(part[:-1].tolist()) for part in np.split(ids, ends + 1)[:-1]]
        if name == "words":  # spaces and rare words are not said back
            assert documents == [" ".join(text.replace(".", " .").split()) for text in texts]
        else:
            assert documents == texts


@settings(max_examples=100, deadline=None, derandomize=True)
@given(words=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
@example(words="it says <eos> and goes on")
@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_any_text_is_said_back(text: Path, token_cache: Path, name: str, words: str) -> None:
    """Of the tokenizers that know every text."""
    tokenizer = tokens_of(text, token_cache, TOKENIZERS[name]).tokenizer
    assert tokenizer.decode(tokenizer.encode(words).tolist()) == words


def test_a_long_line_is_encoded_in_pieces(text: Path, token_cache: Path) -> None:
    """Pieces of about a million characters, cut where a word ends: no character is lost, no word is torn."""
    tokenizer = tokens_of(text, token_cache, TOKENIZERS["words"]).tokenizer
    long = "the quick brown fox " * 60_000
    assert len(tokenizer.encode(long)) == 240_000 and tokenizer.unk not in tokenizer.encode(long)
    every = tokens_of(text, token_cache, TOKENIZERS["bpe"]).tokenizer
    assert every.decode(every.encode(long).tolist()) == long


@pytest.mark.parametrize("name", ["characters", "bpe", "words"])
def test_trained_on_the_training_split_alone(tmp_path: Path, name: str) -> None:
    """A word and a character that only validation holds are not learned, however often they stand there."""
    train, held = "".join(sentences(1, 60)), "zyzzyva Жж zyzzyva Жж\n" * 200
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(train if split == "train" else "the quick brown fox\n" * 20_000 + held)
    tokens = tokens_of(tmp_path / ".", tmp_path / "cache", TOKENIZERS[name])
    (tmp_path / "valid.txt").write_text(train)
    (tmp_path / "test.txt").write_text(train)
    other = tokens_of(tmp_path / ".", tmp_path / "cache", TOKENIZERS[name])
    assert tokens.fingerprint != other.fingerprint and tokens.tokenizer.state() == other.tokenizer.state()
    ids = tokens.tokenizer.encode("zyzzyva")
    if name == "words":
        assert ids.tolist() == [tokens.tokenizer.unk]
        assert tokens.unknown_frac == pytest.approx(2 * 800 / sum(map(len, tokens.splits.values())))
    elif name == "characters":
        assert (ids == tokens.tokenizer.unk).all() == ("z" not in train)
        assert tokens.tokenizer.encode("Ж").tolist() == [tokens.tokenizer.unk]
    else:
        assert len(ids) >= 5  # no merges for it, though it is the most frequent word of the validation text


def test_a_vocabulary_is_in_order_of_code_points(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("bca\n" * 300)
    tokens = tokens_of(tmp_path / "a.txt", tmp_path / "cache", "characters")
    assert tokens.vocab == 6 and (tokens.tokenizer.eos, tokens.tokenizer.unk) == (0, 1)
    assert tokens.tokenizer.encode("\nabcd").tolist() == [2, 3, 4, 5, 1]
    assert tokens.tokenizer.decode([5, 1, 3, 0]) == "c\ufffda"


def save_bpe(tokens: Tokens, file: Path) -> Path:
    file.write_text(tokens.tokenizer.state())
    return file


def test_a_saved_tokenizer(text: Path, tmp_path: Path, token_cache: Path) -> None:
    """It encodes as the one that was saved; it is known by its content, and found beside the grid."""
    tokens = tokens_of(text, token_cache, TOKENIZERS["bpe"])
    save_bpe(tokens, text.parent / "bpe.json")
    shutil.copy(text.parent / "bpe.json", text.parent / "copy.json")
    saved = tokens_of(text, token_cache, {"name": "file", "path": "bpe.json"})
    copy = tokens_of(text, token_cache, {"name": "file", "path": str(text.parent / "copy.json")})
    assert saved.fingerprint == copy.fingerprint != tokens.fingerprint
    assert all((saved.splits[split] == tokens.splits[split]).all() for split in tokens.splits)
    assert (saved.vocab, saved.eos, saved.unigram_entropy) == (tokens.vocab, tokens.eos, tokens.unigram_entropy)
    state = json.loads((text.parent / "copy.json").read_text())
    (text.parent / "copy.json").write_text(json.dumps({**state, "model": {**state["model"], "dropout": 0.0}}))
    assert tokens_of(text, token_cache, {"name": "file", "path": "copy.json"}).fingerprint != saved.fingerprint


def test_a_saved_vocabulary_with_gaps(text: Path, tmp_path: Path) -> None:
    """Ids are not renumbered, so the model needs rows up to the largest."""
    vocab = {
        word: 7 * index for index, word in enumerate(["<unk>", "<eos>", *WORDS, ".", "Ünïcode", "—", "統計", "😀"])
    }
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    (tmp_path / "gaps.json").write_text(
        json.dumps({"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}})
    )
    tokens = tokens_of(text, tmp_path, {"name": "file", "path": str(tmp_path / "gaps.json")})
    assert tokens.vocab == 7 * (len(vocab) - 1) + 1 and tokens.unknown_frac == 0
    assert tokens.eos == 7 and max(ids.max() for ids in tokens.splits.values()) < tokens.vocab


def test_gpt2_s_own_vocabulary(text: Path, token_cache: Path) -> None:
    """The published files give the published ids."""
    folder = shared("data", "gpt2_bpe")
    tokens = tokens_of(text, token_cache, {"name": "file", "path": str(folder)})
    assert tokens.vocab == 50257 and tokens.eos == 50256
    encoded = tokens.tokenizer.encode("Hello world! It's 2019, and naïve 統計.").tolist()
    assert encoded[:4] == [15496, 995, 0, 632]  # as the original encoder has it
    transformers = pytest.importorskip("transformers")
    reference = transformers.GPT2Tokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    for words in (*sentences(2, 20), "Hello world! It's 2019, and naïve 統計.", "  two  spaces\n\n\ttab"):
        assert tokens.tokenizer.encode(words).tolist() == reference(words)["input_ids"]
        assert tokens.tokenizer.decode(tokens.tokenizer.encode(words).tolist()) == words


# --- the token cache


def _prepare(arguments: tuple[DataSpec, Path, float]) -> tuple[str, int, int]:
    data, cache, at = arguments
    time.sleep(max(0.0, at - time.time()))
    tokens = prepare(data, cache)
    folder = cache / "tokens" / tokens.fingerprint
    return tokens.fingerprint, int(tokens.splits["train"].sum()), (folder / "train.bin").stat().st_ino


def test_six_processes_at_once_make_it_once(text: Path, tmp_path: Path) -> None:
    """Whoever comes first makes it, by rename; the others wait, and all see the same."""
    data = resolved(text.parent, path=text.name, tokenizer={"name": "bpe", "vocab": 400})
    with multiprocessing.get_context("fork").Pool(6) as pool:
        found = pool.map(_prepare, [(data, tmp_path, time.time() + 0.3)] * 6, chunksize=1)
    assert len(set(found)) == 1
    folder = tmp_path / "tokens" / found[0][0]
    assert {file.name for file in folder.iterdir()} == {
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "valid.bin",
        "test.bin",
    }
    assert {file.name for file in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}  # no parts left


def test_it_is_made_once(text: Path, tmp_path: Path) -> None:
    """The second time the text is not even read, and any way to name the same text finds the same cache."""
    tokens = tokens_of(text, tmp_path, "characters")
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "tokens" / tokens.fingerprint).iterdir()}
    data = resolved(text.parent, path=text.name, tokenizer="characters")
    again = prepare(replace(data, path="/no/such/file"), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert (again.splits["train"] == tokens.splits["train"]).all()
    assert again.tokenizer.state() == tokens.tokenizer.state() and again.vocab == tokens.vocab


@pytest.mark.parametrize("damage", ["no meta", "torn meta", "no tokenizer", "torn split", "no split", "empty folder"])
def test_a_torn_cache_is_made_anew(text: Path, tmp_path: Path, damage: str) -> None:
    """As a machine that went down, or a disk that was full, may leave it."""
    tokens = tokens_of(text, tmp_path, "characters")
    folder = tmp_path / "tokens" / tokens.fingerprint
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    match damage:
        case "no meta":
            (folder / "meta.json").unlink()
        case "torn meta":
            (folder / "meta.json").write_bytes(whole["meta.json"][:40])
        case "no tokenizer":
            (folder / "tokenizer.json").write_bytes(b"")
        case "torn split":
            (folder / "train.bin").write_bytes(whole["train.bin"][:-2])
        case "no split":
            (folder / "valid.bin").unlink()
        case "empty folder":
            shutil.rmtree(folder)
            folder.mkdir()
    (folder.parent / f"{folder.name}x.part").mkdir()  # what a killed process leaves is nobody's cache
    again = tokens_of(text, tmp_path, "characters")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    assert (again.splits["train"] == tokens.splits["train"]).all()


def test_a_refused_text_leaves_no_cache(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word\n" * 100 + "\0" + "word\n" * 100)
    with pytest.raises(UserError, match="zero byte"):
        tokens_of(tmp_path / "a.txt", tmp_path / "cache", "bytes")
    assert not [each for each in (tmp_path / "cache" / "tokens").iterdir() if each.is_dir()]


def test_large_vocabularies_fit(tmp_path: Path) -> None:
    """Above 65,536 ids a token takes four bytes."""
    (tmp_path / "a.txt").write_text("".join(f"{chr(0x10000 + index)}\n" for index in range(70_000)))
    tokens = tokens_of(tmp_path / "a.txt", tmp_path, "characters", valid=0.01, test=0.01)
    assert tokens.vocab > 1 << 16 and tokens.splits["train"].dtype == np.uint32
    assert int(tokens.splits["train"].max()) == tokens.vocab - 1


# --- what is measured


def measured(task: LanguageModelling, loss: float) -> dict[str, float]:
    """What is said of a validation split on which the mean loss is `loss`."""
    meter = task.meter("valid", final=True)
    batch = next(iter(task.held_out("valid", 8, 1)))
    meter.add_loss(torch.full(batch.targets.shape, loss, dtype=torch.float64), batch)
    return meter.result()


def test_unigram_entropy_and_bits_per_byte_by_hand(tmp_path: Path) -> None:
    """Half a, a quarter b and c each: 1.5 ln 2 nats. Ends of documents are tokens, and count."""
    for name, part in (("train.txt", "aabc" * 32 + "\n"), ("valid.txt", "é" * 30), ("test.txt", "ab" * 30)):
        (tmp_path / name).write_text(part)
    task = LanguageModelling()
    task.open(resolved(tmp_path, path=".", tokenizer="bytes", seq_len=8), tmp_path)
    counts = np.array([64, 32, 32, 1, 1])  # a, b, c, the line end, the document's end
    share = counts / counts.sum()
    assert task.tokens.unigram_entropy == pytest.approx(-(share * np.log(share)).sum(), rel=1e-12)
    assert task.tokens.bytes_per_token == pytest.approx({"train": 129 / 130, "valid": 60 / 61, "test": 60 / 61})
    said = measured(task, math.log(2))
    assert said == pytest.approx({"loss": math.log(2), "bits_per_byte": 61 / 60, "perplexity": 2.0})
    facts = task.facts()
    assert facts["train_tokens"] == 130 == task.train_tokens and facts["unknown_frac"] == 0


def test_bits_per_byte_do_not_depend_on_the_tokenizer(text: Path, token_cache: Path) -> None:
    """A model that knows only frequencies: bits of the whole text over its bytes, whatever a token is."""
    for name in ("bytes", "bpe"):
        task = LanguageModelling()
        task.open(resolved(text.parent, path=text.name, tokenizer=TOKENIZERS[name]), token_cache)
        ids = task.tokens.splits["valid"]
        loss = 1.25
        size = sum(len(each.encode()) for each in splits(task.data)["valid"])
        assert measured(task, loss)["bits_per_byte"] == pytest.approx(loss * len(ids) / math.log(2) / size)


# --- batches

STREAM = np.arange(1000)


def batches(
    seed: int = 0, fingerprint: str = "f", seq_len: int = 8, size: int = 4, length: int = 1000
) -> TrainBatches:
    return TrainBatches(STREAM[:length], seq_len, size, fingerprint, seed)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(steps=st.lists(st.integers(0, 3000), min_size=1, max_size=20), seed=st.integers(0, 2**31 - 1))
def test_a_batch_is_a_function_of_its_step(steps: list[int], seed: int) -> None:
    """Whatever was asked for before, and in whatever process: resuming and skipping cost nothing."""
    one = batches(seed)
    for step in steps:
        assert (one[step] == batches(seed)[step]).all()
        assert one[step].shape == (4, 9) and one[step].dtype == np.int64
        assert (np.diff(one[step]) == 1).all()  # windows of the stream


def test_batches_are_the_same_on_every_machine() -> None:
    """A golden value: an id says nothing if its batches can change."""
    digest = hashlib.sha256(
        np.stack([batches(seed=3)[step] for step in (0, 1, 63, 64, 10**6)]).astype("<i8").tobytes()
    )
    assert digest.hexdigest()[:16] == "12b8999bc12e5155"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seq_len=st.integers(1, 20),
    size=st.integers(1, 7),
    length=st.integers(50, 1000),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_each_window_once_an_epoch(seq_len: int, size: int, length: int, seed: int, epoch: int) -> None:
    """An epoch's windows lie side by side from one offset below seq_len, and leave out less than two windows."""
    one = batches(seed, seq_len=seq_len, size=size, length=length)
    index = np.arange(epoch * one.windows, (epoch + 1) * one.windows)
    starts = np.sort(one.starts(index))
    offset = starts[0]
    assert 0 <= offset < seq_len
    assert (starts == offset + seq_len * np.arange(one.windows)).all()
    assert starts[-1] + seq_len + 1 <= length
    assert length - one.windows * seq_len <= 2 * seq_len
    # batches go through these windows in order, across the ends of epochs
    step = epoch * one.windows // size
    assert (one[step][:, 0] == one.starts(np.arange(step * size, (step + 1) * size))).all()
    assert one.epochs(one.windows) == size


def test_seeds_epochs_and_texts_differ_in_order() -> None:
    def order(one: TrainBatches, epoch: int = 0) -> tuple[int, ...]:
        return tuple(one.starts(np.arange(epoch * one.windows, (epoch + 1) * one.windows)) // 8)

    orders = [order(batches(seed)) for seed in range(20)] + [order(batches(0), epoch) for epoch in (1, 2)]
    orders.append(order(batches(0, fingerprint="g")))
    assert len(set(orders)) == len(orders)
    assert order(batches(0)) != tuple(sorted(order(batches(0))))
    offsets = {int(batches(seed).starts(np.arange(100)).min()) % 8 for seed in range(60)}
    assert offsets == set(range(8))


def test_the_order_is_well_mixed() -> None:
    """Over many seeds the first window is every window about as often: chi-squared with 123 degrees of freedom."""
    one = batches()
    first = np.array([batches(seed).starts(np.arange(8)) // 8 for seed in range(2000)])
    for counts in (np.bincount(first[:, place], minlength=one.windows) for place in (0, 7)):
        expected = len(first) / one.windows
        assert ((counts - expected) ** 2 / expected).sum() < 190  # p = 1e-4


@settings(max_examples=100, deadline=None, derandomize=True)
@given(size=st.integers(1, 3000), keys=st.lists(st.integers(0, 2**64 - 1), min_size=7, max_size=7))
def test_permute_is_a_permutation(size: int, keys: list[int]) -> None:
    out = permute(np.arange(size), size, np.array(keys, dtype=np.uint64))
    assert (np.sort(out) == np.arange(size)).all()


def test_permute_of_a_large_text_is_one_to_one() -> None:
    keys = np.arange(1, 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    size = 3 * 10**9 + 7
    index = np.concatenate((np.arange(1000), np.arange(size - 1000, size)))
    out = permute(index, size, keys)
    assert len(np.unique(out)) == 2000 and out.min() >= 0 and out.max() < size


def test_too_little_text_for_a_window() -> None:
    assert batches(length=16).windows == 1
    with pytest.raises(UserError, match="the training split has 15 tokens, too few for a window of seq_len 8"):
        batches(length=15)
    with pytest.raises(UserError, match="a held-out split has 8 tokens, too few for a window of seq_len 8"):
        eval_windows(STREAM[:8], 8, 100)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seq_len=st.integers(1, 30), length=st.integers(31, 1000), at_most=st.integers(1, 2000))
def test_held_out_windows(seq_len: int, length: int, at_most: int) -> None:
    """Evenly spread windows that do not overlap, as many as asked for or as there are; always the same."""
    windows = eval_windows(STREAM[:length], seq_len, at_most)
    assert (windows == eval_windows(STREAM[:length], seq_len, at_most)).all()
    whole = (length - 1) // seq_len
    assert windows.shape == (max(1, min(whole, at_most // seq_len)), seq_len + 1) and windows.dtype == np.int64
    starts = windows[:, 0]
    assert starts[0] == 0 and (starts % seq_len == 0).all() and (np.diff(windows) == 1).all()
    gaps = np.diff(starts // seq_len)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert windows.max() < length


def test_held_out_tokens_do_not_depend_on_the_seed(text: Path, token_cache: Path) -> None:
    task = LanguageModelling()
    task.open(resolved(text.parent, path=text.name, seq_len=16), token_cache)
    (valid,), (test,), (again,) = (task.held_out(split, 320, 20) for split in ("valid", "test", "valid"))
    assert valid.targets.shape == test.targets.shape == (20, 16) and not (valid.targets == test.targets).all()
    assert (valid.targets == again.targets).all() and (valid.inputs[0][:, 1:] == valid.targets[:, :-1]).all()
    train = TrainSpec(batch_tokens=64)
    assert not (task.batches(train, 0)[0].targets == task.batches(train, 1)[0].targets).all()
    assert task.batches(train, 0)[5].targets.shape == (4, 16)


# --- Hugging Face data sets


def test_a_hub_data_set_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its splits are joined and cut anew; without a network."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "set").mkdir()
    texts = [f"document {index} of the set" for index in range(60)]
    write_jsonl(tmp_path / "set" / "train.jsonl", texts[:40])
    write_jsonl(tmp_path / "set" / "test.jsonl", texts[40:])
    data = resolved(tmp_path, hub=str(tmp_path / "set"))
    found = splits(data)
    assert sorted(text for each in found.values() for text in each) == sorted(texts)
    assert [len(found[split]) for split in ("valid", "test")] == [3, 3]
    with pytest.raises(SpecError, match=r"'body' is not in .*; known: text"):
        resolved(tmp_path, hub=str(tmp_path / "set"), column="body")
    with pytest.raises(SpecError, match="cannot be loaded"):
        resolved(tmp_path, hub=str(tmp_path / "no such set"))
