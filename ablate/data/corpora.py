"""Where text comes from: the embedded corpus, a user's files, a Hugging Face data set.

A corpus knows the fingerprint of its content, which identity rests on, and gives its documents by split.
"""

from __future__ import annotations

import hashlib
import lzma
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ablate.data.readers import Row, kind_of, read_documents, read_rows, text_of, value_of
from ablate.errors import SpecError, UserError, unknown
from ablate.spec import DataSpec, digest

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
FEWEST_DOCUMENTS = 20  # below this, splits are cut inside the documents
KJV = Path(__file__).parent / "kjv.txt.xz"


@dataclass(frozen=True)
class Corpus:
    """Documents, and how they are split. `files` maps a split, or "all", to its sources in order."""

    files: tuple[tuple[str, tuple[Path, ...]], ...]
    column: str
    valid: float
    test: float

    def documents(self) -> Iterator[tuple[str, str]]:
        """(split, text) of every document, in the order of the sources.

        Sources that are split already keep their splits. Otherwise documents are split by a hash of their text,
        so that equal documents never lie on both sides; with fewer than 20 documents each is cut at line ends
        (at spaces in the rest of a line) into a training part, a validation part and a test part.
        """
        sources = dict(self.files)
        if "all" not in sources:
            for split in SPLITS:
                for text in self._read(sources[split]):
                    yield split, text
            return
        hashes = hashes_of(self._read(sources["all"]))
        if len(hashes) < FEWEST_DOCUMENTS:
            for text in self._read(sources["all"]):
                yield from self._cut(text)
            return
        yield from zip(split_by_hash(hashes, self.valid, self.test), self._read(sources["all"]), strict=True)

    def _cut(self, text: str) -> Iterator[tuple[str, str]]:
        ends = []
        for fraction in (1 - self.valid - self.test, 1 - self.test):
            at = int(len(text) * fraction)
            found = (text.find(mark, at, len(text) - 1) + 1 for mark in ("\n", " "))
            ends.append(next(filter(None, found), len(text)))
        for split, part in zip(SPLITS, (text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]), strict=True):
            if part:
                yield split, part

    def _read(self, files: tuple[Path, ...]) -> Iterator[str]:
        for file in files:
            for text in kjv_chapters() if file == KJV else read_documents(file, self.column):
                if text.strip():
                    yield text


