"""WordPiece and unigram: pieces by their definitions, the same in every process, and what is not known is counted."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from runs import spec, train

from ablate import registry
from ablate.data.corpora import resolve
from ablate.data.spelling import Spelling
from ablate.data.tokenizers import Tokenizer
from ablate.data.unigram import best, train_unigram
from ablate.differences import differences
from ablate.errors import SpecError
from ablate.run.ledger import Ledger
from ablate.spec import Component

TEXT = "the cat sat on the mat. the cats sat; unsatisfied cats chatter.\nThe hatter sat on a hat.\n" * 3


def made(name: str, **options: Any) -> Tokenizer:
    tokenizer: Tokenizer = registry.make("tokenizer", Component(name, tuple(sorted(options.items()))))
    tokenizer.train([TEXT, TEXT])
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    inner = tokenizer._inner  # type: ignore[attr-defined]
    return [inner.id_to_token(each) for each in tokenizer.encode(text).tolist()]


@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_special_tokens_are_first_and_pieces_make_the_text(name: str) -> None:
    tokenizer = made(name, vocab=60)
    assert (tokenizer.eos, tokenizer.unk) == (0, 1) and tokenizer.vocab <= 60
    ids = tokenizer.encode(TEXT)
    assert (ids != tokenizer.unk).all() and ids.max() < tokenizer.vocab
    again = registry.make("tokenizer", Component(name, (("vocab", 60),)))
    again.restore(tokenizer.state())
    assert again.encode(TEXT).tolist() == ids.tolist() and (again.eos, again.unk) == (0, 1)
    text = tokenizer.decode(ids.tolist())
    assert text == TEXT if name == "unigram" else "".join(text.split()) == "".join(TEXT.split())


def test_wordpiece_takes_the_longest_piece_first() -> None:
    tokenizer = made("wordpiece", vocab=60)
    vocab = set(tokenizer._inner.get_vocab())  # type: ignore[attr-defined]
    for word in ("unsatisfied", "cats", "chatter"):
        expected, at = [], 0
        while at < len(word):
            prefix = "##" if at else ""
            stop = next(stop for stop in range(len(word), at, -1) if prefix + word[at:stop] in vocab)
            expected.append(prefix + word[at:stop])
            at = stop
        assert pieces(tokenizer, word) == expected
    assert pieces(tokenizer, "cats Zebra on") == [*pieces(tokenizer, "cats"), "[UNK]", *pieces(tokenizer, "on")]
    assert pieces(tokenizer, "The") != pieces(tokenizer, "the")
    assert pieces(made("wordpiece", vocab=60, lower=True), "THE") == ["the"]


def test_unigram_takes_the_likeliest_segmentation() -> None:
    """By trying all of them."""
    scores = {"a": -2.0, "b": -2.5, "▁": -1.0, "ab": -3.0, "ba": -4.6, "aba": -4.7, "▁ab": -3.9, "bb": -4.8}
    for word in ("▁ababab", "bab▁abba", "abab"):
        tried = []
        for cuts in itertools.product([False, True], repeat=len(word) - 1):
            parts, start = [], 0
            for at, here in enumerate((*cuts, True), 1):
                if here:
                    parts.append(word[start:at])
                    start = at
            if all(part in scores for part in parts):
                tried.append((sum(scores[part] for part in parts), parts))
        likeliest = max(tried)
        assert len(tried) > 1 and best(word, scores)[0] == pytest.approx(likeliest[0])
        assert best(word, scores)[1] == likeliest[1]
    learned = train_unigram({"▁abab": 5, "▁aba": 4, "▁bab": 3, "b": 1}, 9)
    assert math.fsum(math.exp(score) for _, score in learned) == pytest.approx(1)
    tokenizer = made("unigram", vocab=60)
    inner = tokenizer._inner  # type: ignore[attr-defined]
    kept = train_of(inner)
    for word in ("▁unsatisfied", "▁chatter."):
        assert pieces(tokenizer, word.replace("▁", " ")) == best(word, kept)[1]
    assert pieces(tokenizer, "Ω")[0] == "<unk>"


def train_of(inner: Any) -> dict[str, float]:
    return dict(json.loads(inner.to_str())["model"]["vocab"][2:])


def test_em_of_one_word_by_hand() -> None:
    """`ab` three times: where ab has p and a and b (1 - p) / 2, ab is used 3 p / (p + ((1 - p) / 2)^2) times."""
    found = {piece: math.exp(score) for piece, score in train_unigram({"ab": 3}, 3)}
    p = 1 / 3  # each has been counted three times
    for _ in range(2):
        share = p / (p + ((1 - p) / 2) ** 2)
        whole, single = 3 * share, max(3 * (1 - share), 1e-3)
        p = whole / (whole + 2 * single)
    assert found == pytest.approx({"ab": p, "a": (1 - p) / 2, "b": (1 - p) / 2})
    assert found.keys() == {"ab", "a", "b"}
    assert {piece for piece, _ in train_unigram({"ab": 3}, 2)} == {"a", "b"}  # characters stay


PROGRAM = """
import hashlib, sys
sys.path[:0] = [{tests!r}]
from test_tokenizers_more import made
print(*(hashlib.sha256(made(name, vocab=70).state().encode()).hexdigest() for name in ("wordpiece", "unigram")))
"""


def test_training_gives_the_same_pieces_in_every_process() -> None:
    program = PROGRAM.format(tests=str(ROOT / "tests"))
    found = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(4)
    }
    assert len(found) == 1 and len(found.pop().split()) == 2


@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_a_vocabulary_too_small_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="vocab: 2 must be from 3"):
        registry.make("tokenizer", Component(name, (("vocab", 2),)))


def test_unknown_tokens_are_counted_in_every_split(ledger: Ledger, tmp_path: Path) -> None:
    """Learned on the training split alone: letters that only the others have are unknown there."""
    texts = {"train": "aa bb ab. " * 200, "valid": "aa zz bb. " * 40, "test": "aa bb ab. " * 40}
    for split, text in texts.items():
        (tmp_path / f"{split}.txt").write_text(text)
    for name, valid in (("wordpiece", 40 / 161), ("unigram", None), ("bytes", 0.0)):
        base = spec({"data.tokenizer": name if name == "bytes" else {"name": name, "vocab": 12}})
        path = tuple((split, str(tmp_path / f"{split}.txt")) for split in ("test", "train", "valid"))
        data = resolve(replace(base.data, corpus=None, path=path, content=""), tmp_path)
        record = train(ledger, replace(base, data=data)).record()
        assert record is not None and record["status"] == "finished"
        facts, metrics = record["data"], record["metrics"]
        assert facts["test_unknown_frac"] == 0
        if valid is None:
            assert 0 < facts["valid_unknown_frac"] < 0.5
        else:
            assert facts["valid_unknown_frac"] == pytest.approx(valid)
        per_token = facts["bytes_per_token"]
        assert per_token * facts["valid_tokens"] == pytest.approx(len(texts["valid"]))  # bytes of the raw text
        # 40 times zz, spelled as two bytes and an end; the training split has no unknown piece, so each is one of 257
        spelling = 0 if name == "bytes" else 40 * 3 * math.log2(257) / facts["valid_tokens"]
        assert metrics["bits_per_byte"] == pytest.approx((metrics["loss"] / math.log(2) + spelling) / per_token)
        assert facts["restores_text"] == (name != "wordpiece")


def test_unknown_words_are_spelled_with_the_bytes_of_those_in_training() -> None:
    """Unknown in training: ab and b, so a once, b twice, two ends; to spell b and its end are two of six."""
    spelling = Spelling(("train", "valid"))
    spelling.add("train", ["ab"])
    spelling.add("train", ["b"])
    spelling.add("valid", ["b"])
    assert spelling.bits("valid") == pytest.approx(-2 * math.log2(3 / (5 + 257)))
    assert spelling.bits("train") == pytest.approx(-math.log2(2 / 262) - 4 * math.log2(3 / 262))


@pytest.mark.parametrize("name", ["bytes", "characters", "words", "bpe", "wordpiece", "unigram", "symbols"])
def test_unknown_pieces_are_what_encode_does_not_know(name: str) -> None:
    size = () if name in ("bytes", "characters") else (("vocab", 300),)
    tokenizer = registry.make("tokenizer", Component(name, size))
    tokenizer.train(["the cat sat on the mat. "])
    text = "the cat sat.  the zebra\u2603 ran\n"
    found = tokenizer.unknown_pieces(text)
    assert len(found) == int((tokenizer.encode(text) == tokenizer.unk).sum())
    expected = {
        "bytes": [],
        "characters": ["z", "b", "r", "\u2603", "r", "\n"],
        "words": ["zebra", "\u2603", "ran"],
        "bpe": [],
        "wordpiece": ["zebra\u2603", "ran"],
        "symbols": ["sat.", "zebra\u2603", "ran"],
    }
    if name in expected:
        assert found == expected[name]
    assert all(piece in text for piece in found) and (name != "unigram" or "z" in "".join(found))


def test_lengths_in_tokens_follow_the_tokenizer() -> None:
    plain = spec()
    shorter = spec({"data.seq_len": 8, "train.batch_tokens": 32, "train.tokens": 384})
    other = spec({"data.seq_len": 8, "train.batch_tokens": 32, "train.tokens": 384, "data.tokenizer": "words"})
    assert differences(plain, other) == ("data.tokenizer",)
    assert differences(plain, shorter) == ("data.seq_len", "train.batch_tokens", "train.tokens")
    ramps = {"train.batch_tokens": 64, "train.batch_ramp": 0.5, "train.ramp_parts": 4, "train.ramp_shape": "doubling"}
    assert differences(plain, spec(ramps)) == ("train.batch_ramp",)
