"""Parallel text: rows of a source and its target, tokenised by one vocabulary."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablate.data.corpora import SPLITS, examples_of, hashes_of, split_by_hash
from ablate.data.lexicon import pronunciations
from ablate.data.ragged import Ragged, RaggedSplits, RaggedWriter, prepare_ragged
from ablate.data.readers import text_of
from ablate.data.tokenizers import Tokenizer
from ablate.data.tokens import MOST_UNKNOWN, fingerprint_of, read_tokenizer, tokenizer_for, write_tokenizer
from ablate.errors import SpecError, UserError
from ablate.spec import DataSpec, digest

FIELDS = ("source", "target", "text", "key")  # text: the target's UTF-8 bytes; key: 64 bits of the source's ids
LEXICON = "cmudict"


@dataclass(frozen=True)
class ParallelText:
    """The rows of a resolved specification."""

    ragged: RaggedSplits
    tokenizer: Tokenizer

    def size(self, split: str) -> int:
        return len(self.ragged.splits[split]["source"])

    def field(self, split: str, name: str) -> Ragged:
        return self.ragged.splits[split][name]

    def keys(self, split: str) -> np.ndarray:
        """What tells one source from another, for every row."""
        return np.asarray(self.field(split, "key").ids).reshape(-1, 2).view("<u8")[:, 0]

    def same_source(self, split: str, source: np.ndarray) -> list[int]:
        """The rows of a split that have this source, in their order."""
        low, high = key_of(source)
        return np.flatnonzero(self.keys(split) == np.uint64(low + (high << 32))).tolist()  # type: ignore[no-any-return]

    def text(self, split: str, row: int) -> str:
        """The target as it was given."""
        return bytes(self.field(split, "text")[row].tolist()).decode()


def prepare_parallel(data: DataSpec, cache: Path, columns: tuple[str, str], stress: bool) -> ParallelText:
    """The rows in these columns, source and target, from the token cache or made now.

    Raises `UserError` for an empty source or target, or a tokenizer that does not fit the text.
    """
    fingerprint = digest(["parallel", 1, fingerprint_of(data), stress])

    def make(folder: Path, rows: RaggedWriter) -> dict[str, Any]:
        training = (row for row in read_parallel(data, columns, stress) if row[0] == "train")
        tokenizer = tokenizer_for(data, cache, (text for _, _, *texts in training for text in texts))
        write_tokenizer(folder, tokenizer)
        return _write(data, columns, stress, tokenizer, rows)

    ragged = prepare_ragged(cache, fingerprint, SPLITS, FIELDS, make)
    return ParallelText(ragged, read_tokenizer(data.tokenizer, ragged.folder))


def read_parallel(data: DataSpec, columns: tuple[str, str], stress: bool) -> Iterator[tuple[str, str, str, str]]:
    """(split, place, source, target) of every row. Rows of one source are never on both sides of a split."""
    if data.corpus != LEXICON:
        for split, place, row in examples_of(data, columns).rows():
            yield split, place, text_of(row, columns[0], place), text_of(row, columns[1], place)
        return
    entries = list(pronunciations(stress))
    splits = split_by_hash(hashes_of(word for word, _, _ in entries), data.valid, data.test)
    for split, (word, letters, phonemes) in zip(splits, entries, strict=True):
        yield split, f"{LEXICON}: {word}", letters, phonemes


def key_of(source: np.ndarray) -> tuple[int, int]:
    """64 bits of a source's ids, the low ones first."""
    found = hashlib.blake2b(np.asarray(source, "<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(found[:4], "little"), int.from_bytes(found[4:], "little")


def _write(
    data: DataSpec, columns: tuple[str, str], stress: bool, tokenizer: Tokenizer, rows: RaggedWriter
) -> dict[str, Any]:
    """Write all rows, and say what they are like."""
    counts: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}  # of the targets' tokens
    tokens, unknown = Counter[str](), Counter[str]()
    for split, place, *texts in read_parallel(data, columns, stress):
        source, target = (tokenizer.encode(text) for text in texts)
        for column, text, ids in zip(columns, texts, (source, target), strict=True):
            if not text.strip() or not len(ids):
                raise UserError(f"{place}: column {column!r} is empty")
            tokens[split] += len(ids)
            unknown[split] += int((ids == tokenizer.unk).sum()) if tokenizer.unk is not None else 0
        rows.add(
            split, source=source, target=target, text=np.frombuffer(texts[1].encode(), np.uint8), key=key_of(source)
        )
        counts[split].update(target.tolist())
    files = dict(data.path) if isinstance(data.path, tuple) else {}
    for split in SPLITS:
        if not rows.rows[split]:
            raise UserError(f"{files.get(split) or data.path or data.hub}: the {split} split has no rows")
        if unknown[split] > MOST_UNKNOWN * tokens[split]:
            share = unknown[split] / tokens[split]
            raise SpecError(
                [],
                f"tokenizer {data.tokenizer.name!r} does not fit the text: {share:.0%} of the {split} split's tokens "
                "are unknown to it; use a larger vocabulary, or bytes or bpe, which know every text",
            )
        counts[split][-1] = rows.rows[split]  # every target has an end
    return {"unknown_frac": sum(unknown.values()) / sum(tokens.values()), **_unigram(counts, tokenizer.vocab)}


def _unigram(counts: dict[str, Counter[int]], vocab: int) -> dict[str, float]:
    """What is reached on the validation split by the frequencies of the training split's tokens, one added to each:
    the loss, and the accuracy of always saying the most frequent one."""
    train, valid = counts["train"], counts["valid"]
    total, scored = sum(train.values()) + vocab + 1, sum(valid.values())
    nll = sum(count * math.log(total / (train[token] + 1)) for token, count in valid.items())
    most = max(train, key=lambda token: (train[token], -token))
    return {"unigram_loss": nll / scored, "unigram_accuracy": valid[most] / scored}