@dataclass(frozen=True)
class Examples:
    """Rows with several columns, and how they are split; `files` as of a `Corpus`."""

    files: tuple[tuple[str, tuple[Path, ...]], ...]
    columns: tuple[str, ...]
    valid: float
    test: float

    def rows(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """(split, place, values by column) of every row, in the order of the sources.

        Rows that are not split already are split by a hash of the first column's text: equal texts never lie on
        both sides. Raises `UserError` with the file and the row where a column is missing.
        """
        sources = dict(self.files)
        if "all" not in sources:
            for split in SPLITS:
                for place, row in self._read(sources[split]):
                    yield split, place, row
            return
        hashes = hashes_of(text_of(row, self.columns[0], place) for place, row in self._read(sources["all"]))
        if len(hashes) < FEWEST_DOCUMENTS:
            where = sources["all"][0]
            raise UserError(f"{where}: {len(hashes)} rows are too few to split: there must be {FEWEST_DOCUMENTS}")
        splits = split_by_hash(hashes, self.valid, self.test)
        for split, (place, row) in zip(splits, self._read(sources["all"]), strict=True):
            yield split, place, row

    def _read(self, files: tuple[Path, ...]) -> Iterator[Row]:
        for file in files:
            for place, row in read_rows(file, self.columns):
                for column in self.columns:
                    value_of(row, column, place)
                yield place, row


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """64 bits of each text."""
    return np.array([_hash64(text) for text in texts], dtype=np.uint64)


def split_by_hash(hashes: np.ndarray, valid: float, test: float) -> list[str]:
    """The split of each: about these fractions, the same wherever the same text stands."""
    ordered = np.sort(hashes)
    n_test, n_valid = (max(1, round(len(hashes) * fraction)) for fraction in (test, valid))
    below_test, below_valid = ordered[n_test], ordered[min(n_test + n_valid, len(hashes) - 1)]
    return ["test" if key < below_test else "valid" if key < below_valid else "train" for key in hashes]


def kjv_chapters() -> Iterator[str]:
    """The King James text (public domain), one document a chapter, each verse on a line with its reference."""
    text = lzma.decompress(KJV.read_bytes()).decode("ascii")
    for _, verses in groupby(text.splitlines(keepends=True), lambda line: line.split(":", 1)[0]):
        yield "".join(verses)


def resolve(
    data: DataSpec,
    folder: Path,
    known: tuple[str, ...] = ("kjv",),
    columns: tuple[str, ...] | None = None,
    files: Callable[[DataSpec], Mapping[str, tuple[Path, ...]]] | None = None,
) -> DataSpec:
    """The specification with absolute paths and the fingerprint of its text. `folder` is the grid's; `known` names
    the corpora that the task has, the first one taken where the specification says nothing; `columns` are those
    that it reads, `data.column` unless given; `files` finds the files by split, or by what else tells them apart,
    for a task with layouts of its own.

    Raises `SpecError` for an unknown corpus, a missing file, a folder without readable files.
    """
    tokenizer = data.tokenizer
    if (path := tokenizer.get("path")) is not None:
        file = _place(folder, path, ["tokenizer", "path"])
        if not os.path.exists(file):
            raise SpecError(["tokenizer", "path"], f"{file} does not exist")
        tokenizer = replace(tokenizer, options=tuple(sorted({**dict(tokenizer.options), "path": str(file)}.items())))
    if data.path is not None:
        places = (
            tuple((split, str(_place(folder, file, ["path", split]))) for split, file in data.path)
            if isinstance(data.path, tuple)
            else str(_place(folder, data.path, ["path"]))
        )
        data = replace(data, path=places)
    elif data.hub is None and data.corpus is None:
        if not known:
            raise SpecError(["path"], f"is missing: task {data.task.name!r} has no data of its own")
        data = replace(data, corpus=known[0])
    elif data.corpus is not None and data.corpus not in known:
        raise SpecError(["corpus"], unknown("corpus", data.corpus, known) + " (your own files: data.path)")
    data = replace(data, tokenizer=tokenizer)
    found = _files(data, columns) if files is None else files(data)
    return replace(data, content=_fingerprint(data, columns, found))


def _place(folder: Path, path: str, where: list[str]) -> Path:
    try:
        return (folder / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError) as error:  # no such home, a null character
        raise SpecError(where, f"{path!r} is no path: {error}") from None


def corpus_of(data: DataSpec) -> Corpus:
    """The corpus of a resolved specification."""
    return Corpus(tuple(_files(data).items()), data.column, data.valid, data.test)


def examples_of(data: DataSpec, columns: tuple[str, ...]) -> Examples:
    """The rows of a resolved specification, in these columns."""
    return Examples(tuple(_files(data, columns).items()), columns, data.valid, data.test)


def _files(data: DataSpec, columns: tuple[str, ...] | None = None) -> dict[str, tuple[Path, ...]]:
    if data.hub is not None:
        from ablate.data.hub import materialise

        return {"all": (materialise(data.hub, data.hub_config, columns or (data.column,)),)}
    if data.path is None:
        return {"all": (KJV,)}
    if isinstance(data.path, tuple):
        return {split: _readable(Path(file)) for split, file in data.path}
    path = Path(data.path)
    files = _readable(path)
    if path.is_dir():
        by_split: dict[str, list[Path]] = {}
        for file in files:
            split = SPLIT_NAMES.get(file.name.split(".")[0].split("-")[0].split("_")[0].lower())
            by_split.setdefault(split or "all", []).append(file)
        if set(by_split) >= set(SPLITS):  # other files beside them are notes
            return {split: tuple(by_split[split]) for split in SPLITS}
    return {"all": files}


def _readable(path: Path) -> tuple[Path, ...]:
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise SpecError(["path"], f"{path} does not exist")
    if path.is_file():
        return (path,)
    files = tuple(sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file)))
    if not files:
        raise SpecError(["path"], f"{path} holds no file that can be read as text")
    return files


_hashes: dict[tuple[str, int, int], str] = {}


def _hash_file(file: Path) -> str:
    stat = file.stat()
    key = (str(file), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        try:
            with open(file, "rb") as stream:
                _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    return _hashes[key]


def _fingerprint(data: DataSpec, columns: tuple[str, ...] | None, by_split: Mapping[str, tuple[Path, ...]]) -> str:
    """Content only: the bytes of the files with their splits, the column read, a saved tokenizer's bytes."""
    sources = [(split, [_hash_file(file) for file in files]) for split, files in sorted(by_split.items())]
    extra = []
    if saved := data.tokenizer.get("path"):
        place = Path(saved)
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        extra = [_hash_file(file) for file in files if file.is_file()]
    column = "" if data.corpus is not None else data.column if columns is None else list(columns)
    return digest([sources, column, extra])


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
