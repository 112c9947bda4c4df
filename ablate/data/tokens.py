"""The token cache: a corpus as memory-mapped arrays, made once for each (text, tokenizer, split)."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablate import registry
from ablate.data.corpora import SPLITS, Corpus, corpus_of
from ablate.data.spelling import Spelling
from ablate.data.tokenizers import Tokenizer
from ablate.errors import SpecError, UserError
from ablate.run.files import locked
from ablate.spec import Component, DataSpec, canonical_component, digest

CACHE_FORMAT = 1
ENTRIES = {"vocab", "eos", "bytes", "documents", "unigram_entropy", "unknown_frac", "spelling_bits", "restores_text"}
LOOKED_AT = 100_000  # characters of validation text, to see whether a tokenizer gives them back
MOST_UNKNOWN = 0.2  # above this share of unknown tokens, the tokenizer does not fit the text


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus. `splits` are read-only memory maps; the rest describes them."""

    fingerprint: str
    vocab: int
    eos: int | None
    splits: dict[str, np.ndarray]
    bytes_per_token: dict[str, float]
    documents: dict[str, int]
    unigram_entropy: float  # nats per token, of the training split's token frequencies
    unknown_frac: float
    tokenizer: Tokenizer
    spelling: dict[str, float]  # bits per token of each split, to spell what the tokenizer does not know
    restores_text: bool  # whether decoding gives back what was encoded, spaces and all, but for unknown pieces

    def bits_per_byte(self, loss: float, split: str) -> float:
        """Of the split's raw text, from the loss in nats per token: (loss / ln 2 + spelling) / bytes per token.

        A lower bound where the tokenizer does not restore the text: what it drops is not paid for.
        """
        return (loss / math.log(2) + self.spelling[split]) / self.bytes_per_token[split]

    def unknown_in(self, split: str) -> float:
        """The share of a split's tokens that are the unknown token: its out-of-vocabulary rate."""
        unk = self.tokenizer.unk
        return 0.0 if unk is None else float((self.splits[split] == unk).mean())


def prepare(data: DataSpec, cache: Path) -> Tokens:
    """The tokens of a resolved specification, from the cache folder or made now.

    Whoever comes first makes them in a folder of its own and renames it into place; others wait for the lock.
    Raises `UserError` for text that cannot be read, or a tokenizer that does not fit it.
    """
    fingerprint = fingerprint_of(data)
    folder = cache / "tokens" / fingerprint
    if not _is_whole(folder):
        with locked(folder.with_suffix(".lock")):
            if not _is_whole(folder):
                _make(data, folder)
    return _open(data.tokenizer, folder, fingerprint)


def fingerprint_of(data: DataSpec) -> str:
    """Identity of a token cache: the text, how it is split, the tokenizer."""
    tokenizer = canonical_component("tokenizer", data.tokenizer)
    return digest([CACHE_FORMAT, data.content, data.valid, data.test, tokenizer, *filter(None, [data.vocabulary])])


