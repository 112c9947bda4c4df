"""Rows of ids of different lengths, memory-mapped: one flat file of ids and one of offsets for each field of a split.

Used like this, `make` running once for each fingerprint:

def make(folder: Path, rows: RaggedWriter) -> dict[str, Any]:
    tokenizer = tokenizer_for(data, cache, texts_of_the_training_split)
    for split, place, row in examples.rows():
        rows.add(split, text=tokenizer.encode(...), label=[class_of(row)])
    write_tokenizer(folder, tokenizer)
    return {"classes": names}                                      # any JSON, kept as `.meta`

kept = prepare_ragged(cache, digest(["my task", fingerprint_of(data)]), SPLITS, ("text", "label"), make)
kept.splits["train"]["text"][17]        # the ids of row 17
kept.splits["train"]["text"].lengths    # of all rows
kept.splits["train"]["label"].ids       # a field with one id a row is an array as it is
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablate.run.files import locked

IDS, OFFSETS = np.dtype("<u4"), np.dtype("<i8")
TOGETHER = 4096  # rows that are written at once


class Ragged:
    """Rows of ids: row i is ids[offsets[i] : offsets[i + 1]]. Both arrays are read-only memory maps."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray):
        self.ids, self.offsets = ids, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """The ids of one row, int64."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]].astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """The length of every row, int64."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class RaggedSplits:
    """`splits[split][field]`, and what the maker said of them; `folder` also holds what else it wrote there."""

    fingerprint: str
    folder: Path
    splits: dict[str, dict[str, Ragged]]
    meta: dict[str, Any]


class RaggedWriter:
    """Writes rows one after the other. Every row has all fields."""

    def __init__(self, folder: Path, splits: Sequence[str], fields: Sequence[str]):
        self.fields = tuple(fields)
        self.rows = dict.fromkeys(splits, 0)
        names = [(split, field) for split in splits for field in fields]
        self._ends = dict.fromkeys(names, 0)
        self._waiting: dict[tuple[str, str], list[np.ndarray]] = {name: [] for name in names}
        self._ids = {name: open(folder / _file(*name, "ids"), "wb") for name in names}
        self._offsets = {name: open(folder / _file(*name, "offsets"), "wb") for name in names}
        for stream in self._offsets.values():
            stream.write(np.zeros(1, OFFSETS).tobytes())

    def add(self, split: str, **row: np.ndarray | Sequence[int]) -> None:
        """One row more of a split: the ids of each field, none of them negative."""
        for field in self.fields:
            self._waiting[split, field].append(np.asarray(row[field], dtype=np.int64))
        self.rows[split] += 1
        if not self.rows[split] % TOGETHER:
            self._write(split)

    def _write(self, split: str) -> None:
        for name in ((split, field) for field in self.fields):
            if not (rows := self._waiting[name]):
                continue
            ids = np.concatenate(rows)
            assert not ids.size or 0 <= ids.min() <= ids.max() < 1 << 32, "an id does not fit 32 bits"
            ends = self._ends[name] + np.cumsum([len(row) for row in rows])
            self._ids[name].write(ids.astype(IDS).tobytes())  # numpy's tofile hides why a write failed
            self._offsets[name].write(ends.astype(OFFSETS).tobytes())
            self._ends[name] = int(ends[-1])
            rows.clear()

    def finish(self) -> None:
        """Write what is left."""
        for split in self.rows:
            self._write(split)

    def close(self) -> None:
        for stream in (*self._ids.values(), *self._offsets.values()):
            stream.close()


Maker = Callable[[Path, RaggedWriter], dict[str, Any]]


def prepare_ragged(
    cache: Path, fingerprint: str, splits: Sequence[str], fields: Sequence[str], make: Maker
) -> RaggedSplits:
    """The rows of this fingerprint, from the token cache or made now by `make(folder, writer)`.

    Whoever comes first makes them in a folder of its own and renames it into place; others wait for the lock.
    """
    folder = cache / "tokens" / fingerprint
    if not _is_whole(folder):
        with locked(folder.with_suffix(".lock")):
            if not _is_whole(folder):
                _make(folder, splits, fields, make)
    kept = json.loads((folder / "meta.json").read_text())
    arrays = {split: {field: _open(folder, split, field) for field in fields} for split in splits}
    return RaggedSplits(fingerprint, folder, arrays, kept["meta"])


def _make(folder: Path, splits: Sequence[str], fields: Sequence[str], make: Maker) -> None:
    part = Path(tempfile.mkdtemp(prefix=folder.name, suffix=".part", dir=folder.parent))
    try:
        rows = RaggedWriter(part, splits, fields)
        try:
            meta = make(part, rows)
            rows.finish()
        finally:
            rows.close()
        files = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
        (part / "meta.json").write_text(json.dumps({"meta": meta, "files": files}))
        shutil.rmtree(folder, ignore_errors=True)  # torn, or not there
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether all files are there at their full sizes: a machine that went down can leave torn ones."""
    try:
        files: dict[str, int] = json.loads((folder / "meta.json").read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _open(folder: Path, split: str, field: str) -> Ragged:
    return Ragged(
        _map(folder / _file(split, field, "ids"), IDS), _map(folder / _file(split, field, "offsets"), OFFSETS)
    )


def _map(file: Path, dtype: np.dtype) -> np.ndarray:
    """A plain view of the map, which is faster to index. An empty file cannot be mapped."""
    return np.asarray(np.memmap(file, dtype=dtype, mode="r")) if file.stat().st_size else np.empty(0, dtype)


def _file(split: str, field: str, what: str) -> str:
    return f"{split}.{field}.{what}"
