"""Where text comes from: the embedded corpus, a user's files, a Hugging Face data set.

A corpus knows the fingerprint of its content, which identity rests on, and gives its documents by split.
"""

from __future__ import annotations

import hashlib
import lzma
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ablate.data.readers import kind_of, read_documents
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
        hashes = np.array([_hash64(text) for text in self._read(sources["all"])], dtype=np.uint64)
        if len(hashes) < FEWEST_DOCUMENTS:
            for text in self._read(sources["all"]):
                yield from self._cut(text)
            return
        ordered = np.sort(hashes)
        n_test = max(1, round(len(hashes) * self.test))
        n_valid = max(1, round(len(hashes) * self.valid))
        below_test, below_valid = ordered[n_test], ordered[min(n_test + n_valid, len(hashes) - 1)]
        for text, key in zip(self._read(sources["all"]), hashes, strict=True):
            yield "test" if key < below_test else "valid" if key < below_valid else "train", text

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


def kjv_chapters() -> Iterator[str]:
    """The King James text (public domain), one document a chapter, each verse on a line with its reference."""
    text = lzma.decompress(KJV.read_bytes()).decode("ascii")
    for _, verses in groupby(text.splitlines(keepends=True), lambda line: line.split(":", 1)[0]):
        yield "".join(verses)


def resolve(data: DataSpec, folder: Path) -> DataSpec:
    """The specification with absolute paths and the fingerprint of its text. `folder` is the grid's.

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
    elif data.corpus is not None and data.corpus != "kjv":
        raise SpecError(["corpus"], unknown("corpus", data.corpus, ["kjv"]) + " (your own files: data.path)")
    data = replace(data, tokenizer=tokenizer)
    return replace(data, content=_fingerprint(data))


def _place(folder: Path, path: str, where: list[str]) -> Path:
    try:
        return (folder / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError) as error:  # no such home, a null character
        raise SpecError(where, f"{path!r} is no path: {error}") from None


def corpus_of(data: DataSpec) -> Corpus:
    """The corpus of a resolved specification."""
    return Corpus(tuple(_files(data).items()), data.column, data.valid, data.test)


def _files(data: DataSpec) -> dict[str, tuple[Path, ...]]:
    if data.hub is not None:
        from ablate.data.hub import materialise

        return {"all": (materialise(data.hub, data.hub_config, data.column),)}
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


def _fingerprint(data: DataSpec) -> str:
    """Content only: the bytes of the files with their splits, the column read, a saved tokenizer's bytes."""
    sources = [(split, [_hash_file(file) for file in files]) for split, files in sorted(_files(data).items())]
    extra = []
    if saved := data.tokenizer.get("path"):
        place = Path(saved)
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        extra = [_hash_file(file) for file in files if file.is_file()]
    return digest([sources, data.column if data.corpus is None else "", extra])


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
