"""Documents from files: text, JSON lines, CSV and Parquet, plain or compressed."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ablate.errors import UserError, unknown

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
COMPRESSED = (*OPENERS, ".zst")


def kind_of(file: Path) -> str | None:
    """The format of a file by its name without a compression suffix, None where no reader knows it."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def read_documents(file: Path, column: str) -> Iterator[str]:
    """The documents of one file, in order. A text file is one document; elsewhere each row is one.

    Raises `UserError` with the file and the row for anything that is not what its name says.
    """
    kind = kind_of(file)
    if kind is None:
        known = ", ".join(READERS)
        raise UserError(f"{file}: cannot be read as text; known: {known}, each also with {', '.join(COMPRESSED)}")
    try:
        yield from READERS[kind](file, column)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            "convert it first, for example with iconv -f latin1 -t utf-8"
        ) from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def _open(file: Path) -> IO[str]:
    suffix = file.suffix.lower()
    if suffix == ".zst":
        import zstandard

        try:
            return zstandard.open(file, "rt", encoding="utf-8", newline="")
        except zstandard.ZstdError as error:
            raise UserError(f"{file}: cannot be read: {error}") from None
    return OPENERS.get(suffix, open)(file, "rt", encoding="utf-8", newline="")


def _read_text(file: Path, column: str) -> Iterator[str]:
    with _open(file) as stream:
        yield stream.read().replace("\r\n", "\n")


def _read_jsonl(file: Path, column: str) -> Iterator[str]:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{place}: not JSON: {error.msg}") from None
            yield row if isinstance(row, str) else _cell(row, column, place)


def _read_csv(file: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)
    with _open(file) as stream:
        rows = csv.reader(stream, strict=True)
        try:
            header = next(rows, [])
            for row in rows:
                if len(row) != len(header):
                    raise UserError(f"{file}:{rows.line_num}: {len(row)} columns, but the header has {len(header)}")
                yield _cell(dict(zip(header, row, strict=True)), column, f"{file}:{rows.line_num}")
        except csv.Error as error:
            raise UserError(f"{file}:{rows.line_num}: not CSV: {error}") from None


def _read_parquet(file: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if column not in names:
            raise UserError(f"{file}: {unknown('column', column, names)} (set data.column)")
        number = 0
        for batch in table.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield _cell({column: value}, column, f"{file}: row {number}")
    except ArrowException as error:
        raise UserError(f"{file}: not Parquet: {error}") from None


def _cell(row: Any, column: str, place: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{place}: holds {type(row).__name__}, must be an object or text")
    if column not in row:
        raise UserError(f"{place}: {unknown('column', column, row)} (set data.column)")
    if not isinstance(row[column], str):
        raise UserError(f"{place}: {column} is {row[column]!r}, must be text")
    return row[column]


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
