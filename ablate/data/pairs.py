"""Pairs of sentences, one good and one bad, and their tokens in a cache."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablate import registry
from ablate.data.corpora import examples_of
from ablate.data.readers import read_rows, text_of
from ablate.data.tokenizers import Tokenizer
from ablate.data.tokens import tokenizer_for, write_tokenizer
from ablate.errors import SpecError, UserError
from ablate.run.files import locked
from ablate.spec import DataSpec, canonical_component, digest

PAIRS_FORMAT = 1


@dataclass(frozen=True)
class Pair:
    """A pair, the group that it belongs to (empty: none), and where it stands, for messages."""

    good: str
    bad: str
    group: str
    place: str


@dataclass(frozen=True)
class PairTokens:
    """Sentence 2 i is the good one of pair i, 2 i + 1 the bad one; sentence j is ids[ends[j] : ends[j + 1]]."""

    fingerprint: str
    tokenizer: Tokenizer
    ids: np.ndarray
    ends: np.ndarray
    group_of: np.ndarray
    groups: tuple[str, ...]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence."""
        return np.diff(self.ends)

    def sentence(self, index: int) -> np.ndarray:
        return self.ids[self.ends[index] : self.ends[index + 1]].astype(np.int64)


def read_pairs(data: DataSpec, good: str, bad: str, group: str | None) -> Iterator[Pair]:
    """All pairs of a resolved specification. Raises `UserError` with the file and the row of what is no pair."""
    for _, files in examples_of(data, (good, bad)).files:
        for file in files:
            for place, row in _rows(file, (good, bad)):
                term = str(row.get(group) or "") if group else ""
                pair = Pair(text_of(row, good, place), text_of(row, bad, place), term, place)
                for name, sentence in ((good, pair.good), (bad, pair.bad)):
                    if not sentence.strip():
                        raise UserError(f"{place}: column {name!r} is empty, must be a sentence")
                yield pair


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The rows of a file, or of all JSON lines in an archive. (What macOS leaves in archives is no data.)"""
    if file.suffix.lower() != ".zip":
        yield from read_rows(file, columns)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(file) as archive:
                names = [name for name in sorted(archive.namelist()) if name.endswith(".jsonl")]
                names = [name for name in names if not Path(name).name.startswith("._")]
                found = [Path(archive.extract(name, folder)) for name in names]
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{file}: cannot be read: {error}") from None
        if not found:
            raise UserError(f"{file}: holds no .jsonl file")
        try:
            for each in found:
                for place, row in read_rows(each, columns):
                    yield place.replace(folder, str(file)), row
        except UserError as error:
            raise UserError(str(error).replace(folder, str(file))) from None


def prepare_pairs(
    data: DataSpec, cache: Path, read: Callable[[], Iterator[Pair]], options: tuple[Any, ...]
) -> PairTokens:
    """The tokens of the pairs, from the cache folder or made now. `options` are those that `read` goes by."""
    tokenizer = canonical_component("tokenizer", data.tokenizer)
    fingerprint = digest(["pairs", PAIRS_FORMAT, data.content, *options, tokenizer, data.vocabulary])
    folder = cache / "tokens" / fingerprint
    if not (folder / "meta.json").is_file():
        with locked(folder.with_suffix(".lock")):
            if not (folder / "meta.json").is_file():
                _make(data, folder, read)
    kept: Tokenizer = registry.make("tokenizer", data.tokenizer)
    state = json.loads((folder / "tokenizer.json").read_text())
    if state is not None:
        kept.restore(state)
    meta = json.loads((folder / "meta.json").read_text())
    ids, ends, group_of = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "ends", "group_of"))
    return PairTokens(fingerprint, kept, ids, ends, group_of, tuple(meta["groups"]))


def _make(data: DataSpec, folder: Path, read: Callable[[], Iterator[Pair]]) -> None:
    sentences = (text for pair in read() for text in (pair.good, pair.bad))
    tokenizer = tokenizer_for(data, folder.parent.parent, sentences)
    ids: list[np.ndarray] = []
    groups: dict[str, int] = {}
    group_of = []
    for pair in read():
        for sentence in (pair.good, pair.bad):
            try:
                ids.append(tokenizer.encode(sentence))
            except SpecError as error:
                raise UserError(f"{pair.place}: {error}") from None
        group_of.append(groups.setdefault(pair.group, len(groups)))
    if not ids:
        raise UserError(f"{data.path or data.hub}: holds no pair of sentences")
    part = Path(tempfile.mkdtemp(prefix=folder.name, suffix=".part", dir=folder.parent))
    try:
        np.save(part / "ids.npy", np.concatenate(ids).astype(np.uint32))
        np.save(part / "ends.npy", np.cumsum([0, *map(len, ids)]))
        np.save(part / "group_of.npy", np.array(group_of))
        write_tokenizer(part, tokenizer)
        (part / "meta.json").write_text(json.dumps({"groups": list(groups)}))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