def tokenizer_for(data: DataSpec, cache: Path, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that the specification names: trained on the texts, or taken over from the tokens
    `data.vocabulary`, which the stage before this one was trained on."""
    tokenizer: Tokenizer = registry.make("tokenizer", data.tokenizer)
    if not data.vocabulary:
        tokenizer.train(texts)
        return tokenizer
    file = cache / "tokens" / data.vocabulary / "tokenizer.json"
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError):
        raise UserError(f"{file}, the tokenizer of the stage before, is missing: plan the study again") from None
    if state is not None:
        tokenizer.restore(state)
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Keep a tokenizer in a folder of the token cache, for stages that begin from this one's model."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer.state()))


def read_tokenizer(component: Component, folder: Path) -> Tokenizer:
    """The tokenizer that was kept there."""
    tokenizer: Tokenizer = registry.make("tokenizer", component)
    state = json.loads((folder / "tokenizer.json").read_text())
    if state is not None:
        tokenizer.restore(state)
    return tokenizer


def _is_whole(folder: Path) -> bool:
    """Whether all files are there at their full sizes: a machine that went down can leave torn ones."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        size = np.dtype(meta["dtype"]).itemsize
        full = {f"{split}.bin": size * meta["tokens"][split] for split in SPLITS}
        whole = all((folder / name).stat().st_size == each for name, each in full.items())
        return whole and meta.keys() >= ENTRIES and bool((folder / "tokenizer.json").stat().st_size)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _make(data: DataSpec, folder: Path) -> None:
    corpus = corpus_of(data)
    tokenizer = tokenizer_for(
        data, folder.parent.parent, (text for split, text in corpus.documents() if split == "train")
    )
    part = Path(tempfile.mkdtemp(prefix=folder.name, suffix=".part", dir=folder.parent))
    try:
        meta = _write_splits(corpus, tokenizer, part)
        _check(meta, data)
        write_tokenizer(part, tokenizer)
        (part / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)  # torn, or not there
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_splits(corpus: Corpus, tokenizer: Tokenizer, part: Path) -> dict[str, Any]:
    dtype = np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)
    tokens, sizes, documents = (dict.fromkeys(SPLITS, 0) for _ in range(3))
    counts = np.zeros(tokenizer.vocab, dtype=np.int64)
    spelling, restores = Spelling(SPLITS), True
    unknown = 0
    streams = {split: open(part / f"{split}.bin", "wb") for split in SPLITS}
    try:
        for split, text in corpus.documents():
            ids = tokenizer.encode(text)
            pieces = tokenizer.unknown_pieces(text) if (ids == tokenizer.unk).any() else []
            spelling.add(split, pieces)
            unknown += len(pieces)
            if split == "valid" and restores and sizes[split] < LOOKED_AT:
                restores = _restores(tokenizer, text[:LOOKED_AT])
            if tokenizer.eos is not None:
                ids = np.append(ids, tokenizer.eos)
            if split == "train":
                counts += np.bincount(ids, minlength=tokenizer.vocab)
            streams[split].write(ids.astype(dtype).tobytes())  # numpy's tofile hides why a write failed
            tokens[split] += len(ids)
            sizes[split] += len(text.encode())
            documents[split] += 1
    finally:
        for stream in streams.values():
            stream.close()
    share = counts[counts > 0] / max(1, counts.sum())
    return {
        "vocab": tokenizer.vocab,
        "eos": tokenizer.eos,
        "dtype": dtype.name,
        "tokens": tokens,
        "bytes": sizes,
        "documents": documents,
        "unigram_entropy": float(-(share * np.log(share)).sum()),
        "unknown_frac": unknown / max(1, sum(tokens.values())),
        "spelling_bits": {split: spelling.bits(split) for split in SPLITS},
        "restores_text": restores,
    }


def _restores(tokenizer: Tokenizer, text: str) -> bool:
    """Whether decoding gives back a text, but for its unknown pieces."""
    ids, kept, at = tokenizer.encode(text), [], 0
    for piece in tokenizer.unknown_pieces(text):
        found = text.index(piece, at)
        kept.append(text[at:found])
        at = found + len(piece)
    return tokenizer.decode(ids[ids != tokenizer.unk].tolist()) == "".join([*kept, text[at:]])


def _check(meta: dict[str, Any], data: DataSpec) -> None:
    files = dict(data.path) if isinstance(data.path, tuple) else {}
    for split in SPLITS:
        if not meta["tokens"][split]:
            where = files.get(split) or data.path or data.hub or data.corpus
            raise UserError(f"{where}: the {split} split is empty: there is too little text")
    if meta["unknown_frac"] > MOST_UNKNOWN:
        raise SpecError(
            [],
            f"tokenizer {data.tokenizer.name!r} does not fit the text: {meta['unknown_frac']:.0%} of the tokens are "
            "unknown to it; use a larger vocabulary, or bytes or bpe, which know every text",
        )


def _open(component: Component, folder: Path, fingerprint: str) -> Tokens:
    meta = json.loads((folder / "meta.json").read_text())
    tokenizer = read_tokenizer(component, folder)
    splits: dict[str, np.ndarray] = {
        split: np.memmap(folder / f"{split}.bin", dtype=meta["dtype"], mode="r") for split in SPLITS
    }
    per_token = {split: meta["bytes"][split] / meta["tokens"][split] for split in SPLITS}
    return Tokens(
        fingerprint,
        meta["vocab"],
        meta["eos"],
        splits,
        per_token,
        meta["documents"],
        meta["unigram_entropy"],
        meta["unknown_frac"],
        tokenizer,
        {split: meta["spelling_bits"][split] / meta["tokens"][split] for split in SPLITS},
        meta["restores_text"],
    )
